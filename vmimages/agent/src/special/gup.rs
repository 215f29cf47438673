//! Ops that read or write memory through get_user_pages for one call: process_vm_readv, vmsplice,
//! O_DIRECT.

use super::{errno, os_errno, status, unavailable, with_scratch};
use crate::content::runs_of_bytes;
use case::limits::{ACCESS_BYTES_MAX, PAGE, WORD_OFFSETS};
use case::observation::{Output, Status};
use case::program::Tag;
use case::value::{Direction, Place};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// process_vm_readv(2) of the whole range as one remote vector; the content is that of the bytes
/// copied.
pub fn vm_read(pid: i32, at: Place, len: u64) -> (Status, Output) {
    if len > ACCESS_BYTES_MAX {
        return unavailable();
    }
    with_scratch(len as usize, |buffer| {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: at.addr() as *mut _, iov_len: buffer.len() };
        // SAFETY: `local` covers exactly `buffer`; the remote range is read by the kernel only.
        let got =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        let out = match usize::try_from(got) {
            Ok(got) => Output::Content(runs_of_bytes(at.off, &buffer[..got])),
            Err(_) => Output::Nothing,
        };
        (status(got as i64), out)
    })
}

/// Pages of one vmsplice(2) call; the pipe has twice as many slots.
const SPLICE_PAGES: u64 = 128;

/// vmsplice(2) of the range into a pipe, in chunks that are read back before the next. The pages
/// go in by reference: the content is what they hold when the pipe is read. The result is the
/// number of bytes spliced before the first failure, or that failure's errno if there are none.
pub fn vmsplice(at: Place, len: u64) -> (Status, Output) {
    let Ok((reader, writer)) = std::io::pipe() else { return unavailable() };
    let pipe_bytes = (2 * SPLICE_PAGES * PAGE) as libc::c_int;
    // SAFETY: F_SETPIPE_SZ takes a plain number.
    let enlarged = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, pipe_bytes) };
    if len > ACCESS_BYTES_MAX || enlarged < pipe_bytes {
        return unavailable();
    }
    with_scratch(len as usize, |buffer| splice_through(&reader, &writer, at, buffer))
}

fn splice_through(
    mut reader: &PipeReader,
    writer: &PipeWriter,
    at: Place,
    buffer: &mut [u8],
) -> (Status, Output) {
    let mut done = 0;
    let failed = loop {
        let chunk = (buffer.len() - done).min((SPLICE_PAGES * PAGE) as usize);
        if chunk == 0 && done > 0 {
            break None;
        }
        let iov = libc::iovec { iov_base: at.plus(done as u64).addr() as *mut _, iov_len: chunk };
        // SAFETY: the kernel takes references to the range's pages; nothing is written to them.
        let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const iov, 1, 0) };
        match usize::try_from(spliced) {
            Ok(0) => break None,
            Ok(spliced) => {
                if let Err(e) = reader.read_exact(&mut buffer[done..done + spliced]) {
                    break Some(os_errno(&e));
                }
                done += spliced;
            }
            Err(_) => break Some(errno()),
        }
    };
    match failed {
        Some(errno) if done == 0 => (Status::Err(errno), Output::Nothing),
        _ => {
            let content = Output::Content(runs_of_bytes(at.off, &buffer[..done]));
            (Status::Ok(done as i64), content)
        }
    }
}

/// The RAM disk of module brd.
pub(crate) const RAM_DISK: &str = "/dev/ram0";

/// Opens the RAM disk for O_DIRECT transfers. One too small for the longest is none: what it cuts
/// short would look like a fault of the pages.
pub(crate) fn open_ram_disk() -> std::io::Result<File> {
    let mut disk =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(RAM_DISK)?;
    match disk.seek(SeekFrom::End(0))? {
        bytes if bytes >= ACCESS_BYTES_MAX => Ok(disk),
        _ => Err(ErrorKind::StorageFull.into()),
    }
}

/// One O_DIRECT transfer between the range and the start of the RAM disk. `Out` writes the range
/// and gives back as content what arrived on the disk. `In` first fills the disk with tags of
/// serial `line + 1`, then reads it into the range; it gives no content, as looking would touch
/// the memory.
pub fn direct_io(at: Place, len: u64, dir: Direction, line: u16) -> (Status, Output) {
    let (Ok(disk), true) = (open_ram_disk(), len <= ACCESS_BYTES_MAX) else {
        return unavailable();
    };
    let fd = disk.as_raw_fd();
    let (base, bytes) = (at.addr(), len as usize);
    with_scratch(len.next_multiple_of(PAGE) as usize, |buffer| match dir {
        Direction::Out => {
            // SAFETY: the kernel reads the range; it is the program's memory, not the agent's.
            let sent = unsafe { libc::pwrite(fd, base as *const _, bytes, 0) };
            let Ok(arrived) = usize::try_from(sent) else {
                return (status(-1), Output::Nothing);
            };
            let whole = arrived.next_multiple_of(PAGE as usize);
            match disk.read_exact_at(&mut buffer[..whole], 0) {
                Ok(()) => {
                    let content = runs_of_bytes(at.off, &buffer[..arrived]);
                    (Status::Ok(sent as i64), Output::Content(content))
                }
                Err(_) => (Status::Ok(sent as i64), Output::Nothing),
            }
        }
        Direction::In => {
            fill_with_tags(buffer, at, line);
            if disk.write_all_at(buffer, 0).is_err() {
                return unavailable();
            }
            // SAFETY: the kernel writes the range; it lies in the arena, where only the
            // program's mappings are.
            let got = unsafe { libc::pread(fd, base as *mut _, bytes, 0) };
            (status(got as i64), Output::Nothing)
        }
    })
}

/// Lays out the bytes that belong at `at`: tags at the word offsets of each page, else zero.
fn fill_with_tags(buffer: &mut [u8], at: Place, line: u16) {
    buffer.fill(0);
    let first = at.off % PAGE;
    let pages = (first + buffer.len() as u64).div_ceil(PAGE);
    for page in 0..pages {
        let tag = Tag { serial: u32::from(line) + 1, page: (at.page() + page) as u32 };
        for offset in WORD_OFFSETS {
            let Some(from) = (page * PAGE + offset).checked_sub(first) else { continue };
            if let Some(place) = buffer.get_mut(from as usize..from as usize + 8) {
                place.copy_from_slice(&tag.word().to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use case::observation::{ContentRun, Word};

    #[test]
    fn tags_on_the_disk_follow_the_place_in_memory() {
        let mut buffer = vec![1u8; 8192];
        fill_with_tags(&mut buffer, Place::new(0, 3 * PAGE), 4);
        let word = Word::Tag(Tag { serial: 5, page: 3 });
        let want = vec![ContentRun { pages: 2, head: word, tail: word }];
        assert_eq!(runs_of_bytes(0, &buffer), want);
        fill_with_tags(&mut buffer, Place::new(0, 512), 4);
        let runs = runs_of_bytes(512, &buffer);
        assert_eq!((runs[0].head, runs.len()), (Word::Unread, 3));
        assert_eq!(runs[1].head, Word::Tag(Tag { serial: 5, page: 1 }));
    }
}
