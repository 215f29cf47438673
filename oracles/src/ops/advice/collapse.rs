//! MADV_COLLAPSE: which blocks must, may or cannot become huge, and what that leaves behind.

use super::{EAGAIN, EBUSY, EINVAL, ENOMEM, Part, pieces};
use crate::mutants::Mutant;
use crate::ops::file::{space, zap};
use crate::ops::mapping::merge::may_merge;
use crate::rules::*;
use crate::step::seen_bits;
use crate::step::{Cx, Out, Want};
use crate::world::{Backing, Entry, FileKey, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{Status, pm};
use case::{Family, UffdModes};

const BLOCK: u64 = 2 << 20;

/// What may become of one 2 MiB block.
#[derive(Clone, Copy, Debug, Default)]
struct Chance {
    works: bool,
    /// errnos of a refusal that is not of a passing kind.
    invalid: bool,
    busy: bool,
    again: bool,
}

const MUST_WORK: Chance = Chance { works: true, invalid: false, busy: false, again: false };
const INVALID: Chance = Chance { works: false, invalid: true, busy: false, again: false };

pub(super) fn collapse(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> Out {
    w.anon_huge = true;
    // Pieces the kernel may have merged are looked at as one; it need not have (V-030), so they are
    // pieces again after it.
    let before: Vec<Vma> =
        w.proc(cx.proc).map_or(Vec::new(), |p| p.vmas.values().cloned().collect());
    let behind = waited_for_behind(w, cx, start, end);
    let merged = join(w, cx, start, end);
    let out = joined(w, cx, start, end, merged);
    if merged {
        divide(w, cx, &before);
    }
    out.map_err(|mut broken| {
        if behind && cx.obs.status == Status::Err(EBUSY as u16) {
            broken.class.push_str(":behind");
        }
        broken
    })
}

/// Is the page of the file behind a block with holes waited for (D-12)?
fn waited_for_behind(w: &World, cx: &Cx<'_>, start: u64, end: u64) -> bool {
    w.vmas_in(cx.proc, start, end).into_iter().any(|vma| {
        let Backing::File { key, off } = vma.backing else { return false };
        let part = Part { start: vma.start.max(start), end: vma.end.min(end), vma };
        let Some((first, last)) = part.blocks().filter(|_| !part.vma.is_hugetlb()) else {
            return false;
        };
        (first..last).step_by(BLOCK as usize).any(|at| {
            let from = off + (at - part.vma.start);
            let behind = from + BLOCK;
            has_holes(w, key, from / PAGE) && waited_for(w, key, behind, behind + PAGE)
        })
    })
}

/// Undoes what `join` did to the VMAs.
fn divide(w: &mut World, cx: &Cx<'_>, before: &[Vma]) {
    let Some(p) = w.proc_mut(cx.proc) else { return };
    p.vmas = before.iter().map(|vma| (vma.start, vma.clone())).collect();
}

fn joined(w: &mut World, cx: &Cx<'_>, start: u64, end: u64, merged: bool) -> Out {
    let gap = w.has_hole(cx.proc, start, end);
    let mut pos = start;
    let mut hole = false;
    let mut rule = A003;
    // What was seen may be the errno of a part that is behind: what follows was reached, or not.
    let mut perhaps = false;
    for vma in w.vmas_in(cx.proc, start, end) {
        hole |= vma.start > pos;
        let part = Part { start: vma.start.max(start), end: vma.end.min(end), vma };
        pos = part.end;
        if perhaps && part.vma.is_hugetlb() && w.profile.hgm().is_some() {
            w.blur("a COLLAPSE of several mappings ended before pieces of huge pages, or in them");
        }
        if perhaps && !eligible(w, &part.vma) {
            break;
        }
        if part.vma.is_hugetlb() && w.mutated(Mutant::CollapseHugetlbOk) {
            continue;
        }
        if part.vma.is_hugetlb() && w.profile.hgm().is_some() {
            match pieces::collapse(w, cx.proc, &part) {
                Ok(()) => rule = HG_COLLAPSE,
                Err(errno) => return cx.errno(HG_COLLAPSE, errno),
            }
            continue;
        }
        if !eligible(w, &part.vma) {
            return cx.errno(A001, EINVAL);
        }
        let Some(blocks) = part.blocks() else {
            if !perhaps && may_refuse(cx, &part, merged) {
                cx.errno(A003, EINVAL)?;
                perhaps = true;
            }
            continue;
        };
        match in_blocks(w, cx, &part, blocks, Around { merged, gap, perhaps })? {
            Went::On => {}
            Went::Perhaps => perhaps = true,
            Went::Ended => return Ok(()),
        }
    }
    if perhaps {
        return Ok(());
    }
    hole |= pos < end;
    if hole {
        return cx.errno(H090, ENOMEM);
    }
    cx.only(rule, Want::Ok(0))
}

/// Joins neighbours of equal attributes in the range. True if there were any.
fn join(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> bool {
    let mut joined = false;
    let (from, to) = (start.saturating_sub(2 * BLOCK), end + 2 * BLOCK);
    let mut list = w.vmas_in(cx.proc, from, to).into_iter();
    let Some(mut head) = list.next() else { return false };
    for next in list {
        let same = !head.is_hugetlb() && may_merge(&head, &next);
        if let (true, Some(p)) = (same, w.proc_mut(cx.proc)) {
            p.vmas.remove(&next.start);
            head.end = next.end;
            head.anon_vma = head.anon_vma.max(next.anon_vma);
            p.vmas.insert(head.start, head.clone());
            joined = true;
        } else {
            head = next;
        }
    }
    joined
}

/// hugepage_vma_check for a call that does not ask sysfs.
fn eligible(w: &World, vma: &Vma) -> bool {
    if vma.flags.nohugepage || vma.is_hugetlb() {
        return false;
    }
    let last = vma.end.saturating_sub(BLOCK);
    let fits = last - last % BLOCK >= vma.start && vma.end - vma.start >= BLOCK;
    match vma.backing {
        Backing::Anon => fits,
        Backing::File { off, .. } => {
            let congruent = vma.start % BLOCK == off % BLOCK;
            fits && congruent && w.thp_shmem != 4
        }
    }
}

impl Part {
    /// Starts of its whole blocks, first and behind the last. None if it has none.
    fn blocks(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.start.next_multiple_of(BLOCK), self.end - self.end % BLOCK);
        (first < last).then_some((first, last))
    }
}

/// Whether a part without a whole block may be what gave the EINVAL that was seen: 0 if start and
/// end meet in one boundary, EINVAL inside a block, and the manual is silent. An anonymous
/// mapping that never had a page is refused in either case (hugepage_vma_check), a file is not,
/// unless neighbours that the kernel need not have merged are each too small for a block.
fn may_refuse(cx: &Cx<'_>, part: &Part, merged: bool) -> bool {
    let met = part.start.next_multiple_of(BLOCK) == part.end - part.end % BLOCK;
    let passes = met && part.vma.backing != Backing::Anon && !merged;
    !passes && cx.obs.status == Status::Err(EINVAL as u16)
}

/// What counts for the blocks of a mapping beside the mapping.
#[derive(Clone, Copy, Debug)]
struct Around {
    /// Pieces of it may be mappings of their own.
    merged: bool,
    /// The call's range has a hole.
    gap: bool,
    /// A part before it may have ended the call.
    perhaps: bool,
}

/// How a call left a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    On,
    /// Ended with an errno that was allowed.
    Ended,
    /// The errno may be of this one, or of one behind it.
    Perhaps,
}

/// The whole blocks of one mapping.
fn in_blocks(
    w: &mut World,
    cx: &Cx<'_>,
    part: &Part,
    (first, last): (u64, u64),
    Around { merged, gap, perhaps }: Around,
) -> Out<Went> {
    let mut total = Chance { works: true, invalid: merged, ..Chance::default() };
    let blocks = (first..last).step_by(BLOCK as usize);
    for at in blocks.clone() {
        let chance = chance(w, cx, &part.vma, at);
        total.works &= chance.works;
        total.invalid |= chance.invalid;
        total.busy |= chance.busy;
        total.again |= chance.again;
    }
    // An errno that this part may not give is that of a later one, or of a hole.
    let mine = match cx.obs.status {
        Status::Err(errno) => match i32::from(errno) {
            EAGAIN => true,
            ENOMEM => !gap,
            EINVAL => total.invalid,
            EBUSY => total.busy,
            _ => false,
        },
        _ => false,
    };
    if total.works && !mine && !perhaps {
        for at in blocks {
            made_huge(w, cx, &part.vma, at);
        }
        return Ok(Went::On);
    }
    let mut wants = Vec::new();
    if total.works {
        wants.push(Want::Ok(0));
    }
    let pairs = [(total.invalid, EINVAL), (total.busy, EBUSY)];
    wants.extend(pairs.into_iter().filter(|(on, _)| *on).map(|(_, errno)| Want::Err(errno)));
    wants.extend([Want::Err(EAGAIN), Want::Err(ENOMEM)]);
    let waits = part.vma.armed(UffdModes::MISSING)
        || blocks.clone().any(|at| waits_for_holes(w, &part.vma, at));
    if !perhaps {
        cx.pick(if waits { A006 } else { A003 }, &wants)?;
    }
    w.collapse_refused |= waits;
    for at in blocks {
        maybe_huge(w, cx, &part.vma, at);
    }
    Ok(if total.works { Went::Perhaps } else { Went::Ended })
}

fn chance(w: &World, cx: &Cx<'_>, vma: &Vma, at: u64) -> Chance {
    match vma.backing {
        Backing::Anon => anon_chance(w, cx, vma, at),
        Backing::File { key, off } => {
            file_chance(w, cx, vma, key, (off + (at - vma.start)) / PAGE, at)
        }
    }
}

/// Entries of the block, page by page.
fn entries(w: &World, cx: &Cx<'_>, at: u64) -> Vec<Option<Entry>> {
    let pages = (at..at + BLOCK).step_by(PAGE as usize);
    pages.map(|page| w.entry(cx.proc, page)).collect()
}

fn pinned(w: &World, body: usize) -> bool {
    w.pins.values().any(|pages| pages.contains(&body))
}

/// Could one huge entry map the whole block now? Then the call finds its work done, whatever the
/// entry looks like.
fn may_be_huge(all: &[Option<Entry>]) -> bool {
    let same = |e: &&Entry| matches!(e.slot, Slot::Page(_) | Slot::Zero | Slot::Unsure);
    let fitting: Vec<&Entry> = all.iter().flatten().filter(same).collect();
    let sorts = |slot: fn(Slot) -> bool| fitting.iter().any(|e| slot(e.slot));
    let mixed = sorts(|s| s == Slot::Zero) && sorts(|s| matches!(s, Slot::Page(_)));
    let wp = fitting.iter().filter(|e| e.wp).count();
    fitting.len() == all.len() && !mixed && (wp == 0 || wp == all.len())
}

fn anon_chance(w: &World, cx: &Cx<'_>, vma: &Vma, at: u64) -> Chance {
    let all = entries(w, cx, at);
    let huge = may_be_huge(&all) && w.profile.thp;
    let any = |f: &dyn Fn(&Entry) -> bool| all.iter().flatten().any(f);
    let closed =
        |e: &Entry| matches!(e.slot, Slot::HwPoison { .. } | Slot::UffdPoison | Slot::Marker);
    if any(&|e| e.wp || closed(e)) {
        let busy = vma.uffd.is_some() && w.family == Family::U612 && hole_comes_first(&all);
        return Chance { works: huge, busy, ..INVALID };
    }
    let held = any(&|e: &Entry| matches!(e.slot, Slot::Page(body) if pinned(w, body)));
    let mut chance = unpinned_chance(w, vma, &all, huge);
    if held {
        // Whichever refusal the walk over the block meets first (hpage_collapse_scan_pmd).
        chance.works = huge;
        chance.again = true;
    }
    chance
}

/// May the walk over the block meet an entry that is none or zero before one with a wp bit (of a zero
/// page with the bit it sees the zeros first)? Where
/// somebody waits that ends it with EBUSY on 6.12, EINVAL on 6.1 (hpage_collapse_scan_pmd,
/// madvise_collapse_errno); poison is passed over until all is scanned.
fn hole_comes_first(all: &[Option<Entry>]) -> bool {
    let hole = |e: &Option<Entry>| e.is_none_or(|e| matches!(e.slot, Slot::Zero | Slot::Unsure));
    let wp = |e: &Option<Entry>| e.is_some_and(|e| e.wp || e.slot == Slot::Marker);
    let first = |f: &dyn Fn(&Option<Entry>) -> bool| all.iter().position(f).unwrap_or(all.len());
    first(&hole) < all.len() && first(&hole) <= first(&wp)
}

fn unpinned_chance(w: &World, vma: &Vma, all: &[Option<Entry>], huge: bool) -> Chance {
    let pages = all.iter().flatten().filter(|e| matches!(e.slot, Slot::Page(_))).count();
    let armed = vma.uffd.is_some();
    if pages == 0 || !vma.prot.has(case::Prot::WRITE) {
        // No writable page: an unsure entry has none that was stored to.
        let busy = armed && w.family == Family::U612;
        return Chance { works: huge, busy, ..INVALID };
    }
    let mut chance = MUST_WORK;
    if armed && pages < all.len() {
        // Holes of an armed mapping must stay; an unsure entry may be part of a huge page.
        chance.works = huge;
        chance.invalid = true;
        chance.busy = w.family == Family::U612;
    }
    // After fork or mprotect entries may be read-only until the next store.
    let forked = w.forked;
    chance.invalid |= forked || w.mprotected;
    chance
}

fn file_chance(w: &World, cx: &Cx<'_>, vma: &Vma, key: FileKey, first: u64, at: u64) -> Chance {
    let cached: Vec<usize> =
        w.files[key].cache.range(first..first + BLOCK / PAGE).map(|(_, body)| *body).collect();
    if cached.is_empty() {
        return INVALID;
    }
    if cached.iter().any(|body| w.bodies[*body].poisoned) {
        return Chance { works: false, invalid: true, busy: true, again: true };
    }
    if cached.iter().any(|body| pinned(w, *body)) {
        // A pinned huge page is not split by a punch, so it may still fill its block.
        let works = cached.len() == (BLOCK / PAGE) as usize || w.files[key].maybe_huge;
        return Chance { works, invalid: false, busy: false, again: true };
    }
    let holes = cached.len() < (BLOCK / PAGE) as usize;
    let (from, to) = (first * PAGE, first * PAGE + BLOCK);
    if holes && waited_for(w, key, from, to) {
        return Chance { works: false, invalid: true, busy: true, again: false };
    }
    if vma.armed(UffdModes::WP) {
        // One that maps a huge page already is left as it is (find_pmd_or_thp_or_none).
        let works = w.files[key].maybe_huge && may_be_huge(&entries(w, cx, at));
        return Chance { works, invalid: true, busy: true, again: false };
    }
    let mut chance = MUST_WORK;
    let poison = entries(w, cx, at)
        .iter()
        .flatten()
        .any(|e| matches!(e.slot, Slot::HwPoison { .. } | Slot::UffdPoison | Slot::Marker));
    // Nothing mapped here: there may be no page table to put the huge page in, and the manual
    // speaks of pages mapped by the range only.
    let untouched = entries(w, cx, at).iter().flatten().all(|e| e.slot == Slot::Unsure);
    // What was reserved behind the end of the file is not to be had, and so not to be copied
    // (shmem_get_folio: EINVAL). Holes there are filled.
    let end = w.files[key].size.div_ceil(PAGE);
    let behind = w.files[key].cache.range(end.max(first)..(first + BLOCK / PAGE).max(end));
    let reserved = behind.count() > 0;
    chance.invalid = poison || untouched || reserved || vma.is_private() || vma.uffd.is_some();
    chance
}

/// Does a userfaultfd wait for a page that a block of a file does not have?
fn waits_for_holes(w: &World, vma: &Vma, at: u64) -> bool {
    let Backing::File { key, off } = vma.backing else { return false };
    let first = (off + (at - vma.start)) / PAGE;
    has_holes(w, key, first) && waited_for(w, key, first * PAGE, first * PAGE + BLOCK)
}

/// Does the block of a file that begins with this page lack any?
fn has_holes(w: &World, key: FileKey, first: u64) -> bool {
    let pages = BLOCK / PAGE;
    w.files[key].cache.range(first..first + pages).count() < pages as usize
}

/// Does a userfaultfd wait for pages of this range of the file?
fn waited_for(w: &World, key: FileKey, from: u64, to: u64) -> bool {
    zap::mappings(w, key, from, to).iter().any(|m| m.vma.armed(UffdModes::MISSING))
}

/// The block is huge now: every page of it is there, content as before.
fn made_huge(w: &mut World, cx: &Cx<'_>, vma: &Vma, at: u64) {
    if let Backing::File { key, off } = vma.backing {
        return file_made_huge(w, cx, vma, key, (off + (at - vma.start)) / PAGE, at);
    }
    let all = entries(w, cx, at);
    let has_pages = all.iter().flatten().any(|e| matches!(e.slot, Slot::Page(_)));
    if !has_pages {
        // The huge zero page was there already.
        return;
    }
    // A block that was huge before stays as it is, and what other processes map of it shared.
    let shared = if may_be_huge(&all) { still_shared(w, cx, at, &all) } else { Shared::No };
    for (page, entry) in (at..at + BLOCK).step_by(PAGE as usize).zip(all) {
        let body = match entry.map(|e| e.slot) {
            // Shared with another process: this one has a copy of its own now.
            Some(Slot::Page(body)) if shared == Shared::No && w.mapcount(body) > 1 => {
                w.copy_body(body)
            }
            Some(Slot::Page(body)) if shared == Shared::Unknown && w.mapcount(body) > 1 => {
                loose_copy(w, body)
            }
            Some(Slot::Page(body)) => body,
            _ => w.new_body(vma.unit, None),
        };
        let wp = entry.is_some_and(|e| e.wp);
        w.set_entry(cx.proc, page, Some(Entry { slot: Slot::Page(body), wp }));
    }
}

/// A page that may or may not be a copy of one that others map too.
fn loose_copy(w: &mut World, body: usize) -> usize {
    let copy = w.copy_body(body);
    w.bodies[body].loose = true;
    w.bodies[copy].loose = true;
    copy
}

/// Nobody saw whether the block got a copy of what others map too.
fn loosen(w: &mut World, cx: &Cx<'_>, at: u64, all: &[Option<Entry>]) {
    for (page, entry) in (at..at + BLOCK).step_by(PAGE as usize).zip(all) {
        if let Some(Entry { slot: Slot::Page(body), wp }) = *entry
            && w.mapcount(body) > 1
        {
            let copy = loose_copy(w, body);
            w.set_entry(cx.proc, page, Some(Entry { slot: Slot::Page(copy), wp }));
        }
    }
}

/// Whether pages of a collapsed block that other processes map too are still theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    Yes,
    No,
    Unknown,
}

