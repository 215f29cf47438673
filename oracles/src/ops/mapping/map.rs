//! mmap: preconditions in the kernel's order, reservations, the new VMA, population.

use super::{AMPLE, EINVAL, ENOMEM, U070, cuts_huge, populate, unmap};
use crate::mutants::Mutant;
use crate::ops::file::space::{Room, room, took};
use crate::rules::*;
use crate::step::{Cx, Out, Want, seen_bits};
use crate::world::{AnonVma, Backing, FileKey, Resv, Vma, VmaFlags, World};
use case::limits::PAGE;
use case::observation::{View, pm};
use case::{Family, MmapFlags, Op, PageSize, Prot, Seals, Share};

/// A call, with everything looked up.
struct Ask {
    start: u64,
    end: u64,
    prot: Prot,
    share: Share,
    flags: MmapFlags,
    /// The file and the offset into it; `None` for anonymous memory.
    file: Option<(FileKey, u64)>,
    unit: PageSize,
}

impl Ask {
    fn len(&self) -> u64 {
        self.end - self.start
    }
    fn fixed(&self) -> bool {
        self.flags.has(MmapFlags::FIXED)
    }
    fn writes_shared(&self) -> bool {
        self.share == Share::Shared && self.prot.has(Prot::WRITE)
    }
}

pub(super) fn mmap(w: &mut World, cx: &Cx<'_>) -> Out {
    let Some(ask) = check(w, cx)? else { return Ok(()) };
    let sealed = ask.file.is_some_and(|(key, _)| {
        w.files[key].seals.any(Seals::WRITE | Seals::FUTURE_WRITE)
            && !w.mutated(Mutant::SealsIgnored)
    });
    let mut errors = Vec::new();
    if sealed && ask.writes_shared() {
        errors.push(Want::Err(1));
    }
    let cut = cuts_huge(w, cx.proc, ask.start) || cuts_huge(w, cx.proc, ask.end);
    if ask.fixed() && cut {
        errors.extend([Want::Err(EINVAL), Want::Err(ENOMEM)]);
    }
    if !errors.is_empty() {
        cx.pick(if cut { V003 } else { V006 }, &errors)?;
        // The old range goes before the seal is looked at on 6.1, after it on 6.12. Against a seal of
        // all writes 6.1 is asked first, too (mmap_region, mapping_map_writable).
        let asked_first = ask.file.is_some_and(|(key, _)| w.files[key].seals.has(Seals::WRITE));
        let early = w.family == Family::U61 && !cut && !asked_first;
        failed(w, cx, &ask, early);
        return Ok(());
    }
    if ask.unit.is_huge() { map_huge(w, cx, &ask, sealed) } else { map_base(w, cx, &ask, sealed) }
}

/// The preconditions before anything changes.
fn check(w: &mut World, cx: &Cx<'_>) -> Out<Option<Ask>> {
    let Op::Mmap { at, len, prot, share, from, page, flags } = cx.op else { return Ok(None) };
    let file = match from {
        None => None,
        Some(part) => match w.file(cx.proc, part.file) {
            Some(key) => Some((key, part.off)),
            None => {
                w.blur("mmap of a file the model does not have");
                return Ok(None);
            }
        },
    };
    let unit = file.map_or(*page, |(key, _)| w.files[key].page);
    let bytes = unit.bytes();
    let start = at.addr();
    let refused = file.is_some_and(|(_, off)| !off.is_multiple_of(PAGE))
        || (file.is_none() && !w.profile.has_pool(unit))
        || len.0 == 0;
    if refused {
        cx.errno(V001, EINVAL)?;
        return Ok(None);
    }
    if !start.is_multiple_of(bytes) {
        cx.errno(if unit.is_huge() { H050 } else { V001 }, EINVAL)?;
        return Ok(None);
    }
    let end = start + len.0.next_multiple_of(bytes);
    if !flags.has(MmapFlags::FIXED) && !w.vmas_in(cx.proc, start, end).is_empty() {
        cx.errno(V004, 17)?;
        return Ok(None);
    }
    Ok(Some(Ask { start, end, prot: *prot, share: *share, flags: *flags, file, unit }))
}

