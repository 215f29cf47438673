//! Ops on files by descriptor: making, sizing, filling, punching, reading, writing, sealing.
//! What happens to page tables when file pages go away is in [`zap`]; what a hole or a new size
//! does to the page cache in [`space`].

pub mod space;
pub mod zap;

use crate::errno::{EBUSY, EINVAL, EIO, EPERM};
use crate::mutants::Mutant;
use crate::ops::access::{Expect, content};
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::{Body, FileKey, World};
use case::limits::{PAGE, WORD_OFFSETS};
use case::observation::{Output, Status, Word};
use case::{Expectation, FallocFlags, Family, FileId, MemfdFlags, Op, PageSize, Seals, Share, Tag};

/// Memory a shmem file may ask for before the guest could run out of it.
const AMPLE: u64 = 128 << 20;

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::Memfd { file, page, flags } => memfd(w, cx, *file, *page, *flags),
        Op::Hugetlbfs { file, page } => hugetlbfs(w, cx, *file, *page),
        Op::Ftruncate { file, .. }
        | Op::Fallocate { file, .. }
        | Op::Punch { file, .. }
        | Op::Pread { file, .. }
        | Op::Pwrite { file, .. }
        | Op::Fstat { file }
        | Op::Seal { file, .. }
        | Op::CloseFile { file } => {
            let Some(key) = w.file(cx.proc, *file) else {
                w.blur("an op on a file the model does not have");
                return Ok(());
            };
            on_file(w, cx, key)
        }
        _ => Ok(()),
    }
}

fn on_file(w: &mut World, cx: &Cx<'_>, key: FileKey) -> Out {
    match cx.op {
        Op::Ftruncate { len, .. } => ftruncate(w, cx, key, len.0),
        Op::Fallocate { off, len, flags, .. } => fallocate(w, cx, key, off.0, len.0, *flags),
        Op::Punch { off, len, .. } => punch(w, cx, key, off.0, len.0),
        Op::Pread { off, len, .. } => pread(w, cx, key, off.0, len.0),
        Op::Pwrite { off, len, .. } => pwrite(w, cx, key, off.0, len.0),
        Op::Fstat { .. } => fstat(w, cx, key),
        Op::Seal { seals, .. } => seal(w, cx, key, *seals),
        _ => {
            cx.only(S060, Want::Ok(0))?;
            w.files[key].open_in.clear();
            Ok(())
        }
    }
}

fn keep(w: &mut World, cx: &Cx<'_>, id: FileId, page: PageSize, seals: Seals) -> FileKey {
    let key = w.new_file(page, false);
    w.files[key].seals = seals;
    w.files[key].open_in.insert(cx.proc);
    w.names.insert(id, key);
    key
}

fn memfd(w: &mut World, cx: &Cx<'_>, id: FileId, page: PageSize, flags: MemfdFlags) -> Out {
    if !w.profile.has_pool(page) {
        return cx.errno(H001, 19);
    }
    cx.only(H001, Want::Ok(0))?;
    let sealing = flags.has(MemfdFlags::SEALING);
    keep(w, cx, id, page, if sealing { Seals::NONE } else { Seals::SEAL });
    Ok(())
}

/// The guest has a mount for 2 MiB and, where the kernel has such pages, one for 1 GiB.
fn hugetlbfs(w: &mut World, cx: &Cx<'_>, id: FileId, page: PageSize) -> Out {
    let page = if page == PageSize::Huge1G { page } else { PageSize::Huge2M };
    if !w.profile.has_pool(page) {
        return cx.pick(H003, &[Want::Err(2), Want::Err(19), Want::Err(EINVAL)]).map(|_| ());
    }
    cx.only(H003, Want::Ok(0))?;
    let key = keep(w, cx, id, page, Seals::SEAL);
    w.files[key].mounted = true;
    Ok(())
}

fn sealed(w: &World, key: FileKey, seals: Seals) -> bool {
    w.files[key].seals.any(seals) && !w.mutated(Mutant::SealsIgnored)
}

