//! What a load, a store or a kernel access does to one page: the fault the kernel would run, with
//! its effects on entries, page cache, reservations and events. Ops that populate (mlock,
//! MAP_POPULATE, GUP users) come here too.
//!
//! Where the kernel has a choice (THP, fault-around), entries become [`Slot::Unsure`] and the
//! next look or event decides.

use crate::errno::EFAULT;
use crate::mutants::Mutant;
use crate::ops::uffd::resolve_wp;
use crate::step::{Cx, Out, seen_bits};
use crate::world::{AnonVma, Backing, BodyId, Entry, ExpectedEvent, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{Spot, Status, Word, event, pm};
use case::program::HANDLER_SERIAL;
use case::{
    Advice, Family, NumaMode, Op, PageSize, Policy, ProcId, Prot, Tag, UffdFeatures, UffdModes,
};

/// Direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// How touching one page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The page is mapped and the access went through.
    Done,
    /// A user access gets this signal; a kernel access sees EFAULT (or EHWPOISON for poison).
    Fault { signo: u8, code: i32, lsb: u8 },
    /// Waits for a userfaultfd that nobody answers.
    Blocks,
}

/// SIGSEGV without a mapping.
pub const SEGV_MAPERR: Touch = Touch::Fault { signo: 11, code: 1, lsb: 0 };
/// SIGSEGV against the protection.
pub const SEGV_ACCERR: Touch = Touch::Fault { signo: 11, code: 2, lsb: 0 };
/// SIGBUS for a page that cannot be.
pub const BUS_ADRERR: Touch = Touch::Fault { signo: 7, code: 2, lsb: 0 };

/// Fault-around window of 6.1 and 6.12, bytes.
const FAULT_AROUND: u64 = 64 << 10;
/// PMD size: what a THP covers.
const PMD: u64 = 2 << 20;
/// A fault is retried after each event or fill; more rounds than this mean a model error.
const ROUNDS_MAX: u32 = 8;

/// One attempt ended, or changed the entry so that the access must look again.
enum Round {
    Ended(Touch),
    Again,
}

/// Which userfault a page raises.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Missing,
    Minor,
    Wp,
}

/// SIGBUS of a poisoned unit.
fn poisoned(vma: &Vma) -> Touch {
    Touch::Fault { signo: 7, code: 4, lsb: vma.unit_bytes().trailing_zeros() as u8 }
}

/// Touches the page at `addr` (any address in it) and says how it ended.
pub fn touch(w: &mut World, cx: &Cx<'_>, proc: ProcId, addr: u64, access: Access) -> Out<Touch> {
    if out_of_luck(w, cx, proc, addr, access) {
        // A cached page is mapped before a copy of it is asked for.
        if let Some(vma) = w.vma_at(proc, addr).cloned()
            && let Some(body) = w.cached(&vma, addr)
        {
            let (unit, entry) = w.slot(proc, &vma, addr);
            let wp = entry.is_some_and(|e| e.slot == Slot::Marker);
            let unmapped = wp || entry.is_none();
            if unmapped {
                w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(body), wp }));
            }
        }
        return Ok(BUS_ADRERR);
    }
    for _ in 0..ROUNDS_MAX {
        if let Round::Ended(touch) = attempt(w, cx, proc, addr, access) {
            return Ok(touch);
        }
    }
    w.blur("a fault did not settle in the model");
    Ok(Touch::Done)
}

