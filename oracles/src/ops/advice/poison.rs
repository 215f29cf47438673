//! MADV_HWPOISON and MADV_SOFT_OFFLINE: page after page is read in and taken.

use super::{EBUSY, EFAULT, EHWPOISON, EINVAL, EIO, ENOMEM};
use crate::mutants::Mutant;
use crate::ops::file::zap;
use crate::rules::*;
use crate::step::{Cx, Out, Want, signal_text};
use crate::touch::{Access, Touch, bound, touch};
use crate::world::{Backing, BodyId, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::Spot;
use case::{Expectation, Family, PageSize, Place, ProcId, Prot};

const THP: u64 = 2 << 20;
/// A page of the range could not be had.
const NEXT_FAILED: case::observation::Status = case::observation::Status::Err(EFAULT as u16);

/// The page belongs to a huge one that could not be split.
const UNSPLIT: case::observation::Status = case::observation::Status::Err(EHWPOISON as u16);
const BLOCK_SHIFT: u8 = THP.trailing_zeros() as u8;

/// What the walk met at one address.
enum Met {
    Page(BodyId, Vma),
    Zero(Vma),
    /// Not readable: the walk ends with EFAULT.
    Bad,
    Blocks,
}

/// Reads the page at an address in, as the injection does.
fn meet(w: &mut World, cx: &Cx<'_>, at: u64) -> Out<Met> {
    if cx.obs.status == NEXT_FAILED && !had_unasked(w, cx, at) {
        return Ok(Met::Bad);
    }
    match touch(w, cx, cx.proc, at, Access::Read)? {
        Touch::Fault { .. } => return Ok(Met::Bad),
        Touch::Blocks => return Ok(Met::Blocks),
        Touch::Done => {}
    }
    let Some(vma) = w.vma_at(cx.proc, at).cloned() else { return Ok(Met::Bad) };
    let (_, entry) = w.slot(cx.proc, &vma, at);
    Ok(match entry.map(|e| e.slot) {
        Some(Slot::Page(body)) => Met::Page(body, vma),
        _ => Met::Zero(vma),
    })
}

/// The right to read is wanted by name, but the fast path never asks for it (G-001,
/// get_user_pages_fast): a present page of a mapping that may be stored to is had all the same.
/// Where it may only be executed a protection key can be in the way, if the CPU has them.
fn had_unasked(w: &mut World, cx: &Cx<'_>, at: u64) -> bool {
    let Some(vma) = w.vma_at(cx.proc, at) else { return true };
    let present = matches!(w.slot(cx.proc, vma, at).1.map(|e| e.slot), Some(Slot::Page(_)));
    let prot = vma.prot;
    if present && prot.has(Prot::EXEC) && !prot.has(Prot::READ) && !prot.has(Prot::WRITE) {
        w.blur("memory failure in a mapping that may only be executed");
    }
    prot.has(Prot::READ) || prot.has(Prot::WRITE) && present
}

/// Could a transparent huge page lie at this address? Then the walk skips the rest of it.
fn may_be_thp(w: &World, vma: &Vma, at: u64) -> bool {
    let block = at - at % THP;
    // A mapping of a part of a file's huge page meets the whole of it all the same.
    let fits = vma.backing != Backing::Anon || block >= vma.start && block + THP <= vma.end;
    let wanted = match vma.backing {
        Backing::Anon => w.anon_huge,
        // Files have huge pages where the setting says so, or after a collapse.
        Backing::File { key, .. } => w.files[key].maybe_huge || !matches!(w.thp_shmem, 0 | 4),
    };
    // A mapping that was cut or moved since keeps its part of the page, and the size of the whole
    // is what the walk goes on by (madvise_inject_error: page_size(compound_head(page))).
    let part = w.cut_or_moved && vma.backing == Backing::Anon;
    (fits || part) && wanted && !vma.is_hugetlb() && w.profile.thp
}

/// End of the walk at a page that cannot be read, or that waits.
fn stop(w: &mut World, cx: &Cx<'_>, met: &Met) -> Out {
    if matches!(met, Met::Blocks) {
        cx.only(F_WAIT, Want::Blocks)?;
        // When its wait is broken off it may find the page after all and take it.
        w.hw_pages.1 += 1;
        w.pool_state_mut(PageSize::Huge2M).witness = true;
        w.pool_state_mut(PageSize::Huge1G).witness = true;
        w.blur("memory failure waited for a userfault");
        return Ok(());
    }
    cx.errno(A090, EFAULT)
}

/// MADV_HWPOISON of [start, end).
pub(super) fn hard(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> Out {
    if !w.profile.unpoison && cx.obs.status == case::observation::Status::Err(EINVAL as u16) {
        return cx.errno(H090, EINVAL);
    }
    let mut at = start;
    let mut hit: Vec<(u64, u8)> = Vec::new();
    // A page nobody stored to is clean: it is unmapped without telling anybody (P-006).
    let mut dirty = false;
    while at < end {
        let held_to_nodes = w.vma_at(cx.proc, at).is_some_and(|v| v.is_hugetlb() && bound(w, v));
        if !hit.is_empty() && held_to_nodes && cx.obs.status == NEXT_FAILED {
            w.blur("memory failure of several huge pages, of which a node may have too few");
            return told(w, cx, &hit, dirty);
        }
        let met = meet(w, cx, at)?;
        let (body, vma) = match met {
            Met::Page(body, vma) => (body, vma),
            Met::Zero(vma) => return zero_page(w, cx, &vma, at, end),
            Met::Bad | Met::Blocks => {
                stop(w, cx, &met)?;
                return told(w, cx, &hit, dirty);
            }
        };
        let held = w.pins.values().any(|pages| pages.contains(&body));
        let shift = vma.unit_bytes().trailing_zeros() as u8;
        hit.push((at, shift));
        dirty |= !w.bodies[body].words.is_empty();
        let thp = may_be_thp(w, &vma, at);
        let fails = refusals(w, &vma, body, held, thp);
        let more = at + vma.unit_bytes() < end;
        let next_failed = more && cx.obs.status == NEXT_FAILED;
        let refused = !cx.ok() && !next_failed;
        if refused && !fails.is_empty() {
            cx.pick(A091, &fails)?;
            poison(w, body, &vma, at);
            if thp {
                if cx.obs.status == UNSPLIT {
                    // Nothing is unmapped and the whole huge page is named (kill_procs_now).
                    hit.push((at, BLOCK_SHIFT));
                }
                // A huge page that would not split: unmapped or still readable.
                w.blur("memory failure of a huge page that may not have been split");
            }
            return told(w, cx, &hit, dirty);
        }
        if held && at + vma.unit_bytes() >= end {
            // Anonymous base pages recover whoever holds them (me_pagecache_clean).
            let wants = [fails.as_slice(), &[Want::Ok(0)]].concat();
            let all = vma.is_hugetlb() || w.bodies[body].file.is_some();
            let wants = if all { fails } else { wants };
            if cx.pick(A091, &wants)? + 1 == wants.len() && cx.ok() {
                poison(w, body, &vma, at);
            }
            return Ok(());
        }
        poison(w, body, &vma, at);
        if thp {
            loosen_zeros(w, cx.proc, &vma, at);
        }
        at += vma.unit_bytes();
        if at < end && thp {
            cx.pick(A091, &[Want::OkAny, Want::Err(EFAULT), Want::Err(EBUSY)])?;
            w.blur("memory failure over more than a page where huge pages may lie");
            return Ok(());
        }
    }
    cx.only(A091, Want::Ok(0))?;
    told(w, cx, &hit, dirty)
}

/// errnos a page that was taken may still give; the poison stands all the same (P-008).
fn refusals(w: &World, vma: &Vma, body: BodyId, held: bool, thp: bool) -> Vec<Want> {
    let mut wants = Vec::new();
    let anon_huge = vma.is_hugetlb() && w.bodies[body].file.is_none();
    if held || thp || anon_huge {
        wants.push(Want::Err(EBUSY));
    }
    if thp && w.family == Family::U612 {
        wants.push(Want::Err(EHWPOISON));
    }
    wants
}

/// The shared zero page: flagged and counted, never unmapped (P-007, P-010).
fn zero_page(w: &mut World, cx: &Cx<'_>, vma: &Vma, at: u64, end: u64) -> Out {
    let unsure = w.slot(cx.proc, vma, at).1.is_some_and(|entry| entry.slot == Slot::Unsure);
    if unsure && may_be_thp(w, vma, at) {
        // Without the huge zero page a read maps a huge page of zeros, if there is one to be had
        // (do_huge_pmd_anonymous_page), which is a page as any other.
        let wants = [Want::Ok(0), Want::Err(EBUSY), Want::Err(EHWPOISON), Want::Err(EFAULT)];
        cx.pick(A091, &wants)?;
        w.blur("memory failure of zeros that may be a huge page");
        return Ok(());
    }
    cx.pick(A091, &[Want::Err(EBUSY), Want::Err(EHWPOISON)])?;
    w.hw_pages.1 += 1;
    if may_be_thp(w, vma, at) && end > at + PAGE {
        w.blur("memory failure of a zero page that may be huge");
    }
    Ok(())
}

/// Unmaps the page everywhere and leaves poison entries; a file keeps it in its cache.
fn poison(w: &mut World, body: BodyId, vma: &Vma, at: u64) {
    w.hw_pages.0 += 1;
    w.hw_pages.1 += 1;
    w.bodies[body].poisoned = true;
    w.bodies[body].raw.insert(((at - vma.unit_addr(at)) / PAGE) as u32);
    if w.bodies[body].loose {
        // A fork beside a pin: who maps the same frame was the kernel's choice (F-007).
        w.blur("memory failure of a page that others may share");
    }
    if vma.is_hugetlb() {
        w.pool_state_mut(vma.unit).witness = true;
    }
    if w.mutated(Mutant::PoisonForgets) {
        w.bodies[body].poisoned = false;
        return;
    }
    let own = w.bodies[body].file.is_none();
    let mapped: Vec<(ProcId, u64)> = w
        .procs
        .iter()
        .flat_map(|(id, p)| p.entries.iter().map(move |(at, e)| (*id, *at, e.slot)))
        .filter(|(_, _, slot)| *slot == Slot::Page(body))
        .map(|(id, at, _)| (id, at))
        .collect();
    for (id, at) in mapped.into_iter().chain(perhaps_mapped(w, body)) {
        w.set_entry(id, at, Some(Entry { slot: Slot::HwPoison { own }, wp: false }));
    }
}

/// Unsure entries of the page in files with huge pages, where a poison entry may be none as well.
fn perhaps_mapped(w: &World, body: BodyId) -> Vec<(ProcId, u64)> {
    let Some((key, idx)) = w.bodies[body].file.filter(|(key, _)| w.files[*key].maybe_huge) else {
        return Vec::new();
    };
    let unit = w.files[key].page.bytes();
    let found = zap::mappings(w, key, idx * unit, (idx + 1) * unit);
    let unsure =
        |m: &zap::Mapping| w.entry(m.proc, m.start).is_some_and(|e| e.slot == Slot::Unsure);
    found.into_iter().filter(unsure).map(|m| (m.proc, m.start)).collect()
}

/// The signal beside the return.
fn told(w: &World, cx: &Cx<'_>, hit: &[(u64, u8)], dirty: bool) -> Out {
    let Some(signal) = &cx.obs.also else {
        // A call that failed may have failed before it came to tell anybody.
        if !dirty || w.family == Family::U61 || !cx.ok() {
            return Ok(());
        }
        let broken = cx.broken(A092, "no-signal", "SIGBUS BUS_MCEERR_AR", "no signal");
        return Err(broken.expecting(Expectation::Beside { on: true }));
    };
    let right = (signal.signo, signal.code) == (7, 4)
        && hit.iter().any(|(_, shift)| *shift == signal.lsb)
        && hit.iter().any(|(at, shift)| at_page(signal.at, *at, *shift));
    if right {
        return Ok(());
    }
    let want = match hit.first().and_then(|(at, _)| Place::of_addr(*at)) {
        Some(place) => format!("SIGBUS BUS_MCEERR_AR at {place}"),
        None => "no signal".into(),
    };
    Err(cx.broken(A092, "signal", want, signal_text(signal)))
}

/// The start of the page, or of the huge page it belongs to. Another mapping of the same page
/// may be named instead.
fn at_page(seen: Spot, at: u64, shift: u8) -> bool {
    match seen {
        Spot::In(place) => {
            let seen = place.addr();
            let same_offset = seen % (1 << shift) == at % (1 << shift);
            seen.is_multiple_of(PAGE) && (seen >> shift == at >> shift || same_offset)
        }
        Spot::Outside(_) => false,
    }
}

/// MADV_SOFT_OFFLINE of [start, end): content stays, pages move.
pub(super) fn soft(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> Out {
    if !w.profile.unpoison && cx.obs.status == case::observation::Status::Err(EINVAL as u16) {
        return cx.errno(H090, EINVAL);
    }
    let mut at = start;
    let mut done = 0;
    while at < end {
        let met = meet(w, cx, at)?;
        let (body, vma) = match met {
            Met::Page(body, vma) => (body, vma),
            Met::Zero(vma) => {
                w.hw_pages.1 += 1;
                perhaps_read(w, cx, at + vma.unit_bytes(), end);
                return cx.pick(A094, &[Want::Err(EIO), Want::Err(EBUSY), Want::Ok(0)]).map(|_| ());
            }
            Met::Bad | Met::Blocks => {
                w.hw_pages.0 += done;
                return stop(w, cx, &met);
            }
        };
        if vma.is_hugetlb() {
            w.pool_state_mut(vma.unit).witness = true;
        }
        w.hw_pages.1 += 1;
        if w.pins.values().any(|pages| pages.contains(&body)) {
            return cx.errno(A094, EBUSY);
        }
        // A later page that cannot be had ends the walk after this one was offlined.
        let next_failed = at + vma.unit_bytes() < end && cx.obs.status == NEXT_FAILED;
        if !cx.ok() && !next_failed {
            // Failure may have come at this page or, for a longer range, at a later one.
            let units = (end - at).div_ceil(vma.unit_bytes()) as i64;
            w.hw_pages.1 += units;
            perhaps_read(w, cx, at + vma.unit_bytes(), end);
            let wants = [Want::Ok(0), Want::Err(EBUSY), Want::Err(ENOMEM)];
            return cx.pick(A094, &wants).map(|_| ());
        }
        done += 1;
        if may_be_thp(w, &vma, at) {
            loosen_zeros(w, cx.proc, &vma, at);
        }
        at += vma.unit_bytes();
        if at < end && may_be_thp(w, &vma, at) {
            // The rest of a huge page is skipped, if it was one.
            w.hw_pages.1 += ((end - at) / PAGE) as i64;
            perhaps_read(w, cx, at, end);
            done = 1;
            break;
        }
    }
    w.hw_pages.0 += done;
    cx.only(A094, Want::Ok(0))
}

/// A huge page that is split for a part of it loses its zeros on 6.12: the zero page stands where they
/// were, but not in locked mappings (try_to_map_unused_to_zeropage). Who maps them, and whether they
/// count, is the kernel's choice from then on.
fn loosen_zeros(w: &mut World, proc: ProcId, vma: &Vma, at: u64) {
    if w.family != Family::U612 || vma.backing != Backing::Anon {
        return;
    }
    let block = at - at % THP;
    let Some(p) = w.proc(proc) else { return };
    let zeros: Vec<BodyId> = p
        .entries
        .range(block..block + THP)
        .filter(|(_, entry)| w.holds_zeroes(entry))
        .filter_map(|(_, entry)| match entry.slot {
            Slot::Page(body) => Some(body),
            _ => None,
        })
        .collect();
    for body in zeros {
        w.bodies[body].loose = true;
    }
}

/// The walk may have come by here and read the pages in, or not.
fn perhaps_read(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) {
    for vma in w.vmas_in(cx.proc, start, end) {
        let mut at = vma.unit_addr(start.max(vma.start));
        while at < end.min(vma.end) {
            let node = w.node(cx.proc, &vma, at);
            at = node.start;
            let none = w.entry(cx.proc, at).is_none();
            if none && vma.backing != Backing::Anon && w.cached(&vma, at).is_none() {
                w.blur("soft offlining may have filled holes of a file");
                return;
            }
            if none {
                w.set_entry(cx.proc, at, Some(Entry { slot: Slot::Unsure, wp: false }));
            }
            at = node.end();
        }
    }
}