fn ftruncate(w: &mut World, cx: &Cx<'_>, key: FileKey, len: u64) -> Out {
    let unit = w.files[key].page.bytes();
    let size = w.files[key].size;
    let huge = w.files[key].page.is_huge();
    let rule = if huge { H010 } else { S010 };
    if huge && !len.is_multiple_of(unit) && !w.mutated(Mutant::UnalignedTruncateOk) {
        return cx.errno(rule, EINVAL);
    }
    let barred = (len < size && sealed(w, key, Seals::SHRINK))
        || (len > size && sealed(w, key, Seals::GROW));
    if barred {
        return cx.errno(rule, EPERM);
    }
    cx.only(rule, Want::Ok(0))?;
    w.files[key].size = len;
    // hugetlbfs truncates whatever the old size was (hugetlb_vmtruncate), so pages preallocated
    // beyond both ends go even when the file grows; shmem keeps them (shmem_setattr).
    if (huge || len <= size) && !w.mutated(Mutant::TruncateKeepsPages) {
        space::truncate(w, cx, key, len);
    }
    Ok(())
}

fn fallocate(
    w: &mut World,
    cx: &Cx<'_>,
    key: FileKey,
    off: u64,
    len: u64,
    flags: FallocFlags,
) -> Out {
    if len == 0 {
        return cx.errno(H020, EINVAL);
    }
    let end = off + len;
    if end > w.files[key].size && sealed(w, key, Seals::GROW) {
        return cx.errno(H020, EPERM);
    }
    if cx.obs.status == Status::Err(4) {
        // Any pending signal ends it, and the only signals here are the agent's own when
        // an op takes long. How many pages were filled is not told.
        w.blur("fallocate was interrupted by the time-out");
        return Ok(());
    }
    let done = if w.files[key].page.is_huge() {
        space::fill_huge(w, cx, key, off, end)?
    } else {
        fill_shmem(w, cx, key, off, end)?
    };
    let grows = !flags.has(FallocFlags::KEEP_SIZE) && !w.mutated(Mutant::FallocateKeepsSize);
    if done && grows {
        w.files[key].size = w.files[key].size.max(end);
    }
    Ok(())
}

/// All pages or, where memory may run short, none.
fn fill_shmem(w: &mut World, cx: &Cx<'_>, key: FileKey, off: u64, end: u64) -> Out<bool> {
    let mut wants = vec![Want::Ok(0)];
    if end - off > AMPLE || cx.racing {
        wants.extend([Want::Err(28), Want::Err(12)]);
    }
    if cx.pick(S021, &wants)? != 0 {
        return Ok(false);
    }
    space::fill_base(w, key, off / PAGE, end.div_ceil(PAGE));
    Ok(true)
}

fn punch(w: &mut World, cx: &Cx<'_>, key: FileKey, off: u64, len: u64) -> Out {
    if len == 0 {
        return cx.errno(H020, EINVAL);
    }
    if sealed(w, key, Seals::WRITE | Seals::FUTURE_WRITE) {
        return cx.errno(H030, EPERM);
    }
    cx.only(H030, Want::Ok(0))?;
    w.files[key].head_punched |= off + len < PAGE && !w.files[key].page.is_huge();
    space::punch(w, cx, key, off, off + len);
    Ok(())
}

/// First poisoned cached page that [off, end) touches, as the offset where reading meets it.
fn first_poison(w: &World, key: FileKey, off: u64, end: u64) -> Option<u64> {
    let file = &w.files[key];
    let unit = file.page.bytes();
    let units = off / unit..end.div_ceil(unit);
    let hit = file.cache.range(units).find(|(_, body)| w.bodies[**body].poisoned)?;
    Some((hit.0 * unit).max(off))
}

