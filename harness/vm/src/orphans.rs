//! VMs whose owner is gone. Who is killed takes his VMs with him ([`crate::process`]), but for one
//! moment: bubblewrap starts what is behind the wall, and only then that asks to die with it. What
//! is left over waits for nobody, and takes memory and a CPU; whoever starts VMs next ends it. Never
//! here: VMs of anybody who lives, whoever that is.

use crate::pidfd;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who inherits orphans: init, and what a user's session has in its place.
const HEIRS: &[&str] = &["init", "systemd"];
/// In the name of each of our VMs.
const NAME: &str = "guest=hgm ";
/// Bytes of a command line that are looked at.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Ends those of this user; gives how many there were.
pub fn end() -> usize {
    let uid = nix::unistd::geteuid().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| end_one(pid, uid).is_some()).count()
}

fn end_one(pid: u32, uid: u32) -> Option<()> {
    let proc = Path::new("/proc").join(pid.to_string());
    if fs::metadata(&proc).ok()?.uid() != uid || !is_orphan(pid) {
        return None;
    }
    let pidfd = pidfd::open(pid).ok()?;
    // Still one, so the descriptor is of it and not of a later bearer of the number.
    (is_orphan(pid) && pidfd::send_kill(pidfd.as_fd())).then_some(())
}

fn is_orphan(pid: u32) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    if !is_vm(&line) {
        return false;
    }
    parent(pid).is_some_and(|parent| parent != std::process::id() && is_heir(parent))
}

/// Whether a command line, its words ended by zeros, is of a VM of ours or of the wall around one.
fn is_vm(line: &[u8]) -> bool {
    let mut words = line[..line.len().min(LINE_BYTES_MAX)].split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let runs_vms = program == b"bwrap" || program.starts_with(b"qemu");
    runs_vms
        && words.any(|w| w == b"-name")
        && words.next().is_some_and(|w| w.starts_with(NAME.as_bytes()))
}

/// In a container the first process may be one of ours.
fn is_heir(pid: u32) -> bool {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let heir = name(pid);
    HEIRS.contains(&heir.trim_end()) || pid == 1 && heir != name(std::process::id())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything: state and parent follow its bracket.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_vm_is_told_by_its_program_and_its_name() {
        let line = |words: &[&str]| {
            words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>()
        };
        for ours in [
            &[
                "/usr/bin/bwrap",
                "--x",
                "--",
                "qemu-system-x86_64",
                "-name",
                "guest=hgm /d/vm0",
                "-m",
            ][..],
            &["qemu-system-x86_64", "-name", "guest=hgm /a b", "-m"],
        ] {
            assert!(is_vm(&line(ours)), "{ours:?}");
        }
        for other in [
            &["qemu-system-x86_64", "-name", "guest=other", "-m"][..],
            &["qemu-system-x86_64", "-m", "guest=hgm /d"],
            &["vim", "-name", "guest=hgm /d"],
            &["bwrap", "-name"],
            &[],
        ] {
            assert!(!is_vm(&line(other)), "{other:?}");
        }
    }

    /// What looks like a VM, and its number; it lives until its standard input ends.
    fn start(orphaned: bool) -> (std::process::Child, u32) {
        let vm = "exec -a bwrap bash -c 'echo $$; read' x -name 'guest=hgm /nowhere'";
        // The outer shell ends, or stays as the parent.
        let script = if orphaned { format!("({vm}) <&0 &") } else { format!("({vm}); exit") };
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let (mut out, mut text, mut byte) = (shell.stdout.take().unwrap(), String::new(), [0]);
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            text.push(byte[0].into());
        }
        (shell, text.parse().unwrap())
    }

    #[test]
    fn those_without_an_owner_are_ended_and_no_others() {
        let (mut owner, owned) = start(false);
        let (mut gone, orphan) = start(true);
        // Waiting for the shell would close it.
        let _stdin = gone.stdin.take();
        gone.wait().unwrap();
        let alive = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        let until = Instant::now() + Duration::from_secs(20);
        while !is_orphan(orphan) {
            assert!(Instant::now() < until, "nobody inherited it");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_orphan(owned) && alive(owned) && alive(orphan));
        assert!(end() >= 1);
        while alive(orphan) {
            assert!(Instant::now() < until, "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(alive(owned));
        drop(owner.stdin.take());
        owner.wait().unwrap();
    }
}
