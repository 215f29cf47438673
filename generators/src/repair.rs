//! Makes any program fit to run: drops the lines `case::check` refuses, and says whether it stays
//! within what a guest can bear (memory, 1 GiB pages, waits, poisoned pages).

use crate::sketch::Sketch;
use crate::words::{G1, K4};
use case::check::{check, refs};
use case::*;

/// Bytes one op may populate.
const POPULATE_MAX: u64 = 160 << 20;
/// Poisoned or offlined pages a program.
pub const POISONS_MAX: u32 = 2;
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

/// Whether a guest can bear it: no op populates gigabytes, at most one 1 GiB page is touched, few
/// pages are poisoned, at most one op waits for its timeout.
pub fn within_means(program: &Program) -> bool {
    let sketch = Sketch::of(program);
    let giant = program.each_line().iter().any(|(_, _, op)| uses_1g(op));
    sketch.poisons <= POISONS_MAX
        && sketch.hazards <= 1
        && sketch.huge_pages <= HUGE_PAGES_MAX
        && program.each_line().iter().all(|(_, _, op)| bearable(op, giant))
}

fn uses_1g(op: &Op) -> bool {
    matches!(
        op,
        Op::Memfd { page: PageSize::Huge1G, .. }
            | Op::Hugetlbfs { page: PageSize::Huge1G, .. }
            | Op::Mmap { page: PageSize::Huge1G, .. }
    )
}

fn bearable(op: &Op, giant: bool) -> bool {
    let (populates, touches) = match op {
        Op::Mmap { flags, .. } => {
            (flags.any(MmapFlags::POPULATE | MmapFlags::LOCKED), !flags.is_none())
        }
        Op::Fallocate { .. }
        | Op::Mlock { .. }
        | Op::Pin { .. }
        | Op::GupTest { .. }
        | Op::Madvise {
            advice: Advice::PopulateRead | Advice::PopulateWrite | Advice::Collapse,
            ..
        } => (true, true),
        Op::Read { .. } | Op::Write { .. } | Op::Pwrite { .. } | Op::Copy { .. } => (false, true),
        Op::Zeropage { .. } | Op::Continue { .. } => (true, true),
        Op::Madvise { advice: Advice::HwPoison | Advice::SoftOffline, .. } => (true, true),
        _ => (false, false),
    };
    let refs = refs(op);
    let ends = refs.at.iter().map(|(p, len)| (p.off, *len));
    let mut ends = ends.chain(refs.files.iter().map(|(_, off, len)| (*off, *len)));
    ends.all(|(off, len)| {
        let one_giant = giant && len <= G1 && off + len <= G1;
        (!populates || len <= POPULATE_MAX || one_giant) && (!touches || !giant || one_giant)
    })
}
