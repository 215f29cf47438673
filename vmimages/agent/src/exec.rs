//! One op, in the process that issues it: a lane, its time limit, and the way to the file that
//! knows the syscall. The arguments of the program go to the kernel as they are.

use crate::board::{Board, NONE};
use crate::scratch::Scratch;
use crate::timeout::{self, Late};
use crate::{guard, ops_file, ops_map, ops_proc, ops_special, ops_uffd};
use case::Op;
use case::observation::{Output, SignalSeen, Skip, Status, View};
use case::value::{FileId, UffdId};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::SeqCst;

/// What an op gave, before events and looks are added.
pub type Outcome = (Status, Output);

/// What a forked process sends back for a line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    pub status: Status,
    pub out: Output,
    pub also: Option<SignalSeen>,
    pub views: Vec<View>,
}

/// What is the same for every thread of a program's run.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'p> {
    pub board: &'static Board,
    /// Every op by line number.
    pub ops: &'p [&'p Op],
    /// The line after which the content canary flips a tag.
    pub flip_at: Option<u16>,
}

/// One executing thread and what it owns.
#[derive(Debug)]
pub struct Lane<'p> {
    pub shared: Shared<'p>,
    /// Slot on the board, and number of the process.
    pub slot: usize,
    pub proc: u8,
    /// Sources of copies, and room for what reads bring.
    pub source: Scratch,
    pub sink: Scratch,
    /// Mappings the kernel placed outside the arena, to be unmapped at the end.
    pub strays: Vec<(u64, u64)>,
    pub owned: ops_special::Owned,
}

impl<'p> Lane<'p> {
    pub fn new(shared: Shared<'p>, slot: usize, proc: u8) -> Self {
        Lane {
            shared,
            slot,
            proc,
            source: Scratch::ready(),
            sink: Scratch::ready(),
            strays: Vec::new(),
            owned: ops_special::Owned::default(),
        }
    }

    /// The descriptor of a file, if it is open.
    pub fn file(&self, file: FileId) -> Option<i32> {
        let fd = self.shared.board.files.get(usize::from(file.0))?.load(SeqCst);
        (fd != NONE).then_some(fd)
    }

    /// The descriptor of a userfaultfd, if it is open.
    pub fn uffd(&self, uffd: UffdId) -> Option<i32> {
        let fd = self.shared.board.uffds.get(usize::from(uffd.0))?.fd.load(SeqCst);
        (fd != NONE).then_some(fd)
    }
}

/// A syscall's return as a status.
pub fn status(ret: i64) -> Status {
    if ret == -1 { failed(crate::sys::errno()) } else { Status::Ok(ret) }
}

/// An errno as a status.
pub fn failed(errno: i32) -> Status {
    Status::Err(errno as u16)
}

/// An outcome without output.
pub fn plain(ret: i64) -> Outcome {
    (status(ret), Output::Nothing)
}

/// An op that was not issued.
pub fn skip(why: Skip) -> Outcome {
    (Status::Skipped(why), Output::Nothing)
}

/// Runs one line in the calling thread.
pub fn run(lane: &mut Lane, line: u16, op: &Op) -> Reply {
    let board = lane.shared.board;
    guard::arm();
    timeout::begin(board, lane.slot, line, named_range(op));
    let armed = lane.owned.arm_failure();
    let (mut status, out) = dispatch(lane, line, op);
    if armed {
        crate::special::fail_nth_end();
    }
    crate::kcov::collect();
    let late = timeout::end(board, lane.slot);
    let interrupted = status == Status::Err(libc::EINTR as u16);
    if late == Late::Forced || late == Late::Signalled && interrupted {
        status = Status::Timeout;
    }
    let views = ops_proc::own_views(lane, op);
    Reply { status, out, also: guard::take_also(), views }
}

/// Addresses the op names, for telling apart the faults of threads.
fn named_range(op: &Op) -> (u64, u64) {
    let refs = case::check::refs(op);
    let from = refs.at.iter().map(|(at, _)| at.addr()).min().unwrap_or(0);
    let to = refs.at.iter().map(|(at, len)| at.addr().saturating_add(*len)).max().unwrap_or(0);
    (from, to)
}

fn dispatch(lane: &mut Lane, line: u16, op: &Op) -> Outcome {
    ops_file::run(lane, line, op)
        .or_else(|| ops_map::run(lane, line, op))
        .or_else(|| ops_uffd::run(lane, line, op))
        .or_else(|| ops_proc::run(lane, op))
        .or_else(|| ops_special::run(lane, line, op))
        .unwrap_or((Status::Ok(0), Output::Nothing))
}
