//! The filling ioctls: COPY, ZEROPAGE, CONTINUE, POISON. Each works unit by unit and stops at the
//! first that fails; what was done stays (U-030).

use super::range_ok;
use crate::errno::{EAGAIN, EEXIST, EFAULT, EINVAL, EIO, ENOENT, ENOMEM};
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::touch::{filled_body, mark_anon_vma, prepared, tag_body};
use crate::world::{Backing, Entry, Node, Slot, Vma, World, fitting};
use case::limits::PAGE;
use case::observation::{FIELD_UNTOUCHED, Output, Status};
use case::{Bytes, Expectation, Family, FillFlags, Op, Place, ProcId, UffdModes, Violation};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Copy,
    Zero,
    Continue,
    Poison,
}

/// What a fill finds out about one unit before it acts.
enum Unit {
    Ok,
    Fails(i32),
    /// The entry may or may not be there; either result is right.
    Either(i32),
}

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    let (fill, at, len, flags) = match cx.op {
        Op::Copy { at, len, flags, .. } => (Fill::Copy, *at, *len, *flags),
        Op::Zeropage { at, len, flags, .. } => (Fill::Zero, *at, *len, *flags),
        Op::Continue { at, len, flags, .. } => (Fill::Continue, *at, *len, *flags),
        Op::UffdPoison { at, len, flags, .. } => (Fill::Poison, *at, *len, *flags),
        _ => return Ok(()),
    };
    run(w, cx, fill, at, len, flags)
}

fn rule(fill: Fill, vma: &Vma) -> RuleRef {
    match fill {
        Fill::Copy if vma.is_hugetlb() => U_COPY_HUGE,
        Fill::Copy => U_COPY,
        Fill::Zero => U_ZERO,
        Fill::Continue if vma.flags.hgm => HG_CONTINUE,
        Fill::Continue => U_CONTINUE,
        Fill::Poison => U_POISON,
    }
}

/// May the call fill base pages of huge ones?
fn in_pieces(w: &World, fill: Fill, vma: &Vma) -> bool {
    fill == Fill::Continue && vma.flags.hgm && !w.mutated(Mutant::HgmContinueWholeOnly)
}

/// What is filled next: the huge or base page at `at`, or with HGM the largest leaf that fits the
/// rest of the range.
fn piece(w: &World, fill: Fill, vma: &Vma, at: u64, end: u64) -> Node {
    let size = match in_pieces(w, fill, vma) {
        true if w.mutated(Mutant::HgmContinueSmallLeaves) => PAGE,
        true => fitting(vma, at, end),
        false => vma.unit_bytes(),
    };
    Node { start: at, size }
}

/// A call that failed for want of a page leaves nothing, but may have tried (U-10).
fn tried(w: &mut World, vma: &Vma, piece: Node) {
    w.pieces_tried = true;
    if w.mutated(Mutant::HgmFailureLeavesTable) {
        w.make_tables(ProcId(0), vma, piece.start, piece.size);
    }
}

fn run(w: &mut World, cx: &Cx<'_>, fill: Fill, at: Place, len: Bytes, flags: FillFlags) -> Out {
    if fill == Fill::Poison && w.family == Family::U61 {
        return refused(cx, U_POISON);
    }
    let wp_known = match fill {
        Fill::Copy => true,
        Fill::Continue => w.family == Family::U612,
        Fill::Zero | Fill::Poison => false,
    };
    let bad_mode = flags.has(FillFlags::UNKNOWN) || (flags.has(FillFlags::WP) && !wp_known);
    if !range_ok(at, len) || bad_mode {
        return refused(cx, U_FILL_RANGE);
    }
    let (start, end) = (at.addr(), at.addr() + len.0);
    if w.family == Family::U612
        && let Some(vma) = w.vma_at(ProcId(0), start).cloned()
    {
        // uffd_lock_vma does so before anybody asks whether the mapping is registered.
        prepared(w, ProcId(0), &vma, start);
    }
    let vma = match w.span(ProcId(0), start, end) {
        Some((v, one)) if v.uffd.is_some() => {
            if !one && cx.obs.status == Status::Err(ENOENT as u16) {
                return failed(cx, U_FILL_VMA, 0, ENOENT);
            }
            v
        }
        _ => return failed(cx, U_FILL_VMA, 0, ENOENT),
    };
    let Some(vma) = as_asked(w, cx, vma) else { return Ok(()) };
    if let Some(errno) = whole_errno(w, fill, &vma, start, len, flags) {
        return failed(cx, rule(fill, &vma), 0, errno);
    }
    prepared(w, ProcId(0), &vma, start);
    let mut done = start;
    while done < end {
        let piece = piece(w, fill, &vma, done, end);
        match unit_result(w, fill, &vma, piece) {
            // The other threads only fill: one of them was here first.
            Unit::Ok if cx.racing && stopped_at(cx, done - start) => {
                return failed(cx, rule(fill, &vma), done - start, EEXIST);
            }
            Unit::Ok => apply(w, cx, fill, &vma, piece, flags),
            Unit::Fails(errno) => {
                if in_pieces(w, fill, &vma) && matches!(errno, EFAULT | EIO) {
                    tried(w, &vma, piece);
                }
                let past = errno == EFAULT && vma.is_hugetlb() && beyond(w, &vma, done);
                let result = failed(cx, rule(fill, &vma), done - start, errno);
                return if past { result.map_err(past_the_end) } else { result };
            }
            Unit::Either(errno) => {
                if stopped_at(cx, done - start) {
                    return failed(cx, rule(fill, &vma), done - start, errno);
                }
                apply(w, cx, fill, &vma, piece, flags);
            }
        }
        done = piece.end();
    }
    cx.only(rule(fill, &vma), Want::Ok(0))?;
    field(cx, len.0 as i64)
}