fn pread(w: &mut World, cx: &Cx<'_>, key: FileKey, off: u64, len: u64) -> Out {
    let file = &w.files[key];
    let huge = file.page.is_huge();
    let mut size = file.size;
    if huge && w.mutated(Mutant::ReadHugetlbBeyondEof) {
        size = size.max(off + len);
    }
    let end = (off + len).min(size).max(off);
    let whole = Want::Ok((end - off) as i64);
    if huge {
        cx.pick(H040, &pread_huge(w, key, off, end))?;
    } else {
        match first_poison(w, key, off, end) {
            None => cx.only(S040, whole)?,
            Some(at) if at > off => cx.only(S040, Want::Ok((at - off) as i64))?,
            Some(_) => return cx.errno(S040, EIO),
        }
    }
    let Status::Ok(got) = cx.obs.status else { return Ok(()) };
    let expected = file_content(w, key, off, off + got.max(0) as u64);
    content(cx, &expected)
}

/// What reading a hugetlb file may give. Up to 6.4 a poisoned huge page is EIO as a whole; since
/// then only its poisoned sub-pages are (hugetlbfs_read_iter, adjust_range_hwpoison).
fn pread_huge(w: &World, key: FileKey, off: u64, end: u64) -> Vec<Want> {
    let unit = w.files[key].page.bytes();
    let whole = Want::Ok((end - off) as i64);
    let units = off / unit..end.div_ceil(unit);
    for (index, body) in w.files[key].cache.range(units) {
        let body = &w.bodies[*body];
        let start = index * unit;
        let stop = match (w.family, body.poisoned) {
            (_, false) => continue,
            (Family::U61, true) => start.max(off),
            (Family::U612, true) if body.raw.is_empty() => {
                let least = (start.max(off) - off).max(1) as i64;
                return vec![Want::OkIn(least, (end - off) as i64), Want::Err(EIO)];
            }
            (Family::U612, true) => {
                let bad = |sub: &u32| {
                    let at = start + u64::from(*sub) * PAGE;
                    at < end && at + PAGE > off
                };
                match body.raw.iter().find(|sub| bad(sub)) {
                    None => continue,
                    Some(sub) => (start + u64::from(*sub) * PAGE).max(off),
                }
            }
        };
        // EIO for the count read so far is the kernels' way, a short count the manual's.
        return match stop - off {
            0 => vec![Want::Err(EIO)],
            read => vec![Want::Ok(read as i64), Want::Err(EIO)],
        };
    }
    vec![whole]
}

/// What reading [start, end) of a file must bring, page by page.
fn file_content(w: &World, key: FileKey, start: u64, end: u64) -> Vec<Expect> {
    if end <= start {
        return Vec::new();
    }
    let unit = w.files[key].page.bytes();
    let mut list = Vec::new();
    for page in start / PAGE..end.div_ceil(PAGE) {
        let at = page * PAGE;
        let body = w.files[key].cache.get(&(at / unit)).map(|b| &w.bodies[*b]);
        let full = body.map_or([Word::Zero; 2], |b| b.words((at % unit / PAGE) as u32));
        let sub = (at % unit / PAGE) as u32;
        let lost = |b: &Body| b.poisoned && (b.raw.is_empty() || b.raw.contains(&sub));
        let any = body.is_some_and(|b| b.vague.contains(&sub) || lost(b));
        let mut words = [Word::Unread; 2];
        for (i, word) in WORD_OFFSETS.iter().enumerate() {
            if at + word >= start && at + word + 8 <= end {
                words[i] = full[i];
            }
        }
        list.push(Expect { words, or_zero: false, any });
    }
    list
}

fn pwrite(w: &mut World, cx: &Cx<'_>, key: FileKey, off: u64, len: u64) -> Out {
    if w.files[key].page.is_huge() {
        return cx.errno(H041, EINVAL);
    }
    if len == 0 {
        return cx.only(S041, Want::Ok(0));
    }
    if sealed(w, key, Seals::WRITE | Seals::FUTURE_WRITE) {
        return cx.errno(S041, EPERM);
    }
    // Written page by page: the first that may not be written ends it.
    let end = off + len;
    let size = w.files[key].size;
    let (mut stop, mut errno) = (end, None);
    if sealed(w, key, Seals::GROW) && end > size {
        let whole = if size < off { off } else { size - size % PAGE };
        (stop, errno) = (whole.max(off), Some(EPERM));
    }
    if let Some(at) = first_poison(w, key, off, stop) {
        (stop, errno) = (at, Some(EIO));
    }
    let done = (stop - off) as i64;
    let mut wants = match errno {
        Some(errno) if done == 0 => vec![Want::Err(errno)],
        _ => vec![Want::Ok(done)],
    };
    if let (Some(errno), true) = (errno, w.thp_shmem != 0) {
        // Huge pages make the steps larger than a page.
        wants.extend([Want::OkIn(1, done.max(1)), Want::Err(errno)]);
    }
    if len > AMPLE {
        wants.extend([Want::OkIn(1, done), Want::Err(28), Want::Err(12)]);
    }
    cx.pick(S041, &wants)?;
    let Status::Ok(got) = cx.obs.status else { return Ok(()) };
    let end = off + got.max(0) as u64;
    store(w, cx, key, off, end);
    w.files[key].size = size.max(end);
    Ok(())
}

