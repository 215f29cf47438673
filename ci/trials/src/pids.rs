//! Process numbers that are used again: a test runs once more in a PID namespace of its own, where it
//! says which number the next process gets.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

const INSIDE: &str = "TRIALS_PIDS";
/// Writable inside: the next process has the number after this one.
const LAST: &str = "/proc/sys/kernel/ns_last_pid";

/// A signal is sent before it has done its work.
const DYING: Duration = Duration::from_millis(100);
/// Seconds a test may take inside.
const TIME_MAX: &str = "100";

/// False: this test (its full name) was run inside and passed. True: this is inside; go on. With
/// `slow`, each signal is sent that much later than it was meant to, by strace.
pub fn in_namespace(test: &str, slow: Option<Duration>) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // What a test that failed left behind would keep strace there.
    let mut command = Command::new("timeout");
    command.args([
        "--signal=KILL",
        TIME_MAX,
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ]);
    // The first process there is not the test: it would have to bury what others leave.
    command.args(["sh", "-c", "\"$@\"; code=$?; exit $code", "sh"]);
    if let Some(slow) = slow {
        let inject = format!("inject=kill:delay_enter={}", slow.as_micros());
        command.args(["strace", "-f", "-o", "/dev/null", "-e", "trace=kill", "-e", &inject, "--"]);
    }
    let binary = std::env::current_exe().expect("the binary of this test");
    let out = command.arg(binary).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output();
    let out = out.expect("unshare (util-linux)");
    print!("{}", String::from_utf8_lossy(&out.stdout));
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "in a PID namespace (strace: ci/install --faults): {told}");
    false
}

/// Starts a process that has this number, leads a group of its own and has a child. `None`: somebody
/// still has the number.
pub fn stranger(pid: u32) -> Option<Child> {
    let last = std::fs::File::options().write(true).open(LAST);
    let set = last.and_then(|mut file| file.write_all((pid - 1).to_string().as_bytes()));
    set.expect("a PID namespace of its own");
    let mut command = Command::new("sh");
    let mut child = command.args(["-c", "sleep 1000; true"]).process_group(0).spawn().expect("sh");
    if child.id() == pid {
        return Some(child);
    }
    end(&mut child);
    None
}

/// Whether it still runs. Ends it if it does.
pub fn survived(mut stranger: Child) -> bool {
    std::thread::sleep(DYING);
    let lives = matches!(stranger.try_wait(), Ok(None));
    end(&mut stranger);
    lives
}

/// With its child: strace waits for all it follows.
fn end(child: &mut Child) {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
}
