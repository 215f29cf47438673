//! The shrinker against faults that are known by heart: what is left shows the fault, nothing less
//! does, and several tries out at a time change nothing of that.

#![allow(clippy::unwrap_used)]

use case::text::{parse, print};
use case::*;
use generators::{Shrinker, Try};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;

/// Shrinks with `width` tries out at a time, told in the order they were asked.
fn shrink(text: &str, width: usize, shows: impl Fn(&Program) -> bool) -> (Program, usize) {
    let program = parse(text).unwrap();
    assert!(shows(&program), "the fault shows at the start");
    let mut shrinker = Shrinker::new(&program);
    let mut out: VecDeque<Try> = VecDeque::new();
    let mut tries = 0;
    loop {
        while out.len() < width {
            let Some(next) = shrinker.ask() else { break };
            out.push_back(next);
        }
        let Some(next) = out.pop_front() else { break };
        tries += 1;
        shrinker.tell(next.id, shows(&next.program));
        assert!(shows(shrinker.best()));
    }
    assert_eq!(shrinker.outstanding(), 0);
    (shrinker.best().clone(), tries)
}

fn lines_of(program: &Program) -> String {
    print(program).lines().skip(2).map(|l| format!("{l}\n")).collect()
}

const LONG: &str = "hgm 1

# A comment that goes away.
f3 = memfd flags=sealing
ftruncate file=f3 len=6M
mmap at=r5 len=6M share=shared from=f3
mmap at=r2 len=4M page=2M
u1 = uffd features=event_fork,event_remap,exact_address handler=copy
register uffd=u1 at=r5 len=6M modes=missing,wp
write at=r5+2M len=4K
read at=r5 len=2M
p1 = fork
p1: write at=r5+1020K len=8K
par {
  t0: read at=r5 len=4K
  t0: madvise at=r5+2M len=2M advice=collapse
  t1: write at=r5 len=8K
  t1: punch file=f3 off=2M len=2M
  t2: observe at=r5 len=6M
}
observe at=r5 len=6M what=pagemap,smaps
";

fn has(program: &Program, kind: OpKind) -> bool {
    program.each_line().iter().any(|(_, _, op)| op.kind() == kind)
}

#[test]
fn what_is_not_needed_goes_away() {
    let registers = |p: &Program| has(p, OpKind::Uffd) && has(p, OpKind::Register);
    let (left, _) = shrink(LONG, 1, registers);
    assert_eq!(lines_of(&left), "u0 = uffd\nregister uffd=u0 at=r0 len=4K modes=wp\n");
}

#[test]
fn a_race_keeps_its_threads() {
    let races = |p: &Program| {
        p.steps.iter().any(|step| match &step.act {
            Act::Par(threads) => {
                let on = |kind| threads.iter().position(|t| t.iter().any(|op| op.kind() == kind));
                let (a, b) = (on(OpKind::Madvise), on(OpKind::Punch));
                a.is_some() && b.is_some() && a != b
            }
            Act::One(_) => false,
        })
    };
    let (left, _) = shrink(LONG, 1, races);
    let wanted = "par {\n  t0: madvise at=r0 len=4K advice=collapse\n  \
                  t1: punch file=f0 len=4K\n}\n";
    assert_eq!(lines_of(&left), wanted);
}

#[test]
fn the_process_and_the_numbers_that_matter_stay() {
    let stores = |p: &Program| {
        p.each_line().iter().any(|(_, proc, op)| {
            *proc == ProcId(1) && matches!(op, Op::Write { at, len } if at.off + len.0 > 1 << 20)
        })
    };
    let (left, _) = shrink(LONG, 1, stores);
    // The offset may go up to where the end still counts: 1020K + 8K.
    assert_eq!(lines_of(&left), "p1 = fork\np1: write at=r0+1020K len=8K\n");
}

#[test]
fn several_tries_out_give_as_small_a_program() {
    let registers = |p: &Program| has(p, OpKind::Fork) && has(p, OpKind::Register);
    let (alone, _) = shrink(LONG, 1, registers);
    for width in [2, 3, 8] {
        let (left, _) = shrink(LONG, width, registers);
        assert_eq!(lines_of(&left), lines_of(&alone), "{width} out at a time");
    }
}

#[test]
fn random_programs_shrink_to_the_ops_that_are_asked_for() {
    let profile = Profile { huge_2m: true, thp: true, ..Profile::default() };
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let program = generators::random(&mut rng, &profile, 30);
        let lines = program.each_line();
        let kinds = [lines[0].2.kind(), lines[lines.len() / 2].2.kind()];
        let shows = |p: &Program| kinds.iter().all(|kind| has(p, *kind));
        let (left, tries) = shrink(&print(&program), 2, shows);
        let least = if kinds[0] == kinds[1] { 1 } else { 2 };
        // An exit needs its fork.
        let forks = usize::from(kinds.contains(&OpKind::Exit) && !kinds.contains(&OpKind::Fork));
        assert_eq!(left.lines(), least + forks, "seed {seed}: {}", lines_of(&left));
        assert!(tries < 400, "seed {seed}: {tries} tries");
    }
}

#[test]
fn a_child_goes_with_its_exit() {
    let text = "hgm 1\n\nmmap at=r0 len=4K\np1 = fork\np1: exit\nwrite at=r0 len=4K\n";
    // While the child lives, it does not show: neither line can go alone.
    let shows = |p: &Program| has(p, OpKind::Write) && has(p, OpKind::Fork) == has(p, OpKind::Exit);
    let (left, _) = shrink(text, 1, shows);
    assert_eq!(left.lines(), 1);
}
