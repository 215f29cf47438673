//! Advice that drops pages (DONTNEED, FREE, REMOVE), ages them (COLD, PAGEOUT) or brings them
//! in (POPULATE_READ, POPULATE_WRITE), on one mapping.

use super::{EACCES, EFAULT, EHWPOISON, EINVAL, EPERM, Part, Step};
use crate::mutants::Mutant;
use crate::ops::file::{space, zap};
use crate::ops::mapping::{announce, touch_all, unshare};
use crate::rules::*;
use crate::step::seen_bits;
use crate::step::{Cx, Out};
use crate::touch::{Access, Touch};
use crate::world::{Backing, Entry, Slot, World};
use case::observation::{event, pm};
use case::{Advice, Prot, Seals, Share, UffdFeatures};

/// The REMOVE event of a range that is about to go (U-073). False if it is never read.
fn removes(w: &mut World, cx: &Cx<'_>, part: &Part, start: u64, end: u64) -> bool {
    let Some((uffd, _)) = part.vma.uffd else { return true };
    let asked = w.uffds.get(&uffd).is_some_and(|u| u.features.has(UffdFeatures::EVENT_REMOVE));
    !asked || announce(w, cx.proc, uffd, event::REMOVE, (start, start, end - start))
}

pub(super) fn dontneed(w: &mut World, cx: &Cx<'_>, part: &Part, advice: Advice) -> Out<Step> {
    let unit = part.vma.unit_bytes();
    let (start, mut end) = (part.start, part.end);
    if part.vma.is_hugetlb() {
        if !start.is_multiple_of(unit) {
            return Ok(Step::Fails(H094, EINVAL));
        }
        end -= end % unit;
        if w.mutated(Mutant::DontneedRoundsUp) {
            end = part.end.next_multiple_of(unit);
        }
    } else if part.vma.flags.locked && advice == Advice::DontNeed {
        return Ok(Step::Fails(A020, EINVAL));
    }
    if start >= end {
        return Ok(Step::Done);
    }
    if !removes(w, cx, part, start, end) {
        return Ok(Step::Blocks);
    }
    if part.vma.backing == Backing::Anon && w.mutated(Mutant::DontneedKeepsAnon) {
        return Ok(Step::Done);
    }
    unshare(w, cx.proc, start, end);
    let freed = zap::zap(w, cx.proc, &part.vma, start, end, zap::DISCARD);
    if w.mutated(Mutant::HgmEmptyTablesGo) {
        w.drop_tables(cx.proc, start, end);
    }
    if w.mutated(Mutant::DontneedKeepsConsumed) {
        return Ok(Step::Done);
    }
    if w.pool_state(part.vma.unit).surp == 0 || !part.vma.is_hugetlb() {
        zap::restore(w, &freed);
    } else {
        // With surplus pages the guarantee is documented as lost.
        let taken = zap::Taken { alone: freed, ..zap::Taken::default() };
        zap::maybe_restore(w, cx, part.vma.unit, &taken);
    }
    Ok(Step::Done)
}

pub(super) fn free(w: &mut World, cx: &Cx<'_>, part: &Part) -> Step {
    let hugetlb_ok = part.vma.is_hugetlb() && w.mutated(Mutant::FreeOnHugetlbOk);
    if hugetlb_ok {
        return Step::Done;
    }
    if part.vma.flags.locked || part.vma.backing != Backing::Anon {
        return Step::Fails(A021, EINVAL);
    }
    if !removes(w, cx, part, part.start, part.end) {
        return Step::Blocks;
    }
    let Some(p) = w.proc(cx.proc) else { return Step::Done };
    let bodies: Vec<usize> = p
        .entries
        .range(part.start..part.end)
        .filter_map(|(_, e)| match e.slot {
            Slot::Page(body) => Some(body),
            _ => None,
        })
        .collect();
    for body in bodies {
        // Pages that others map too may be left alone, or given up as soon as they do not.
        w.bodies[body].lazy.insert(cx.proc);
    }
    if let Some(p) = w.proc_mut(cx.proc) {
        // Poison entries are freed with the rest: the next touch gets a fresh page
        // (madvise_free_pte_range).
        let poison = |e: &Entry| matches!(e.slot, Slot::HwPoison { .. } | Slot::UffdPoison);
        let gone: Vec<u64> = p
            .entries
            .range(part.start..part.end)
            .filter(|(_, e)| poison(e))
            .map(|(at, _)| *at)
            .collect();
        for at in gone {
            p.entries.remove(&at);
        }
    }
    Step::Done
}

