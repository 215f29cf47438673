//! Open files under /proc/PID, kept from look to look. An open file pins neither pages nor page
//! tables of its process, only small kernel structures; [`forget`] drops those too.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Which file of /proc/PID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pagemap,
    Smaps,
    NumaMaps,
    Rollup,
    Status,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Pagemap => "pagemap",
            Kind::Smaps => "smaps",
            Kind::NumaMaps => "numa_maps",
            Kind::Rollup => "smaps_rollup",
            Kind::Status => "status",
        }
    }
}

/// Descriptors kept open per thread: five kinds for the few processes a program has.
const OPEN_MAX: usize = 20;

#[derive(Debug)]
struct Open {
    pid: i32,
    kind: Kind,
    file: File,
}

thread_local! {
    /// Least recently opened first.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
}

/// Closes what is open for a process that has ended.
pub fn forget(pid: i32) {
    OPEN.with_borrow_mut(|open| open.retain(|entry| entry.pid != pid));
}

/// Reads at an offset. A file of a dead process reads as empty or ESRCH; a reused process id is
/// then opened anew, once. ESRCH if there is no such process or it has no memory any more.
pub(super) fn read(pid: i32, kind: Kind, buf: &mut [u8], offset: u64) -> Result<usize, i32> {
    OPEN.with_borrow_mut(|open| {
        let known = open.iter().position(|entry| entry.pid == pid && entry.kind == kind);
        // An end of file is news only at the start of a text; a pagemap never ends in the arena.
        let end_is_stale = offset == 0 || kind == Kind::Pagemap;
        if let Some(index) = known {
            match read_file(&open[index].file, buf, offset) {
                Ok(0) if end_is_stale => {}
                Err(libc::ESRCH) => {}
                done => return done,
            }
            open.remove(index);
        }
        let path = format!("/proc/{pid}/{}", kind.name());
        let file = File::open(path).map_err(|e| match os_error(&e) {
            libc::ENOENT if !std::path::Path::new(&format!("/proc/{pid}")).exists() => libc::ESRCH,
            other => other,
        })?;
        let got = read_file(&file, buf, offset)?;
        if got == 0 && end_is_stale {
            return Err(libc::ESRCH);
        }
        if open.len() >= OPEN_MAX {
            open.remove(0);
        }
        open.push(Open { pid, kind, file });
        Ok(got)
    })
}

/// pread(2), begun again after a signal.
pub(super) fn read_file(file: &File, buf: &mut [u8], offset: u64) -> Result<usize, i32> {
    loop {
        match file.read_at(buf, offset) {
            Err(e) if os_error(&e) == libc::EINTR => {}
            other => return other.map_err(|e| os_error(&e)),
        }
    }
}

pub(super) fn os_error(e: &std::io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}

/// The whole text of a file of a process, in a buffer reused from call to call.
pub(super) fn with_text<R>(
    pid: i32,
    kind: Kind,
    use_text: impl FnOnce(&[u8]) -> R,
) -> Result<R, i32> {
    thread_local! {
        static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    /// Bytes of one smaps_rollup or status: both are near 1.5 KiB.
    const TEXT_BYTES_MAX: usize = 16 << 10;
    TEXT.with_borrow_mut(|text| {
        text.resize(TEXT_BYTES_MAX, 0);
        let got = read(pid, kind, text, 0)?;
        Ok(use_text(&text[..got]))
    })
}