fn attempt(w: &mut World, cx: &Cx<'_>, proc: ProcId, addr: u64, access: Access) -> Round {
    let Some(vma) = w.vma_at(proc, addr).cloned() else { return Round::Ended(SEGV_MAPERR) };
    let allowed = match access {
        Access::Read => !vma.prot.is_none(),
        Access::Write => vma.prot.has(Prot::WRITE),
    };
    if !allowed {
        return Round::Ended(SEGV_ACCERR);
    }
    let (unit, entry) = w.slot(proc, &vma, addr);
    if entry.is_none_or(|e| e.slot == Slot::Unsure)
        && let Some(body) = across_the_end(w, cx, &vma, addr)
    {
        w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(body), wp: false }));
        return Round::Again;
    }
    let Some(entry) = entry else {
        return fill(w, proc, &vma, addr, access, false);
    };
    match entry.slot {
        Slot::HwPoison { own: false } if left_no_poison(w, cx, &vma, addr) => {
            w.set_entry(proc, unit, None);
            Round::Again
        }
        Slot::HwPoison { .. } | Slot::UffdPoison => {
            let around = access == Access::Read && !vma.armed(UffdModes::WP | UffdModes::MINOR);
            if around && left_huge_file(w, &vma, addr) {
                // The entry may be none as well, and then neighbours are mapped before the page
                // is found to be poisoned.
                haze_fault_around(w, proc, &vma, unit);
            }
            Round::Ended(poisoned(&vma))
        }
        Slot::Marker => fill(w, proc, &vma, addr, access, true),
        // Zeros either way: the zero page, or a part of a huge page that nobody stored to.
        Slot::Unsure
            if access == Access::Read && vma.backing == Backing::Anon && vma.uffd.is_none() =>
        {
            Round::Ended(Touch::Done)
        }
        Slot::Unsure => {
            if absent_by_evidence(w, cx, &vma, addr) {
                w.set_entry(proc, unit, None);
                return Round::Again;
            }
            present_default(w, proc, &vma, unit, entry.wp);
            let mapped = w.entry(proc, unit).is_some() && vma.backing != Backing::Anon;
            let around = !vma.is_hugetlb() && !vma.armed(UffdModes::WP | UffdModes::MINOR);
            if mapped && around && access == Access::Read {
                // If a fault mapped it only now, that fault mapped its neighbours too.
                haze_fault_around(w, proc, &vma, unit);
            }
            Round::Again
        }
        Slot::Zero | Slot::Page(_) if access == Access::Read => Round::Ended(Touch::Done),
        Slot::Zero | Slot::Page(_) if entry.wp => protected_write(w, proc, &vma, addr, entry),
        Slot::Zero => {
            let body = w.new_body(vma.unit, None);
            w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(body), wp: false }));
            mark_anon_vma(w, proc, addr);
            Round::Ended(Touch::Done)
        }
        Slot::Page(body) => write_mapped(w, proc, &vma, unit, body),
    }
}

/// Did an allocation find no huge page on the nodes a policy allows, none for a reservation that a
/// move divided (E-01), or none because pins keep pages from the pool? Reservations are counted for
/// the pool, not for its nodes, so even a reserved page may not be had (the comment on cpusets and
/// MPOL_BIND in hugetlb_acct_memory).
fn out_of_luck(w: &World, cx: &Cx<'_>, proc: ProcId, addr: u64, access: Access) -> bool {
    let Some(vma) = w.vma_at(proc, addr).filter(|v| v.is_hugetlb()) else { return false };
    if !bound(w, vma) && !w.reserve_divided && !kept_by_pins(w, vma) {
        return false;
    }
    let user = matches!(cx.op, Op::Read { .. } | Op::Write { .. });
    let (unit, entry) = w.slot(proc, vma, addr);
    let bits = seen_bits(cx, proc, unit).filter(|bits| bits & pm::PRESENT != 0);
    let had = bits.is_some() || taken_by_failure(w, cx, vma);
    // The call may have failed further on: a page of its own says that this touch did not.
    let own = bits.is_some_and(|b| b & pm::FILE == 0 && b & pm::EXCLUSIVE != 0);
    let refused = match cx.op {
        Op::Read { .. } | Op::Write { .. } => matches!(cx.obs.status, Status::Signal(s)
            if (s.signo, s.code) == (7, 2) && same_page(s.at, addr)),
        Op::VmRead { at, .. } => match cx.obs.status {
            Status::Ok(bytes) => addr >= at.addr().saturating_add(bytes.max(0) as u64),
            status => status == Status::Err(EFAULT as u16),
        },
        _ => cx.obs.status == Status::Err(EFAULT as u16),
    };
    let copies = access == Access::Write && vma.is_private();
    refused
        && match entry.map(|e| e.slot) {
            None | Some(Slot::Marker) => {
                (user || !had) && (copies || w.cached(vma, addr).is_none())
            }
            Some(Slot::Page(body)) => {
                copies && !own && (w.bodies[body].file.is_some() || w.mapcount(body) > 1)
            }
            _ => false,
        }
}

