//! Page-table entries from /proc/PID/pagemap, with kpageflags and kpagecount where asked for.
//! Frame numbers leave the guest only as opaque ids.

use super::files::{Kind, os_error, read, read_file};
use case::limits::{PAGE, VIEW_PAGES_MAX};
use case::observation::{KPage, PageRun, pm};
use case::value::Place;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::OnceLock;

/// Pages of one 2 MiB block: the kernel walks page tables in windows of this size.
const BLOCK: u64 = 512;
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;
/// The pagemap bits that [`pm`] has.
const SHOWN: u64 = 1 << 63 | 1 << 62 | 1 << 61 | 1 << 57 | 1 << 56 | 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
/// KPF_ZERO_PAGE of kpageflags: the shared zero page and the huge zero page.
const KPF_ZERO_PAGE: u64 = 1 << 24;
/// Id of every frame of a zero page.
const ZERO_FRAME: u32 = 1;
/// Reads of one window before a race is given up on.
const WINDOW_TRIES: u32 = 4;

/// Turns frame numbers into ids that compare across runs. A frame's id is the order in which its
/// 2 MiB block was first seen, plus one, in units of 512, plus its index in the block. So 0 means
/// not present, and 1 is free for the zero pages: the shared zero page and every page of the huge
/// zero page have id 1, and a run of them compresses as equal, not as rising.
#[derive(Debug, Default)]
pub struct Frames {
    blocks: BTreeMap<u64, u32>,
    /// The block asked for last; most runs stay in it.
    last: Option<(u64, u32)>,
}

impl Frames {
    fn id(&mut self, pfn: u64) -> u32 {
        let block = pfn / BLOCK;
        let order = match self.last {
            Some((known, order)) if known == block => order,
            _ => {
                let next = self.blocks.len() as u32;
                *self.blocks.entry(block).or_insert(next)
            }
        };
        self.last = Some((block, order));
        ((order + 1) << 9) | (pfn % BLOCK) as u32
    }
}

/// Page-table entries of `pages` pages from `at` on, as runs. One read(2) covers at most one
/// aligned 2 MiB window: 6.1 shifts later entries when a page table vanishes under a longer read.
///
/// Errors: ESRCH without such a process, EAGAIN if a window stayed short, EPERM if the kernel
/// hides frame numbers, and whatever kpageflags gives.
pub fn pages(
    pid: i32,
    at: Place,
    pages: u32,
    kpage: bool,
    frames: &mut Frames,
) -> Result<Vec<PageRun>, i32> {
    let mut vpn = at.addr() / PAGE;
    let end = vpn + u64::from(pages.min(VIEW_PAGES_MAX));
    let mut window = [0u8; BLOCK as usize * 8];
    let mut runs = Vec::new();
    let mut kernel = kpage.then(Kernel::default);
    while vpn < end {
        let count = (end - vpn).min(BLOCK - vpn % BLOCK);
        let entries = &mut window[..count as usize * 8];
        read_window(pid, vpn, entries)?;
        let entries = Entries(entries);
        encode(vpn, &entries, frames, &mut |run, pfn| match &mut kernel {
            Some(kernel) if run.frame != 0 => kernel.push(&mut runs, run, pfn),
            _ => {
                push(&mut runs, run);
                Ok(())
            }
        })?;
        vpn += count;
    }
    Ok(runs)
}

fn read_window(pid: i32, vpn: u64, entries: &mut [u8]) -> Result<(), i32> {
    for _ in 0..WINDOW_TRIES {
        if read(pid, Kind::Pagemap, entries, vpn * 8)? == entries.len() {
            return Ok(());
        }
    }
    Err(libc::EAGAIN)
}

/// Raw pagemap entries of a window.
struct Entries<'a>(&'a [u8]);

