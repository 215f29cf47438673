//! userfaultfd: opening, registration, the filling ioctls, write protection.

mod fill;

use crate::errno::{EBUSY, EINVAL, ENOENT, EPERM};
use crate::mutants::Mutant;
use crate::ops::mapping::unshare;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::{Entry, Slot, Uffd, Vma, World};
use case::limits::PAGE;
use case::{Bytes, Family, Op, Place, Policy, ProcId, UffdFeatures, UffdId, UffdModes, WpFlags};

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::Uffd { uffd, features, handler } => open(w, cx, *uffd, *features, *handler),
        Op::Register { uffd, at, len, modes } => register(w, cx, *uffd, *at, *len, *modes),
        Op::Unregister { uffd, at, len } => unregister(w, cx, *uffd, *at, *len),
        Op::WriteProtect { at, len, flags, .. } => write_protect(w, cx, *at, *len, *flags),
        Op::Wake { at, len, .. } => wake(cx, *at, *len),
        Op::CloseUffd { uffd } => close(w, cx, *uffd),
        _ => fill::step(w, cx),
    }
}

fn open(w: &mut World, cx: &Cx<'_>, uffd: UffdId, features: UffdFeatures, policy: Policy) -> Out {
    if cx.proc != ProcId(0) {
        w.blur("a userfaultfd of a child");
        return Ok(());
    }
    if !w.profile.has_uffd(features) {
        return cx.errno(U_API, EINVAL);
    }
    let mut features = features;
    let hgm = features.has(HGM_FEATURE) && w.profile.hgm_feature;
    if hgm {
        let exact = features.has(UffdFeatures::EXACT_ADDRESS);
        if !exact && !w.mutated(Mutant::HgmFeatureAlone) {
            return cx.errno(HG_ENABLE, EINVAL);
        }
        features = features.without(HGM_FEATURE);
    }
    cx.only(U_API, Want::OkAny)?;
    if features.has(UffdFeatures::WP_ASYNC) {
        features = features | UffdFeatures::WP_UNPOPULATED;
    }
    if w.uffds.contains_key(&uffd) {
        release(w, uffd);
    }
    w.uffds.insert(uffd, Uffd { features, hgm, policy, unread: false });
    Ok(())
}

/// MINOR_HUGETLBFS_HGM of kernels with high-granularity mapping; others gave the bit to
/// WP_UNPOPULATED.
const HGM_FEATURE: UffdFeatures = UffdFeatures::WP_UNPOPULATED;

/// The range checks every ioctl shares: 4 KiB alignment and a length.
pub(super) fn range_ok(at: Place, len: Bytes) -> bool {
    at.addr().is_multiple_of(PAGE) && len.0.is_multiple_of(PAGE) && len.0 != 0
}

/// True if a VMA of this sort may be registered with these modes.
fn type_ok(vma: &Vma, modes: UffdModes) -> bool {
    let anon = vma.backing == crate::world::Backing::Anon;
    !(modes.has(UffdModes::MINOR) && anon)
}

fn register(
    w: &mut World,
    cx: &Cx<'_>,
    uffd: UffdId,
    at: Place,
    len: Bytes,
    modes: UffdModes,
) -> Out {
    let Some(hgm) = w.uffds.get(&uffd).map(|u| u.hgm) else { return Ok(()) };
    let (start, end) = (at.addr(), at.addr() + len.0);
    if modes.is_none() || modes.has(UffdModes::UNKNOWN) || !range_ok(at, len) {
        return cx.errno(U_REG, EINVAL);
    }
    let vmas = w.vmas_in(ProcId(0), start, end);
    let Some(first) = vmas.first() else { return cx.errno(U_REG, EINVAL) };
    if first.is_hugetlb() && !start.is_multiple_of(first.unit_bytes()) {
        return cx.errno(U_REG, EINVAL);
    }
    for vma in &vmas {
        if !type_ok(vma, modes) && !w.mutated(Mutant::MinorOnAnonOk) {
            return cx.errno(U_REG_TYPE, EINVAL);
        }
        let private = vma.is_private() && !w.mutated(Mutant::HgmFeaturePrivateOk);
        if hgm && vma.is_hugetlb() && private {
            return cx.errno(HG_ENABLE, EINVAL);
        }
        // A mapping a seal made read-only for good lacks VM_MAYWRITE.
        if vma.flags.sealed_ro {
            return cx.errno(U_REG, EPERM);
        }
        if vma.is_hugetlb() && end <= vma.end && !end.is_multiple_of(vma.unit_bytes()) {
            return cx.errno(U_REG, EINVAL);
        }
        if vma.uffd.is_some_and(|(other, _)| other != uffd) {
            return cx.errno(U_REG, EBUSY);
        }
    }
    let mask = ioctls(w.family, modes, vmas.iter().any(Vma::is_hugetlb));
    cx.only(U_REG_MASK, Want::Ok(mask))?;
    for vma in vmas {
        let old = vma.uffd.map(|(_, m)| m).unwrap_or_default();
        let pieces = hgm && vma.is_hugetlb();
        if old.has(modes) && !old.is_none() && (!pieces || vma.flags.hgm) {
            continue;
        }
        let (from, to) = (vma.start.max(start), vma.end.min(end));
        if pieces && !vma.flags.hgm {
            unshare(w, ProcId(0), from, to);
        }
        w.change_vmas(ProcId(0), from, to, |v| {
            v.uffd = Some((uffd, modes));
            v.flags.hgm |= pieces;
        });
        if old.has(UffdModes::WP) && !modes.has(UffdModes::WP) {
            if cx.proc != ProcId(0) {
                w.blur("another process changed modes of write-protected pages");
                return Ok(());
            }
            resolve_wp(w, ProcId(0), from, to);
        }
    }
    Ok(())
}