/// Is a fault in this mapping held to some nodes?
pub fn bound(w: &World, vma: &Vma) -> bool {
    w.task_bound || matches!(vma.policy, Some((NumaMode::Bind, _)))
}

/// A page that was had and poisoned is mapped by nobody, but the pool lost it.
fn taken_by_failure(w: &World, cx: &Cx<'_>, vma: &Vma) -> bool {
    let Op::Madvise { advice: Advice::HwPoison, .. } = cx.op else { return false };
    let seen = cx.obs.pools.map(|pools| pools[usize::from(vma.unit == PageSize::Huge1G)]);
    seen.is_some_and(|seen| seen.free < w.pool_now(vma.unit).free)
}

/// Is the pool dry, and a page that was discarded not back in it because it is pinned? It takes its
/// reservation along until it is freed (hugetlbfs_reserv.rst, freeing huge pages), so somewhere a
/// fault must go without.
fn kept_by_pins(w: &World, vma: &Vma) -> bool {
    let mapped = |body: BodyId| {
        w.procs.values().any(|p| p.entries.values().any(|e| e.slot == Slot::Page(body)))
    };
    let kept = |body: &BodyId| {
        let page = &w.bodies[*body];
        page.size == vma.unit && page.file.is_none() && !mapped(*body)
    };
    w.pool_spare(vma.unit) <= 0 && w.pins.values().flatten().any(kept)
}

/// A store to an entry with the uffd-wp bit.
fn protected_write(w: &mut World, proc: ProcId, vma: &Vma, addr: u64, entry: Entry) -> Round {
    let unit = w.node(proc, vma, addr).start;
    let is_async = vma
        .uffd
        .and_then(|(u, _)| w.uffds.get(&u))
        .is_some_and(|u| u.features.has(UffdFeatures::WP_ASYNC));
    if !vma.armed(UffdModes::WP) || is_async || w.mutated(Mutant::WpWriteSilent) {
        w.set_entry(proc, unit, Some(Entry { wp: false, ..entry }));
        return Round::Again;
    }
    raise(w, proc, vma, addr, Access::Write, Why::Wp)
}

/// A store to a mapped page: in place, or after copying it.
fn write_mapped(w: &mut World, proc: ProcId, vma: &Vma, unit: u64, body: BodyId) -> Round {
    if !vma.is_private() {
        return Round::Ended(Touch::Done);
    }
    let from_cache = w.bodies[body].file.is_some();
    if !from_cache && (w.mapcount(body) <= 1 || w.mutated(Mutant::ForkSharesWrites)) {
        return Round::Ended(Touch::Done);
    }
    if vma.is_hugetlb() && !take_for_cow(w, proc, vma, unit, body) {
        return Round::Ended(BUS_ADRERR);
    }
    // The owner may have kept the page after it was taken from the children.
    if !from_cache && w.mapcount(body) <= 1 {
        return Round::Ended(Touch::Done);
    }
    let copy = w.copy_body(body);
    w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(copy), wp: false }));
    mark_anon_vma(w, proc, unit);
    Round::Ended(Touch::Done)
}

/// A huge page for a copy (H-073, H-074). True if there is one, or if the owner may keep the page
/// because it was unmapped from everybody else.
fn take_for_cow(w: &mut World, proc: ProcId, vma: &Vma, unit: u64, body: BodyId) -> bool {
    let Some((_, idx)) = vma.file_unit(unit) else { return false };
    if let Some(resv) = vma.resv
        && w.bodies[body].file.is_some()
        && !w.resvs[resv].consumed.contains(&idx)
    {
        w.resvs[resv].consumed.insert(idx);
        return true;
    }
    if w.numa_bound && vma.resv.is_some() {
        w.blur("an owner's copy under a policy: a page of its nodes, or the one it has");
        return true;
    }
    if w.pool_spare(vma.unit) > 0 {
        return true;
    }
    if vma.resv.is_none() || w.bodies[body].file.is_some() {
        return false;
    }
    let others: Vec<(ProcId, u64)> = w
        .procs
        .iter()
        .filter(|(id, _)| **id != proc)
        .flat_map(|(id, p)| p.entries.iter().map(move |(at, e)| (*id, *at, *e)))
        .filter(|(_, _, e)| e.slot == Slot::Page(body))
        .map(|(id, at, _)| (id, at))
        .collect();
    for (id, at) in others {
        w.set_entry(id, at, None);
        if let Some(v) = w.vma_at_mut(id, at) {
            v.starved = true;
        }
    }
    true
}

