//! Ops on address space and memory: mmap, munmap, mremap, mprotect, mlock, madvise, and the
//! guarded loads and stores.

use crate::exec::{Lane, Outcome, plain, skip};
use crate::guard::{self, Fault};
use crate::{content, ops_file, ops_special};
use case::Op;
use case::limits::{PAGE, WORD_OFFSETS};
use case::observation::{Output, Skip, Status, Word};
use case::program::Tag;
use case::value::*;
use std::sync::atomic::Ordering::SeqCst;

/// Runs the op if it is one of this file's.
pub fn run(lane: &mut Lane, line: u16, op: &Op) -> Option<Outcome> {
    Some(match op {
        Op::Mmap { at, len, prot, share, from, page, flags } => {
            let ask = Ask { at: *at, len: len.0, prot: prot.0 as i32, share: *share };
            mmap(lane, &ask, *from, *page, *flags)
        }
        Op::Munmap { at, len } => {
            // SAFETY: `check` keeps every range inside the arena, where nothing of the agent
            // lives.
            plain(unsafe { libc::munmap(at.addr() as *mut _, len.0 as usize) }.into())
        }
        Op::Mremap { at, len, new, to, flags } => mremap(lane, *at, len.0, new.0, *to, *flags),
        Op::Mprotect { at, len, prot } => {
            // SAFETY: as above.
            let ret = unsafe { libc::mprotect(at.addr() as *mut _, len.0 as usize, prot.0 as i32) };
            plain(ret.into())
        }
        Op::Mlock { at, len, flags } => {
            // SAFETY: as above.
            plain(unsafe { libc::syscall(libc::SYS_mlock2, at.addr(), len.0, flags.0) })
        }
        Op::Munlock { at, len } => {
            // SAFETY: as above.
            plain(unsafe { libc::munlock(at.addr() as *const _, len.0 as usize) }.into())
        }
        Op::Madvise { at, len, advice } => {
            ops_special::before_madvise(*at, len.0, *advice);
            let number = advice_number(*advice);
            // SAFETY: as above.
            plain(unsafe { libc::syscall(libc::SYS_madvise, at.addr(), len.0, number) })
        }
        Op::Read { at, len } => read(*at, len.0),
        Op::Write { at, len } => {
            let done = write(*at, len.0, u32::from(line) + 1);
            if lane.shared.flip_at == Some(line) && done.0 == Status::Ok(0) {
                flip(*at, len.0);
            }
            done
        }
        _ => return None,
    })
}

/// The kernel's number of an advice.
pub const fn advice_number(advice: Advice) -> i32 {
    match advice {
        Advice::Normal => 0,
        Advice::Random => 1,
        Advice::Sequential => 2,
        Advice::WillNeed => 3,
        Advice::DontNeed => 4,
        Advice::Free => 8,
        Advice::Remove => 9,
        Advice::DontFork => 10,
        Advice::DoFork => 11,
        Advice::Mergeable => 12,
        Advice::Unmergeable => 13,
        Advice::HugePage => 14,
        Advice::NoHugePage => 15,
        Advice::DontDump => 16,
        Advice::DoDump => 17,
        Advice::WipeOnFork => 18,
        Advice::KeepOnFork => 19,
        Advice::Cold => 20,
        Advice::PageOut => 21,
        Advice::PopulateRead => 22,
        Advice::PopulateWrite => 23,
        Advice::DontNeedLocked => 24,
        Advice::Collapse => 25,
        Advice::Split => 26,
        Advice::HwPoison => 100,
        Advice::SoftOffline => 101,
        Advice::Unknown => 9999,
    }
}

struct Ask {
    at: Place,
    len: u64,
    prot: i32,
    share: Share,
}

