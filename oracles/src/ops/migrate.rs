//! Migration, NUMA policy, and the users of get_user_pages.

mod gup;

use crate::errno::{EFAULT, EINVAL, EIO, ENODEV};
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::{Backing, Slot, World};
use case::expect::{Expectation, SlotWanted};
use case::limits::PAGE;
use case::observation::{NODE_UNTOUCHED, Output, Status};
use case::{Family, MoveFlags, Nodes, NumaMode, Op, PageSize, Place};

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::MovePages { at, len, step, node, flags } => {
            move_pages(w, cx, *at, len.0, *step, *node, *flags)
        }
        Op::Mbind { at, len, mode, nodes, flags } => {
            mbind(w, cx, *at, len.0, *mode, *nodes, *flags)
        }
        Op::MigratePages { to, .. } => migrate(w, cx, *to),
        Op::SetMempolicy { mode, nodes } => {
            let fine = nodes_ok(w, *mode, *nodes);
            w.numa_bound |= fine && *mode == NumaMode::Bind;
            w.task_bound |= fine && *mode == NumaMode::Bind;
            cx.only(M_POLICY, if fine { Want::Ok(0) } else { Want::Err(EINVAL) })
        }
        _ => gup::step(w, cx),
    }
}

/// Nodes of the mask that exist.
fn present(w: &World, nodes: Nodes) -> u32 {
    nodes.0 & ((1 << w.profile.nodes.max(1)) - 1)
}

/// True if a mode may come with these nodes.
fn nodes_ok(w: &World, mode: NumaMode, nodes: Nodes) -> bool {
    let some = present(w, nodes) != 0;
    match mode {
        NumaMode::Default | NumaMode::Local => nodes.is_none(),
        NumaMode::Bind | NumaMode::Interleave => some,
        NumaMode::Preferred => nodes.is_none() || some,
    }
}

fn move_pages(
    w: &mut World,
    cx: &Cx<'_>,
    at: Place,
    len: u64,
    step: PageSize,
    node: Option<u8>,
    flags: MoveFlags,
) -> Out {
    if flags.has(MoveFlags::STRICT) {
        return cx.errno(M_CALL, EINVAL);
    }
    let count = len.div_ceil(step.bytes());
    let Some(node) = node else {
        cx.only(M_STATUS, Want::Ok(0))?;
        return statuses(w, cx, at, step, None, flags);
    };
    if node >= w.profile.nodes && count > 0 {
        return cx.errno(M_CALL, ENODEV);
    }
    cx.only(M_STATUS, Want::OkIn(0, count as i64))?;
    statuses(w, cx, at, step, Some(node), flags)
}

