//! mremap: preconditions in the kernel's order, shrinking, growing, moving.

use super::merge::may_merge;
use super::{
    AMPLE, EINVAL, ENOMEM, announce, cuts_huge, leaves_cut, listeners, populate, settle, unmap,
    unshare,
};
use crate::errno::EFAULT;
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::touch::Touch;
use crate::world::{AnonVma, Backing, Entry, ExpectedEvent, Node, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{Status, event};
use case::{Expectation, MremapFlags, Op, PageSize, Place, Prot, Share, UffdFeatures, Violation};

/// A call: rounded lengths and addresses.
#[derive(Clone, Copy)]
struct Ask {
    old: u64,
    old_len: u64,
    new_len: u64,
    /// The new address as passed, 0 for none.
    to: u64,
    /// What the returned address is reported against.
    base: u64,
    fixed: bool,
    dontunmap: bool,
    maymove: bool,
}

impl Ask {
    fn old_end(&self) -> u64 {
        self.old + self.old_len
    }
    fn want(&self, addr: u64) -> Want {
        Want::Ok(addr.wrapping_sub(self.base) as i64)
    }
}

pub(super) fn mremap(w: &mut World, cx: &Cx<'_>) -> Out {
    let Op::Mremap { at, len, new, to, flags } = cx.op else { return Ok(()) };
    let mut ask = Ask {
        old: at.addr(),
        old_len: len.0.next_multiple_of(PAGE),
        new_len: new.0.next_multiple_of(PAGE),
        to: to.map_or(0, Place::addr),
        base: to.unwrap_or(*at).addr(),
        fixed: flags.has(MremapFlags::FIXED),
        dontunmap: flags.has(MremapFlags::DONTUNMAP),
        maymove: flags.has(MremapFlags::MAYMOVE),
    };
    let refused = (ask.fixed && !ask.maymove)
        || (ask.dontunmap && (!ask.maymove || len.0 != new.0))
        || !ask.old.is_multiple_of(PAGE)
        || ask.new_len == 0;
    if refused {
        return cx.errno(V040, EINVAL);
    }
    let Some(vma) = w.vma_at(cx.proc, ask.old).cloned() else { return cx.errno(V040, EFAULT) };
    if vma.is_hugetlb() {
        let unit = vma.unit_bytes();
        ask.old_len = ask.old_len.next_multiple_of(unit);
        ask.new_len = ask.new_len.next_multiple_of(unit);
        let off = !ask.old.is_multiple_of(unit) || !ask.to.is_multiple_of(unit);
        let grows = ask.new_len > ask.old_len && !w.mutated(Mutant::MremapGrowHugetlb);
        if off || grows {
            return cx.errno(H082, EINVAL);
        }
    }
    let out = if ask.fixed || ask.dontunmap {
        move_to(w, cx, ask)
    } else if ask.old_len >= ask.new_len {
        shrink(w, cx, &ask)
    } else {
        grow(w, cx, &ask)
    };
    out.map_err(|broken| told(w, cx, &ask, broken))
}

/// A locked mapping that grows and moves is filled before its REMAP event is sent, and until that is
/// read no handler may fill anything: a hang there is a class of its own (D-11).
fn told(w: &World, cx: &Cx<'_>, ask: &Ask, mut broken: Box<Violation>) -> Box<Violation> {
    let grows = ask.new_len > ask.old_len && ask.maymove;
    let locked = || w.vma_at(cx.proc, ask.old).is_some_and(|vma| vma.flags.locked);
    let asked = || listeners(w, cx.proc, ask.old, ask.old + 1, UffdFeatures::EVENT_REMAP);
    if broken.class == "ok->hang" && grows && locked() && !asked().is_empty() {
        broken.class.push_str(":unannounced");
    }
    broken
}

/// Unmaps a range on the way; `None` if that would cut a huge page in two.
fn cut_off(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) -> Option<bool> {
    if start == end {
        return Some(true);
    }
    if cuts_huge(w, cx.proc, start) || cuts_huge(w, cx.proc, end) {
        leaves_cut(w, cx.proc, start);
        return None;
    }
    Some(unmap(w, cx.proc, start, end))
}

fn shrink(w: &mut World, cx: &Cx<'_>, ask: &Ask) -> Out {
    let Some(read) = cut_off(w, cx, ask.old + ask.new_len, ask.old_end()) else {
        return cx.errno(H080, EINVAL);
    };
    settle(w, cx, V041, read, ask.want(ask.old))
}

/// How far from `addr` one mapping surely reaches, and how far it reaches if the kernel merged
/// what it may merge.
fn reach(w: &World, cx: &Cx<'_>, addr: u64) -> (u64, u64) {
    let Some(first) = w.vma_at(cx.proc, addr).cloned() else { return (addr, addr) };
    let sure = first.end;
    let mut last = first;
    while let Some(next) = w.vma_at(cx.proc, last.end).cloned() {
        if !may_merge(&last, &next) {
            break;
        }
        last = next;
    }
    (sure, last.end)
}

/// The checks of vma_to_resize: the errno that must come, or whether EFAULT may come because
/// the kernel need not have merged.
fn resize_check(w: &World, cx: &Cx<'_>, ask: &Ask) -> Result<bool, (RuleRef, i32)> {
    let Some(vma) = w.vma_at(cx.proc, ask.old) else { return Err((V040, EFAULT)) };
    if ask.old_len == 0 && vma.share == Share::Private {
        return Err((V042, EINVAL));
    }
    if ask.dontunmap && vma.is_hugetlb() {
        return Err((V045, EINVAL));
    }
    let (sure, perhaps) = reach(w, cx, ask.old);
    if ask.old_end() > perhaps {
        return Err((V041, EFAULT));
    }
    Ok(ask.old_end() > sure)
}

fn accounted(w: &World, cx: &Cx<'_>, ask: &Ask) -> bool {
    let more = if ask.dontunmap { ask.new_len } else { ask.new_len.saturating_sub(ask.old_len) };
    more >= AMPLE
        && w.vma_at(cx.proc, ask.old)
            .is_some_and(|v| v.is_private() && v.prot.has(Prot::WRITE) && !v.flags.noreserve)
}

/// MREMAP_FIXED and MREMAP_DONTUNMAP.
fn move_to(w: &mut World, cx: &Cx<'_>, mut ask: Ask) -> Out {
    let overlaps = ask.old_end() > ask.to && ask.to + ask.new_len > ask.old;
    if !ask.to.is_multiple_of(PAGE) || overlaps {
        return cx.errno(V040, EINVAL);
    }
    let mut read = true;
    let mut late = Vec::new();
    if ask.fixed {
        match cut_off(w, cx, ask.to, ask.to + ask.new_len) {
            Some(r) => read &= r,
            None => return cx.errno(H080, EINVAL),
        }
    }
    if ask.old_len > ask.new_len {
        let sent = w.expected_events.len();
        match cut_off(w, cx, ask.old + ask.new_len, ask.old_end()) {
            Some(r) => read &= r,
            None => return cx.errno(H080, EINVAL),
        }
        // The tail's event comes after that of the move, with that of the old range.
        late = w.expected_events.split_off(sent);
        ask.old_len = ask.new_len;
    }
    let mut other = Vec::new();
    match resize_check(w, cx, &ask) {
        Err((rule, errno)) => {
            // What was unmapped on the way stays unmapped, and is told.
            w.expected_events.extend(late);
            return fails(w, cx, rule, read, &[Want::Err(errno)]);
        }
        Ok(true) => other.push(Want::Err(EFAULT)),
        Ok(false) => {}
    }
    if accounted(w, cx, &ask) {
        other.push(Want::Err(ENOMEM));
    }
    if !other.is_empty() && matches!(cx.obs.status, Status::Err(_)) {
        w.expected_events.extend(late);
        return fails(w, cx, V041, read, &other);
    }
    let dest = if ask.fixed { ask.to } else { chosen(w, cx, &ask)? };
    // A class of its own for lengths that do not fit an int.
    let giant = w.vma_at(cx.proc, ask.old).is_some_and(|v| v.unit == PageSize::Huge1G);
    let long =
        (giant || ask.old_len > i32::MAX as u64) && cx.obs.status == Status::Err(ENOMEM as u16);
    if long && w.vma_at(cx.proc, ask.old).is_some_and(Vma::is_hugetlb) {
        let succeeds = Expectation::Outcome(vec![Expectation::ANY_OK]);
        let broken = cx.broken(V043, "long-hugetlb:ok->ENOMEM", "ok", "ENOMEM");
        return Err(broken.expecting(succeeds));
    }
    let rule = if ask.dontunmap { V045 } else { V043 };
    carry_out(w, cx, &ask, dest, rule, read, late)
}

fn fails(w: &mut World, cx: &Cx<'_>, rule: RuleRef, read: bool, wants: &[Want]) -> Out {
    if read {
        return cx.pick(rule, wants).map(|_| ());
    }
    settle(w, cx, rule, false, Want::OkAny)
}

/// The address the kernel chose: any free one (V-006).
fn chosen(w: &World, cx: &Cx<'_>, ask: &Ask) -> Out<u64> {
    let Status::Ok(off) = cx.obs.status else { return Ok(0) };
    let dest = ask.base.wrapping_add(off as u64);
    let end = dest.saturating_add(ask.new_len);
    if !dest.is_multiple_of(PAGE) || !w.vmas_in(cx.proc, dest, end).is_empty() {
        return Err(cx.broken(V043, "placed-over", "a free range", "a range that is mapped"));
    }
    Ok(dest)
}

fn grow(w: &mut World, cx: &Cx<'_>, ask: &Ask) -> Out {
    let mut other = Vec::new();
    match resize_check(w, cx, ask) {
        Err((rule, errno)) => return cx.errno(rule, errno),
        Ok(true) => other.push(Want::Err(EFAULT)),
        Ok(false) => {}
    }
    if accounted(w, cx, ask) {
        other.push(Want::Err(ENOMEM));
    }
    if !other.is_empty() && matches!(cx.obs.status, Status::Err(_)) {
        return cx.pick(V041, &other).map(|_| ());
    }
    let end = w.vma_at(cx.proc, ask.old_end() - 1).map_or(0, |v| v.end);
    let room = w.vmas_in(cx.proc, ask.old_end(), ask.old + ask.new_len).is_empty();
    if ask.old_end() == end && room {
        return grow_in_place(w, cx, ask);
    }
    if !ask.maymove {
        return cx.errno(V041, ENOMEM);
    }
    let dest = chosen(w, cx, ask)?;
    carry_out(w, cx, ask, dest, V041, true, Vec::new())
}

fn grow_in_place(w: &mut World, cx: &Cx<'_>, ask: &Ask) -> Out {
    if let Some(vma) = w.vma_at_mut(cx.proc, ask.old_end() - 1) {
        vma.end = ask.old + ask.new_len;
    }
    let blocks = fill_locked(w, cx, ask, ask.old)?;
    settle(w, cx, V041, !blocks, ask.want(ask.old))
}

/// Growth of a locked mapping is filled at once (V-046). True if that waits for ever.
fn fill_locked(w: &mut World, cx: &Cx<'_>, ask: &Ask, dest: u64) -> Out<bool> {
    let locked = w.vma_at(cx.proc, dest).is_some_and(|v| v.flags.locked);
    if !locked || ask.new_len <= ask.old_len {
        return Ok(false);
    }
    let stop = populate(w, cx, dest + ask.old_len, dest + ask.new_len)?;
    Ok(stop == Some(Touch::Blocks))
}

/// The move itself, its events and its result.
fn carry_out(
    w: &mut World,
    cx: &Cx<'_>,
    ask: &Ask,
    dest: u64,
    rule: RuleRef,
    mut read: bool,
    late: Vec<ExpectedEvent>,
) -> Out {
    if dest == 0 {
        // The call failed or never came back: only success was allowed.
        return settle(w, cx, rule, read, Want::OkAny);
    }
    read &= remap_event(w, cx, ask, dest);
    w.expected_events.extend(late);
    unshare(w, cx.proc, ask.old, ask.old_end());
    let pieces = pieces(w, cx, ask);
    let entries = take_entries(w, cx, ask);
    if ask.dontunmap {
        leave_empty(w, cx, ask);
    } else if ask.old_len != 0 {
        read &= unmap(w, cx.proc, ask.old, ask.old_end());
    }
    place(w, cx, ask, dest, pieces, entries);
    let blocks = fill_locked(w, cx, ask, dest)?;
    let want = if ask.fixed { ask.want(dest) } else { Want::OkAny };
    settle(w, cx, rule, read && !blocks, want)
}

fn remap_event(w: &mut World, cx: &Cx<'_>, ask: &Ask, dest: u64) -> bool {
    let Some((uffd, _)) = w.vma_at(cx.proc, ask.old).and_then(|v| v.uffd) else { return true };
    let asked = w.uffds.get(&uffd).is_some_and(|u| u.features.has(UffdFeatures::EVENT_REMAP));
    !asked || announce(w, cx.proc, uffd, event::REMAP, (ask.old, dest, ask.old_len))
}

/// The parts of VMAs that move, with their old addresses.
fn pieces(w: &World, cx: &Cx<'_>, ask: &Ask) -> Vec<Vma> {
    let end = ask.old_end().max(ask.old + 1);
    let mut found = w.vmas_in(cx.proc, ask.old, end);
    for vma in &mut found {
        let start = vma.start.max(ask.old);
        if let Backing::File { key, off } = vma.backing {
            vma.backing = Backing::File { key, off: off + (start - vma.start) };
        }
        (vma.start, vma.end) = (start, vma.end.min(ask.old_end()));
    }
    found
}

/// Entries with their addresses and sizes.
type Taken = Vec<(Node, Entry)>;

fn take_entries(w: &mut World, cx: &Cx<'_>, ask: &Ask) -> Taken {
    let (start, end) = (ask.old, ask.old_end());
    let Some(p) = w.proc(cx.proc) else { return Vec::new() };
    let node = |at: u64| match w.vma_at(cx.proc, at) {
        Some(vma) => w.node(cx.proc, vma, at),
        None => Node { start: at, size: PAGE },
    };
    let found: Taken = p.entries.range(start..end).map(|(a, e)| (node(*a), *e)).collect();
    w.zap(cx.proc, start, end);
    if w.mutated(Mutant::MremapLosesPages) { Vec::new() } else { found }
}

/// MREMAP_DONTUNMAP: the old mapping stays, empty and unlocked.
fn leave_empty(w: &mut World, cx: &Cx<'_>, ask: &Ask) {
    let (start, end) = (ask.old, ask.old_end());
    w.change_vmas(cx.proc, start, end, |vma| {
        vma.flags.locked = false;
        vma.flags.onfault = false;
        // A mapping that was moved whole keeps no tie to its pages (move_vma, unlink_anon_vmas), so
        // fork leaves what it shows later to faults.
        if vma.start >= start && vma.end <= end {
            vma.anon_vma = AnonVma::No;
        }
    });
}

/// Puts the pieces and their entries at the new address.
fn place(w: &mut World, cx: &Cx<'_>, ask: &Ask, dest: u64, pieces: Vec<Vma>, entries: Taken) {
    w.cut_or_moved = true;
    let shift = |addr: u64| addr - ask.old + dest;
    let count = pieces.len();
    for (i, mut vma) in pieces.into_iter().enumerate() {
        (vma.start, vma.end) = (shift(vma.start), shift(vma.end));
        if i + 1 == count {
            vma.end = dest + ask.new_len;
        }
        let keeps = vma.uffd.is_some_and(|(uffd, _)| {
            w.uffds.get(&uffd).is_some_and(|u| u.features.has(UffdFeatures::EVENT_REMAP))
        });
        if !keeps {
            let beside = [vma.start.saturating_sub(1), vma.end];
            let owner = |at| w.vma_at(cx.proc, at).and_then(|v| v.uffd).map(|(uffd, _)| uffd);
            let uffd = vma.uffd.take().map(|(uffd, _)| uffd);
            // Beside where it came from counts as well: the merge takes in the whole source, and
            // the rest of it stays when the moved part is unmapped (copy_vma: self-merge).
            let source = ask.old..ask.old_end();
            let loses = |at: u64| source.contains(&at) || owner(at) == uffd;
            w.moved_beside |= uffd.is_some() && beside.into_iter().any(loses);
        }
        let range = vma.start..vma.end;
        if let Some(p) = w.proc_mut(cx.proc) {
            p.vmas.insert(vma.start, vma.clone());
        }
        for (node, mut entry) in entries.iter().copied() {
            let at = shift(node.start);
            if !range.contains(&at) {
                continue;
            }
            // Leaves keep their sizes, so tables come along with what they hold.
            w.make_tables(cx.proc, &vma, at, node.size);
            if !keeps && entry.slot == Slot::Marker {
                continue;
            }
            entry.wp &= keeps;
            w.set_entry(cx.proc, at, Some(entry));
        }
    }
}
