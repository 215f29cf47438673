//! The golden VM: booted once, brought to rest, its device state taken; and clones of it. A clone
//! maps the golden memory privately, so it neither waits for a boot nor sees another VM's writes.
//!
//! The state goes through descriptors, as the sandbox forbids QEMU to start programs. The guest's
//! clocks stop with it, so to a clone no time passes between snapshot and start: no watchdog of
//! its kernel fires.

use crate::VmSpec;
use crate::boot::{BootError, Machine, Origin, boot_once, greet, start};
use crate::command::node_mib;
use crate::memory::Memory;
use crate::qmp::{Qmp, QmpError};
use case::link::{FromGuest, Look, RunRequest, ToGuest};
use case::profile::Profile;
use nix::sys::memfd::{MFdFlags, memfd_create};
use qapi::qmp;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Boots of the golden VM. Under TCG a kernel that patches its own text on two CPUs now and then
/// runs into the old bytes (`Oops: int3`), and on a busy host a boot may stick: both are the
/// emulator's doing, and gone with the next boot.
const TRIES: u32 = 3;
/// A guest at rest is asked this, and nothing else may be on its way.
const REST_TIMEOUT: Duration = Duration::from_secs(60);
/// One command to QEMU's monitor.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole device state, out or in; in practice tens of milliseconds.
const STATE_TIMEOUT: Duration = Duration::from_secs(30);
/// A clone that takes longer than this to answer is none.
const CLONE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often QEMU is asked whether it is done.
const GLANCE: Duration = Duration::from_millis(1);
/// Device state of the machines we start is a third of a MiB.
const STATE_BYTES_MAX: u64 = 32 << 20;
/// Name of the descriptor the state goes through.
const STATE: &str = "state";
/// Wakes the worker, its scratch pages and the kernel's huge page paths, and leaves nothing.
const WARM_UP: &str = "hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len=2M\n\
    mmap at=r0 len=2M share=shared from=f0\nwrite at=r0 len=8K\nread at=r0 len=8K\n";

/// What a golden VM leaves.
#[derive(Debug)]
pub struct Golden {
    /// Sealed.
    pub memory: Memory,
    pub state: Vec<u8>,
    pub profile: Profile,
    /// The link was had over the second serial port, asked for or fallen back to.
    pub serial_link: bool,
    /// What the kernel said while it booted.
    pub console: Vec<u8>,
}

/// Boots `spec` and takes its memory and state; `say` is told why a boot is tried again.
pub fn make(spec: &VmSpec, say: &mut dyn FnMut(&str)) -> Result<Golden, BootError> {
    let (memory, mut machine, profile) = boot(spec, say)?;
    let failed = |why: String| BootError::Golden { what: "saved", why };
    warm(&mut machine).map_err(failed)?;
    let state = save(&mut machine.qmp).map_err(|e| failed(e.to_string()))?;
    let console = machine.console.since(0);
    let serial_link = machine.serial_link;
    // The last shared mapping of the memory ends with QEMU, and is waited for.
    drop(machine);
    memory.shrink().and_then(|()| memory.seal()).map_err(|e| failed(e.to_string()))?;
    Ok(Golden { memory, state, profile, serial_link, console })
}

