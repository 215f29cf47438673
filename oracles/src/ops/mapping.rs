//! Ops on the address space: what mmap, munmap, mremap, mprotect and mlock answer, and what they
//! do to VMAs and entries. mmap is in [`map`], mremap in [`remap`], what may be one in [`merge`].

mod map;
pub mod merge;
mod remap;

use crate::errno::{EACCES, EINVAL, ENOMEM};
use crate::mutants::Mutant;
use crate::ops::file::zap;
use crate::rules::*;
use crate::step::{Cx, Out, Want, seen_bits};
use crate::touch::{Access, Touch, touch};
use crate::world::{Backing, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{Status, event, pm};
use case::{MlockFlags, Op, PageSize, Place, ProcId, Prot, Share, UffdFeatures, UffdId, UffdModes};
use std::collections::BTreeSet;

/// Private writable memory beyond this may hit the commit limit of a small guest.
const AMPLE: u64 = 512 << 20;
/// Userfaults of one op that may take longer than the op's time.
const SLOW_EVENTS: usize = 32;
/// Reach of a page table of 2 MiB pages, which mappings of one file may share.
const PUD: u64 = 1 << 30;
/// What one entry of a transparent huge page maps.
const PMD: u64 = 2 << 20;

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::Mmap { .. } => map::mmap(w, cx),
        Op::Mremap { at, len, .. } => {
            let part = w.vma_at(cx.proc, at.addr()).is_some_and(|v| {
                v.resv.is_some() && (v.start != at.addr() || v.end - v.start > len.0)
            });
            remap::mremap(w, cx)?;
            w.reserve_divided |= part && cx.ok();
            Ok(())
        }
        Op::Munmap { at, len } => munmap(w, cx, *at, len.0),
        Op::Mprotect { at, len, prot } => mprotect(w, cx, *at, len.0, *prot),
        Op::Mlock { at, len, flags } => mlock(w, cx, *at, len.0, Some(*flags)),
        Op::Munlock { at, len } => mlock(w, cx, *at, len.0, None),
        _ => Ok(()),
    }
}

/// True if a VMA boundary at `at` would cut a huge page in two.
pub fn cuts_huge(w: &World, proc: ProcId, at: u64) -> bool {
    w.vma_at(proc, at).is_some_and(|vma| {
        vma.is_hugetlb() && at != vma.start && !at.is_multiple_of(vma.unit_bytes())
    })
}

/// Userfaultfds of a range that asked for a sort of event.
pub fn listeners(
    w: &World,
    proc: ProcId,
    start: u64,
    end: u64,
    feature: UffdFeatures,
) -> BTreeSet<UffdId> {
    let mut found = BTreeSet::new();
    for vma in w.vmas_in(proc, start, end) {
        let Some((uffd, _)) = vma.uffd else { continue };
        if w.uffds.get(&uffd).is_some_and(|u| u.features.has(feature)) {
            found.insert(uffd);
        }
    }
    found
}

/// Expects an event of (at, to, len). False if nobody reads it: a child's registration belongs
/// to a context of its own that has no reader.
pub fn announce(
    w: &mut World,
    proc: ProcId,
    uffd: UffdId,
    code: u8,
    (at, to, len): (u64, u64, u64),
) -> bool {
    proc == ProcId(0) && w.expect_event(uffd, code, at, to, len)
}

/// Unmaps a range with its UNMAP events (U-074). False if one of them is never read.
pub fn unmap(w: &mut World, proc: ProcId, start: u64, end: u64) -> bool {
    let mut read = true;
    for uffd in listeners(w, proc, start, end, UffdFeatures::EVENT_UNMAP) {
        read &= announce(w, proc, uffd, event::UNMAP, (start, start, end - start));
    }
    unshare(w, proc, start, end);
    w.unmap(proc, start, end);
    read
}

/// The end of an op that worked: `want`, or waiting for ever if an event has no reader.
pub fn settle(w: &mut World, cx: &Cx<'_>, rule: RuleRef, read: bool, want: Want) -> Out {
    if read {
        return cx.only(rule, want);
    }
    cx.only(U070, Want::Blocks)?;
    w.blur("an event that nobody reads");
    Ok(())
}

