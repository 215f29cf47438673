//! Mutations of a known program. The result always passes the check: what does not fit is
//! repaired, what a guest could not bear is tried again.

use crate::random::Builder;
use crate::repair::{drop_line, repair, within_means};
use crate::sketch::Sketch;
use crate::words::{chance, change_field, one, weighted};
use case::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Lines a mutant may grow to, if its parent was not longer; what is more is cut at the end.
const MUTANT_LINES: usize = 40;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Insert,
    Delete,
    Duplicate,
    Swap,
    Splice,
    Field,
    Par,
    Unpar,
    Process,
}

const KINDS: &[(u32, Kind)] = &[
    (24, Kind::Insert),
    (12, Kind::Delete),
    (10, Kind::Duplicate),
    (9, Kind::Swap),
    (12, Kind::Splice),
    (24, Kind::Field),
    (5, Kind::Par),
    (2, Kind::Unpar),
    (5, Kind::Process),
];

/// A program near `base`; with a donor, some of its steps may come from there. Comments are not
/// carried over.
pub fn mutate(
    rng: &mut ChaCha8Rng,
    profile: &Profile,
    base: &Program,
    donor: Option<&Program>,
) -> Program {
    for _ in 0..6 {
        let mut mutant = Program::of(base.steps.clone());
        mutant.steps.iter_mut().for_each(|s| s.notes.clear());
        for _ in 0..one(rng, &[1, 1, 1, 2, 2, 3, 5]) {
            change(rng, profile, &mut mutant, donor);
        }
        while mutant.lines() > MUTANT_LINES.max(base.lines()) {
            let last = mutant.lines() - 1;
            drop_line(&mut mutant, last);
        }
        repair(&mut mutant);
        if within_means(&mutant) && mutant.steps != base.steps {
            return mutant;
        }
    }
    crate::random(rng, profile, 20)
}

fn change(rng: &mut ChaCha8Rng, profile: &Profile, program: &mut Program, donor: Option<&Program>) {
    if program.steps.is_empty() {
        return;
    }
    let at = rng.random_range(0..program.steps.len());
    match weighted(rng, KINDS) {
        Kind::Insert => insert(rng, profile, program, at),
        Kind::Delete => {
            let line = rng.random_range(0..program.lines());
            drop_line(program, line);
        }
        Kind::Duplicate => {
            let step = program.steps[at].clone();
            let to = rng.random_range(at..=program.steps.len());
            program.steps.insert(to, step);
        }
        Kind::Swap => {
            let other = rng.random_range(0..program.steps.len());
            program.steps.swap(at, other);
        }
        Kind::Splice => splice(rng, program, at, donor),
        Kind::Field => field(rng, program),
        Kind::Par => wrap(rng, program, at),
        Kind::Unpar => unwrap_block(rng, program),
        Kind::Process => change_process(rng, program, at),
    }
}

/// New ops that suit what the program has made before the point.
fn insert(rng: &mut ChaCha8Rng, profile: &Profile, program: &mut Program, at: usize) {
    use crate::random::Move::*;
    let head = Program::of(program.steps[..at].to_vec());
    let sketch = Sketch::of(&head);
    let mut builder = Builder { rng, profile, sketch, program: Program::default() };
    for _ in 0..one(builder.rng, &[1, 1, 2, 3]) {
        let next = weighted(
            builder.rng,
            &[
                (20, Touch),
                (10, Discard),
                (8, Thp),
                (8, FileOp),
                (5, Map),
                (5, Unmap),
                (6, Remap),
                (6, Protect),
                (3, Lock),
                (5, Populate),
                (4, Advise),
                (8, Arm),
                (10, Fill),
                (8, WriteProtect),
                (4, UffdMisc),
                (6, Fork),
                (1, Exit),
                (5, Migrate),
                (2, Poison),
                (4, Gup),
                (1, Knob),
                (5, Look),
            ],
        );
        builder.make(next);
    }
    let new = builder.program.steps;
    program.steps.splice(at..at, new);
}