impl Entries<'_> {
    fn len(&self) -> usize {
        self.0.len() / 8
    }
    fn at(&self, index: usize) -> u64 {
        let raw = self.0[index * 8..].first_chunk::<8>();
        raw.map_or(0, |raw| u64::from_ne_bytes(*raw))
    }
    /// First index after `from` whose entry, under `mask`, does not go on from the entry there in
    /// steps of `step`. Whole blocks are compared before a difference is looked for: nearly all
    /// entries of a window go on.
    fn until(&self, from: usize, step: u64, mask: u64) -> usize {
        const AT_ONCE: usize = 16;
        let (rest, _) = self.0[from * 8..].as_chunks::<8>();
        let mut want = self.at(from);
        let mut differs = |raw: &[u8; 8]| {
            let diff = (u64::from_ne_bytes(*raw) ^ want) & mask;
            want = want.wrapping_add(step);
            diff
        };
        let (blocks, _) = rest.as_chunks::<AT_ONCE>();
        let equal = blocks
            .iter()
            .position(|block| block.iter().fold(0, |all, raw| all | differs(raw)) != 0)
            .unwrap_or(blocks.len())
            * AT_ONCE;
        want = self.at(from).wrapping_add(step.wrapping_mul(equal as u64));
        let mut differs = |raw: &[u8; 8]| {
            let diff = (u64::from_ne_bytes(*raw) ^ want) & mask;
            want = want.wrapping_add(step);
            diff != 0
        };
        let tail = rest[equal..].iter().position(&mut differs).unwrap_or(rest.len() - equal);
        from + equal + tail
    }
}

/// Splits a window that starts at page `vpn` into runs within one 2 MiB block each. `emit` gets
/// each run with the frame number it begins at (0 if not present).
fn encode(
    vpn: u64,
    entries: &Entries<'_>,
    frames: &mut Frames,
    emit: &mut dyn FnMut(PageRun, u64) -> Result<(), i32>,
) -> Result<(), i32> {
    let mut i = 0;
    while i < entries.len() {
        let entry = entries.at(i);
        let pfn = entry & PFN;
        let (end, frame) = if entry & PRESENT == 0 {
            // A swap type and offset, or a marker's, may stand where a frame number would.
            (entries.until(i, 0, SHOWN), 0)
        } else if pfn == 0 {
            return Err(libc::EPERM);
        } else if pfn == zero_pfn() {
            (entries.until(i, 0, u64::MAX), ZERO_FRAME)
        } else {
            let rising = entries.until(i, 1, u64::MAX);
            let end = rising.min(i + (BLOCK - pfn % BLOCK) as usize);
            (end, frame_of(entry, vpn + i as u64, frames))
        };
        let run = PageRun { pages: (end - i) as u32, bits: bits(entry), frame, kpage: None };
        emit(run, if frame == 0 { 0 } else { pfn })?;
        i = end;
    }
    Ok(())
}

/// The id of a present entry's frame. The huge zero page comes and goes, so its block is not
/// remembered but asked for, and only where it could be: it is mapped by one PMD and never
/// exclusively.
fn frame_of(entry: u64, vpn: u64, frames: &mut Frames) -> u32 {
    let pfn = entry & PFN;
    let may_be_huge_zero = entry & EXCLUSIVE == 0 && pfn % BLOCK == vpn % BLOCK;
    if may_be_huge_zero && kpageflags(pfn).is_ok_and(|flags| flags & KPF_ZERO_PAGE != 0) {
        return ZERO_FRAME;
    }
    frames.id(pfn)
}

fn bits(entry: u64) -> u8 {
    let bit = |n: u32, to: u8| if entry >> n & 1 != 0 { to } else { 0 };
    bit(63, pm::PRESENT)
        | bit(62, pm::SWAP)
        | bit(61, pm::FILE)
        | bit(57, pm::UFFD_WP)
        | bit(56, pm::EXCLUSIVE)
        | bit(55, pm::SOFT_DIRTY)
}

/// Appends a run, or lengthens the last one with it.
fn push(runs: &mut Vec<PageRun>, run: PageRun) {
    if let Some(last) = runs.last_mut() {
        let goes_on = match run.frame {
            0 | ZERO_FRAME => last.frame == run.frame,
            frame => last.frame > ZERO_FRAME && last.frame + last.pages == frame,
        };
        if goes_on && last.bits == run.bits && last.kpage == run.kpage {
            last.pages += run.pages;
            return;
        }
    }
    runs.push(run);
}

/// Buffers for kpageflags and kpagecount of one run.
#[derive(Debug, Default)]
struct Kernel {
    flags: Vec<u8>,
    counts: Vec<u8>,
}

