//! A program: steps in order, a step being one line or a block of threads.

use crate::op::Op;
use crate::value::ProcId;
use serde::{Deserialize, Serialize};

/// One op and the process that issues it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Line {
    pub proc: ProcId,
    pub op: Op,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Act {
    One(Line),
    /// Two or three threads of `p0`, started together; the step ends when all have ended.
    Par(Vec<Vec<Op>>),
}

/// A step and the comment lines above it. Comments do not travel to the guest and are not part
/// of a program's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    #[serde(skip)]
    pub notes: Vec<String>,
    pub act: Act,
}

/// A test program. Lines are numbered from 0 in reading order, threads of a block one after the
/// other; a line's number is what observations and violations name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Comment lines at the head of the text, without their `#`.
    #[serde(skip)]
    pub about: Vec<String>,
    pub steps: Vec<Step>,
}

impl Step {
    pub fn one(proc: ProcId, op: Op) -> Self {
        Step { notes: Vec::new(), act: Act::One(Line { proc, op }) }
    }
    pub fn par(threads: Vec<Vec<Op>>) -> Self {
        Step { notes: Vec::new(), act: Act::Par(threads) }
    }
    /// Ops in the step.
    pub fn lines(&self) -> usize {
        match &self.act {
            Act::One(_) => 1,
            Act::Par(threads) => threads.iter().map(Vec::len).sum(),
        }
    }
}

impl Program {
    pub fn of(steps: Vec<Step>) -> Self {
        Program { about: Vec::new(), steps }
    }
    /// Ops in the program.
    pub fn lines(&self) -> usize {
        self.steps.iter().map(Step::lines).sum()
    }
    /// Every op with its line number and issuing process, in reading order.
    pub fn each_line(&self) -> Vec<(u16, ProcId, &Op)> {
        let mut all = Vec::with_capacity(self.lines());
        for step in &self.steps {
            match &step.act {
                Act::One(line) => all.push((all.len() as u16, line.proc, &line.op)),
                Act::Par(threads) => {
                    for op in threads.iter().flatten() {
                        all.push((all.len() as u16, ProcId(0), op));
                    }
                }
            }
        }
        all
    }
    pub fn has_par(&self) -> bool {
        self.steps.iter().any(|s| matches!(s.act, Act::Par(_)))
    }
}

/// The tag a `write`, `pwrite`, `copy` or handler leaves in a page: who wrote it, and the page's
/// index where it was written.
///
/// * `write`, `copy`, `direct_io dir=in`: serial = line number + 1, page = index in the region.
/// * `pwrite`: serial = line number + 1, page = index in the file.
/// * a handler's UFFDIO_COPY: serial = `HANDLER_SERIAL + uffd`, page = index in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag {
    pub serial: u32,
    pub page: u32,
}

/// Serial of pages filled by the handler of `u0`; that of `u1` is one more, and so on.
pub const HANDLER_SERIAL: u32 = 0x8000_0000;

impl Tag {
    /// The 64-bit word stored at offsets 0 and 4088 of the page. Never 0.
    pub const fn word(self) -> u64 {
        (self.serial as u64) << 32 | self.page as u64
    }
    pub const fn of_word(word: u64) -> Self {
        Tag { serial: (word >> 32) as u32, page: word as u32 }
    }
}
