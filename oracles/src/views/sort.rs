//! The sort of a page-table entry in words: a part of signatures and of feedback.

use crate::ops::file::zap;
use crate::world::{Backing, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::{PageSize, ProcId, Seals, Share, UffdModes};

/// The sort of an entry with the size of its node, if that is not the mapping's page size.
pub fn node_class(w: &World, proc: ProcId, vma: &Vma, unit: u64, entry: Option<Entry>) -> String {
    let class = entry_class(w, vma, unit, entry);
    match w.node(proc, vma, unit).size {
        size if size == vma.unit_bytes() => class,
        PAGE => class + "/4k",
        _ => class + "/2m",
    }
}

/// The sort of an entry, for signatures and feedback.
pub fn entry_class(w: &World, vma: &Vma, unit: u64, entry: Option<Entry>) -> String {
    let size = match vma.unit {
        PageSize::Base => "base",
        PageSize::Huge2M => "2m",
        PageSize::Huge1G => "1g",
    };
    let kind = match vma.backing {
        Backing::Anon => "anon",
        Backing::File { .. } => match vma.share {
            Share::Shared => "shared",
            Share::Private => "private",
        },
    };
    // Somebody waits for a page that appears here without an event.
    let waits = || vma.armed(UffdModes::MISSING) || awaited(w, vma, unit);
    let slot = match entry.map(|e| e.slot) {
        None if behind_the_seal(w, vma, unit) => "none:sealed-file",
        None if waits() => {
            if w.collapse_refused {
                "none-armed:collapsed"
            } else {
                "none-armed"
            }
        }
        // Nobody waits any more; what was filled stays.
        None if w.collapse_refused && may_be_filled(w, vma) => "none:collapsed",
        None if w.head_punched(vma) => "none:head-punched",
        None => "none",
        Some(Slot::Marker) if w.collapse_refused && waits() => "marker:collapsed",
        Some(Slot::Marker) => "marker",
        Some(Slot::UffdPoison) => "uffd-poison",
        Some(Slot::HwPoison { .. }) => "hwpoison",
        Some(Slot::Zero) => "zero",
        Some(Slot::Unsure) => "unsure",
        Some(Slot::Page(b)) => match w.bodies[b].file {
            Some((key, _)) if w.files[key].head_punched => "cached:head-punched",
            Some(_) => "cached",
            None if w.bodies[b].unshared => "unshared",
            None => "own",
        },
    };
    let wp = if entry.is_some_and(|e| e.wp) { "-wp" } else { "" };
    format!("{kind}-{size}-{slot}{wp}")
}

/// Is this behind the end of a file that must not grow, mapped all the same?
fn behind_the_seal(w: &World, vma: &Vma, unit: u64) -> bool {
    // The first unit of a mapping of half a huge page, which only a wrong model has, begins before it.
    let sealed = w.sealed_file && unit >= vma.start;
    let Some((key, idx)) = sealed.then(|| vma.file_unit(unit)).flatten() else { return false };
    let file = &w.files[key];
    file.seals.has(Seals::GROW) && idx * vma.unit_bytes() >= file.size
}

/// May a COLLAPSE that was refused have filled the file this maps?
fn may_be_filled(w: &World, vma: &Vma) -> bool {
    matches!(vma.backing, Backing::File { key, .. } if !vma.is_hugetlb() && w.files[key].maybe_huge)
}

/// Does another mapping of the same shmem page wait for it? Filling the file fills it there too.
fn awaited(w: &World, vma: &Vma, unit: u64) -> bool {
    if vma.is_hugetlb() {
        return false;
    }
    let Some((key, idx)) = vma.file_unit(unit) else { return false };
    let found = zap::mappings(w, key, idx * PAGE, (idx + 1) * PAGE);
    found.iter().any(|m| m.vma.armed(UffdModes::MISSING))
}