/// A fill that did not stop at the end of the file is a class of its own (C-30).
fn past_the_end(mut broken: Box<Violation>) -> Box<Violation> {
    broken.class.push_str(":beyond");
    broken
}

/// The mapping as the userfaultfd that is asked may fill it. `None` where the generation leaves open
/// what becomes of the call.
fn as_asked(w: &mut World, cx: &Cx<'_>, mut vma: Vma) -> Option<Vma> {
    let Op::Continue { uffd, .. } = cx.op else { return Some(vma) };
    if !w.ways.by_context {
        return Some(vma);
    }
    let asked = w.uffds.get(uffd).is_some_and(|u| u.hgm);
    if asked && vma.is_hugetlb() && !vma.flags.hgm {
        w.blur("CONTINUE with HGM of a mapping without");
        return None;
    }
    vma.flags.hgm &= asked;
    Some(vma)
}

/// EINVAL before anything was looked at: the field stays as it was.
fn refused(cx: &Cx<'_>, rule: RuleRef) -> Out {
    cx.errno(rule, EINVAL)?;
    field(cx, FIELD_UNTOUCHED)
}

/// Stops after `done` bytes: EAGAIN with the bytes in the field, or the errno with -errno.
fn failed(cx: &Cx<'_>, rule: RuleRef, done: u64, errno: i32) -> Out {
    if done == 0 {
        cx.errno(rule, errno)?;
        field(cx, -i64::from(errno))
    } else {
        cx.errno(rule, EAGAIN)?;
        field(cx, done as i64)
    }
}

fn field(cx: &Cx<'_>, want: i64) -> Out {
    let Output::Field(got) = cx.obs.out else { return Ok(()) };
    if got == want {
        return Ok(());
    }
    let text = |n: i64| match n {
        FIELD_UNTOUCHED => "untouched".to_owned(),
        n => n.to_string(),
    };
    let sort = |n: i64| match n {
        FIELD_UNTOUCHED => "untouched",
        n if n < 0 => "errno",
        _ => "bytes",
    };
    let class = format!("field:{}->{}", sort(want), sort(got));
    let broken = cx.broken(U_FIELD, &class, format!("field {}", text(want)), text(got));
    Err(broken.expecting(Expectation::Field(want)))
}

fn stopped_at(cx: &Cx<'_>, done: u64) -> bool {
    match cx.obs.out {
        Output::Field(n) if n > 0 && n != FIELD_UNTOUCHED => n == done as i64,
        _ => done == 0 && !cx.ok(),
    }
}

/// Errors that concern the whole call.
fn whole_errno(
    w: &World,
    fill: Fill,
    vma: &Vma,
    start: u64,
    len: Bytes,
    flags: FillFlags,
) -> Option<i32> {
    if flags.has(FillFlags::WP) && !vma.armed(UffdModes::WP) {
        return Some(EINVAL);
    }
    let unit = if in_pieces(w, fill, vma) { PAGE } else { vma.unit_bytes() };
    let aligned = start.is_multiple_of(unit) && len.0.is_multiple_of(unit);
    let huge_zero = fill == Fill::Zero && vma.is_hugetlb() && !w.mutated(Mutant::ZeropageHugeOk);
    let anon_continue = fill == Fill::Continue && vma.backing == Backing::Anon;
    (huge_zero || !aligned || anon_continue).then_some(EINVAL)
}

fn beyond(w: &World, vma: &Vma, at: u64) -> bool {
    let Some((key, idx)) = vma.file_unit(at) else { return false };
    let unit = vma.unit_bytes();
    if vma.is_hugetlb() {
        idx >= w.files[key].size / unit
    } else {
        idx * PAGE >= w.files[key].size.next_multiple_of(PAGE)
    }
}

