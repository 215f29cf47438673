//! madvise: the walk over mappings and the flag advice; [`discard`] holds what drops or fills
//! pages, [`collapse`] MADV_COLLAPSE, [`pieces`] that of hugetlb, [`poison`] memory failure.

mod collapse;
mod discard;
mod pieces;
mod poison;

use crate::errno::{EACCES, EAGAIN, EBUSY, EEXIST, EFAULT, EHWPOISON, EINVAL, EIO, ENOMEM, EPERM};
use crate::mutants::Mutant;
use crate::ops::mapping::{cuts_huge, leaves_cut, listeners, too_slow, unshare};
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::{Backing, Vma, VmaFlags, World};
use case::limits::PAGE;
use case::{Advice, Family, Op, UffdFeatures, Violation};

/// How advice on one mapping ended.
enum Step {
    Done,
    /// Stops the walk; exactly this errno.
    Fails(RuleRef, i32),
    /// Waits for a userfault or for an event to be read.
    Blocks,
}

/// The part of a mapping that the call covers.
struct Part {
    vma: Vma,
    start: u64,
    end: u64,
}

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    let Op::Madvise { at, len, advice } = cx.op else { return Ok(()) };
    let start = at.addr();
    if !known(w, *advice) {
        return cx.errno(H090, EINVAL);
    }
    if !start.is_multiple_of(PAGE) {
        return cx.errno(H090, EINVAL);
    }
    if len.0 == 0 {
        return cx.only(H090, Want::Ok(0));
    }
    match advice {
        Advice::HwPoison => return poison::hard(w, cx, start, start + len.0),
        Advice::SoftOffline => return poison::soft(w, cx, start, start + len.0),
        _ => {}
    }
    let end = start + len.0.next_multiple_of(PAGE);
    if *advice == Advice::Collapse {
        return collapse::collapse(w, cx, start, end);
    }
    walk(w, cx, start, end, *advice)
}

/// Whether the kernel knows the advice.
fn known(w: &World, advice: Advice) -> bool {
    match advice {
        Advice::Unknown => false,
        Advice::Split => w.profile.madv_split,
        Advice::Collapse => w.profile.collapse,
        Advice::HugePage | Advice::NoHugePage => w.profile.thp,
        _ => true,
    }
}

/// The mappings of a range one after the other; holes make the call fail at its end.
fn walk(w: &mut World, cx: &Cx<'_>, start: u64, end: u64, advice: Advice) -> Out {
    let fills = matches!(advice, Advice::PopulateRead | Advice::PopulateWrite);
    let mut pos = start;
    let mut hole = false;
    for vma in w.vmas_in(cx.proc, start, end) {
        hole |= vma.start > pos;
        if hole && fills && w.family != Family::U61 {
            break;
        }
        let part = Part { start: vma.start.max(start), end: vma.end.min(end), vma };
        pos = part.end;
        let step = one(w, cx, &part, advice)?;
        if too_slow(w, cx) {
            return Ok(());
        }
        match step {
            Step::Done => {}
            Step::Fails(rule, errno) => {
                return cx.errno(rule, errno).map_err(|broken| told(w, cx, &part, broken));
            }
            Step::Blocks => {
                cx.only(F_WAIT, Want::Blocks)?;
                w.blur("madvise waited for a userfault or its event");
                return Ok(());
            }
        }
    }
    hole |= pos < end;
    if hole && !w.mutated(Mutant::MadviseIgnoresHoles) {
        return cx.errno(H090, ENOMEM);
    }
    cx.only(H090, Want::Ok(0))
}

/// A refused FREE that hangs where a REMOVE event may have been sent is a class of its own (C-32).
fn told(w: &World, cx: &Cx<'_>, part: &Part, mut broken: Box<Violation>) -> Box<Violation> {
    let asked = || listeners(w, cx.proc, part.start, part.end, UffdFeatures::EVENT_REMOVE);
    if broken.rule == A021.id && broken.class.ends_with("->hang") && !asked().is_empty() {
        broken.class.push_str(":event");
    }
    broken
}

fn one(w: &mut World, cx: &Cx<'_>, part: &Part, advice: Advice) -> Out<Step> {
    match advice {
        Advice::DontNeed | Advice::DontNeedLocked => discard::dontneed(w, cx, part, advice),
        Advice::Free => Ok(discard::free(w, cx, part)),
        Advice::Remove => discard::remove(w, cx, part),
        Advice::PopulateRead | Advice::PopulateWrite => discard::populate(w, cx, part, advice),
        Advice::Cold | Advice::PageOut => Ok(discard::cold(w, cx, part, advice)),
        Advice::WillNeed => Ok(Step::Done),
        _ => Ok(flags(w, cx, part, advice)),
    }
}

/// Advice that only changes flags.
fn flags(w: &mut World, cx: &Cx<'_>, part: &Part, advice: Advice) -> Step {
    let anonymous = part.vma.backing == Backing::Anon;
    if advice == Advice::WipeOnFork && !anonymous && !w.mutated(Mutant::WipeOnForkFileOk) {
        return Step::Fails(A027, EINVAL);
    }
    let private = part.vma.is_private() && !w.mutated(Mutant::HgmSplitPrivateOk);
    if advice == Advice::Split && (!part.vma.is_hugetlb() || private) {
        return Step::Fails(HG_SPLIT, EINVAL);
    }
    let new = with_advice(&part.vma, advice);
    if new == part.vma.flags {
        return Step::Done;
    }
    let may_cut = advice == Advice::Split && w.mutated(Mutant::HgmSplitCuts);
    let cuts = cuts_huge(w, cx.proc, part.start) || cuts_huge(w, cx.proc, part.end);
    if cuts && !may_cut {
        leaves_cut(w, cx.proc, part.start);
        return Step::Fails(if advice == Advice::Split { HG_SPLIT } else { H091 }, EINVAL);
    }
    unshare(w, cx.proc, part.start, part.end);
    w.change_vmas(cx.proc, part.start, part.end, |vma| vma.flags = new);
    Step::Done
}

fn with_advice(vma: &Vma, advice: Advice) -> VmaFlags {
    let mut f = vma.flags;
    match advice {
        Advice::Normal => (f.rand, f.seq) = (false, false),
        Advice::Sequential => (f.rand, f.seq) = (false, true),
        Advice::Random => (f.rand, f.seq) = (true, false),
        Advice::DontFork => f.dontfork = true,
        Advice::DoFork => f.dontfork = false,
        Advice::WipeOnFork => f.wipeonfork = true,
        Advice::KeepOnFork => f.wipeonfork = false,
        Advice::DontDump => f.dontdump = true,
        Advice::DoDump => f.dontdump = false,
        // KSM ignores shared and huge mappings (H-092).
        Advice::Mergeable if vma.is_private() && !vma.is_hugetlb() => f.mergeable = true,
        Advice::Unmergeable => f.mergeable = false,
        Advice::Split => f.hgm = true,
        Advice::HugePage => (f.hugepage, f.nohugepage) = (true, false),
        Advice::NoHugePage => (f.hugepage, f.nohugepage) = (false, true),
        _ => {}
    }
    f
}