/// Changing part of a huge page-table that other mappings of the file may share drops this
/// process' share of it; the pages come back at the next touch (H-087).
///
/// A boundary inside a huge page of shmem drops its mapping the same way (V-023).
pub fn unshare(w: &mut World, proc: ProcId, start: u64, end: u64) {
    for at in [start, end] {
        split_shmem(w, proc, at);
    }
    for vma in w.vmas_in(proc, start, end) {
        if vma.unit != PageSize::Huge2M || vma.share == Share::Private || vma.flags.hgm {
            continue;
        }
        let Backing::File { key, off } = vma.backing else { continue };
        let mut gib = start.max(vma.start);
        gib -= gib % PUD;
        while gib < end.min(vma.end) {
            if gib >= vma.start && gib + PUD <= vma.end {
                let from = off + (gib - vma.start);
                if zap::mappings(w, key, from, from + PUD).len() > 1 {
                    haze_pages(w, proc, gib, gib + PUD);
                }
            }
            gib += PUD;
        }
    }
}

/// Mappings of one whole GiB of a file may share their page table: what one of them maps the
/// others show without a fault (H-086).
pub fn haze_shared_tables(w: &mut World) {
    let off = UffdModes::WP | UffdModes::MINOR;
    let shares = |v: &Vma| {
        v.unit == PageSize::Huge2M && v.share == Share::Shared && !v.armed(off) && !v.flags.hgm
    };
    let large = |v: &Vma| shares(v) && v.end - v.start >= PUD;
    let found: Vec<(ProcId, Vma)> = (w.procs.iter())
        .flat_map(|(id, p)| p.vmas.values().filter(|v| large(v)).map(|v| (*id, v.clone())))
        .collect();
    for (proc, vma) in found {
        let Backing::File { key, off } = vma.backing else { continue };
        if zap::mappings(w, key, off, off + (vma.end - vma.start)).len() < 2 {
            continue;
        }
        let gibs = (vma.start.next_multiple_of(PUD), vma.end - vma.end % PUD);
        let unit = vma.unit_bytes();
        let cached: Vec<u64> = w.files[key].cache.keys().map(|idx| idx * unit).collect();
        for at in cached.into_iter().filter(|at| *at >= off).map(|at| vma.start + (at - off)) {
            if gibs.0 <= at && at < gibs.1 && w.entry(proc, at).is_none() {
                w.set_entry(proc, at, Some(Entry { slot: Slot::Unsure, wp: false }));
            }
        }
    }
}

/// A boundary at `at`: where the 2 MiB around it may be mapped by one entry of a shmem file, that
/// entry goes and pages come back one by one.
pub fn split_shmem(w: &mut World, proc: ProcId, at: u64) {
    let block = at - at % PMD;
    let Some(vma) = w.vma_at(proc, block) else { return };
    let Backing::File { off, .. } = vma.backing else { return };
    let congruent = vma.start % PMD == off % PMD;
    let fits = block >= vma.start && block + PMD <= vma.end && vma.share == Share::Shared;
    if at == block || vma.is_hugetlb() || !congruent || !fits {
        return;
    }
    let Some(p) = w.proc(proc) else { return };
    if p.entries.range(block..block + PMD).count() as u64 == PMD / PAGE {
        haze_pages(w, proc, block, block + PMD);
    }
}

fn haze_pages(w: &mut World, proc: ProcId, start: u64, end: u64) {
    let Some(p) = w.proc_mut(proc) else { return };
    for (_, entry) in p.entries.range_mut(start..end) {
        if matches!(entry.slot, Slot::Page(_)) && !entry.wp {
            *entry = Entry { slot: Slot::Unsure, wp: false };
        }
    }
}

/// An op that had hundreds of userfaults answered may run over its time without a fault of the
/// kernel. True if that is what was seen; then nothing precise is judged from here on.
pub fn too_slow(w: &mut World, cx: &Cx<'_>) -> bool {
    let slow = cx.obs.status == Status::Timeout && w.expected_events.len() > SLOW_EVENTS;
    if slow {
        w.blur("an op with many userfaults ran over its time");
    }
    slow
}

/// Where an op would leave a boundary inside one of two huge-page borders, the kernel has cut the
/// mapping at the sound one already when it fails (H-080).
pub fn leaves_cut(w: &mut World, proc: ProcId, start: u64) {
    if !cuts_huge(w, proc, start) {
        w.split_at(proc, start);
    }
}