fn boot(spec: &VmSpec, say: &mut dyn FnMut(&str)) -> Result<(Memory, Machine, Profile), BootError> {
    let mut spec = VmSpec { cover: None, ..spec.clone() };
    let mut failures = 0;
    loop {
        let no_memory = |source| BootError::Io { what: "cannot make guest memory".into(), source };
        let memory = Memory::new(node_mib(spec.memory_mib)).map_err(no_memory)?;
        match boot_once(&spec, Origin::PowerOnIn(&memory)) {
            Ok((machine, profile)) => return Ok((memory, machine, profile)),
            Err(BootError::NoLink { .. }) if !spec.serial_link => {
                say("nothing came over virtio-serial; booting again with the serial link");
                spec.serial_link = true;
            }
            Err(
                error @ (BootError::Panicked { .. }
                | BootError::Died { .. }
                | BootError::NoReady { .. }),
            ) => {
                failures += 1;
                if failures == TRIES {
                    return Err(error);
                }
                if failures == 1 {
                    say(&format!("booting the golden VM again: {error}"));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Runs one program, then makes sure that nothing is on its way in either direction.
fn warm(machine: &mut Machine) -> Result<(), String> {
    let program = case::text::parse(WARM_UP).map_err(|e| e.to_string())?;
    let (look, op_timeout_ms) = (Look::Each, 10_000);
    let run = RunRequest { id: 0, program, look, fresh: false, canary: None, op_timeout_ms };
    ask(machine, &ToGuest::Run(run), |m| matches!(m, FromGuest::Done { .. }))?;
    ask(machine, &ToGuest::Hello, |m| matches!(m, FromGuest::Ready(_)))
}

fn ask(
    machine: &mut Machine,
    message: &ToGuest,
    answers: impl Fn(&FromGuest) -> bool,
) -> Result<(), String> {
    let broken = |b| format!("the guest broke off: {b:?}");
    machine.link.send(message, machine.process.pidfd()).map_err(broken)?;
    let deadline = Instant::now() + REST_TIMEOUT;
    while let Some(got) = machine.link.next(machine.process.pidfd(), deadline).map_err(broken)? {
        if answers(&got) {
            return Ok(());
        }
    }
    Err("the guest does not come to rest".into())
}

/// Stops the guest and takes the state of everything but its memory.
fn save(monitor: &mut Qmp) -> Result<Vec<u8>, QmpError> {
    monitor.execute(&qmp::stop {}, COMMAND_TIMEOUT)?;
    ignore_shared(monitor)?;
    let file = state_file()?;
    monitor.give_fd(STATE, file.as_fd(), COMMAND_TIMEOUT)?;
    let uri = Some(format!("fd:{STATE}"));
    let order = qmp::migrate { uri, channels: None, detach: None, resume: None };
    monitor.execute(&order, COMMAND_TIMEOUT)?;
    await_completion(monitor)?;
    let len = file.metadata()?.len();
    if len == 0 || len > STATE_BYTES_MAX {
        return Err(QmpError::Refused(format!("a device state of {len} bytes")));
    }
    let mut state = vec![0; len as usize];
    file.read_exact_at(&mut state, 0)?;
    Ok(state)
}

/// A clone of `golden`: what the guest sees of the machine is the golden VM's, the rest `spec`'s.
pub fn clone(
    memory: &Memory,
    state: &[u8],
    spec: &VmSpec,
) -> Result<(Machine, Profile), BootError> {
    let started = Instant::now();
    let spec = VmSpec { boot_timeout: spec.boot_timeout.min(CLONE_TIMEOUT), ..spec.clone() };
    let mut machine = start(&spec, Origin::Snapshot(memory))?;
    if let Err(error) = resume(&mut machine.qmp, state) {
        let why = format!("{error}; {}", machine.last_words());
        return Err(BootError::Golden { what: "cloned", why });
    }
    greet(machine, &spec, started, true)
}

/// Gives QEMU the state and lets the guest go on.
fn resume(monitor: &mut Qmp, state: &[u8]) -> Result<(), QmpError> {
    ignore_shared(monitor)?;
    let file = state_file()?;
    // Leaves the file's position, which QEMU shares, at the start.
    file.write_all_at(state, 0)?;
    monitor.give_fd(STATE, file.as_fd(), COMMAND_TIMEOUT)?;
    let uri = Some(format!("fd:{STATE}"));
    let order = qmp::migrate_incoming { uri, channels: None, exit_on_error: None };
    monitor.execute(&order, COMMAND_TIMEOUT)?;
    await_completion(monitor)?;
    monitor.execute(&qmp::cont {}, COMMAND_TIMEOUT)?;
    Ok(())
}

/// Memory that lies in files is not part of the state.
fn ignore_shared(monitor: &mut Qmp) -> Result<(), QmpError> {
    let capability = qmp::MigrationCapability::x_ignore_shared;
    let capabilities = vec![qmp::MigrationCapabilityStatus { capability, state: true }];
    monitor.execute(&qmp::migrate_set_capabilities { capabilities }, COMMAND_TIMEOUT)?;
    Ok(())
}

fn state_file() -> io::Result<File> {
    Ok(File::from(memfd_create("hgm-state", MFdFlags::MFD_CLOEXEC)?))
}

/// `query-migrate`, of whose answer only one field is read: the others change with QEMU.
#[derive(Debug, Serialize)]
struct QueryMigrate {}

impl qapi::Command for QueryMigrate {
    type Ok = serde_json::Value;
    const NAME: &'static str = "query-migrate";
    const ALLOW_OOB: bool = false;
}

fn await_completion(monitor: &mut Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + STATE_TIMEOUT;
    while Instant::now() < deadline {
        let answer = monitor.execute(&QueryMigrate {}, COMMAND_TIMEOUT)?;
        let text = |name: &str| answer.get(name).and_then(serde_json::Value::as_str);
        match text("status") {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let why = text("error-desc").unwrap_or("the state did not go through");
                return Err(QmpError::Refused(why.to_string()));
            }
            _ => std::thread::sleep(GLANCE),
        }
    }
    Err(QmpError::Timeout)
}
