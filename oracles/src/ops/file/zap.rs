//! Taking pages out of page tables: what becomes of each entry, which markers stay behind, and
//! what a private mapping's reservation gets back.

use crate::step::Cx;
use crate::world::{Backing, BodyId, Entry, FileKey, ResvKey, Slot, Vma, World};
use case::{Family, PageSize, ProcId, UffdModes};
use std::collections::BTreeSet;

/// A part of a VMA that maps a part of a file.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub proc: ProcId,
    pub vma: Vma,
    /// Virtual addresses.
    pub start: u64,
    pub end: u64,
}

/// How entries are taken out.
#[derive(Clone, Copy, Debug)]
pub struct Zap {
    /// Private copies and poison entries go too (always so for hugetlb, unless `keep_own`).
    pub even_cows: bool,
    /// uffd-wp markers go too.
    pub drop_markers: bool,
    /// hugetlb: private copies stay.
    pub keep_own: bool,
}

/// MADV_DONTNEED: everything but markers of file mappings.
pub const DISCARD: Zap = Zap { even_cows: true, drop_markers: false, keep_own: false };
/// Hole punching: private copies of base pages stay.
pub const HOLE: Zap = Zap { even_cows: false, drop_markers: false, keep_own: false };
/// Truncation: everything (U-081, and the comment of ZAP_FLAG_DROP_MARKER).
pub const TRUNCATE: Zap = Zap { even_cows: true, drop_markers: true, keep_own: false };

/// A private huge page of a reservation's owner that nobody maps any more.
pub type Freed = (ResvKey, u64);

/// Every part of every VMA that maps [from, to) of a file, bytes.
pub fn mappings(w: &World, key: FileKey, from: u64, to: u64) -> Vec<Mapping> {
    let mut found = Vec::new();
    for (proc, p) in &w.procs {
        for vma in p.vmas.values() {
            let Backing::File { key: k, off } = vma.backing else { continue };
            let last = off + (vma.end - vma.start);
            if k != key || last <= from || off >= to {
                continue;
            }
            let start = vma.start + from.saturating_sub(off);
            let end = vma.start + (last.min(to) - off);
            found.push(Mapping { proc: *proc, vma: vma.clone(), start, end });
        }
    }
    found
}

/// Takes the entries of [start, end) of one VMA out; what no other mapping keeps is freed.
pub fn zap(w: &mut World, proc: ProcId, vma: &Vma, start: u64, end: u64, how: Zap) -> Vec<Freed> {
    let owned = take_out(w, proc, vma, start, end, how);
    let gone = |body: BodyId| !w.forked || w.mapcount(body) == 0;
    owned.into_iter().filter(|(_, body)| gone(*body)).map(|(freed, _)| freed).collect()
}

/// A page of a reservation's owner that was taken out of its page table.
type Owned = (Freed, BodyId);

fn take_out(w: &mut World, proc: ProcId, vma: &Vma, start: u64, end: u64, how: Zap) -> Vec<Owned> {
    let Some(p) = w.proc(proc) else { return Vec::new() };
    let entries: Vec<(u64, Entry)> = p.entries.range(start..end).map(|(a, e)| (*a, *e)).collect();
    let mut owned = Vec::new();
    for (at, entry) in entries {
        let own = match entry.slot {
            Slot::Page(body) => w.bodies[body].file.is_none(),
            _ => false,
        };
        if stays(vma, entry.slot, own, how) {
            continue;
        }
        if let (Slot::Page(body), true) = (entry.slot, own && vma.is_hugetlb())
            && w.pins.values().any(|pinned| pinned.contains(&body))
        {
            // The page goes back to the pool when the pin ends, and its reservation with it; how
            // the counters stand until then no document says.
            w.pool_state_mut(vma.unit).witness = true;
        }
        w.set_entry(proc, at, leaves_marker(vma, entry, how));
        let (Slot::Page(body), true, Some(resv)) = (entry.slot, own, vma.resv) else { continue };
        owned.extend(vma.file_unit(at).map(|(_, idx)| ((resv, idx), body)));
    }
    owned
}

fn stays(vma: &Vma, slot: Slot, own: bool, how: Zap) -> bool {
    let keeps_cows = if vma.is_hugetlb() { how.keep_own } else { !how.even_cows };
    match slot {
        Slot::Page(_) => own && keeps_cows,
        Slot::HwPoison { .. } | Slot::UffdPoison => !vma.is_hugetlb() && keeps_cows,
        Slot::Marker => vma.backing != Backing::Anon && !how.drop_markers,
        Slot::Zero | Slot::Unsure => false,
    }
}

