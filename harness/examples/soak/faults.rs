//! What is done to a campaign, how it is mended, and when it counts as survived.

use crate::campaign::{Campaign, Said};
use crate::server::Server;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// File that fills a disk.
const FILL: &str = "filled-by-soak";
const BLOCK: usize = 1 << 20;
/// Who is not back after this is lost.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    VmKilled,
    AllVmsKilled,
    VmStopped,
    VmDelayed,
    CampaignStopped,
    HubKilled,
    HubRobbed,
    HubStopped,
    DiskFull,
}

/// One fault that was made.
pub struct Made {
    pub fault: Fault,
    at: Instant,
    /// What the campaign had said just before.
    before: Said,
    /// The VM it was done to.
    slot: Option<String>,
    healed: bool,
    /// Programs when it was mended.
    programs: u64,
    /// From the mending until the campaign was seen to go on.
    pub back: Option<Duration>,
}

impl Fault {
    pub fn all(disk: bool) -> Vec<Fault> {
        use Fault::*;
        let mut all = vec![
            VmKilled,
            AllVmsKilled,
            VmStopped,
            VmDelayed,
            CampaignStopped,
            HubKilled,
            HubRobbed,
            HubStopped,
        ];
        if disk {
            all.push(DiskFull);
        }
        all
    }

    pub const fn name(self) -> &'static str {
        match self {
            Fault::VmKilled => "a QEMU is killed",
            Fault::AllVmsKilled => "all QEMUs are killed",
            Fault::VmStopped => "a QEMU is stopped for good",
            Fault::VmDelayed => "a QEMU is stopped for 2 s",
            Fault::CampaignStopped => "the campaign is stopped for 15 s",
            Fault::HubKilled => "the hub is away for 20 s",
            Fault::HubRobbed => "the hub loses its disk",
            Fault::HubStopped => "the hub is stopped for 20 s",
            Fault::DiskFull => "the disk is full for 20 s",
        }
    }

    /// Until it is mended.
    const fn lasts(self) -> Duration {
        Duration::from_secs(match self {
            Fault::VmKilled | Fault::AllVmsKilled | Fault::VmStopped | Fault::HubRobbed => 0,
            Fault::VmDelayed => 2,
            Fault::CampaignStopped => 15,
            Fault::HubKilled | Fault::HubStopped | Fault::DiskFull => 20,
        })
    }

    /// Whether the VM it was done to must be replaced.
    const fn costs_vm(self) -> bool {
        matches!(self, Fault::VmKilled | Fault::AllVmsKilled | Fault::VmStopped)
    }
}

impl Made {
    /// One that is not mended, or from which nobody is back, is not covered up by the next.
    pub fn is_over(&self) -> bool {
        self.healed && (self.back.is_some() || self.at.elapsed() > PATIENCE)
    }
}

/// Does it.
pub fn make(
    fault: Fault,
    campaign: &Campaign,
    server: &mut Server,
    disk: Option<&Path>,
) -> Result<Made> {
    let before = campaign.said();
    let slot = before.vms.keys().next().cloned();
    let vm = slot.as_ref().and_then(|slot| before.vms.get(slot)).copied();
    match fault {
        Fault::VmKilled => signal(vm, Signal::SIGKILL),
        Fault::AllVmsKilled => {
            before.vms.values().for_each(|pid| signal(Some(*pid), Signal::SIGKILL));
        }
        Fault::VmStopped | Fault::VmDelayed => signal(vm, Signal::SIGSTOP),
        Fault::CampaignStopped => campaign.signal(Signal::SIGSTOP)?,
        Fault::HubKilled => server.kill()?,
        Fault::HubRobbed => {
            server.kill()?;
            server.lose_disk()?;
            server.restart()?;
        }
        Fault::HubStopped => server.signal(Signal::SIGSTOP)?,
        Fault::DiskFull => disk.map_or(Ok(()), fill)?,
    }
    let (programs, healed) = (before.programs, false);
    Ok(Made { fault, at: Instant::now(), before, slot, healed, programs, back: None })
}

/// Mends what has lasted long enough, and looks whether the campaign goes on.
pub fn heal(
    made: &mut [Made],
    campaign: &Campaign,
    server: &mut Server,
    disk: Option<&Path>,
) -> Result<()> {
    let Some(last) = made.last_mut() else { return Ok(()) };
    if !last.healed && last.at.elapsed() >= last.fault.lasts() {
        undo(last, campaign, server, disk)?;
        last.healed = true;
        last.at = Instant::now();
        last.programs = campaign.said().programs;
    }
    if last.healed && last.back.is_none() && is_back(last, &campaign.said()) {
        last.back = Some(last.at.elapsed());
    }
    Ok(())
}

/// At the end nothing stays broken.
pub fn heal_all(
    made: &mut [Made],
    campaign: &Campaign,
    server: &mut Server,
    disk: Option<&Path>,
) -> Result<()> {
    match made.last_mut() {
        Some(last) if !last.healed => undo(last, campaign, server, disk),
        _ => Ok(()),
    }
}

fn undo(made: &Made, campaign: &Campaign, server: &mut Server, disk: Option<&Path>) -> Result<()> {
    match made.fault {
        Fault::VmDelayed => {
            let vm = made.slot.as_ref().and_then(|slot| made.before.vms.get(slot)).copied();
            signal(vm, Signal::SIGCONT);
        }
        Fault::CampaignStopped => campaign.signal(Signal::SIGCONT)?,
        Fault::HubKilled => server.restart()?,
        Fault::HubStopped => server.signal(Signal::SIGCONT)?,
        Fault::DiskFull => disk.map_or(Ok(()), |disk| std::fs::remove_file(disk.join(FILL)))?,
        Fault::VmKilled | Fault::AllVmsKilled | Fault::VmStopped | Fault::HubRobbed => {}
    }
    Ok(())
}

/// Programs are run again, by a new QEMU if it took one.
fn is_back(made: &Made, now: &Said) -> bool {
    let replaced = |slot: &String| now.vms.get(slot) != made.before.vms.get(slot);
    let vms = match made.fault {
        Fault::AllVmsKilled => made.before.vms.keys().all(replaced),
        fault if fault.costs_vm() => made.slot.iter().all(replaced),
        _ => true,
    };
    vms && now.programs > made.programs
}

/// A QEMU that ended a moment ago is no error: VMs come and go. Its pid is taken from the log, so
/// it is looked at first.
fn signal(pid: Option<i32>, signal: Signal) {
    let Some(pid) = pid.filter(|pid| *pid > 1) else { return };
    let name = crate::proc_file(pid, "comm").unwrap_or_default();
    if name.starts_with("qemu") {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Writes until there is no room for a byte.
fn fill(disk: &Path) -> Result<()> {
    let path = disk.join(FILL);
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let block = vec![0; BLOCK];
    for size in [BLOCK, 4096, 1] {
        while file.write_all(&block[..size]).is_ok() {}
    }
    Ok(())
}

/// A row of the table of faults.
pub struct Row {
    pub fault: Fault,
    pub tried: u64,
    pub lost: u64,
    pub longest: Duration,
}

pub fn table(made: &[Made]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for one in made {
        let at = rows.iter().position(|row| row.fault == one.fault).unwrap_or_else(|| {
            rows.push(Row { fault: one.fault, tried: 0, lost: 0, longest: Duration::ZERO });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.tried += 1;
        row.lost += u64::from(one.back.is_none());
        row.longest = row.longest.max(one.back.unwrap_or_default());
    }
    rows.sort_by_key(|row| row.fault);
    rows
}