/// The `ioctls` mask REGISTER returns (U-009).
fn ioctls(family: Family, modes: UffdModes, hugetlb: bool) -> i64 {
    let basic = match (family, hugetlb) {
        (Family::U61, true) => 0x0c,
        (Family::U61, false) => 0x1c,
        (Family::U612, true) => 0x10c,
        // MOVE stands in the mask of shmem too, where it is EINVAL (C-27).
        (Family::U612, false) => 0x13c,
    };
    let wp = if modes.has(UffdModes::WP) { 0x40 } else { 0 };
    let minor = if modes.has(UffdModes::MINOR) { 0x80 } else { 0 };
    basic | wp | minor
}

/// Changing protection gives all entries of a range the mapping's own, which is read-only for
/// private memory (uffd_wp_range); 6.12 makes them writable again (MM_CP_TRY_CHANGE_WRITABLE).
fn settles_read_only(w: &mut World) {
    w.mprotected |= w.family == Family::U61;
}

/// Clears wp bits and markers of a range.
pub fn resolve_wp(w: &mut World, proc: ProcId, start: u64, end: u64) {
    settles_read_only(w);
    let Some(p) = w.proc_mut(proc) else { return };
    let touched: Vec<(u64, Entry)> = p
        .entries
        .range(start..end)
        .filter(|(_, e)| e.wp || e.slot == Slot::Marker)
        .map(|(at, e)| (*at, *e))
        .collect();
    for (at, entry) in touched {
        if entry.slot == Slot::Marker {
            p.entries.remove(&at);
        } else {
            p.entries.insert(at, Entry { wp: false, ..entry });
        }
    }
}

fn unregister(w: &mut World, cx: &Cx<'_>, uffd: UffdId, at: Place, len: Bytes) -> Out {
    let (start, end) = (at.addr(), at.addr() + len.0);
    if !w.uffds.contains_key(&uffd) {
        return Ok(());
    }
    if !range_ok(at, len) {
        return cx.errno(U_UNREG, EINVAL);
    }
    let vmas = w.vmas_in(ProcId(0), start, end);
    let Some(first) = vmas.first() else { return cx.errno(U_UNREG, EINVAL) };
    if first.is_hugetlb() && !start.is_multiple_of(first.unit_bytes()) {
        return cx.errno(U_UNREG, EINVAL);
    }
    for vma in &vmas {
        let splits = vma.is_hugetlb() && vma.uffd.is_some() && end < vma.end;
        if splits && !end.is_multiple_of(vma.unit_bytes()) {
            w.unregister_failed = true;
            w.unregister_refused |= vmas.iter().any(|v| v.start < vma.start && v.uffd.is_some());
            // It is cut in front before the cut behind is refused (userfaultfd_unregister).
            w.split_at(ProcId(0), start);
            return cx.errno(U_UNREG, EINVAL);
        }
        if vma.uffd.is_some_and(|(owner, _)| owner != uffd) {
            return cx.errno(U_FOREIGN, EINVAL);
        }
    }
    cx.only(U_UNREG, Want::Ok(0))?;
    drop_registration(w, start, end, uffd);
    Ok(())
}

/// Removes the registrations with one userfaultfd and resolves their bits.
fn drop_registration(w: &mut World, start: u64, end: u64, uffd: UffdId) {
    for vma in w.vmas_in(ProcId(0), start, end) {
        if vma.uffd.is_some_and(|(owner, _)| owner == uffd) {
            let (from, to) = (vma.start.max(start), vma.end.min(end));
            w.change_vmas(ProcId(0), from, to, |v| v.uffd = None);
            if !w.mutated(Mutant::UnregisterKeepsWp) {
                resolve_wp(w, ProcId(0), from, to);
            }
        }
    }
}