/// What a look says of that. The exclusive bit of an entry that maps a whole huge page may be that
/// of its first page (N09), so it tells something only where that one was shared.
fn still_shared(w: &World, cx: &Cx<'_>, at: u64, all: &[Option<Entry>]) -> Shared {
    let pages = (at..at + BLOCK).step_by(PAGE as usize).zip(all);
    let Some((page, _)) = pages.into_iter().find(|(_, e)| others_map(w, e)) else {
        return Shared::Yes;
    };
    match seen_bits(cx, cx.proc, page).map(|bits| bits & pm::EXCLUSIVE == 0) {
        Some(true) => Shared::Yes,
        Some(false) if page == at => Shared::No,
        _ => Shared::Unknown,
    }
}

fn others_map(w: &World, entry: &Option<Entry>) -> bool {
    matches!(entry, Some(Entry { slot: Slot::Page(body), .. }) if w.mapcount(*body) > 1)
}

fn file_made_huge(w: &mut World, cx: &Cx<'_>, vma: &Vma, key: FileKey, first: u64, at: u64) {
    let (from, to) = (first * PAGE, first * PAGE + BLOCK);
    space::fill_base(w, key, first, first + BLOCK / PAGE);
    w.files[key].maybe_huge = true;
    haze_others(w, key, from, to);
    for (i, page) in (at..at + BLOCK).step_by(PAGE as usize).enumerate() {
        let Some(body) = w.files[key].cache.get(&(first + i as u64)).copied() else { continue };
        let own = match w.entry(cx.proc, page).map(|e| e.slot) {
            Some(Slot::Page(now)) => w.bodies[now].file.is_none(),
            _ => false,
        };
        if !own || !vma.is_private() {
            w.set_entry(cx.proc, page, Some(Entry { slot: Slot::Page(body), wp: false }));
        }
    }
}