pub(super) fn cold(w: &mut World, cx: &Cx<'_>, part: &Part, advice: Advice) -> Step {
    if part.vma.flags.locked || part.vma.is_hugetlb() {
        return Step::Fails(A022, EINVAL);
    }
    if advice == Advice::PageOut {
        paged_out(w, cx, part);
    }
    Step::Done
}

/// Reclaim may have unmapped file pages (they stay cached without swap) and dropped pages that
/// MADV_FREE gave up; a look says whether it did.
fn paged_out(w: &mut World, cx: &Cx<'_>, part: &Part) {
    let first = part.vma.file_unit(part.start);
    let last = part.vma.file_unit(part.end - 1);
    if let (Some((key, from)), Some((_, to))) = (first, last) {
        let never_stored = |body: &usize| w.bodies[*body].words.is_empty();
        if w.files[key].cache.range(from..=to).any(|(_, body)| never_stored(body)) {
            // A clean page can be dropped without swap: it is a hole again.
            w.blur("reclaim may have dropped clean file pages");
            return;
        }
    }
    let Some(p) = w.proc(cx.proc) else { return };
    let entries: Vec<(u64, Entry)> =
        p.entries.range(part.start..part.end).map(|(at, e)| (*at, *e)).collect();
    for (at, entry) in entries {
        let Slot::Page(body) = entry.slot else { continue };
        let gone = seen_bits(cx, cx.proc, at).is_some_and(|bits| bits & pm::PRESENT == 0);
        let (file, lazy) = (w.bodies[body].file.is_some(), w.bodies[body].lazy.contains(&cx.proc));
        let now = match (gone, file) {
            (true, true) if entry.wp => Some(Entry { slot: Slot::Marker, wp: true }),
            (true, true) => None,
            (true, false) if lazy => None,
            (false, true) if !entry.wp => Some(Entry { slot: Slot::Unsure, wp: false }),
            _ => continue,
        };
        w.set_entry(cx.proc, at, now);
    }
}

pub(super) fn remove(w: &mut World, cx: &Cx<'_>, part: &Part) -> Out<Step> {
    let Backing::File { key, off } = part.vma.backing else {
        return Ok(Step::Fails(A023, EINVAL));
    };
    if part.vma.flags.locked {
        return Ok(Step::Fails(A023, EINVAL));
    }
    let may_write = part.vma.share == Share::Shared && !part.vma.flags.sealed_ro;
    if !may_write {
        if w.mutated(Mutant::RemoveOnPrivateOk) {
            return Ok(Step::Done);
        }
        return Ok(Step::Fails(A023, EACCES));
    }
    if !removes(w, cx, part, part.start, part.end) {
        return Ok(Step::Blocks);
    }
    let seals = Seals::WRITE | Seals::FUTURE_WRITE;
    if w.files[key].seals.any(seals) && !w.mutated(Mutant::SealsIgnored) {
        return Ok(Step::Fails(A023, EPERM));
    }
    let from = off + (part.start - part.vma.start);
    space::punch(w, cx, key, from, from + (part.end - part.start));
    Ok(Step::Done)
}

pub(super) fn populate(w: &mut World, cx: &Cx<'_>, part: &Part, advice: Advice) -> Out<Step> {
    let (need, access) = match advice {
        Advice::PopulateWrite => (Prot::WRITE, Access::Write),
        _ => (Prot::READ, Access::Read),
    };
    if !part.vma.prot.has(need) {
        return Ok(Step::Fails(A024, EINVAL));
    }
    let stop = touch_all(w, cx, &part.vma, part.start, part.end, access)?;
    Ok(match stop {
        None | Some(Touch::Done) => Step::Done,
        Some(Touch::Blocks) => Step::Blocks,
        Some(Touch::Fault { signo: 7, code: 4, .. }) => Step::Fails(A024, EHWPOISON),
        Some(Touch::Fault { .. }) => Step::Fails(A024, EFAULT),
    })
}
