//! Small wrappers around libc that every part of the agent uses: errno, clocks, whole writes,
//! one-line files. No mm syscalls.

use std::ffi::CString;

/// errno of the last failed call of this thread.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// Sleeps, shorter if a signal comes.
pub fn sleep_ms(ms: u64) {
    let ts = libc::timespec {
        tv_sec: (ms / 1000) as libc::time_t,
        tv_nsec: (ms % 1000 * 1_000_000) as libc::c_long,
    };
    // SAFETY: reads one timespec.
    unsafe { libc::nanosleep(&ts, std::ptr::null_mut()) };
}

/// Writes all bytes, over EINTR and short writes.
pub fn write_all(fd: i32, mut bytes: &[u8]) -> Result<(), i32> {
    while !bytes.is_empty() {
        // SAFETY: the buffer is valid for its length.
        let n = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match n {
            n if n > 0 => bytes = &bytes[n as usize..],
            0 => return Err(libc::EPIPE),
            _ => match errno() {
                libc::EINTR => {}
                libc::EAGAIN => wait_for(fd, libc::POLLOUT),
                e => return Err(e),
            },
        }
    }
    Ok(())
}

/// Reads what is there, over EINTR; 0 at the end.
pub fn read_some(fd: i32, buffer: &mut [u8]) -> Result<usize, i32> {
    loop {
        // SAFETY: the buffer is valid for its length.
        let n = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if n >= 0 {
            return Ok(n as usize);
        }
        match errno() {
            libc::EINTR => {}
            e => return Err(e),
        }
    }
}

/// Fills the buffer; EPIPE when the stream ends before.
pub fn read_exact(fd: i32, mut buffer: &mut [u8]) -> Result<(), i32> {
    while !buffer.is_empty() {
        match read_some(fd, buffer) {
            Ok(0) => return Err(libc::EPIPE),
            Ok(n) => buffer = &mut std::mem::take(&mut buffer)[n..],
            Err(libc::EAGAIN) => wait_for(fd, libc::POLLIN),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait_for(fd: i32, events: i16) {
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut one, 1, 1000) };
}

/// Whether the fd has something to read (or has ended) within the time.
pub fn readable(fd: i32, ms: i32) -> bool {
    let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut one, 1, ms) > 0 }
}

/// open(2) with O_CLOEXEC.
pub fn open(path: &str, flags: i32) -> Result<i32, i32> {
    let path = CString::new(path).map_err(|_| libc::EINVAL)?;
    // SAFETY: a terminated path.
    let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) };
    if fd < 0 { Err(errno()) } else { Ok(fd) }
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: closing a number is memory-safe; the caller owns it.
    unsafe { libc::close(fd) };
}

/// Writes one short text to a file.
pub fn put(path: &str, text: &str) -> Result<(), i32> {
    let fd = open(path, libc::O_WRONLY)?;
    let result = write_all(fd, text.as_bytes());
    close(fd);
    result
}

/// A socketpair of streams.
pub fn socketpair() -> Result<[i32; 2], i32> {
    let mut pair = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: writes two ints.
    match unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } {
        0 => Ok(pair),
        _ => Err(errno()),
    }
}

/// The calling thread's id.
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// A line for the console: the kernel log is what the host captures.
pub fn say(text: &str) {
    let _ = write_all(2, format!("agent: {text}\n").as_bytes());
}

/// Keeps the calling thread on one CPU (counted round). On a machine with one CPU nothing
/// changes.
pub fn pin_to_cpu(index: usize) {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // SAFETY: asks for a number.
    let cpus =
        *CPUS.get_or_init(|| unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize);
    // SAFETY: the set is zeroed before a bit below its size is set; this thread only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(index % cpus, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set);
    }
}
