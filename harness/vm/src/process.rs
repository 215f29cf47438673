//! The QEMU process: started so that it dies with us ([`crate::orphans`] has the one exception),
//! watched through a pidfd, killed with its whole group, and always reaped.

use crate::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Open files of one QEMU; it needs about 30.
const NOFILE_MAX: u64 = 256;
/// Largest file QEMU may write (its log), in bytes.
const FSIZE_MAX: u64 = 64 << 20;
/// Wrappers between us and QEMU: those of the jail, and perhaps a script.
const WRAPPERS_MAX: usize = 8;
/// How long the wall may take to end after what is behind it, in practice milliseconds.
const WALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a killed process may take to go, in practice milliseconds.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// The program only waits for one child, which has a PID namespace of its own: the wall.
    pub walled: bool,
}

/// A started QEMU. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    walled: bool,
    /// Taken only when a process will not die and a thread is left to wait for it.
    child: Option<Child>,
    pidfd: OwnedFd,
    pid: u32,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the program. Of our descriptors it inherits only `pass`; its standard error goes to
    /// `stderr`; its environment is empty.
    pub fn start(launch: Launch, pass: Vec<OwnedFd>, stderr: File) -> io::Result<Process> {
        let parent = std::process::id();
        let Launch { program, args, walled } = launch;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(stderr.try_clone()?)
            .stderr(stderr)
            .process_group(0);
        if let Some(path) = std::env::var_os("PATH") {
            // Only for finding the program: a bare name is looked up here, not in QEMU.
            command.env("PATH", path);
        }
        let fds: Vec<RawFd> = pass.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: the closure makes only async-signal-safe calls (prctl, getppid, fcntl,
        // setrlimit, _exit) on values it owns, and allocates nothing.
        unsafe {
            command.pre_exec(move || prepare(parent, &fds));
        }
        let mut child = spawn(command)?;
        drop(pass);
        let pid = child.id();
        match pidfd::open(pid) {
            Ok(pidfd) => Ok(Process { walled, child: Some(child), pidfd, pid, status: None }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Of the program itself, not of the wall around it. Once that was waited for its number may be
    /// somebody else's.
    pub fn pid(&self) -> u32 {
        if self.walled && self.status.is_none() { innermost(self.pid) } else { self.pid }
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The exit status, if the process ends within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        if self.status.is_none() && readable(self.pidfd.as_fd(), timeout) {
            self.status = self.child.as_mut().and_then(|child| child.wait().ok());
        }
        self.status
    }

    /// Kills the process and everything in its group. Idempotent.
    pub fn kill(&mut self) {
        if self.status.is_none() && self.child.is_some() {
            if self.walled && kill_first_child(self.pid) && readable(self.pidfd(), WALL_TIMEOUT) {
                // It has buried its child; killed first, it would leave that to whoever inherits
                // orphans here, who may not.
                return;
            }
            // Not yet reaped, so the number still means this process and its group. A wrapper
            // script's children are in the group too.
            if let Ok(pid @ 2..) = i32::try_from(self.pid) {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if let Some(child) = &mut self.child {
                let _ = child.kill();
            }
        }
    }

    /// Resident memory, in KiB; 0 once the process is gone.
    pub fn rss_kib(&self) -> u64 {
        self.figure("status", "VmRSS:")
    }

    /// Written memory that no other process sees, in KiB; 0 once the process is gone.
    pub fn private_kib(&self) -> u64 {
        self.figure("smaps_rollup", "Private_Dirty:")
    }

    /// Somebody stopped it by a signal or traces it: its silence is not the guest's.
    pub fn is_stopped(&self) -> bool {
        if self.status.is_some() {
            return false;
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", innermost(self.pid)));
        // The name may hold anything: the state follows its bracket.
        let stat = stat.unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, Some('T' | 't'))
    }

    /// A row in KiB of a file below /proc/PID.
    fn figure(&self, file: &str, row: &str) -> u64 {
        if self.status.is_some() {
            return 0;
        }
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", innermost(self.pid)));
        text.ok()
            .and_then(|t| {
                let line = t.lines().find_map(|l| l.strip_prefix(row))?;
                line.trim().trim_end_matches("kB").trim().parse().ok()
            })
            .unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if self.wait(REAP_TIMEOUT).is_none()
            && let Some(mut child) = self.child.take()
        {
            // Stuck in the kernel: a thread waits for it, so that it never stays a zombie.
            let waiter = std::thread::Builder::new().name("reaper".into());
            let _ = waiter.spawn(move || child.wait());
        }
    }
}

/// Kills the process that `pid`, which is ours and not reaped, waits for. False if there is none.
fn kill_first_child(pid: u32) -> bool {
    let Some(child) = first_child(pid) else { return false };
    let Ok(pidfd) = pidfd::open(child) else { return false };
    // Still its child, so the descriptor is of the child and not of a later bearer of the number.
    if first_child(pid) != Some(child) {
        return false;
    }
    pidfd::send_kill(pidfd.as_fd())
}

fn first_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The process at the end of a chain of wrappers that each wait for one child.
fn innermost(pid: u32) -> u32 {
    let mut pid = pid;
    for _ in 0..WRAPPERS_MAX {
        match first_child(pid) {
            Some(child) => pid = child,
            None => break,
        }
    }
    pid
}

/// The signal that ended a process, also where a wrapper passes it on as shells do.
pub fn signal_of(status: ExitStatus) -> Option<i32> {
    let passed_on = || status.code().map(|code| code - 128).filter(|signal| *signal > 0);
    status.signal().or_else(passed_on)
}

/// In the child, between fork and exec.
fn prepare(parent: u32, pass: &[RawFd]) -> io::Result<()> {
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on integers; `limit` outlives the call that reads it.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before the line above.
        if libc::getppid() as u32 != parent {
            libc::_exit(127);
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        for (what, max) in [
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_NOFILE, NOFILE_MAX),
            (libc::RLIMIT_FSIZE, FSIZE_MAX),
        ] {
            let limit = libc::rlimit { rlim_cur: max, rlim_max: max };
            check(libc::setrlimit(what, &limit))?;
        }
        // Also what we were left by whoever started us. Kernels before 5.11 do not know this.
        let all = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        libc::syscall(libc::SYS_close_range, all.0, all.1, all.2);
        for &fd in pass {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
    }
    Ok(())
}

/// One start order for the spawner thread.
struct Order {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

/// Makes children stay until they are waited for, whatever was inherited: where SIGCHLD is ignored
/// they go at once, waiting for them fails or never ends, and their numbers are others' before we
/// know. What is started later inherits this in its turn.
pub fn keep_children() {
    // SAFETY: the default action; no handler is installed or replaced by one of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Starts the command from a thread that lives as long as this process does: PDEATHSIG fires when
/// the *thread* that forked ends, and VM threads come and go.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        keep_children();
        let orphans = crate::orphans::end();
        if orphans > 0 {
            tracing::warn!("VMs that a killed process left behind, ended: {orphans}");
        }
        let (sender, orders) = channel::<Order>();
        let thread = std::thread::Builder::new().name("spawner".into());
        let started = thread.spawn(move || {
            for mut order in orders {
                let _ = order.reply.send(order.command.spawn());
            }
        });
        started.is_ok().then_some(sender)
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (reply, answer) = channel();
    spawner.as_ref().ok_or_else(gone)?.send(Order { command, reply }).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Whether `fd` becomes readable (or ends) within `timeout`.
pub fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, poll_timeout(deadline)) {
            Ok(n) => return n > 0,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Time left until `deadline` for poll(2), rounded up so that no wait is cut short into a spin.
pub fn poll_timeout(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    fn shell(script: &str, pass: Vec<OwnedFd>) -> Process {
        let null = File::options().write(true).open("/dev/null").unwrap();
        let args = vec!["-c".into(), script.into()];
        // Not dash, which knows no descriptor above 9.
        let launch = Launch { program: "bash".into(), args, walled: false };
        Process::start(launch, pass, null).unwrap()
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (ours, theirs)
    }

    fn alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn the_exit_status_is_seen_and_nothing_is_left() {
        let mut process = shell("exit 7", Vec::new());
        let status = process.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(7));
        assert!(!alive(process.pid()));
        assert_eq!(process.rss_kib(), 0);
        process.kill();
    }

    #[test]
    fn a_wrapper_and_its_children_die_together() {
        let (mut ours, theirs) = pair();
        let fd = theirs.as_raw_fd();
        // Ignores polite signals and has a child that holds the socket.
        let script = format!("trap '' TERM INT; sleep 1000 & echo $! >&{fd}; wait");
        let process = shell(&script, vec![theirs.into()]);
        let mut text = [0u8; 16];
        let n = ours.read(&mut text).unwrap();
        let grandchild: u32 = std::str::from_utf8(&text[..n]).unwrap().trim().parse().unwrap();
        assert!(alive(grandchild));
        let pid = process.pid();
        drop(process);
        assert!(!alive(pid));
        // The last holder of the socket is gone when reading ends.
        assert_eq!(ours.read(&mut text).unwrap(), 0);
    }

    /// The number of an ended process is somebody else's: that one gets no signal, and nothing of
    /// him is told as ours.
    #[test]
    fn whoever_gets_a_number_after_it_was_ours_is_left_alone() {
        let name = "process::tests::whoever_gets_a_number_after_it_was_ours_is_left_alone";
        if !trials::pids::in_namespace(name, None) {
            return;
        }
        let start = Instant::now();
        // As some who start us leave it.
        // SAFETY: no handler.
        unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
        let (mut tried, mut lost) = (0, 0);
        for round in 0..trials::rounds(6) {
            let mut process = shell("exit 7", Vec::new());
            process.walled = round % 2 == 1;
            let pid = process.pid;
            assert!(readable(process.pidfd(), Duration::from_secs(10)));
            let wait = round % 3 != 2;
            if wait {
                assert_eq!(process.wait(Duration::from_secs(10)).and_then(|s| s.code()), Some(7));
            }
            let stranger = trials::pids::stranger(pid);
            // Not waited for, its number is nobody else's.
            assert_eq!(stranger.is_some(), wait, "round {round}");
            let told = (process.pid(), process.rss_kib(), process.private_kib());
            process.kill();
            drop(process);
            if let Some(stranger) = stranger {
                tried += 1;
                lost += u64::from(!trials::pids::survived(stranger) || told != (pid, 0, 0));
            }
        }
        trials::fault("F11", "the number of a QEMU is another's", tried, lost, start);
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let mut process =
            std::thread::spawn(|| shell("read x; exit 3", Vec::new())).join().unwrap();
        let mut sleeper = std::thread::spawn(|| shell("sleep 1000", Vec::new())).join().unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(3));
        assert!(sleeper.wait(Duration::from_millis(300)).is_none());
    }

    #[test]
    fn only_the_sockets_passed_are_inherited() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (secret, _other) = UnixStream::pair().unwrap();
        let fd = theirs.as_raw_fd();
        let script = format!("ls /proc/self/fd >&{fd}; echo \"env:$HOME\" >&{fd}");
        let mut process = shell(&script, vec![theirs.into()]);
        process.wait(Duration::from_secs(10));
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        let secret = secret.as_raw_fd().to_string();
        assert!(text.lines().any(|l| l == fd.to_string()), "{text}");
        assert!(!text.lines().any(|l| l == secret), "{text}");
        assert!(text.contains("env:\n"), "{text}");
    }
}