/// Touches every unit of [start, end) the way population does: private writable mappings for
/// writing, others for reading; stops at the first page that cannot be had.
pub fn populate(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> Out<Option<Touch>> {
    for vma in w.vmas_in(cx.proc, start, end) {
        if vma.flags.onfault && !vma.is_hugetlb() {
            continue;
        }
        let writes = vma.prot.has(Prot::WRITE) && vma.is_private();
        let access = if writes { Access::Write } else { Access::Read };
        let stop = touch_all(w, cx, &vma, start.max(vma.start), end.min(vma.end), access)?;
        if stop.is_some() {
            return Ok(stop);
        }
    }
    Ok(None)
}

/// Touches each unit of a part of a VMA.
pub fn touch_all(
    w: &mut World,
    cx: &Cx<'_>,
    vma: &Vma,
    start: u64,
    end: u64,
    access: Access,
) -> Out<Option<Touch>> {
    let mut at = start;
    while at < end {
        match touch(w, cx, cx.proc, at, access)? {
            Touch::Done => {}
            other => return Ok(Some(other)),
        }
        at = w.node(cx.proc, vma, at).end();
    }
    Ok(None)
}

fn munmap(w: &mut World, cx: &Cx<'_>, at: Place, len: u64) -> Out {
    let start = at.addr();
    if !start.is_multiple_of(PAGE) || len == 0 {
        return cx.errno(V010, EINVAL);
    }
    let end = start + len.next_multiple_of(PAGE);
    if w.vmas_in(cx.proc, start, end).is_empty() {
        return cx.only(V010, Want::Ok(0));
    }
    let half = cuts_huge(w, cx.proc, start) || cuts_huge(w, cx.proc, end);
    if half && !w.mutated(Mutant::MunmapHalfHuge) {
        leaves_cut(w, cx.proc, start);
        return cx.errno(H080, EINVAL);
    }
    let read = unmap(w, cx.proc, start, end);
    settle(w, cx, V010, read, Want::Ok(0))
}

/// What mprotect does: the parts it changes, and where and why it stops.
struct Protect {
    parts: Vec<(u64, u64)>,
    stop: Option<(RuleRef, i32)>,
    /// Start of the part that would cut a huge page.
    cut: Option<u64>,
}

fn plan_protect(w: &World, proc: ProcId, start: u64, end: u64, prot: Prot) -> Protect {
    let mut plan = Protect { parts: Vec::new(), stop: None, cut: None };
    let mut pos = start;
    for vma in w.vmas_in(proc, start, end) {
        if vma.start > pos {
            break;
        }
        let to = vma.end.min(end);
        if prot.has(Prot::WRITE) && vma.flags.sealed_ro {
            plan.stop = Some((V020, EACCES));
            return plan;
        }
        if vma.prot != prot {
            let half = cuts_huge(w, proc, pos) || (to != vma.end && cuts_huge(w, proc, to));
            if half && !w.mutated(Mutant::MprotectHalfHuge) {
                plan.stop = Some((H081, EINVAL));
                plan.cut = Some(pos);
                return plan;
            }
            plan.parts.push((pos, to));
        }
        pos = to;
    }
    if pos < end {
        plan.stop = Some((V020, ENOMEM));
    }
    plan
}

fn mprotect(w: &mut World, cx: &Cx<'_>, at: Place, len: u64, prot: Prot) -> Out {
    let start = at.addr();
    if !start.is_multiple_of(PAGE) {
        return cx.errno(V020, EINVAL);
    }
    if len == 0 {
        return cx.only(V020, Want::Ok(0));
    }
    let end = start + len.next_multiple_of(PAGE);
    let plan = plan_protect(w, cx.proc, start, end, prot);
    let mut blocks = false;
    for (from, to) in &plan.parts {
        blocks |= protect(w, cx, *from, *to, prot)?;
    }
    if blocks {
        return settle(w, cx, V020, false, Want::Ok(0));
    }
    if let Some((rule, errno)) = plan.stop {
        if let Some(at) = plan.cut {
            leaves_cut(w, cx.proc, at);
        }
        return cx.errno(rule, errno);
    }
    let charged = prot.has(Prot::WRITE) && end - start >= AMPLE;
    if charged && cx.pick(V020, &[Want::Ok(0), Want::Err(ENOMEM)])? == 1 {
        w.blur("mprotect met the commit limit part of the way");
        return Ok(());
    }
    if charged { Ok(()) } else { cx.only(V020, Want::Ok(0)) }
}

/// Changes one part; a locked private mapping that becomes writable is filled at once (V-024).
/// True if that waits for ever.
fn protect(w: &mut World, cx: &Cx<'_>, from: u64, to: u64, prot: Prot) -> Out<bool> {
    let Some(old) = w.vma_at(cx.proc, from).cloned() else { return Ok(false) };
    unshare(w, cx.proc, from, to);
    w.change_vmas(cx.proc, from, to, |vma| vma.prot = prot);
    w.mprotected = true;
    let fills = old.flags.locked
        && !old.flags.onfault
        && old.is_private()
        && !old.prot.has(Prot::WRITE)
        && prot.has(Prot::WRITE);
    if !fills {
        return Ok(false);
    }
    // Filling goes without leave to wait, and its errors are nobody's business.
    w.no_wait = true;
    let filled = touch_all(w, cx, &old, from, to, Access::Write);
    w.no_wait = false;
    filled.map(|_| false)
}

/// mlock2 with flags, or munlock without.
fn mlock(w: &mut World, cx: &Cx<'_>, at: Place, len: u64, flags: Option<MlockFlags>) -> Out {
    let start = at.addr() - at.addr() % PAGE;
    let end = start + (len + at.addr() % PAGE).next_multiple_of(PAGE);
    if end == start {
        return cx.only(V050, Want::Ok(0));
    }
    let onfault = flags.is_some_and(|f| f.has(MlockFlags::ONFAULT));
    let mut pos = start;
    for vma in w.vmas_in(cx.proc, start, end) {
        if vma.start > pos {
            break;
        }
        let to = vma.end.min(end);
        if !vma.is_hugetlb() || w.mutated(Mutant::MlockCountsHugetlb) {
            unshare(w, cx.proc, pos, to);
            w.change_vmas(cx.proc, pos, to, |v| {
                v.flags.locked = flags.is_some();
                v.flags.onfault = onfault;
            });
        }
        pos = to;
    }
    if pos < end {
        return cx.errno(V050, ENOMEM);
    }
    if flags.is_none() {
        return cx.only(V050, Want::Ok(0));
    }
    let huge = w.vmas_in(cx.proc, start, end).into_iter().find(|v| v.is_hugetlb());
    match huge {
        Some(vma) if onfault => lock_onfault_huge(w, cx, start, end, vma.unit),
        _ => {
            let rule = if huge.is_some() { H084 } else { V050 };
            let stop = populate(w, cx, start, end)?;
            if too_slow(w, cx) {
                return Ok(());
            }
            locked(w, cx, rule, stop)
        }
    }
}

fn locked(w: &mut World, cx: &Cx<'_>, rule: RuleRef, stop: Option<Touch>) -> Out {
    match stop {
        None | Some(Touch::Done) => cx.only(rule, Want::Ok(0)),
        Some(Touch::Fault { .. }) => cx.errno(rule, ENOMEM),
        Some(Touch::Blocks) => {
            cx.only(F_WAIT, Want::Blocks)?;
            w.blur("mlock waited for a userfault");
            Ok(())
        }
    }
}

/// MLOCK_ONFAULT on hugetlb: the manual says nothing is filled, the kernels fill; both are
/// accepted (H-084), and the pools tell which it was.
fn lock_onfault_huge(w: &mut World, cx: &Cx<'_>, start: u64, end: u64, page: PageSize) -> Out {
    let mut filled = w.clone();
    let stop = populate(&mut filled, cx, start, end)?;
    match stop {
        Some(Touch::Blocks) => {
            if cx.pick(H084, &[Want::Ok(0), Want::Blocks])? == 1 {
                w.blur("mlock waited for a userfault");
            }
            return Ok(());
        }
        Some(_) => cx.pick(H084, &[Want::Ok(0), Want::Err(ENOMEM)])?,
        None => cx.pick(H084, &[Want::Ok(0)])?,
    };
    let mut empty = w.clone();
    let first = start - start % page.bytes();
    let made: Vec<u64> = filled
        .proc(cx.proc)
        .map(|p| p.entries.range(first..end).map(|(at, _)| *at).collect())
        .unwrap_or_default();
    let fresh: Vec<u64> =
        made.iter().copied().filter(|at| w.entry(cx.proc, *at).is_none()).collect();
    let looks = fresh.iter().find_map(|at| seen_bits(cx, cx.proc, *at));
    if let Some(bits) = looks {
        if bits & pm::PRESENT != 0 {
            *w = filled;
        }
        return Ok(());
    }
    for at in made {
        let cached = w.vma_at(cx.proc, at).is_some_and(|v| w.cached(v, at).is_some());
        if w.entry(cx.proc, at).is_none() && cached {
            let unsure = Entry { slot: Slot::Unsure, wp: false };
            empty.set_entry(cx.proc, at, Some(unsure));
        }
    }
    zap::choose(w, cx, page, vec![empty, filled], "mlock2 ONFAULT on huge pages");
    Ok(())
}