/// Is something in the way of a leaf before its own place is looked at: a table where it should
/// stand, or a larger entry above it? `None` if that may be.
fn in_the_way(w: &World, vma: &Vma, piece: Node) -> Option<bool> {
    let there = w.node(ProcId(0), vma, piece.start);
    let slot = w.entry(ProcId(0), there.start).map(|e| e.slot);
    match slot {
        _ if there.size < piece.size => Some(!w.mutated(Mutant::HgmContinueOverPieces)),
        _ if there.size == piece.size => Some(false),
        Some(Slot::Marker) if !w.ways.markers_go_down => Some(true),
        Some(Slot::Marker) if w.mutated(Mutant::HgmMarkerStopsContinue) => Some(true),
        None | Some(Slot::Marker | Slot::UffdPoison) => Some(false),
        Some(Slot::Unsure) => None,
        Some(_) => Some(true),
    }
}

fn unit_result(w: &World, fill: Fill, vma: &Vma, piece: Node) -> Unit {
    let at = piece.start;
    let way = in_the_way(w, vma, piece);
    if way == Some(true) {
        return Unit::Fails(EEXIST);
    }
    let there = w.node(ProcId(0), vma, at);
    let slot = w.entry(ProcId(0), at).filter(|_| there.size == piece.size).map(|e| e.slot);
    let taken = match slot {
        None | Some(Slot::Unsure) => false,
        // Markers of both sorts are as good as none, but for what wants strictly none
        // (pte_none_mostly, huge_pte_none_mostly).
        Some(Slot::Marker | Slot::UffdPoison) => {
            fill == Fill::Poison || (fill == Fill::Zero && vma.is_private())
        }
        Some(_) => true,
    } && !w.mutated(Mutant::FillOverwrites);
    let unsure = slot == Some(Slot::Unsure) || way.is_none();
    let found = match fill {
        Fill::Continue => continue_errno(w, vma, at, taken),
        _ if vma.is_hugetlb() => huge_errno(w, fill, vma, at, taken),
        _ => base_errno(w, fill, vma, at, taken),
    };
    match found {
        Some(errno) => Unit::Fails(errno),
        None if unsure => Unit::Either(EEXIST),
        None => Unit::Ok,
    }
}

/// CONTINUE (U-038).
fn continue_errno(w: &World, vma: &Vma, at: u64, taken: bool) -> Option<i32> {
    if !vma.is_hugetlb() && beyond(w, vma, at) {
        return Some(EINVAL);
    }
    let Some(body) = w.cached(vma, at) else { return Some(EFAULT) };
    if w.bodies[body].poisoned && !w.mutated(Mutant::ContinuePoisonOk) {
        return Some(EIO);
    }
    taken.then_some(EEXIST)
}

/// COPY and POISON on hugetlb (U-036, U-039).
fn huge_errno(w: &World, fill: Fill, vma: &Vma, at: u64, taken: bool) -> Option<i32> {
    if taken {
        return Some(EEXIST);
    }
    if fill == Fill::Poison {
        return None;
    }
    let (key, idx) = vma.file_unit(at)?;
    let private = vma.is_private();
    if !private && w.files[key].cache.contains_key(&idx) {
        return Some(EEXIST);
    }
    let reserved = if private {
        vma.resv.is_some_and(|r| !w.resvs[r].consumed.contains(&idx))
    } else {
        w.files[key].resv.contains(&idx)
    };
    if !reserved && w.pool_spare(vma.unit) <= 0 {
        return Some(ENOMEM);
    }
    // Beyond the end nothing may be filled, shared or private (C-30).
    (beyond(w, vma, at) && !w.mutated(Mutant::CopyBeyondEofOk)).then_some(EFAULT)
}

/// COPY, ZEROPAGE and POISON on base pages (U-034, U-035, U-037, U-039).
fn base_errno(w: &World, fill: Fill, vma: &Vma, at: u64, taken: bool) -> Option<i32> {
    if beyond(w, vma, at) {
        return Some(EFAULT);
    }
    let shared_file = !vma.is_private() && fill != Fill::Poison;
    if shared_file && w.cached(vma, at).is_some() {
        return Some(EEXIST);
    }
    taken.then_some(EEXIST)
}

fn apply(w: &mut World, cx: &Cx<'_>, fill: Fill, vma: &Vma, piece: Node, flags: FillFlags) {
    let at = piece.start;
    let wp = flags.has(FillFlags::WP);
    let slot = match fill {
        Fill::Poison => Slot::UffdPoison,
        Fill::Continue => match w.cached(vma, at) {
            Some(body) => Slot::Page(body),
            None => return,
        },
        Fill::Zero if vma.is_private() => Slot::Zero,
        Fill::Zero | Fill::Copy => {
            let Some(body) = filled_body(w, vma, at) else { return };
            if fill == Fill::Copy {
                tag_body(w, body, at, vma, u32::from(cx.line) + 1);
            }
            if vma.is_private() {
                mark_anon_vma(w, ProcId(0), at);
            }
            Slot::Page(body)
        }
    };
    w.make_tables(ProcId(0), vma, at, piece.size);
    w.set_entry(ProcId(0), at, Some(Entry { slot, wp }));
}