/// Puts the line's tags into [start, end) of a shmem file; bytes between the tag words are zero.
fn store(w: &mut World, cx: &Cx<'_>, key: FileKey, start: u64, end: u64) {
    for page in start / PAGE..end.div_ceil(PAGE) {
        let body = space::cached_or_new(w, key, page);
        let (from, to) = (start.max(page * PAGE) % PAGE, (end - page * PAGE).min(PAGE));
        let mut words = w.bodies[body].words(0);
        let tag = Word::Tag(Tag { serial: u32::from(cx.line) + 1, page: page as u32 });
        for (i, at) in WORD_OFFSETS.into_iter().enumerate() {
            words[i] = if at >= from && at + 8 <= to {
                tag
            } else {
                space::zeroed(words[i], at, from, to)
            };
        }
        w.bodies[body].set(0, words);
    }
}

fn fstat(w: &mut World, cx: &Cx<'_>, key: FileKey) -> Out {
    cx.only(H007, Want::Ok(0))?;
    let Output::Stat { size, blocks } = cx.obs.out else { return Ok(()) };
    let file = &w.files[key];
    if size != file.size {
        let class = if size < file.size { "size:low" } else { "size:high" };
        let (want, got) = (format!("size {}", file.size), format!("size {size}"));
        return Err(cx.broken(H007, class, want, got).expecting(Expectation::Size(file.size)));
    }
    let want = file.cache.len() as u64 * (file.page.bytes() / 512);
    // Huge pages of shmem fill neighbours too.
    let more_is_fine = !file.page.is_huge() && w.thp_shmem != 0;
    if blocks < want || (blocks > want && !more_is_fine) {
        let class = if blocks < want { "blocks:low" } else { "blocks:high" };
        let high = if more_is_fine { u64::MAX } else { want };
        let broken = cx.broken(H007, class, format!("{want} blocks"), format!("{blocks} blocks"));
        return Err(broken.expecting(Expectation::Blocks { low: want, high }));
    }
    Ok(())
}

fn seal(w: &mut World, cx: &Cx<'_>, key: FileKey, seals: Seals) -> Out {
    if sealed(w, key, Seals::SEAL) {
        return cx.errno(S050, EPERM);
    }
    let mut wants = vec![Want::Ok(0)];
    if seals.has(Seals::WRITE) && !w.files[key].seals.has(Seals::WRITE) {
        let mut shared = zap::mappings(w, key, 0, u64::MAX);
        shared.retain(|m| m.vma.share == Share::Shared);
        if shared.iter().any(|m| !m.vma.flags.sealed_ro) {
            return cx.errno(S050, EBUSY);
        }
        if !shared.is_empty() && w.family == Family::U61 {
            wants.push(Want::Err(EBUSY));
        }
        let held = |body: &usize| w.bodies[*body].file.is_some_and(|(k, _)| k == key);
        if w.pins.values().flatten().any(held) {
            return cx.errno(S050, EBUSY);
        }
        let poisoned = w.files[key].cache.values().any(|b| w.bodies[*b].poisoned);
        if poisoned || cx.racing {
            wants.push(Want::Err(EBUSY));
        }
    }
    if cx.pick(S050, &wants)? == 0 {
        w.files[key].seals = w.files[key].seals | seals;
    }
    Ok(())
}