fn leaves_marker(vma: &Vma, entry: Entry, how: Zap) -> Option<Entry> {
    let told =
        matches!(entry.slot, Slot::Page(_) | Slot::Zero | Slot::Unsure | Slot::HwPoison { .. });
    let stays = told
        && entry.wp
        && vma.armed(UffdModes::WP)
        && vma.backing != Backing::Anon
        && !how.drop_markers;
    stays.then_some(Entry { slot: Slot::Marker, wp: true })
}

/// Owner's pages that a change of the file took from everybody.
#[derive(Debug, Default)]
pub struct Taken {
    /// Only the owner mapped them.
    pub alone: Vec<Freed>,
    /// Children mapped them too, and who unmapped them last nobody knows.
    pub shared: Vec<Freed>,
}

/// Takes a file range out of every page table.
pub fn zap_file(w: &mut World, key: FileKey, from: u64, to: u64, how: Zap) -> Taken {
    let found = mappings(w, key, from, to);
    let shared = mapped_twice(w, &found);
    let mut owned = Vec::new();
    for m in found {
        owned.extend(take_out(w, m.proc, &m.vma, m.start, m.end, how));
    }
    let (mut taken, forked) = (Taken::default(), w.forked);
    for (freed, body) in owned {
        if !shared.contains(&body) {
            taken.alone.push(freed);
        } else if !forked || w.mapcount(body) == 0 {
            taken.shared.push(freed);
        }
    }
    taken
}

/// Huge pages of their own that more than one process maps.
fn mapped_twice(w: &World, found: &[Mapping]) -> BTreeSet<BodyId> {
    let mut shared = BTreeSet::new();
    for m in found.iter().filter(|m| w.forked && m.vma.resv.is_some()) {
        let Some(p) = w.proc(m.proc) else { continue };
        let bodies = p.entries.range(m.start..m.end).filter_map(|(_, e)| match e.slot {
            Slot::Page(body) => Some(body),
            _ => None,
        });
        shared.extend(bodies.filter(|body| w.mapcount(*body) > 1));
    }
    shared
}

/// Gives reservations back (H-102): their next touch is guaranteed again.
pub fn restore(w: &mut World, freed: &[Freed]) {
    for (resv, idx) in freed {
        w.resvs[*resv].consumed.remove(idx);
    }
}

/// Reservations of pages freed by other means than MADV_DONTNEED: rules do not say whether they
/// come back (H-013 and the intent of H-102 differ), so the counters decide; without counters,
/// what the kernel family does.
///
/// 6.12 gives them back when the owner is the last to unmap (__unmap_hugepage_range), so for pages
/// that children shared it depends on who came first.
pub fn maybe_restore(w: &mut World, cx: &Cx<'_>, page: PageSize, taken: &Taken) {
    if taken.alone.is_empty() && taken.shared.is_empty() {
        return;
    }
    let mut back = w.clone();
    restore(&mut back, &taken.alone);
    let mut all = back.clone();
    restore(&mut all, &taken.shared);
    let rsvd = |w: &World| w.pool_now(page).rsvd;
    match seen_rsvd(cx, page) {
        Some(seen) if seen == rsvd(&back) => *w = back,
        Some(seen) if seen == rsvd(&all) => *w = all,
        Some(seen) if rsvd(&back) < seen && seen < rsvd(&all) => {
            w.blur("some of the pages that children shared gave their reservation back");
        }
        None if w.family == Family::U612 => {
            *w = back;
            if !taken.shared.is_empty() {
                w.blur("pages that children shared may have given their reservation back");
            }
        }
        _ => {}
    }
}

fn seen_rsvd(cx: &Cx<'_>, page: PageSize) -> Option<i64> {
    Some(cx.obs.pools?[usize::from(page == PageSize::Huge1G)].rsvd)
}

/// Of several states the rules allow, the one whose pool counters were seen; without counters
/// the first, and nothing precise from here on if they differ.
pub fn choose(w: &mut World, cx: &Cx<'_>, page: PageSize, variants: Vec<World>, why: &str) {
    let seen = cx.obs.pools.map(|p| p[usize::from(page == PageSize::Huge1G)]);
    let seen = seen.filter(|_| !w.pool_state(page).witness);
    let index = match seen {
        Some(seen) => {
            let mut fits = (0..variants.len()).filter(|i| variants[*i].pool_now(page) == seen);
            let first = fits.next();
            if fits.next().is_some() {
                // A pin keeps the page: the counters do not tell the states apart.
                w.blur(why);
                return;
            }
            first
        }
        None => {
            let Some(first) = variants.into_iter().next() else { return };
            *w = first;
            w.blur(why);
            return;
        }
    };
    let unexplained = index.is_none() && seen.is_some();
    if let Some(chosen) = variants.into_iter().nth(index.unwrap_or(0)) {
        *w = chosen;
    }
    if unexplained {
        // More than two states are possible where pages are shared or pinned besides.
        w.blur(why);
    }
}
