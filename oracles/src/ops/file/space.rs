//! The page cache under a new size, a hole or a preallocation.

use super::zap::{self, HOLE, TRUNCATE, Zap};
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::touch::take_huge_cached;
use crate::world::{BodyId, FileKey, Slot, World};
use case::limits::{PAGE, WORD_OFFSETS};
use case::observation::Word;
use case::{PageSize, Tag};

/// Whether an allocation from a pool works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Yes,
    No,
    /// Overcommit, a NUMA policy or a changed pool: the kernel may or may not find the pages.
    Maybe,
}

/// May `n` pages that nobody reserved be taken?
pub fn room(w: &World, cx: &Cx<'_>, page: PageSize, n: i64) -> Room {
    if n <= 0 {
        return Room::Yes;
    }
    let state = w.pool_state(page);
    let now = w.pool_now(page);
    if state.witness || cx.racing || w.numa_bound {
        return Room::Maybe;
    }
    let missing = n - (now.free - now.rsvd);
    if missing <= 0 {
        Room::Yes
    } else if state.surp_max > now.surp && page != PageSize::Huge1G {
        if missing <= state.surp_max - now.surp { Room::Maybe } else { Room::No }
    } else {
        Room::No
    }
}

/// After taking `n` unreserved pages: totals move if some of them were surplus.
pub fn took(w: &mut World, page: PageSize, n: i64) {
    let now = w.pool_now(page);
    if now.free - now.rsvd < 0 && n > 0 {
        w.pool_state_mut(page).witness = true;
    }
}

/// One word after bytes [from, to) of its page became zero; the word lies at `at`.
pub fn zeroed(word: Word, at: u64, from: u64, to: u64) -> Word {
    let (from, to) = (from.max(at), to.min(at + 8));
    let Word::Tag(tag) = word else { return word };
    if from >= to {
        return word;
    }
    let mut bytes = tag.word().to_le_bytes();
    bytes[(from - at) as usize..(to - at) as usize].fill(0);
    match u64::from_le_bytes(bytes) {
        0 => Word::Zero,
        raw => Word::Tag(Tag::of_word(raw)),
    }
}

/// Zeroes bytes [from, to) of a page, offsets into it.
pub fn zero_part(w: &mut World, body: BodyId, from: u64, to: u64) {
    if to <= from {
        return;
    }
    for sub in from / PAGE..to.div_ceil(PAGE) {
        let base = sub * PAGE;
        let mut words = w.bodies[body].words(sub as u32);
        for (i, at) in WORD_OFFSETS.into_iter().enumerate() {
            words[i] = zeroed(words[i], base + at, from, to);
        }
        w.bodies[body].set(sub as u32, words);
    }
}

/// The cached page of a shmem file, made if there is none.
pub fn cached_or_new(w: &mut World, key: FileKey, idx: u64) -> BodyId {
    if let Some(body) = w.files[key].cache.get(&idx) {
        return *body;
    }
    let body = w.new_body(w.files[key].page, Some((key, idx)));
    w.files[key].cache.insert(idx, body);
    body
}

/// Makes pages [first, last) of a shmem file present.
pub fn fill_base(w: &mut World, key: FileKey, first: u64, last: u64) {
    for idx in first..last {
        cached_or_new(w, key, idx);
    }
}

/// Preallocation of a hugetlb file. True if it went through; a failure keeps its prefix (H-023).
pub fn fill_huge(w: &mut World, cx: &Cx<'_>, key: FileKey, off: u64, end: u64) -> Out<bool> {
    let page = w.files[key].page;
    let unit = page.bytes();
    let mut unsure = false;
    for idx in off / unit..end.div_ceil(unit) {
        if w.files[key].cache.contains_key(&idx) {
            continue;
        }
        if w.files[key].resv.contains(&idx) {
            insert_huge(w, key, idx);
            continue;
        }
        match room(w, cx, page, 1) {
            Room::Yes => insert_huge(w, key, idx),
            Room::No if !unsure => {
                cx.pick(H021, &[Want::Err(28)])?;
                return Ok(false);
            }
            Room::No | Room::Maybe => {
                unsure = true;
                insert_huge(w, key, idx);
                took(w, page, 1);
            }
        }
    }
    if !unsure {
        cx.only(H021, Want::Ok(0))?;
        return Ok(true);
    }
    if cx.pick(H021, &[Want::Ok(0), Want::Err(28), Want::Err(12)])? == 0 {
        return Ok(true);
    }
    w.blur("fallocate stopped where the pool ran out, at a page the rules do not fix");
    Ok(false)
}

fn insert_huge(w: &mut World, key: FileKey, idx: u64) {
    if take_huge_cached(w, key, idx).is_none() {
        let body = w.new_body(w.files[key].page, Some((key, idx)));
        w.files[key].cache.insert(idx, body);
        w.files[key].resv.insert(idx);
    }
}