/// After a failure: MAP_FIXED may have removed what was there; a look tells, else `gone` says
/// what the kernels do (H-052, V-003).
fn failed(w: &mut World, cx: &Cx<'_>, ask: &Ask, gone: bool) {
    let overlaps = !w.vmas_in(cx.proc, ask.start, ask.end).is_empty();
    if !ask.fixed() || !overlaps {
        return;
    }
    if seen_mapped(cx, ask).map_or(gone, |mapped| !mapped) {
        unmap(w, cx.proc, ask.start, ask.end);
    }
}

/// Whether a look after the op shows a mapping in the range. Of a look at the tables only a page
/// tells something.
fn seen_mapped(cx: &Cx<'_>, ask: &Ask) -> Option<bool> {
    let pages = || (ask.start..ask.end).step_by(PAGE as usize);
    let page = |at| seen_bits(cx, cx.proc, at).is_some_and(|bits| bits & pm::PRESENT != 0);
    seen_vmas(cx, ask).or_else(|| pages().any(page).then_some(true))
}

fn seen_vmas(cx: &Cx<'_>, ask: &Ask) -> Option<bool> {
    cx.obs.views.iter().find_map(|view| match view {
        View::Vmas { proc, at, len, vmas } => {
            let covers = at.addr() <= ask.start && at.addr() + len >= ask.end;
            let hit = vmas
                .iter()
                .any(|v| v.at.addr() < ask.end && v.at.addr().saturating_add(v.len) > ask.start);
            (*proc == cx.proc && covers).then_some(hit)
        }
        _ => None,
    })
}

/// Base pages: only memory accounting can still refuse.
fn map_base(w: &mut World, cx: &Cx<'_>, ask: &Ask, sealed: bool) -> Out {
    let accounted = !ask.flags.has(MmapFlags::NORESERVE)
        && (ask.file.is_none() || ask.share == Share::Private)
        && ask.len() >= AMPLE;
    let refused = accounted && !cx.ok();
    if refused {
        cx.pick(V001, &[Want::Ok(0), Want::Err(ENOMEM), Want::Blocks])?;
        failed(w, cx, ask, w.family == Family::U61);
        return Ok(());
    }
    let read = replace(w, cx, ask);
    let (key, off) = match (ask.file, ask.share) {
        (Some((key, off)), _) => (Some(key), off),
        (None, Share::Shared) => (Some(hidden_file(w, ask)), 0),
        (None, Share::Private) => (None, 0),
    };
    insert(w, cx, ask, key, off, sealed);
    finish(w, cx, ask, read, &[Want::Ok(0)])
}

fn hidden_file(w: &mut World, ask: &Ask) -> FileKey {
    let key = w.new_file(ask.unit, true);
    w.files[key].size = ask.len();
    key
}

/// Removes what MAP_FIXED lies on. False if an event of that is never read.
fn replace(w: &mut World, cx: &Cx<'_>, ask: &Ask) -> bool {
    !ask.fixed() || unmap(w, cx.proc, ask.start, ask.end)
}