/// Fills a none entry or a marker.
fn fill(w: &mut World, proc: ProcId, vma: &Vma, addr: u64, access: Access, marker: bool) -> Round {
    match (vma.backing, vma.is_hugetlb()) {
        (Backing::Anon, _) => fill_anon(w, proc, vma, addr, access, marker),
        (_, true) => fill_hugetlb(w, proc, vma, addr, access, marker),
        (_, false) => fill_shmem(w, proc, vma, addr, access, marker),
    }
}

fn fill_anon(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    access: Access,
    marker: bool,
) -> Round {
    if vma.armed(UffdModes::MISSING) {
        return raise(w, proc, vma, addr, access, Why::Missing);
    }
    let unit = vma.unit_addr(addr);
    let slot = match access {
        // Without the huge zero page a THP of zeros is mapped where one fits.
        Access::Read if !w.thp_zero_page => Slot::Unsure,
        Access::Read => Slot::Zero,
        Access::Write => {
            mark_anon_vma(w, proc, addr);
            Slot::Page(w.new_body(vma.unit, None))
        }
    };
    w.set_entry(proc, unit, Some(Entry { slot, wp: marker }));
    if !marker {
        haze_thp(w, proc, vma, unit);
    }
    settled(marker, access)
}

/// After a fill: a store into a filled marker meets the wp bit next.
fn settled(marker: bool, access: Access) -> Round {
    if marker && access == Access::Write { Round::Again } else { Round::Ended(Touch::Done) }
}

fn fill_shmem(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    access: Access,
    marker: bool,
) -> Round {
    let Some((key, idx)) = vma.file_unit(addr) else { return Round::Ended(BUS_ADRERR) };
    if access == Access::Write {
        // A store into a private mapping prepares it before the page is looked for, so also when
        // there is none to be had (do_cow_fault).
        prepared(w, proc, vma, addr);
    } else if !vma.armed(UffdModes::WP | UffdModes::MINOR) {
        // Neighbours are mapped before the page itself is looked for, so also when it lies beyond
        // the end, is missing or is poisoned (do_read_fault, do_fault_around).
        haze_fault_around(w, proc, vma, vma.unit_addr(addr));
    }
    let beyond = idx * PAGE >= w.files[key].size.next_multiple_of(PAGE);
    if beyond && !w.mutated(Mutant::ShmemNoEof) {
        return Round::Ended(BUS_ADRERR);
    }
    let body = match w.files[key].cache.get(&idx).copied() {
        // The event comes before the page is looked at (shmem_get_folio_gfp).
        Some(_) if vma.armed(UffdModes::MINOR) => {
            return raise(w, proc, vma, addr, access, Why::Minor);
        }
        Some(body) if w.bodies[body].poisoned => {
            return Round::Ended(poisoned(vma));
        }
        Some(body) => body,
        None if vma.armed(UffdModes::MISSING) => {
            return raise(w, proc, vma, addr, access, Why::Missing);
        }
        None => {
            let body = w.new_body(vma.unit, Some((key, idx)));
            w.files[key].cache.insert(idx, body);
            body
        }
    };
    map_file_page(w, proc, vma, addr, access, body, marker);
    if w.files[key].maybe_huge {
        let block = vma.unit_addr(addr) / PMD * PMD;
        haze(w, proc, block, block + PMD, |w, at| beside(w, proc, vma, at));
    }
    settled(marker, access)
}

/// Maps a cached page, or a private copy of it for a store.
fn map_file_page(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    access: Access,
    body: BodyId,
    marker: bool,
) {
    // A store copies at once, into a marker as well: the copy is what is protected (do_cow_fault).
    let copies = vma.is_private() && access == Access::Write;
    let slot = if copies {
        mark_anon_vma(w, proc, addr);
        Slot::Page(w.copy_body(body))
    } else {
        Slot::Page(body)
    };
    w.set_entry(proc, vma.unit_addr(addr), Some(Entry { slot, wp: marker }));
}