/// Everything at and beyond the new size goes: cache, entries, private copies, reservations.
pub fn truncate(w: &mut World, cx: &Cx<'_>, key: FileKey, size: u64) {
    let page = w.files[key].page;
    let unit = page.bytes();
    let first = size.div_ceil(unit);
    if !page.is_huge() && has_markers(w, key, first * unit) {
        // The comment of ZAP_FLAG_DROP_MARKER names truncation, yet shmem keeps them (U-081).
        w.blur("truncation of a shmem file with uffd-wp markers");
    }
    w.kept_whole |= kept_whole_by_pins(w, key, first * unit);
    let freed = zap::zap_file(w, key, first * unit, u64::MAX, TRUNCATE);
    w.files[key].cache.retain(|idx, _| *idx < first);
    w.files[key].perhaps_copied.retain(|idx| *idx < first);
    w.files[key].resv.retain(|idx| *idx < first);
    if let (false, Some(body)) = (size.is_multiple_of(unit), cached(w, key, size / unit)) {
        zero_part(w, body, size % unit, unit);
    }
    if page.is_huge() {
        zap::maybe_restore(w, cx, page, &freed);
    }
}

const BLOCK: u64 = 2 << 20;

/// May a hole that begins or ends here lie in a huge page that is pinned? It cannot be divided
/// then, so the pages of the hole are zeroed and stay (truncate_inode_partial_folio); a fault on a
/// page beside them may map them.
fn kept_whole_by_pins(w: &World, key: FileKey, at: u64) -> bool {
    if w.files[key].page.is_huge() || !w.files[key].maybe_huge || at.is_multiple_of(BLOCK) {
        return false;
    }
    let first = (at - at % BLOCK) / PAGE;
    let mut block = w.files[key].cache.range(first..first + BLOCK / PAGE).map(|(_, body)| body);
    block.any(|body| w.pins.values().any(|pinned| pinned.contains(body)))
}

fn has_markers(w: &World, key: FileKey, from: u64) -> bool {
    zap::mappings(w, key, from, u64::MAX).iter().any(|m| {
        let Some(p) = w.proc(m.proc) else { return false };
        p.entries.range(m.start..m.end).any(|(_, e)| e.wp || e.slot == Slot::Marker)
    })
}

fn cached(w: &World, key: FileKey, idx: u64) -> Option<BodyId> {
    w.files[key].cache.get(&idx).copied()
}

/// A hole at bytes [start, end) of a file.
pub fn punch(w: &mut World, cx: &Cx<'_>, key: FileKey, start: u64, end: u64) {
    let page = w.files[key].page;
    let unit = page.bytes();
    let (first, last) = (start.div_ceil(unit), end / unit);
    zero_ends(w, key, start, end);
    if first >= last {
        return;
    }
    let (from, to) = (first * unit, last * unit);
    if page.is_huge() && has_private_copies(w, key, from, to) {
        // Private copies should survive as they do on tmpfs; hugetlb takes them (H-032).
        let mut kept = w.clone();
        hole(&mut kept, cx, key, from, to, Zap { keep_own: true, ..HOLE });
        let mut gone = w.clone();
        hole(&mut gone, cx, key, from, to, HOLE);
        zap::choose(w, cx, page, vec![kept, gone], "a hole over private copies");
        return;
    }
    hole(w, cx, key, from, to, HOLE);
}

/// Zeroes the parts of pages at both ends of a hole.
fn zero_ends(w: &mut World, key: FileKey, start: u64, end: u64) {
    let unit = w.files[key].page.bytes();
    let (head, tail) = (start / unit, end / unit);
    if let (false, Some(body)) = (start.is_multiple_of(unit), cached(w, key, head)) {
        zero_part(w, body, start % unit, (end - head * unit).min(unit));
    }
    let tail_apart = head != tail || start.is_multiple_of(unit);
    let zeroes_tail = !end.is_multiple_of(unit) && tail_apart && !w.mutated(Mutant::PunchKeepsTail);
    if let (true, Some(body)) = (zeroes_tail, cached(w, key, tail)) {
        zero_part(w, body, 0, end % unit);
    }
}

fn has_private_copies(w: &World, key: FileKey, from: u64, to: u64) -> bool {
    zap::mappings(w, key, from, to).iter().filter(|m| m.vma.is_private()).any(|m| {
        let Some(p) = w.proc(m.proc) else { return false };
        p.entries.range(m.start..m.end).any(|(_, e)| match e.slot {
            Slot::Page(body) => w.bodies[body].file.is_none(),
            _ => false,
        })
    })
}

fn hole(w: &mut World, cx: &Cx<'_>, key: FileKey, from: u64, to: u64, how: Zap) {
    let page = w.files[key].page;
    let unit = page.bytes();
    w.kept_whole |= [from, to].into_iter().any(|at| kept_whole_by_pins(w, key, at));
    let freed = zap::zap_file(w, key, from, to, how);
    let gone: Vec<u64> =
        w.files[key].cache.range(from / unit..to / unit).map(|(idx, _)| *idx).collect();
    w.files[key].perhaps_copied.retain(|idx| !(from / unit..to / unit).contains(idx));
    for idx in gone {
        w.files[key].cache.remove(&idx);
        w.files[key].resv.remove(&idx);
    }
    if page.is_huge() {
        zap::maybe_restore(w, cx, page, &freed);
    }
}