/// Other entries of the file range were taken out to be faulted in again, or not.
fn haze_others(w: &mut World, key: FileKey, from: u64, to: u64) {
    for m in zap::mappings(w, key, from, to) {
        let Some(p) = w.proc(m.proc) else { continue };
        let found: Vec<(u64, Entry)> =
            p.entries.range(m.start..m.end).map(|(a, e)| (*a, *e)).collect();
        for (at, entry) in found {
            let file_page = match entry.slot {
                Slot::Page(body) => w.bodies[body].file.is_some(),
                _ => false,
            };
            if file_page && !entry.wp {
                w.set_entry(m.proc, at, Some(Entry { slot: Slot::Unsure, wp: false }));
            }
        }
    }
}

/// The call failed somewhere: this block may be huge or not.
fn maybe_huge(w: &mut World, cx: &Cx<'_>, vma: &Vma, at: u64) {
    let chance = chance(w, cx, vma, at);
    let Backing::File { key, off } = vma.backing else {
        if chance.works && vma.uffd.is_none() {
            let all = entries(w, cx, at);
            if may_be_huge(&all) {
                match still_shared(w, cx, at, &all) {
                    Shared::No => return made_huge(w, cx, vma, at),
                    Shared::Unknown => loosen(w, cx, at, &all),
                    Shared::Yes => {}
                }
            }
            for page in (at..at + BLOCK).step_by(PAGE as usize) {
                let open = match w.entry(cx.proc, page).map(|e| e.slot) {
                    None | Some(Slot::Zero) => true,
                    Some(_) => false,
                };
                if open {
                    let unsure = Entry { slot: Slot::Unsure, wp: false };
                    w.set_entry(cx.proc, page, Some(unsure));
                }
            }
        }
        return;
    };
    let from = off + (at - vma.start);
    let first = from / PAGE;
    let cached = w.files[key].cache.range(first..first + BLOCK / PAGE).count();
    let full = cached == (BLOCK / PAGE) as usize;
    if cached == 0 {
        return;
    }
    w.files[key].maybe_huge = true;
    let (low, high) = (at.max(vma.start), (at + BLOCK).min(vma.end));
    crate::touch::haze(w, cx.proc, low, high, |w, page| w.cached(vma, page).is_some());
    // The file is collapsed before a write-protected mapping of it is refused
    // (collapse_pte_mapped_thp).
    let only_mapping =
        vma.armed(UffdModes::WP) && !waited_for(w, key, first * PAGE, first * PAGE + BLOCK);
    if !full && (chance.works || only_mapping) {
        w.blur("a failed collapse may have filled holes of the file");
        return;
    }
    w.files[key].maybe_huge |= chance.works || chance.invalid;
    haze_others(w, key, from, from + BLOCK);
}