fn fill_hugetlb(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    access: Access,
    marker: bool,
) -> Round {
    let Some((key, idx)) = vma.file_unit(addr) else { return Round::Ended(BUS_ADRERR) };
    if vma.starved {
        return Round::Ended(BUS_ADRERR);
    }
    if let Some(body) = w.files[key].cache.get(&idx).copied() {
        if w.bodies[body].poisoned {
            return Round::Ended(poisoned(vma));
        }
        if vma.armed(UffdModes::MINOR) {
            return raise(w, proc, vma, addr, access, Why::Minor);
        }
        return map_cached_huge(w, proc, vma, addr, access, body, marker);
    }
    let size_units = w.files[key].size / vma.unit_bytes();
    if idx >= size_units && !w.mutated(Mutant::HugetlbNoEof) {
        return Round::Ended(BUS_ADRERR);
    }
    if vma.armed(UffdModes::MISSING) {
        return raise(w, proc, vma, addr, access, Why::Missing);
    }
    let Some(body) = take_huge(w, vma, addr) else { return Round::Ended(BUS_ADRERR) };
    if vma.is_private() {
        mark_anon_vma(w, proc, addr);
    }
    let unit = filled_node(w, proc, vma, addr);
    w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(body), wp: marker }));
    settled(marker, access)
}

/// The start of the node that a fault fills (HG-03).
fn filled_node(w: &mut World, proc: ProcId, vma: &Vma, addr: u64) -> u64 {
    if w.mutated(Mutant::HgmFaultFillsAll) {
        let whole = vma.unit_addr(addr);
        w.zap(proc, whole, whole + vma.unit_bytes());
        w.drop_tables(proc, whole, whole + vma.unit_bytes());
    }
    w.node(proc, vma, addr).start
}

fn map_cached_huge(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    access: Access,
    body: BodyId,
    marker: bool,
) -> Round {
    let unit = filled_node(w, proc, vma, addr);
    w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(body), wp: marker }));
    if marker && access == Access::Write {
        return Round::Again;
    }
    if vma.is_private() && access == Access::Write {
        return match write_mapped(w, proc, vma, unit, body) {
            // The cached page stays mapped read-only when no page was left for the copy.
            Round::Ended(touch) => Round::Ended(touch),
            Round::Again => Round::Again,
        };
    }
    Round::Ended(Touch::Done)
}

/// A new huge page at an index that has none: into the cache for a shared mapping, anonymous for
/// a private one; `None` when neither a reservation nor a spare page is there (H-070, H-072).
pub fn take_huge(w: &mut World, vma: &Vma, addr: u64) -> Option<BodyId> {
    let (key, idx) = vma.file_unit(addr)?;
    if vma.is_private() {
        let reserved = vma.resv.is_some_and(|r| !w.resvs[r].consumed.contains(&idx));
        if !reserved && w.pool_spare(vma.unit) <= 0 {
            return None;
        }
        if let (Some(r), false) = (vma.resv, w.mutated(Mutant::FaultKeepsReserve)) {
            w.resvs[r].consumed.insert(idx);
        }
        return Some(w.new_body(vma.unit, None));
    }
    take_huge_cached(w, key, idx)
}

/// A new huge page in a file's cache, from its reservation or from the spare pages.
pub fn take_huge_cached(w: &mut World, key: usize, idx: u64) -> Option<BodyId> {
    let page = w.files[key].page;
    if !w.files[key].resv.contains(&idx) && w.pool_spare(page) <= 0 {
        return None;
    }
    let body = w.new_body(page, Some((key, idx)));
    w.files[key].cache.insert(idx, body);
    w.files[key].resv.insert(idx);
    Some(body)
}

/// Remembers that the VMA has anonymous pages, so that fork copies its tables.
pub fn mark_anon_vma(w: &mut World, proc: ProcId, addr: u64) {
    if let Some(vma) = w.vma_at_mut(proc, addr) {
        vma.anon_vma = AnonVma::Yes;
    }
}