impl Kernel {
    /// Appends a run, split where what the kernel says of its frames changes.
    fn push(&mut self, runs: &mut Vec<PageRun>, run: PageRun, pfn: u64) -> Result<(), i32> {
        // Equal entries of the shared zero page name one frame; all others rise.
        let frames = if pfn == zero_pfn() { 1 } else { run.pages as usize };
        self.flags.resize(frames * 8, 0);
        self.counts.resize(frames * 8, 0);
        read_kpage(&kernel_files().flags, &mut self.flags, pfn)?;
        read_kpage(&kernel_files().counts, &mut self.counts, pfn)?;
        let (flags, counts) = (Entries(&self.flags), Entries(&self.counts));
        let mut page = 0;
        while page < frames {
            let same = flags.until(page, 0, u64::MAX).min(counts.until(page, 0, u64::MAX));
            let count = u32::try_from(counts.at(page)).unwrap_or(u32::MAX);
            let kpage = Some(KPage { flags: flags.at(page), count });
            let frame = if run.frame == ZERO_FRAME { run.frame } else { run.frame + page as u32 };
            // The one frame of the shared zero page stands for the whole run.
            let pages = if frames == 1 { run.pages } else { (same - page) as u32 };
            push(runs, PageRun { pages, frame, kpage, ..run });
            page = same;
        }
        Ok(())
    }
}

struct KernelFiles {
    flags: Result<File, i32>,
    counts: Result<File, i32>,
}

fn kernel_files() -> &'static KernelFiles {
    static FILES: OnceLock<KernelFiles> = OnceLock::new();
    let open = |path| File::open(path).map_err(|e| os_error(&e));
    FILES.get_or_init(|| KernelFiles {
        flags: open("/proc/kpageflags"),
        counts: open("/proc/kpagecount"),
    })
}

fn read_kpage(file: &Result<File, i32>, buf: &mut [u8], pfn: u64) -> Result<(), i32> {
    let file = file.as_ref().map_err(|errno| *errno)?;
    match read_file(file, buf, pfn * 8)? {
        got if got == buf.len() => Ok(()),
        _ => Err(libc::ENXIO),
    }
}

fn kpageflags(pfn: u64) -> Result<u64, i32> {
    let mut raw = [0u8; 8];
    read_kpage(&kernel_files().flags, &mut raw, pfn)?;
    Ok(u64::from_ne_bytes(raw))
}

/// Opens kpageflags and kpagecount and finds the zero page.
pub(super) fn prepare() {
    kernel_files();
    zero_pfn();
}

/// Frame number of the shared 4 KiB zero page, 0 (no frame at all) if it cannot be found.
fn zero_pfn() -> u64 {
    static ZERO: OnceLock<u64> = OnceLock::new();
    *ZERO.get_or_init(|| find_zero_pfn().unwrap_or(0))
}

/// Reads an anonymous page that was never written: the zero page is what is mapped there.
fn find_zero_pfn() -> Option<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, libc::PROT_READ, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping above is readable and one page long.
    unsafe { page.cast::<u64>().read_volatile() };
    let pfn = own_pfn(page as u64).ok().flatten();
    // SAFETY: unmaps exactly the mapping made above; nothing else refers to it.
    unsafe { libc::munmap(page, PAGE as usize) };
    pfn.filter(|pfn| kpageflags(*pfn).map_or(true, |flags| flags & KPF_ZERO_PAGE != 0))
}