fn mmap_bits(share: Share, flags: MmapFlags) -> i32 {
    let mut bits = match share {
        Share::Shared => libc::MAP_SHARED,
        Share::Private => libc::MAP_PRIVATE,
    };
    let place =
        if flags.has(MmapFlags::FIXED) { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
    bits |= place;
    for (flag, bit) in [
        (MmapFlags::POPULATE, libc::MAP_POPULATE),
        (MmapFlags::NORESERVE, libc::MAP_NORESERVE),
        (MmapFlags::LOCKED, libc::MAP_LOCKED),
        (MmapFlags::NONBLOCK, libc::MAP_NONBLOCK),
    ] {
        if flags.has(flag) {
            bits |= bit;
        }
    }
    bits
}

fn mmap(
    lane: &mut Lane,
    ask: &Ask,
    from: Option<FilePart>,
    page: PageSize,
    flags: MmapFlags,
) -> Outcome {
    let mut bits = mmap_bits(ask.share, flags);
    let (fd, off, page_bytes) = match from {
        Some(part) => match lane.file(part.file) {
            Some(fd) => {
                let file_page = &lane.shared.board.file_page[usize::from(part.file.0)];
                (fd, part.off, file_page.load(SeqCst))
            }
            None => return skip(Skip::NoObject),
        },
        None => {
            bits |= libc::MAP_ANONYMOUS;
            if page.is_huge() {
                bits |= libc::MAP_HUGETLB | ops_file::huge_bits(page) as i32;
            }
            (-1, 0, page.bytes())
        }
    };
    let addr = ask.at.addr();
    // SAFETY: the address lies in the arena, where nothing of the agent lives.
    let got =
        unsafe { libc::mmap(addr as *mut _, ask.len as usize, ask.prot, bits, fd, off as i64) };
    if got == libc::MAP_FAILED {
        return plain(-1);
    }
    placed(lane, got as u64, ask.len, page_bytes);
    (Status::Ok((got as u64).wrapping_sub(addr) as i64), Output::Nothing)
}

/// Remembers where a mapping went; one outside the arena is unmapped at the end.
fn placed(lane: &mut Lane, addr: u64, len: u64, page: u64) {
    lane.shared.board.note_mapped(std::process::id(), addr, len, page);
    if Place::of_addr(addr).is_none() {
        lane.strays.push((addr, len.next_multiple_of(page)));
    }
}

fn mremap(
    lane: &mut Lane,
    at: Place,
    len: u64,
    new: u64,
    to: Option<Place>,
    flags: MremapFlags,
) -> Outcome {
    let page = lane.shared.board.page_at(std::process::id(), at.addr());
    let target = to.map_or(0, Place::addr);
    // SAFETY: source and target lie in the arena; without MREMAP_FIXED the kernel chooses a
    // free range.
    let ret =
        unsafe { libc::syscall(libc::SYS_mremap, at.addr(), len, new, u64::from(flags.0), target) };
    if ret == -1 {
        return plain(-1);
    }
    placed(lane, ret as u64, new, page);
    let asked = to.unwrap_or(at).addr();
    (Status::Ok((ret as u64).wrapping_sub(asked) as i64), Output::Nothing)
}

/// Pages that `[at, at + len)` touches, as offsets in the region.
fn pages(at: Place, len: u64) -> impl Iterator<Item = u64> {
    (at.off / PAGE..at.off.saturating_add(len).div_ceil(PAGE)).map(|page| page * PAGE)
}

fn inside(at: Place, len: u64, word: u64) -> bool {
    word >= at.off && word + 8 <= at.off + len
}

fn broken(fault: Fault) -> Status {
    match fault {
        Fault::Signal(seen) => Status::Signal(seen),
        Fault::Broken => Status::Timeout,
    }
}

fn read(at: Place, len: u64) -> Outcome {
    let mut words = Vec::with_capacity(len.div_ceil(PAGE) as usize + 1);
    let mut status = Status::Ok(0);
    'pages: for page in pages(at, len) {
        let mut pair = [Word::Unread; 2];
        let mut touched = false;
        for (slot, offset) in WORD_OFFSETS.into_iter().enumerate() {
            if !inside(at, len, page + offset) {
                continue;
            }
            match guard::load(Place { region: at.region, off: page + offset }.addr()) {
                Ok(raw) => (pair[slot], touched) = (content::word(raw), true),
                Err(fault) => {
                    status = broken(fault);
                    if touched {
                        words.push((pair[0], pair[1]));
                    }
                    break 'pages;
                }
            }
        }
        words.push((pair[0], pair[1]));
    }
    (status, Output::Content(content::runs_of(words.into_iter())))
}

fn write(at: Place, len: u64, serial: u32) -> Outcome {
    for page in pages(at, len) {
        let tag = Tag { serial, page: (page / PAGE) as u32 };
        for offset in WORD_OFFSETS {
            if !inside(at, len, page + offset) {
                continue;
            }
            let addr = Place { region: at.region, off: page + offset }.addr();
            if let Err(fault) = guard::store(addr, tag.word()) {
                return (broken(fault), Output::Nothing);
            }
        }
    }
    (Status::Ok(0), Output::Nothing)
}

/// The content canary: another serial in the last word the op wrote.
fn flip(at: Place, len: u64) {
    let last = pages(at, len)
        .flat_map(|page| WORD_OFFSETS.map(|offset| page + offset))
        .filter(|word| inside(at, len, *word))
        .last();
    let Some(word) = last else { return };
    let addr = Place { region: at.region, off: word }.addr();
    if let Ok(old) = guard::load(addr) {
        // Failure leaves the canary unplanted, which the host reports as missed.
        let _ = guard::store(addr, old ^ (0x0100 << 32));
    }
}

/// Unmaps everything the lane knows of: whole slots of the arena that were ever used, and what
/// the kernel placed elsewhere. Says whether all of it went.
pub fn unmap_all(lane: &mut Lane) -> bool {
    let mut gone = true;
    for (region, extent) in lane.shared.board.extents.iter().enumerate() {
        if extent.load(SeqCst) == 0 {
            continue;
        }
        let at = Place::new(region as u8, 0).addr();
        // SAFETY: a whole slot of the arena.
        gone &= unsafe { libc::munmap(at as *mut _, case::limits::ARENA_STRIDE as usize) == 0 };
    }
    for (addr, len) in lane.strays.drain(..) {
        // SAFETY: a mapping the kernel gave to the program.
        gone &= unsafe { libc::munmap(addr as *mut _, len as usize) == 0 };
    }
    gone
}