/// Every slot against what is mapped there.
fn statuses(
    w: &World,
    cx: &Cx<'_>,
    at: Place,
    step: PageSize,
    node: Option<u8>,
    flags: MoveFlags,
) -> Out {
    let Output::Nodes(slots) = &cx.obs.out else { return Ok(()) };
    let left_behind = !matches!(cx.obs.status, Status::Ok(0));
    for (i, got) in slots.iter().enumerate() {
        if *got == NODE_UNTOUCHED && left_behind {
            continue;
        }
        let addr = at.addr() + i as u64 * step.bytes();
        let (class, wants) = slot_wants(w, cx, addr, node, flags);
        let fits = wants.iter().any(|want| match want {
            SlotWant::Node => (0..i32::from(w.profile.nodes)).contains(got),
            SlotWant::Errno(e) => *got == -e,
        });
        if !fits {
            let class = format!("{class}->{}", slot_class(*got));
            let want = format!("entry {i}: {class}", class = wants_text(&wants));
            let wanted = wants.iter().map(|want| match want {
                SlotWant::Node => SlotWanted::Node,
                SlotWant::Errno(errno) => SlotWanted::Err(*errno),
            });
            let expected = Expectation::Slot { index: i as u32, wanted: wanted.collect() };
            return Err(cx.broken(M_STATUS, &class, want, got.to_string()).expecting(expected));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotWant {
    Node,
    Errno(i32),
}

const ENOENT_SLOT: SlotWant = SlotWant::Errno(2);
const EFAULT_SLOT: SlotWant = SlotWant::Errno(14);
const EACCES_SLOT: SlotWant = SlotWant::Errno(13);
const EBUSY_SLOT: SlotWant = SlotWant::Errno(16);

fn slot_class(got: i32) -> String {
    match got {
        NODE_UNTOUCHED => "untouched".into(),
        n if n >= 0 => "node".into(),
        n => crate::step::errno_name(-n),
    }
}

fn wants_text(wants: &[SlotWant]) -> String {
    let one = |w: &SlotWant| match w {
        SlotWant::Node => "a node".to_owned(),
        SlotWant::Errno(e) => crate::step::errno_name(*e),
    };
    wants.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// M-002 for one address.
fn slot_wants(
    w: &World,
    cx: &Cx<'_>,
    addr: u64,
    node: Option<u8>,
    flags: MoveFlags,
) -> (&'static str, Vec<SlotWant>) {
    let Some(vma) = w.vma_at(cx.proc, addr) else { return ("no-vma", vec![EFAULT_SLOT]) };
    let hidden = vma.prot.is_none();
    let nothing = if w.mutated(Mutant::MoveNothingFaults) { EFAULT_SLOT } else { ENOENT_SLOT };
    let anon = vma.backing == Backing::Anon;
    match w.slot(cx.proc, vma, addr).1.map(|e| e.slot) {
        None if anon => ("anon-none", vec![nothing]),
        None => ("file-none", vec![nothing]),
        Some(Slot::Marker) => ("marker", vec![nothing]),
        Some(Slot::UffdPoison | Slot::HwPoison { .. }) => ("poison", vec![nothing]),
        Some(Slot::Zero) if hidden => ("zero:prot-none", vec![EFAULT_SLOT]),
        Some(Slot::Zero) => ("zero", vec![EFAULT_SLOT]),
        Some(Slot::Unsure) => {
            ("unsure", vec![SlotWant::Node, ENOENT_SLOT, EFAULT_SLOT, EACCES_SLOT, EBUSY_SLOT])
        }
        Some(Slot::Page(body)) => {
            let mut wants = vec![SlotWant::Node];
            // 6.12 guesses from the folio whether others map a page (M-002): after a fork any
            // part of a THP may look shared.
            let guessed = w.family == Family::U612 && w.forked && !vma.is_hugetlb();
            let elsewhere = match vma.flags.hgm {
                true => w.leaves_over(body, World::sub_page(vma, addr)) > 1,
                false => {
                    let page = &w.bodies[body];
                    w.mapcount(body) > 1 || page.file.is_some() || page.loose || guessed
                }
            };
            if node.is_some() && elsewhere && !flags.has(MoveFlags::ALL) {
                wants.push(EACCES_SLOT);
            }
            if node.is_some() {
                // Isolated for an earlier entry of the same call, or pinned.
                wants.push(EBUSY_SLOT);
                wants.push(ENOENT_SLOT);
            }
            let zeros = w.bodies[body].words.is_empty();
            if w.family == Family::U612 && zeros && !vma.is_hugetlb() {
                // Splitting a huge page maps its zero parts to the zero page (M-026).
                wants.push(EFAULT_SLOT);
            }
            let class = match (hidden, addr % vma.unit_bytes() >= PAGE) {
                (_, true) => "page:inside-huge",
                (true, false) => "page:prot-none",
                (false, false) => "page",
            };
            (class, wants)
        }
    }
}

fn mbind(
    w: &mut World,
    cx: &Cx<'_>,
    at: Place,
    len: u64,
    mode: NumaMode,
    nodes: Nodes,
    flags: MoveFlags,
) -> Out {
    if !at.addr().is_multiple_of(PAGE) {
        return cx.errno(M_MBIND, EINVAL);
    }
    if len == 0 {
        // The mask may be looked at before the empty range is (6.1 and 6.12 differ in no case
        // that documents name).
        return cx.pick(M_MBIND, &[Want::Ok(0), Want::Err(EINVAL)]).map(|_| ());
    }
    if !nodes_ok(w, mode, nodes) {
        return cx.errno(M_MBIND, EINVAL);
    }
    let end = at.addr() + len.next_multiple_of(PAGE);
    let empty = w.vmas_in(cx.proc, at.addr(), end).is_empty();
    if empty || (w.has_hole(cx.proc, at.addr(), end) && mode != NumaMode::Default) {
        // Under STRICT the walk ends at a page that must stay where it is; one before the hole is
        // told, and where pages were to be moved the policy holds (queue_pages_pte_range, do_mbind).
        let strict = !empty && flags.has(MoveFlags::STRICT);
        let wants = [Want::Err(EFAULT), Want::Err(EIO)];
        let told = cx.pick(M_MBIND, &wants[..1 + usize::from(strict)])?;
        if told == 1 && flags.any(MoveFlags::MOVE | MoveFlags::ALL) {
            w.numa_bound |= mode == NumaMode::Bind;
            w.policies_set = true;
            let policy = Some(effective(w, mode, nodes));
            set_policy(w, cx, at.addr(), end, policy);
        }
        return Ok(());
    }
    let split = w.vmas_in(cx.proc, at.addr(), end).iter().any(|v| {
        let inside = |cut: u64| cut > v.start && cut < v.end && !cut.is_multiple_of(v.unit_bytes());
        inside(at.addr()) || inside(end)
    });
    let same_policy = mode == NumaMode::Default || w.policies_set;
    if split && !same_policy {
        split_front(w, cx, at);
        // Misplaced pages are found before the policy is set.
        let strict = flags.has(MoveFlags::STRICT);
        let wants = [Want::Err(EINVAL), Want::Err(EIO)];
        return cx.pick(M_MBIND, &wants[..1 + usize::from(strict)]).map(|_| ());
    }
    let mut wants = vec![Want::Ok(0)];
    if split {
        // Nothing is split where the policy is what it was.
        wants.push(Want::Err(EINVAL));
        split_front(w, cx, at);
    }
    if flags.has(MoveFlags::STRICT) {
        wants.push(Want::Err(EIO));
    }
    let picked = cx.pick(M_MBIND, &wants)?;
    // EIO after moving means that some page stayed; the policy holds all the same (M-010).
    let applied = picked == 0 || flags.any(MoveFlags::MOVE | MoveFlags::ALL);
    if applied && !split {
        let own = mode != NumaMode::Default;
        w.numa_bound |= mode == NumaMode::Bind;
        w.policies_set |= own;
        let policy = own.then(|| effective(w, mode, nodes));
        set_policy(w, cx, at.addr(), end, policy);
    }
    Ok(())
}

/// A policy as it is kept, by which two are the same or not: of its nodes those that exist, of
/// MPOL_PREFERRED only the first, and without any the local one (mbind(2); mpol_new,
/// mpol_set_nodemask).
fn effective(w: &World, mode: NumaMode, nodes: Nodes) -> (NumaMode, Nodes) {
    let there = present(w, nodes);
    match mode {
        NumaMode::Preferred if nodes.is_none() => (NumaMode::Local, nodes),
        NumaMode::Preferred => (mode, Nodes(there & there.wrapping_neg())),
        _ => (mode, Nodes(there)),
    }
}

/// Another policy is another VMA, even where nothing else differs; MPOL_DEFAULT takes a policy
/// away (mbind(2)), and where a VMA has the policy asked for nothing is split (mbind_range).
fn set_policy(w: &mut World, cx: &Cx<'_>, start: u64, end: u64, policy: Option<(NumaMode, Nodes)>) {
    for vma in w.vmas_in(cx.proc, start, end) {
        if vma.policy != policy {
            let (from, to) = (vma.start.max(start), vma.end.min(end));
            w.change_vmas(cx.proc, from, to, |v| v.policy = policy);
        }
    }
}

/// The boundary at the front is cut before the one at the end is refused.
fn split_front(w: &mut World, cx: &Cx<'_>, at: Place) {
    let unit = w.vma_at(cx.proc, at.addr()).map_or(PAGE, |v| v.unit_bytes());
    if at.addr().is_multiple_of(unit) {
        w.split_at(cx.proc, at.addr());
    }
}

fn migrate(w: &mut World, cx: &Cx<'_>, to: Nodes) -> Out {
    if present(w, to) == 0 {
        return cx.errno(M_MIGRATE, EINVAL);
    }
    cx.only(M_MIGRATE, Want::OkIn(0, i64::MAX))
}