/// Frame number mapped at an address of the calling process, `None` if nothing is present. It
/// never leaves the guest. The file is closed again: processes of a program share descriptors,
/// and one that ends would leave a cached one behind.
pub fn own_pfn(addr: u64) -> Result<Option<u64>, i32> {
    let pagemap = File::open("/proc/thread-self/pagemap").map_err(|e| os_error(&e))?;
    let mut raw = [0u8; 8];
    for _ in 0..WINDOW_TRIES {
        if read_file(&pagemap, &mut raw, addr / PAGE * 8)? == raw.len() {
            let entry = u64::from_ne_bytes(raw);
            return Ok((entry & PRESENT != 0 && entry & PFN != 0).then_some(entry & PFN));
        }
    }
    Err(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCL: u64 = EXCLUSIVE;

    fn runs_from(vpn: u64, raw: &[u64], frames: &mut Frames) -> Vec<PageRun> {
        let bytes: Vec<u8> = raw.iter().flat_map(|e| e.to_ne_bytes()).collect();
        let mut runs = Vec::new();
        encode(vpn, &Entries(&bytes), frames, &mut |run, _| {
            push(&mut runs, run);
            Ok(())
        })
        .unwrap();
        runs
    }

    #[test]
    fn a_huge_page_is_one_run_and_ids_follow_appearance() {
        let base = 0x7_0000_0000 / BLOCK * BLOCK;
        let raw: Vec<u64> = (0..BLOCK).map(|i| PRESENT | EXCL | (base + i)).collect();
        let mut frames = Frames::default();
        let runs = runs_from(0, &raw, &mut frames);
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].pages, runs[0].frame), (512, 512));
        assert_eq!(runs[0].bits, pm::PRESENT | pm::EXCLUSIVE);
        let other = runs_from(0, &[PRESENT | EXCL | (base + 3 * BLOCK + 9)], &mut frames);
        assert_eq!(other[0].frame, 2 * 512 + 9);
        let again = runs_from(0, &[PRESENT | EXCL | (base + 5)], &mut frames);
        assert_eq!(again[0].frame, 512 + 5);
    }

    #[test]
    fn a_run_ends_where_bits_or_frames_break() {
        let at = 0x6_0000_0000;
        let raw = [
            PRESENT | EXCL | at,
            PRESENT | EXCL | (at + 1),
            PRESENT | EXCL | 1 << 57 | (at + 2),
            PRESENT | EXCL | (at + 4),
            0,
            0,
            1 << 62 | 0x1234,
            1 << 62 | 0x9999,
            1 << 62 | 1 << 57,
        ];
        let runs = runs_from(0, &raw, &mut Frames::default());
        assert_eq!(runs.iter().map(|r| r.pages).collect::<Vec<_>>(), [2, 1, 1, 2, 2, 1]);
        assert_eq!(runs.iter().map(|r| r.frame).collect::<Vec<_>>(), [512, 514, 516, 0, 0, 0]);
        assert_eq!(runs[5].bits, pm::SWAP | pm::UFFD_WP);
    }

    #[test]
    fn neighbouring_blocks_join_only_if_seen_in_order() {
        let base = 0x5_0000_0000 / BLOCK * BLOCK;
        let edge = [PRESENT | EXCL | (base + 511), PRESENT | EXCL | (base + 512)];
        let joined = runs_from(0, &edge, &mut Frames::default());
        assert_eq!(joined.len(), 1);
        let mut frames = Frames::default();
        runs_from(0, &[PRESENT | EXCL | (base + 512)], &mut frames);
        assert_eq!(runs_from(0, &edge, &mut frames).len(), 2);
    }

    #[test]
    fn a_stretch_ends_at_any_index() {
        for odd in [0, 1, 15, 16, 17, 31, 32, 100, 511] {
            for from in [0, 1, 16, 90] {
                let mut raw: Vec<u64> = (0..512).map(|i| 7 + i).collect();
                raw[odd] = 1;
                let bytes: Vec<u8> = raw.iter().flat_map(|e| e.to_ne_bytes()).collect();
                let want = match odd {
                    odd if odd > from => odd,
                    odd if odd == from => from + 1,
                    _ => 512,
                };
                assert_eq!(Entries(&bytes).until(from, 1, u64::MAX), want, "{odd} {from}");
                assert_eq!(Entries(&bytes).until(from, 0, 0), 512);
            }
        }
    }

    #[test]
    fn zero_frames_compress_as_equal() {
        let mut runs = Vec::new();
        let run = PageRun { pages: 3, bits: 1, frame: ZERO_FRAME, kpage: None };
        push(&mut runs, run);
        push(&mut runs, run);
        push(&mut runs, PageRun { frame: 0, ..run });
        push(&mut runs, PageRun { frame: 512, ..run });
        assert_eq!(runs.iter().map(|r| r.pages).collect::<Vec<_>>(), [6, 3, 3]);
    }

    #[test]
    fn hidden_frame_numbers_are_an_error() {
        let raw = PRESENT.to_ne_bytes();
        let got = encode(0, &Entries(&raw), &mut Frames::default(), &mut |_, _| Ok(()));
        assert_eq!(got, Err(libc::EPERM));
    }
}