/// Huge pages: offset, reservation, growth of the file.
fn map_huge(w: &mut World, cx: &Cx<'_>, ask: &Ask, sealed: bool) -> Out {
    let unit = ask.unit.bytes();
    let off = ask.file.map_or(0, |(_, off)| off);
    if !off.is_multiple_of(unit) {
        cx.errno(H050, EINVAL)?;
        failed(w, cx, ask, true);
        return Ok(());
    }
    let before = w.clone();
    let read = replace(w, cx, ask);
    let units = off / unit..(off + ask.len()) / unit;
    let need = reservation(w, ask, units.clone());
    match room(w, cx, ask.unit, need) {
        Room::Yes => {}
        Room::No => {
            cx.errno(H053, ENOMEM)?;
            if seen_mapped(cx, ask) == Some(true) {
                *w = before;
            }
            return Ok(());
        }
        Room::Maybe if cx.ok() => {}
        Room::Maybe => {
            cx.pick(H053, &[Want::Ok(0), Want::Err(ENOMEM), Want::Blocks])?;
            return Ok(());
        }
    }
    let key = ask.file.map_or_else(|| hidden_file(w, ask), |(key, _)| key);
    let mut wants = vec![Want::Ok(0)];
    let end = off + ask.len();
    if ask.prot.has(Prot::WRITE) && w.files[key].size < end && !w.mutated(Mutant::MmapKeepsSize) {
        if w.files[key].seals.has(Seals::GROW) {
            wants.push(Want::Err(1));
            w.sealed_file |= cx.ok();
        } else {
            w.files[key].size = end;
        }
    }
    if !cx.ok() && wants.len() > 1 {
        *w = before;
        return cx.pick(H058, &wants).map(|_| ());
    }
    insert(w, cx, ask, Some(key), off, sealed);
    reserve(w, cx, ask, key, units);
    took(w, ask.unit, need);
    finish(w, cx, ask, read, &wants)
}

fn reserves(w: &World, ask: &Ask) -> bool {
    let skips = match ask.share {
        Share::Shared => w.mutated(Mutant::SharedReservesNothing),
        Share::Private => w.mutated(Mutant::PrivateReservesNothing),
    };
    let asked = !ask.flags.has(MmapFlags::NORESERVE) || w.mutated(Mutant::NoreserveReserves);
    asked && !skips
}

/// Pages the mapping must set aside (H-053).
fn reservation(w: &World, ask: &Ask, units: std::ops::Range<u64>) -> i64 {
    if !reserves(w, ask) {
        return 0;
    }
    let all = (units.end - units.start) as i64;
    match (ask.share, ask.file) {
        (Share::Shared, Some((key, _))) => all - w.files[key].resv.range(units).count() as i64,
        _ => all,
    }
}

fn reserve(w: &mut World, cx: &Cx<'_>, ask: &Ask, key: FileKey, units: std::ops::Range<u64>) {
    if !reserves(w, ask) {
        return;
    }
    match ask.share {
        Share::Shared => w.files[key].resv.extend(units),
        Share::Private => {
            w.resvs.push(Resv::default());
            let resv = w.resvs.len() - 1;
            if let Some(vma) = w.vma_at_mut(cx.proc, ask.start) {
                vma.resv = Some(resv);
            }
        }
    }
}

fn insert(w: &mut World, cx: &Cx<'_>, ask: &Ask, key: Option<FileKey>, off: u64, sealed: bool) {
    let flags = VmaFlags {
        locked: ask.flags.has(MmapFlags::LOCKED) && !ask.unit.is_huge(),
        noreserve: ask.flags.has(MmapFlags::NORESERVE),
        sealed_ro: sealed && ask.share == Share::Shared,
        ..VmaFlags::default()
    };
    let vma = Vma {
        start: ask.start,
        end: ask.end,
        prot: ask.prot,
        share: ask.share,
        unit: ask.unit,
        backing: key.map_or(Backing::Anon, |key| Backing::File { key, off }),
        flags,
        uffd: None,
        resv: None,
        starved: false,
        policy: None,
        anon_vma: AnonVma::No,
    };
    if let Some(p) = w.proc_mut(cx.proc) {
        p.vmas.insert(ask.start, vma);
    }
}

/// Population (its failures do not count, V-005) and the result.
fn finish(w: &mut World, cx: &Cx<'_>, ask: &Ask, read: bool, wants: &[Want]) -> Out {
    let f = ask.flags;
    let populates =
        f.has(MmapFlags::LOCKED) || (f.has(MmapFlags::POPULATE) && !f.has(MmapFlags::NONBLOCK));
    if populates {
        populate(w, cx, ask.start, ask.end)?;
    }
    if read {
        return cx.pick(V001, wants).map(|_| ());
    }
    cx.only(U070, Want::Blocks)?;
    w.blur("an event that nobody reads");
    Ok(())
}