fn release(w: &mut World, uffd: UffdId) {
    drop_registration(w, 0, u64::MAX, uffd);
    w.uffds.remove(&uffd);
}

fn close(w: &mut World, cx: &Cx<'_>, uffd: UffdId) -> Out {
    if !w.uffds.contains_key(&uffd) {
        return Ok(());
    }
    cx.only(U_CLOSE, Want::OkAny)?;
    release(w, uffd);
    Ok(())
}

fn wake(cx: &Cx<'_>, at: Place, len: Bytes) -> Out {
    if range_ok(at, len) { cx.only(U_WAKE, Want::Ok(0)) } else { cx.errno(U_WAKE, EINVAL) }
}

fn write_protect(w: &mut World, cx: &Cx<'_>, at: Place, len: Bytes, flags: WpFlags) -> Out {
    let (start, end) = (at.addr(), at.addr() + len.0);
    if !range_ok(at, len) || flags.has(WpFlags::WP | WpFlags::DONTWAKE) {
        return cx.errno(U_WP, EINVAL);
    }
    let vmas = w.vmas_in(ProcId(0), start, end);
    let armed = |v: &Vma| v.armed(UffdModes::WP);
    let one = vmas.len() == 1 && !w.has_hole(ProcId(0), start, end);
    if !one {
        return write_protect_many(w, cx, start, end, &vmas, flags);
    }
    let vma = &vmas[0];
    if !armed(vma) {
        return cx.errno(U_WP, ENOENT);
    }
    let unit = vma.unit_bytes();
    if !start.is_multiple_of(unit) || !len.0.is_multiple_of(unit) {
        return cx.errno(U_WP, EINVAL);
    }
    cx.only(U_WP, Want::Ok(0))?;
    protect(w, vma, start, end, flags.has(WpFlags::WP));
    Ok(())
}

/// Several VMAs or holes: ENOENT where one VMA must hold the range (6.1); 6.12 walks them, skips
/// gaps and stops at the first that is not registered (U-050).
fn write_protect_many(
    w: &mut World,
    cx: &Cx<'_>,
    start: u64,
    end: u64,
    vmas: &[Vma],
    flags: WpFlags,
) -> Out {
    if vmas.is_empty() {
        return cx.errno(U_WP, ENOENT);
    }
    let bad = vmas.iter().position(|v| !v.armed(UffdModes::WP));
    let misaligned = vmas
        .iter()
        .take(bad.unwrap_or(vmas.len()))
        .any(|v| !start.is_multiple_of(v.unit_bytes()) || !end.is_multiple_of(v.unit_bytes()));
    let walk = if misaligned {
        Want::Err(EINVAL)
    } else if bad.is_some() {
        Want::Err(ENOENT)
    } else {
        Want::Ok(0)
    };
    let wants = match w.family {
        Family::U61 => vec![Want::Err(ENOENT), walk],
        Family::U612 => vec![walk],
    };
    let picked = cx.pick(U_WP, &wants)?;
    if w.family == Family::U61 && picked == 0 {
        return Ok(());
    }
    if misaligned {
        w.blur("WRITEPROTECT over mixed VMAs stopped at an alignment error");
        return Ok(());
    }
    for vma in &vmas[..bad.unwrap_or(vmas.len())] {
        let (from, to) = (vma.start.max(start), vma.end.min(end));
        protect(w, vma, from, to, flags.has(WpFlags::WP));
    }
    Ok(())
}

/// Sets or clears protection in one VMA (U-052, U-053).
fn protect(w: &mut World, vma: &Vma, start: u64, end: u64, on: bool) {
    if !on {
        resolve_wp(w, ProcId(0), start, end);
        return;
    }
    let anon = vma.backing == crate::world::Backing::Anon;
    let unpopulated = vma
        .uffd
        .and_then(|(u, _)| w.uffds.get(&u))
        .is_some_and(|u| u.features.has(UffdFeatures::WP_UNPOPULATED));
    let marks = (!anon || unpopulated) && !w.mutated(Mutant::NoMarkers);
    let mut at = start;
    while at < end {
        let node = w.node(ProcId(0), vma, at);
        at = node.start;
        match w.entry(ProcId(0), at) {
            None if marks => {
                let marker = Entry { slot: Slot::Marker, wp: false };
                w.set_entry(ProcId(0), at, Some(marker));
            }
            // A poison entry of a base page is protected like any that is not present, that of a
            // huge page is passed over (change_pte_range, hugetlb_change_protection).
            Some(Entry { slot: Slot::HwPoison { .. }, .. }) if vma.is_hugetlb() => {}
            Some(e) if !matches!(e.slot, Slot::Marker | Slot::UffdPoison) => {
                w.set_entry(ProcId(0), at, Some(Entry { wp: true, ..e }));
            }
            _ => {}
        }
        at = node.end();
    }
}
