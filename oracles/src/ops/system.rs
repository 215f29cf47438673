//! Settings, unpoison, fault injection, and looks (which the judge reads itself).

use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::World;
use case::observation::Status;
use case::{Knob, Op, PageSize};

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::SetKnob { knob, value } => set_knob(w, cx, *knob, *value),
        Op::Unpoison { .. } => {
            if matches!(cx.obs.status, Status::Ok(_)) {
                // How many pages come off the count depends on what was poisoned where.
                w.hw_pages.0 = i64::MIN / 2;
            }
            Ok(())
        }
        Op::FailNth { .. } => {
            w.blur("an allocation failure was injected");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn set_knob(w: &mut World, cx: &Cx<'_>, knob: Knob, value: u32) -> Out {
    let top = match knob {
        Knob::ThpEnabled => 2,
        Knob::ThpShmem => 5,
        Knob::ThpZeroPage | Knob::NumaBalancing | Knob::Khugepaged => 1,
        Knob::HugetlbNr2M | Knob::HugetlbOvercommit2M => u32::MAX,
    };
    if knob == Knob::NumaBalancing && value > top {
        // The modes are bits, and which of them a kernel knows is its own.
        return cx.pick(S_KNOB, &[Want::OkAny, Want::Err(22)]).map(|_| ());
    }
    if value > top {
        return cx.only(S_KNOB, Want::Err(22));
    }
    cx.only(S_KNOB, Want::OkAny)?;
    match knob {
        Knob::ThpEnabled => w.thp_enabled = value,
        Knob::ThpZeroPage => w.thp_zero_page = value != 0,
        Knob::ThpShmem if value == 0 || value == 4 => w.thp_shmem = value,
        Knob::ThpShmem => w.blur("huge shmem pages are on"),
        Knob::Khugepaged if value != 0 => w.blur("khugepaged is on"),
        Knob::HugetlbOvercommit2M if value > 0 => w.blur("surplus huge pages are allowed"),
        Knob::HugetlbNr2M => resized(w, cx, value),
        _ => {}
    }
    Ok(())
}

/// The pool grew or shrank: to the value if the free pages allow it; what cannot be freed becomes
/// surplus (trap F8). The counters after the write say which.
fn resized(w: &mut World, cx: &Cx<'_>, value: u32) {
    let Some([seen, _]) = cx.obs.pools else {
        w.blur("the pool was resized unseen");
        return;
    };
    let want = w.pool_now(PageSize::Huge2M);
    let state = w.pool_state_mut(PageSize::Huge2M);
    let sane = seen.total - seen.surp <= i64::from(value).max(want.total - want.surp);
    if sane {
        state.total = seen.total;
        state.surp = seen.surp;
    }
    if seen.surp > 0 {
        w.blur("the pool shrank below what is used");
    }
}