/// Every fill of a private mapping prepares it for anonymous pages, whatever it fills with.
pub fn prepared(w: &mut World, proc: ProcId, vma: &Vma, addr: u64) {
    if vma.is_private() {
        mark_anon_vma(w, proc, addr);
    }
}

/// None entries of the THP-sized block around a fault may have been filled with it.
pub fn haze_thp(w: &mut World, proc: ProcId, vma: &Vma, unit: u64) {
    let eligible = w.thp_enabled == 2 || (w.thp_enabled == 1 && vma.flags.hugepage);
    let start = unit - unit % PMD;
    // Neighbours with the same attributes may be one VMA to the kernel.
    if !eligible || vma.flags.nohugepage || w.span(proc, start, start + PMD).is_none() {
        return;
    }
    w.anon_huge = true;
    haze(w, proc, start, start + PMD, |_, _| true);
}

/// Cached neighbours of a read fault may have been mapped with it.
fn haze_fault_around(w: &mut World, proc: ProcId, vma: &Vma, unit: u64) {
    let start = unit.saturating_sub(FAULT_AROUND);
    haze(w, proc, start, unit + FAULT_AROUND, |w, at| beside(w, proc, vma, at));
}

/// A cached page of this VMA, or of a neighbour that may be the same VMA to the kernel.
fn beside(w: &World, proc: ProcId, vma: &Vma, at: u64) -> bool {
    let Some(v) = w.vma_at(proc, at) else { return false };
    let alike = (v.prot, v.share, v.flags, v.uffd, v.unit)
        == (vma.prot, vma.share, vma.flags, vma.uffd, vma.unit);
    alike && w.cached(v, at).is_some()
}

/// Turns none entries into unsure ones.
pub fn haze(w: &mut World, proc: ProcId, start: u64, end: u64, may: impl Fn(&World, u64) -> bool) {
    let mut at = start;
    while at < end {
        if w.entry(proc, at).is_none() && may(w, at) {
            w.set_entry(proc, at, Some(Entry { slot: Slot::Unsure, wp: false }));
        }
        at += PAGE;
    }
}

/// What an unsure entry is if it is present.
pub fn present_default(w: &mut World, proc: ProcId, vma: &Vma, unit: u64, wp: bool) {
    let slot = match w.cached(vma, unit) {
        Some(body) => Slot::Page(body),
        None if vma.backing == Backing::Anon => Slot::Zero,
        None => {
            w.set_entry(proc, unit, None);
            return;
        }
    };
    w.set_entry(proc, unit, Some(Entry { slot, wp }));
}

/// An unsure entry of an armed VMA was none if the access raised the event that none raises, or
/// never came back.
fn absent_by_evidence(w: &World, cx: &Cx<'_>, vma: &Vma, addr: u64) -> bool {
    let Some((uffd, modes)) = vma.uffd else { return true };
    if !modes.any(UffdModes::MISSING | UffdModes::MINOR) {
        return false;
    }
    let features = w.uffds.get(&uffd).map(|u| u.features).unwrap_or_default();
    if features.has(UffdFeatures::SIGBUS) {
        return matches!(cx.obs.status, Status::Signal(s)
            if s.signo == 7 && same_page(s.at, addr));
    }
    if matches!(cx.obs.status, Status::Timeout) {
        return true;
    }
    cx.obs.events.iter().any(|e| {
        e.event == event::PAGEFAULT && e.flags & event::FLAG_WP == 0 && same_page(e.at, addr)
    })
}

/// Is there a file behind the address that may have huge pages?
fn left_huge_file(w: &World, vma: &Vma, addr: u64) -> bool {
    vma.file_unit(addr).is_some_and(|(key, _)| w.files[key].maybe_huge)
}

