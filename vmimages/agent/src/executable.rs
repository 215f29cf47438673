//! Runs one executable the host sent: a process group of its own, what it prints caught and capped,
//! killed when its time is over. What it does is its own business.

use crate::sys;
use case::limits::{BINARY_BYTES_MAX, PRINTED_BYTES_MAX};
use case::link::ExecutableEnd;

/// Longest time an executable may be given.
const SECONDS_MAX: u32 = 3600;
/// How long killed processes may take to go.
const REAP_MS: u64 = 2_000;

/// How it ended, and the first bytes it printed.
pub fn run(binary: &[u8], seconds: u32) -> (ExecutableEnd, Vec<u8>) {
    let refused = |errno: i32| (ExecutableEnd::NotRun(errno as u16), Vec::new());
    if binary.is_empty() || binary.len() > BINARY_BYTES_MAX {
        return refused(libc::E2BIG);
    }
    match start(binary) {
        Ok((pid, output)) => watch(pid, output, seconds.min(SECONDS_MAX)),
        Err(errno) => refused(errno),
    }
}

/// Its process and the end of the pipe it prints to.
fn start(binary: &[u8]) -> Result<(i32, i32), i32> {
    // SAFETY: a terminated name.
    let file = unsafe { libc::memfd_create(c"executable".as_ptr(), libc::MFD_CLOEXEC) };
    if file == -1 {
        return Err(sys::errno());
    }
    let started = sys::write_all(file, binary).and_then(|()| spawn(file));
    sys::close(file);
    started
}

fn spawn(file: i32) -> Result<(i32, i32), i32> {
    let mut ends = [-1; 2];
    // SAFETY: writes two ints.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(sys::errno());
    }
    // SAFETY: the supervisor has one thread; the child only opens, moves descriptors and executes.
    match unsafe { libc::fork() } {
        -1 => {
            let errno = sys::errno();
            ends.into_iter().for_each(sys::close);
            Err(errno)
        }
        0 => become_executable(file, ends[1]),
        pid => {
            sys::close(ends[1]);
            Ok((pid, ends[0]))
        }
    }
}

fn become_executable(file: i32, output: i32) -> ! {
    let none = std::ptr::null::<libc::c_char>();
    let (args, env) = ([c"executable".as_ptr(), none], [none]);
    // SAFETY: both arrays end with a null; on failure the child ends with nothing of the parent's
    // run.
    unsafe {
        libc::setsid();
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::dup2(output, 1);
        libc::dup2(output, 2);
        libc::fexecve(file, args.as_ptr(), env.as_ptr());
        libc::_exit(127)
    }
}

/// Reads what it prints until it has ended or its time is over.
fn watch(pid: i32, output: i32, seconds: u32) -> (ExecutableEnd, Vec<u8>) {
    let until = sys::now() + u64::from(seconds) * 1_000_000_000;
    let mut printed = Vec::new();
    let end = loop {
        take(output, &mut printed);
        if let Some(end) = ended(pid) {
            break end;
        }
        if sys::now() >= until {
            break ExecutableEnd::Late;
        }
    };
    // SAFETY: the executable leads a process group of its own; not waited for, so the number is its.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    take(output, &mut printed);
    sys::close(output);
    let patience = sys::now() + REAP_MS * 1_000_000;
    // SAFETY: a child of ours; no status is asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } == 0
        && sys::now() < patience
    {
        sys::sleep_ms(10);
    }
    (end, printed)
}

/// Takes what is there, or waits a moment for it; what is over the cap is read and dropped.
fn take(output: i32, printed: &mut Vec<u8>) {
    const PIECES_MAX: u32 = 64;
    let mut piece = [0u8; 4096];
    for _ in 0..PIECES_MAX {
        if !sys::readable(output, 20) {
            return;
        }
        match sys::read_some(output, &mut piece) {
            Ok(0) => return sys::sleep_ms(5),
            Ok(got) => {
                let room = PRINTED_BYTES_MAX - printed.len();
                printed.extend_from_slice(&piece[..got.min(room)]);
            }
            Err(_) => return,
        }
    }
}

/// How it ended, if it did; it is left to be waited for.
fn ended(pid: i32) -> Option<ExecutableEnd> {
    // SAFETY: zero is a valid siginfo; its fields are those of a SIGCHLD.
    let (who, code, status) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid as u32, &mut info, flags);
        (info.si_pid(), info.si_code, info.si_status())
    };
    let end = match code {
        libc::CLD_EXITED => ExecutableEnd::Exit(status as u8),
        _ => ExecutableEnd::Signal(status),
    };
    (who == pid).then_some(end)
}
