//! The way to `special`'s ops, and what a process must give back for them: pins, settings, an
//! armed allocation failure.

use crate::exec::{Lane, Outcome, skip};
use crate::special;
use case::Op;
use case::observation::{Output, Skip, Status};
use case::value::{Advice, PinId, Place, ProcId};
use std::sync::atomic::Ordering::SeqCst;

/// What a lane holds beyond file descriptors.
#[derive(Debug, Default)]
pub struct Owned {
    pins: [Option<special::Pin>; 8],
    knobs: Vec<special::Restore>,
    fail_nth: Option<u32>,
}

impl Owned {
    /// Gives everything back; settings newest first.
    pub fn release(&mut self) {
        for pin in &mut self.pins {
            if let Some(pin) = pin.take() {
                pin.release();
            }
        }
        while let Some(knob) = self.knobs.pop() {
            drop(knob);
        }
        self.fail_nth = None;
    }

    /// Forgets what belongs to the parent of a forked process, without touching it.
    pub fn disown(&mut self) {
        std::mem::forget(std::mem::take(self));
    }

    /// Arms an allocation failure that an earlier op asked for; says whether it did.
    pub fn arm_failure(&mut self) -> bool {
        match self.fail_nth.take() {
            Some(nth) => matches!(special::fail_nth(nth).0, Status::Ok(_)),
            None => false,
        }
    }
}

/// What must be noted before an advice takes the page away.
pub fn before_madvise(at: Place, len: u64, advice: Advice) {
    if advice == Advice::HwPoison && len > 0 {
        special::remember_poison(at);
    }
}

/// Runs the op if it is one of this file's.
pub fn run(lane: &mut Lane, line: u16, op: &Op) -> Option<Outcome> {
    Some(match op {
        Op::MovePages { at, len, step, node, flags } => {
            special::move_pages(*at, len.0, *step, *node, *flags)
        }
        Op::Mbind { at, len, mode, nodes, flags } => {
            special::mbind(*at, len.0, *mode, *nodes, *flags)
        }
        Op::MigratePages { from, to } => special::migrate_pages(*from, *to),
        Op::SetMempolicy { mode, nodes } => special::set_mempolicy(*mode, *nodes),
        Op::VmRead { target, at, len } => match pid_of(lane, *target) {
            Some(pid) => special::vm_read(pid, *at, len.0),
            None => skip(Skip::NoProcess),
        },
        Op::Vmsplice { at, len } => special::vmsplice(*at, len.0),
        Op::DirectIo { at, len, dir } => special::direct_io(*at, len.0, *dir, line),
        Op::Pin { pin, at, len, flags } => {
            let (status, held) = special::pin(*at, len.0, *flags);
            keep_pin(lane, *pin, held);
            (status, Output::Nothing)
        }
        Op::Unpin { pin } => match take_pin(lane, *pin) {
            Some(held) => held.release(),
            None => skip(Skip::NoObject),
        },
        Op::GupTest { at, len, flags } => special::gup_test(*at, len.0, *flags),
        Op::Unpoison { at } => special::unpoison(*at),
        Op::SetKnob { knob, value } => {
            let (status, out, restore) = special::set_knob(*knob, *value);
            lane.owned.knobs.extend(restore);
            (status, out)
        }
        Op::FailNth { nth } => fail_nth(lane, *nth),
        _ => return None,
    })
}

/// Tries that the kernel takes it, and leaves it for the next op.
fn fail_nth(lane: &mut Lane, nth: u32) -> Outcome {
    let done = special::fail_nth(nth);
    if let Status::Ok(_) = done.0 {
        special::fail_nth_end();
        lane.owned.fail_nth = Some(nth);
    }
    done
}

fn pid_of(lane: &Lane, proc: ProcId) -> Option<i32> {
    let pid = lane.shared.board.procs.get(usize::from(proc.0))?.pid.load(SeqCst);
    (pid != 0).then_some(pid)
}

fn keep_pin(lane: &mut Lane, id: PinId, held: Option<special::Pin>) {
    let index = usize::from(id.0);
    if held.is_some() {
        lane.shared.board.pins[index].store(u32::from(lane.proc) + 1, SeqCst);
    }
    lane.owned.pins[index] = held;
}

fn take_pin(lane: &mut Lane, id: PinId) -> Option<special::Pin> {
    let index = usize::from(id.0);
    lane.shared.board.pins[index].store(0, SeqCst);
    lane.owned.pins[index].take()
}