/// The poison entry of a huge file page may be none as well (unmap_folio), and where the file has
/// let go of the poisoned page an access may find a new one.
fn left_no_poison(w: &World, cx: &Cx<'_>, vma: &Vma, addr: u64) -> bool {
    if !left_huge_file(w, vma, addr) {
        return false;
    }
    if w.cached(vma, addr).is_some_and(|body| w.bodies[body].poisoned) {
        // Only somebody who waits for pages of the cache is asked before the poison is found.
        let refused = matches!(cx.obs.status, Status::Signal(s) if s.code == 4);
        return vma.armed(UffdModes::MINOR) && !refused && absent_by_evidence(w, cx, vma, addr);
    }
    match cx.op {
        Op::Read { .. } | Op::Write { .. } => {
            !matches!(cx.obs.status, Status::Signal(s) if s.code == 4 && same_page(s.at, addr))
        }
        Op::VmRead { at, .. } | Op::Vmsplice { at, .. } | Op::DirectIo { at, .. } => {
            matches!(cx.obs.status, Status::Ok(bytes) if addr < at.addr().saturating_add_signed(bytes))
        }
        _ => cx.ok(),
    }
}

/// The page beyond the end of a shmem file that a huge page across the end brings along: shmem is
/// mapped so by intent, and whether the block was mapped already is the kernel's choice
/// (finish_fault, filemap_map_pages: "shmem/tmpfs ... intentionally mapped with PMDs across
/// i_size"). `None` if the access was refused, or if no such page can be.
fn across_the_end(w: &mut World, cx: &Cx<'_>, vma: &Vma, addr: u64) -> Option<BodyId> {
    let (key, idx) = vma.file_unit(addr).filter(|_| !vma.is_hugetlb())?;
    let (at, size) = (idx * PAGE, w.files[key].size);
    let across = at >= size.next_multiple_of(PAGE) && at - at % PMD < size;
    if !across || !w.files[key].maybe_huge {
        return None;
    }
    let body = w.cached(vma, addr)?;
    if !matches!(cx.op, Op::Read { .. } | Op::Write { .. }) {
        w.blur("a kernel access beyond the end of a file with huge pages");
        return Some(body);
    }
    // One entry maps the block: what let the page before this one pass lets this one.
    let before = vma.unit_addr(addr) - PAGE;
    let inside = (at - PAGE) / PMD == at / PMD && at - PAGE >= size.next_multiple_of(PAGE);
    let passed = |e: Entry| matches!(e.slot, Slot::Page(_));
    let refused = matches!(cx.obs.status, Status::Signal(s) if same_page(s.at, addr));
    (!refused || inside && w.entry(cx.proc, before).is_some_and(passed)).then_some(body)
}

fn same_page(spot: Spot, addr: u64) -> bool {
    matches!(spot, Spot::In(place) if place.addr() / PAGE == addr / PAGE)
}

/// Raises a userfault and, if somebody answers it, applies the answer.
fn raise(w: &mut World, proc: ProcId, vma: &Vma, addr: u64, access: Access, why: Why) -> Round {
    let Some((uffd, _)) = vma.uffd else { return Round::Ended(Touch::Blocks) };
    let Some(state) = w.uffds.get(&uffd).cloned() else { return Round::Ended(Touch::Blocks) };
    let sigbus =
        state.features.has(UffdFeatures::SIGBUS) && !w.mutated(Mutant::SigbusFeatureIgnored);
    if sigbus || w.no_wait {
        return Round::Ended(BUS_ADRERR);
    }
    // A child's registration belongs to a context of its own that nobody reads.
    if state.policy == Policy::None || proc != ProcId(0) {
        return Round::Ended(Touch::Blocks);
    }
    let write = if access == Access::Write { event::FLAG_WRITE } else { 0 };
    let flags = match why {
        Why::Missing => write,
        Why::Minor => write | event::FLAG_MINOR,
        Why::Wp => event::FLAG_WRITE | event::FLAG_WP,
    };
    let exact = state.features.has(UffdFeatures::EXACT_ADDRESS) || w.mutated(Mutant::EventsExact);
    let at = match (exact, vma.flags.hgm) {
        (true, _) => addr,
        // Who resolves pieces must be told which one is missed (HG-04).
        (false, true) if w.ways.base_addresses && !w.mutated(Mutant::HgmEventsWhole) => {
            addr - addr % PAGE
        }
        (false, _) => vma.unit_addr(addr),
    };
    if let Some(at) = World::place(at) {
        let expected =
            ExpectedEvent { uffd, event: event::PAGEFAULT, flags, at, to: Spot::In(at), len: 0 };
        w.expected_events.push(expected);
    }
    let answered = match why {
        Why::Wp if vma.flags.hgm => {
            // The answer is for the whole huge page, whatever it is mapped by.
            let whole = vma.unit_addr(addr);
            resolve_wp(w, proc, whole, whole + vma.unit_bytes());
            true
        }
        Why::Wp => {
            let unit = vma.unit_addr(addr);
            if let Some(e) = w.entry(proc, unit) {
                w.set_entry(proc, unit, Some(Entry { wp: false, ..e }));
            }
            true
        }
        Why::Minor => answer_minor(w, proc, vma, addr),
        Why::Missing => answer_missing(w, proc, vma, addr, &state.policy, uffd.0),
    };
    if answered { Round::Again } else { Round::Ended(Touch::Blocks) }
}