/// A stretch of the donor takes the place of a stretch of the program, or goes between.
fn splice(rng: &mut ChaCha8Rng, program: &mut Program, at: usize, donor: Option<&Program>) {
    let Some(donor) = donor.filter(|d| !d.steps.is_empty()) else { return };
    let from = rng.random_range(0..donor.steps.len());
    let to = rng.random_range(from + 1..=donor.steps.len().min(from + 10));
    let mut part = donor.steps[from..to].to_vec();
    part.iter_mut().for_each(|s| s.notes.clear());
    let end = match rng.random_range(0..3) {
        0 => program.steps.len(),
        1 => at,
        _ => rng.random_range(at..=program.steps.len()),
    };
    program.steps.splice(at..end, part);
}

fn op_mut(program: &mut Program, line: usize) -> Option<&mut Op> {
    program
        .steps
        .iter_mut()
        .flat_map(|s| match &mut s.act {
            Act::One(line) => vec![&mut line.op],
            Act::Par(threads) => threads.iter_mut().flatten().collect(),
        })
        .nth(line)
}

fn field(rng: &mut ChaCha8Rng, program: &mut Program) {
    let line = rng.random_range(0..program.lines());
    let Some(op) = op_mut(program, line) else { return };
    *op = change_field(rng, op);
}

/// Two or more neighbours become the threads of a block.
fn wrap(rng: &mut ChaCha8Rng, program: &mut Program, at: usize) {
    let end = (at + rng.random_range(2..=5usize)).min(program.steps.len());
    let mut ops = Vec::new();
    for step in &program.steps[at..end] {
        match &step.act {
            Act::One(line) if line.proc == ProcId(0) => ops.push(line.op.clone()),
            _ => break,
        }
    }
    if ops.len() < 2 {
        return;
    }
    let taken = ops.len();
    let count = if taken > 2 && chance(rng, 30) { 3 } else { 2 };
    let mut threads = vec![Vec::new(); count];
    for (i, op) in ops.into_iter().enumerate() {
        // Each thread gets one at least; the rest fall where they like.
        let thread = if i < count { i } else { rng.random_range(0..count) };
        threads[thread].push(op);
    }
    program.steps.splice(at..at + taken, [Step::par(threads)]);
}

fn unwrap_block(rng: &mut ChaCha8Rng, program: &mut Program) {
    let blocks: Vec<usize> =
        (0..program.steps.len()).filter(|i| matches!(program.steps[*i].act, Act::Par(_))).collect();
    if blocks.is_empty() {
        return;
    }
    let at = one(rng, &blocks);
    let Act::Par(threads) = &program.steps[at].act else { return };
    let ops: Vec<Step> =
        threads.iter().flatten().map(|op| Step::one(ProcId(0), op.clone())).collect();
    program.steps.splice(at..=at, ops);
}

fn change_process(rng: &mut ChaCha8Rng, program: &mut Program, at: usize) {
    let mut procs = vec![ProcId(0)];
    for step in &program.steps[..at] {
        if let Act::One(Line { op: Op::Fork { child }, .. }) = &step.act {
            procs.push(*child);
        }
    }
    if procs.len() == 1 {
        // Nobody else yet: the next op goes to a new child.
        let unused = (1..4).find(|n| {
            !program
                .each_line()
                .iter()
                .any(|(_, _, op)| matches!(op, Op::Fork { child } if child.0 == *n))
        });
        let Some(child) = unused.map(ProcId) else { return };
        program.steps.insert(at, Step::one(ProcId(0), Op::Fork { child }));
        if let Some(Act::One(line)) = program.steps.get_mut(at + 1).map(|s| &mut s.act) {
            line.proc = child;
        }
        return;
    }
    let proc = one(rng, &procs);
    if let Act::One(line) = &mut program.steps[at].act {
        line.proc = proc;
    }
}
