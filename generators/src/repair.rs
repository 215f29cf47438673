//! Makes any program fit to run: drops the lines `case::check` refuses, and says whether it stays
//! within what a guest can bear (memory, time, poisoned pages).

use crate::sketch::Sketch;
use crate::words::K4;
use case::check::{check, refs};
use case::*;

/// Bytes one op may populate.
const POPULATE_MAX: u64 = 160 << 20;
/// Poisoned or offlined pages a program.
pub const POISONS_MAX: u32 = 2;
/// Base pages a program may leave to handlers.
const ANSWERS_MAX: u64 = 2048;
/// Huge pages a program may demand; the pool of a guest has 64.
const HUGE_PAGES_MAX: u64 = 400;

/// Drops lines until the program passes the check. A program with nothing left becomes one that
/// looks at empty memory.
pub fn repair(program: &mut Program) {
    program.steps.retain(|s| s.lines() > 0);
    while let Err(error) = check(program) {
        if error.op == "program" && !program.steps.is_empty() {
            shorten(program);
        } else {
            drop_line(program, error.line.into());
        }
        if program.steps.is_empty() {
            let op = Op::Observe { at: Place::new(0, 0), len: Bytes(K4), what: What::PAGEMAP };
            program.steps.push(Step::one(ProcId(0), op));
        }
    }
}

/// Takes one line out; a block left with one thread becomes single lines.
pub fn drop_line(program: &mut Program, line: usize) {
    let mut at = 0;
    for i in 0..program.steps.len() {
        let lines = program.steps[i].lines();
        if line >= at + lines {
            at += lines;
            continue;
        }
        let Act::Par(threads) = &mut program.steps[i].act else {
            program.steps.remove(i);
            return;
        };
        let mut inner = line - at;
        for thread in threads.iter_mut() {
            if inner < thread.len() {
                thread.remove(inner);
                break;
            }
            inner -= thread.len();
        }
        flatten_small(program, i);
        return;
    }
}

fn flatten_small(program: &mut Program, step: usize) {
    let Act::Par(threads) = &mut program.steps[step].act else { return };
    threads.retain(|t| !t.is_empty());
    if threads.len() >= 2 {
        return;
    }
    let ops: Vec<Op> = threads.drain(..).flatten().collect();
    program.steps.splice(step..=step, ops.into_iter().map(|op| Step::one(ProcId(0), op)));
}

/// Too long, or a block out of shape.
fn shorten(program: &mut Program) {
    for i in (0..program.steps.len()).rev() {
        if let Act::Par(threads) = &mut program.steps[i].act {
            threads.truncate(limits::PAR_THREADS_MAX);
            threads.iter_mut().for_each(|t| t.truncate(limits::PAR_OPS_MAX));
            flatten_small(program, i);
        }
    }
    let over = program.steps.len() > limits::STEPS_MAX || program.lines() > limits::LINES_MAX;
    if over {
        program.steps.pop();
    }
}

/// Whether a guest can bear it: no op populates gigabytes, no 1 GiB page is filled (that takes
/// seconds, and looks like a hang), few pages are poisoned, at most one op waits for its timeout.
pub fn within_means(program: &Program) -> bool {
    let sketch = Sketch::of(program);
    sketch.poisons <= POISONS_MAX
        && sketch.hazards <= 1
        && sketch.answers <= ANSWERS_MAX
        && sketch.giant_touches == 0
        && sketch.huge_pages <= HUGE_PAGES_MAX
        && program.each_line().iter().all(|(_, _, op)| bearable(op))
}

fn bearable(op: &Op) -> bool {
    let populates = match op {
        Op::Mmap { flags, .. } => flags.any(MmapFlags::POPULATE | MmapFlags::LOCKED),
        Op::Madvise { advice, .. } => matches!(
            advice,
            Advice::PopulateRead
                | Advice::PopulateWrite
                | Advice::Collapse
                | Advice::HwPoison
                | Advice::SoftOffline
        ),
        Op::Fallocate { .. }
        | Op::Mlock { .. }
        | Op::Pin { .. }
        | Op::GupTest { .. }
        | Op::Zeropage { .. }
        | Op::Continue { .. } => true,
        _ => false,
    };
    let refs = refs(op);
    let lens = refs.at.iter().map(|(_, len)| *len);
    let mut lens = lens.chain(refs.files.iter().map(|(_, _, len)| *len));
    !populates || lens.all(|len| len <= POPULATE_MAX)
}
