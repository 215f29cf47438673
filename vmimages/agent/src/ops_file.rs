//! Ops on files: memfd, hugetlbfs, size, holes, content, seals.

use crate::board::NONE;
use crate::content;
use crate::exec::{Lane, Outcome, failed, plain, skip, status};
use case::Op;
use case::limits::PAGE;
use case::observation::{Output, Skip, Status};
use case::value::{FileId, MemfdFlags, PageSize};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Where hugetlbfs of a page size is mounted.
pub fn mount_of(page: PageSize) -> &'static str {
    match page {
        PageSize::Huge1G => "/mnt/huge1g",
        _ => "/mnt/huge2m",
    }
}

/// Bits 26 and up of MFD_HUGE_* and MAP_HUGE_*.
pub fn huge_bits(page: PageSize) -> u32 {
    page.bytes().trailing_zeros() << 26
}

/// Runs the op if it is one of this file's.
pub fn run(lane: &mut Lane, line: u16, op: &Op) -> Option<Outcome> {
    if let Some(made) = make(lane, op) {
        return Some(made);
    }
    let (Op::Ftruncate { file, .. }
    | Op::Fallocate { file, .. }
    | Op::Punch { file, .. }
    | Op::Pread { file, .. }
    | Op::Pwrite { file, .. }
    | Op::Fstat { file }
    | Op::Seal { file, .. }
    | Op::CloseFile { file }) = op
    else {
        return None;
    };
    let Some(fd) = lane.file(*file) else { return Some(skip(Skip::NoObject)) };
    Some(match op {
        Op::Ftruncate { len, .. } => {
            // SAFETY: no pointers.
            plain(unsafe { libc::ftruncate(fd, len.0 as i64) }.into())
        }
        Op::Fallocate { off, len, flags, .. } => {
            fallocate(fd, flags.0 as i32, off.0 as i64, len.0 as i64)
        }
        Op::Punch { off, len, .. } => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            fallocate(fd, mode, off.0 as i64, len.0 as i64)
        }
        Op::Pread { off, len, .. } => pread(lane, fd, off.0, len.0),
        Op::Pwrite { off, len, .. } => pwrite(lane, fd, off.0, len.0, u32::from(line) + 1),
        Op::Fstat { .. } => fstat(fd),
        Op::Seal { seals, .. } => {
            // SAFETY: fcntl with an integer argument.
            plain(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals.0) }.into())
        }
        _ => {
            lane.shared.board.files[usize::from(file.0)].store(NONE, SeqCst);
            // SAFETY: the program's own descriptor.
            plain(unsafe { libc::close(fd) }.into())
        }
    })
}

fn fallocate(fd: i32, mode: i32, off: i64, len: i64) -> Outcome {
    // SAFETY: no pointers.
    plain(unsafe { libc::fallocate(fd, mode, off, len) }.into())
}

fn make(lane: &mut Lane, op: &Op) -> Option<Outcome> {
    let (file, page, fd) = match op {
        Op::Memfd { file, page, flags } => (file, page, memfd(*page, *flags)),
        Op::Hugetlbfs { file, page } => (file, page, hugetlbfs(*page)),
        _ => return None,
    };
    Some(match fd {
        Ok(fd) => {
            keep(lane, *file, fd, page.bytes());
            (Status::Ok(0), Output::Nothing)
        }
        Err(errno) => (failed(errno), Output::Nothing),
    })
}

fn keep(lane: &Lane, file: FileId, fd: i32, page: u64) {
    let index = usize::from(file.0);
    lane.shared.board.file_page[index].store(page, SeqCst);
    lane.shared.board.files[index].store(fd, SeqCst);
}

fn memfd(page: PageSize, flags: MemfdFlags) -> Result<i32, i32> {
    let mut bits = libc::MFD_CLOEXEC;
    if flags.has(MemfdFlags::SEALING) {
        bits |= libc::MFD_ALLOW_SEALING;
    }
    if page.is_huge() {
        bits |= libc::MFD_HUGETLB | huge_bits(page);
    }
    // SAFETY: a terminated name.
    match unsafe { libc::memfd_create(c"hgm".as_ptr(), bits) } {
        -1 => Err(crate::sys::errno()),
        fd => Ok(fd),
    }
}

fn hugetlbfs(page: PageSize) -> Result<i32, i32> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    // SAFETY: getpid has no arguments.
    let pid = unsafe { libc::getpid() };
    let name = format!("{}/{pid}.{}\0", mount_of(page), SERIAL.fetch_add(1, SeqCst));
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: terminated above.
    let fd = unsafe { libc::open(name.as_ptr().cast(), flags, 0o600) };
    if fd == -1 {
        return Err(crate::sys::errno());
    }
    // SAFETY: the same name; the file lives on through its descriptor.
    unsafe { libc::unlink(name.as_ptr().cast()) };
    Ok(fd)
}

fn pread(lane: &mut Lane, fd: i32, off: u64, len: u64) -> Outcome {
    let buffer = match lane.sink.zeroed(off, len) {
        Ok(buffer) => buffer,
        Err(errno) => return (failed(errno), Output::Nothing),
    };
    // SAFETY: the buffer has `len` bytes.
    let ret = unsafe { libc::pread(fd, buffer.cast(), len as usize, off as i64) };
    let status = status(ret as i64);
    let got = ret.max(0) as u64;
    let out = Output::Content(content::runs_of_bytes(off % PAGE, lane.sink.bytes(off, got)));
    lane.sink.wipe(off, len);
    (status, out)
}

fn pwrite(lane: &mut Lane, fd: i32, off: u64, len: u64, serial: u32) -> Outcome {
    let buffer = match lane.source.tagged(off, len, serial) {
        Ok(buffer) => buffer,
        Err(errno) => return (failed(errno), Output::Nothing),
    };
    // SAFETY: the buffer has `len` bytes.
    let ret = unsafe { libc::pwrite(fd, buffer.cast(), len as usize, off as i64) };
    let status = status(ret as i64);
    lane.source.wipe(off, len);
    (status, Output::Nothing)
}

fn fstat(fd: i32) -> Outcome {
    // SAFETY: zero is a valid stat; the call fills it.
    let (ret, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat), stat)
    };
    let status = status(ret.into());
    let out = match status {
        Status::Ok(_) => Output::Stat { size: stat.st_size as u64, blocks: stat.st_blocks as u64 },
        _ => Output::Nothing,
    };
    (status, out)
}