fn answer_minor(w: &mut World, proc: ProcId, vma: &Vma, addr: u64) -> bool {
    let Some(body) = w.cached(vma, addr) else { return false };
    if w.bodies[body].poisoned {
        // CONTINUE maps no poisoned page (EIO), and the policy has no other answer.
        return false;
    }
    prepared(w, proc, vma, addr);
    let entry = Entry { slot: Slot::Page(body), wp: false };
    if w.in_pieces(proc, vma, addr) {
        // The handler tries the whole page first, and where pieces are in the way the base page.
        let asked = vma.uffd.and_then(|(id, _)| w.uffds.get(&id)).is_some_and(|u| u.hgm);
        if w.ways.by_context && !asked {
            return false;
        }
        w.make_tables(proc, vma, addr, PAGE);
    }
    let unit = w.node(proc, vma, addr).start;
    w.set_entry(proc, unit, Some(entry));
    true
}

fn answer_missing(
    w: &mut World,
    proc: ProcId,
    vma: &Vma,
    addr: u64,
    policy: &Policy,
    uffd: u8,
) -> bool {
    let unit = vma.unit_addr(addr);
    if w.in_pieces(proc, vma, addr) {
        // COPY fills whole huge pages only, and a page table is in its way (U-10): nothing the
        // handler does helps.
        return false;
    }
    let marker = w.entry(proc, unit).is_some();
    let slot = match policy {
        Policy::None => return false,
        Policy::Poison if w.family == Family::U612 && !marker => {
            prepared(w, proc, vma, addr);
            Slot::UffdPoison
        }
        Policy::Poison => return false,
        Policy::Zero if !vma.is_hugetlb() && vma.is_private() => {
            if marker {
                return false;
            }
            prepared(w, proc, vma, addr);
            Slot::Zero
        }
        Policy::Zero | Policy::Copy => {
            let Some(body) = filled_body(w, vma, addr) else { return false };
            if *policy == Policy::Copy {
                tag_body(w, body, unit, vma, HANDLER_SERIAL + u32::from(uffd));
            }
            if vma.is_private() {
                mark_anon_vma(w, proc, addr);
            }
            Slot::Page(body)
        }
    };
    w.set_entry(proc, unit, Some(Entry { slot, wp: false }));
    true
}

/// The page UFFDIO_COPY or ZEROPAGE installs: in the cache for shared mappings, else anonymous.
pub fn filled_body(w: &mut World, vma: &Vma, addr: u64) -> Option<BodyId> {
    if vma.is_hugetlb() {
        return take_huge(w, vma, addr);
    }
    match vma.file_unit(addr) {
        Some((key, idx)) if !vma.is_private() => {
            let body = w.new_body(vma.unit, Some((key, idx)));
            w.files[key].cache.insert(idx, body);
            Some(body)
        }
        _ => Some(w.new_body(vma.unit, None)),
    }
}

/// Tags every 4 KiB of a page that was filled whole.
pub fn tag_body(w: &mut World, body: BodyId, unit: u64, vma: &Vma, serial: u32) {
    let Some(place) = World::place(unit) else { return };
    for sub in 0..(vma.unit_bytes() / PAGE) as u32 {
        let word = Word::Tag(Tag { serial, page: place.page() as u32 + sub });
        w.bodies[body].set(sub, [word; 2]);
    }
}
