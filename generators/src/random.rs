//! Weighted random programs: a family sets the scene (files, mappings, userfaultfds), then moves
//! are drawn by the family's weights; about one op in eight is made odd on purpose.

use crate::LINES;
use crate::repair::{POISONS_MAX, drop_line, repair, within_means};
use crate::sketch::{Mapping, Sketch};
use crate::words::*;
use case::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Huge pages a program may demand before its author grows careful.
const HUGE_PAGES_WANTED: u64 = 24;
/// Base pages one op may have a handler fill: each costs a round trip between threads.
const ANSWERS_WANTED: u64 = 64;
/// Ops in a hundred that are made odd.
const ODD: u32 = 12;

/// What a program is mainly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    HugetlbShared,
    HugetlbPrivate,
    Thp,
    Shmem,
    Uffd,
    Fork,
    Poison,
    Migration,
    Gup,
    /// Huge pages mapped in pieces, where the kernel can.
    Pieces,
}

/// What a step of a program tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Touch,
    Discard,
    Thp,
    FileOp,
    Map,
    Unmap,
    Remap,
    Protect,
    Lock,
    Populate,
    Advise,
    Arm,
    Fill,
    Piece,
    WriteProtect,
    UffdMisc,
    Fork,
    Exit,
    Migrate,
    Poison,
    Gup,
    Knob,
    Look,
}

use Move::*;

const SHARED: &[(u32, Move)] = &[
    (30, Touch),
    (14, Discard),
    (12, FileOp),
    (6, Map),
    (6, Unmap),
    (5, Remap),
    (6, Protect),
    (3, Lock),
    (5, Populate),
    (4, Advise),
    (4, Arm),
    (4, Fork),
    (3, Migrate),
    (2, Gup),
    (8, Look),
];
const THP: &[(u32, Move)] = &[
    (30, Touch),
    (12, Discard),
    (22, Thp),
    (4, Map),
    (6, Unmap),
    (6, Remap),
    (7, Protect),
    (4, Lock),
    (5, Populate),
    (6, Advise),
    (3, Arm),
    (4, Fork),
    (4, Migrate),
    (3, Gup),
    (8, Look),
];
const UFFD: &[(u32, Move)] = &[
    (26, Touch),
    (12, Discard),
    (3, Thp),
    (6, FileOp),
    (3, Map),
    (4, Unmap),
    (4, Remap),
    (4, Protect),
    (3, Populate),
    (4, Arm),
    (22, Fill),
    (14, WriteProtect),
    (7, UffdMisc),
    (4, Fork),
    (2, Migrate),
    (2, Gup),
    (8, Look),
];
const FORK: &[(u32, Move)] = &[
    (40, Touch),
    (8, Discard),
    (4, Thp),
    (4, FileOp),
    (4, Unmap),
    (4, Remap),
    (6, Protect),
    (6, Advise),
    (4, Arm),
    (4, WriteProtect),
    (14, Fork),
    (5, Exit),
    (3, Migrate),
    (3, Gup),
    (8, Look),
];
const MIGRATION: &[(u32, Move)] = &[
    (24, Touch),
    (6, Discard),
    (6, Thp),
    (4, FileOp),
    (4, Protect),
    (30, Migrate),
    (5, Fork),
    (4, Arm),
    (4, Fill),
    (4, Gup),
    (10, Look),
];
const POISON: &[(u32, Move)] = &[
    (30, Touch),
    (10, Discard),
    (8, Thp),
    (8, FileOp),
    (5, Unmap),
    (4, Remap),
    (3, Protect),
    (4, Populate),
    (16, Poison),
    (5, Fork),
    (4, Migrate),
    (4, Gup),
    (10, Look),
];
const GUP: &[(u32, Move)] = &[
    (26, Touch),
    (8, Discard),
    (6, Thp),
    (4, FileOp),
    (4, Unmap),
    (5, Protect),
    (30, Gup),
    (6, Fork),
    (4, Migrate),
    (4, Arm),
    (8, Look),
];

const PIECES: &[(u32, Move)] = &[
    (20, Touch),
    (40, Piece),
    (6, Discard),
    (6, FileOp),
    (2, Map),
    (3, Unmap),
    (6, Remap),
    (5, Protect),
    (2, Lock),
    (4, Populate),
    (2, Advise),
    (4, Arm),
    (5, WriteProtect),
    (2, UffdMisc),
    (3, Fork),
    (4, Migrate),
    (3, Gup),
    (1, Poison),
    (6, Look),
];

impl Family {
    fn moves(self) -> &'static [(u32, Move)] {
        match self {
            Family::HugetlbShared | Family::HugetlbPrivate | Family::Shmem => SHARED,
            Family::Thp => THP,
            Family::Uffd => UFFD,
            Family::Fork => FORK,
            Family::Migration => MIGRATION,
            Family::Poison => POISON,
            Family::Gup => GUP,
            Family::Pieces => PIECES,
        }
    }
}

/// Makes a program of about `size` lines (kept within 4 and 40) for a kernel of this profile.
pub fn random(rng: &mut ChaCha8Rng, profile: &Profile, size: usize) -> Program {
    for _ in 0..8 {
        let program = attempt(rng, profile, size);
        if within_means(&program) {
            return program;
        }
    }
    crate::scenario::plain(rng)
}

fn attempt(rng: &mut ChaCha8Rng, profile: &Profile, size: usize) -> Program {
    let size = size.clamp(LINES.0, LINES.1);
    let want = rng.random_range(LINES.0.max(size / 3)..=size);
    let family = family(rng, profile);
    let mut b = Builder { rng, profile, sketch: Sketch::default(), program: Program::default() };
    b.scene(family);
    // What threads do to mappings leaves little to judge after them: such blocks come late.
    let calm = chance(b.rng, 55);
    let earliest = if calm { want / 4 } else { want * 3 / 4 };
    let block_at = if chance(b.rng, 11) { b.rng.random_range(earliest..want) } else { usize::MAX };
    let mut blocked = false;
    for _ in 0..want * 3 {
        if b.program.lines() >= want {
            break;
        }
        if !blocked && b.program.lines() >= block_at {
            blocked = true;
            b.block(family, calm);
            continue;
        }
        b.step(family);
    }
    if chance(b.rng, 50) {
        b.make(Look);
    }
    let mut program = b.program;
    repair(&mut program);
    while program.lines() > LINES.1 {
        drop_line(&mut program, LINES.1);
        repair(&mut program);
    }
    while program.lines() < LINES.0 {
        let op = Op::Read { at: Place::new(0, 0), len: Bytes(K4) };
        program.steps.push(Step::one(ProcId(0), op));
    }
    program
}

fn family(rng: &mut ChaCha8Rng, profile: &Profile) -> Family {
    let huge = u32::from(profile.huge_2m);
    let list = [
        (20 * huge, Family::HugetlbShared),
        (16 * huge, Family::HugetlbPrivate),
        (if profile.thp { 14 } else { 2 }, Family::Thp),
        (9, Family::Shmem),
        (24, Family::Uffd),
        (10, Family::Fork),
        (3, Family::Poison),
        (if profile.nodes > 1 { 8 } else { 2 }, Family::Migration),
        (5, Family::Gup),
        (if profile.hgm().is_some() { 60 * huge } else { 0 }, Family::Pieces),
    ];
    weighted(rng, &list)
}

pub(crate) struct Builder<'a> {
    pub rng: &'a mut ChaCha8Rng,
    pub profile: &'a Profile,
    pub sketch: Sketch,
    pub program: Program,
}

impl Builder<'_> {
    /// Adds a line and remembers what it makes.
    pub fn push(&mut self, proc: ProcId, op: Op) {
        self.sketch.apply(proc, &op);
        self.program.steps.push(Step::one(proc, op));
    }

    pub fn p0(&mut self, op: Op) {
        self.push(ProcId(0), op);
    }

    fn proc(&mut self) -> ProcId {
        let children = self.sketch.children.clone();
        if children.is_empty() || chance(self.rng, 55) {
            ProcId(0)
        } else {
            one(self.rng, &children)
        }
    }

    fn map(&mut self) -> Option<Mapping> {
        if self.sketch.maps.is_empty() {
            return None;
        }
        let i = self.rng.random_range(0..self.sketch.maps.len());
        Some(self.sketch.maps[i].clone())
    }

    /// A range inside a mapping; on huge-page borders when the kernel asks for that, mostly.
    fn range(&mut self, map: &Mapping, borders: u32) -> (Place, Bytes) {
        let h = map.edge();
        let room = map.len.min(4 * M2.max(h));
        if chance(self.rng, borders) {
            // Borders are those of addresses: a mapping may start between them.
            let lead = map.at.off.next_multiple_of(h) - map.at.off;
            let lead = if lead + h <= map.len { lead } else { 0 };
            let pages = ((room - lead) / h).max(1);
            let first = self.rng.random_range(0..pages);
            let count = self.rng.random_range(1..=pages - first);
            return (map.at.plus(lead + first * h), Bytes((count * h).min(map.len.max(K4))));
        }
        // Inside 1 GiB pages the edges of 2 MiB are the interesting ones as well.
        let edge = if chance(self.rng, 20) { K4 } else { h.min(M2) };
        let off = offset(self.rng, room, edge);
        let len = length(self.rng, room - off, h.min(M2));
        (map.at.plus(off), Bytes(len))
    }

    /// One step: mostly a move of the family, sometimes one of another.
    fn step(&mut self, family: Family) {
        let table = if chance(self.rng, 12) {
            one(self.rng, &[SHARED, THP, UFFD, FORK, MIGRATION, GUP])
        } else {
            family.moves()
        };
        let next = weighted(self.rng, table);
        self.make(next);
    }

    /// Makes a move; may add nothing if it makes no sense now.
    pub fn make(&mut self, next: Move) {
        let Some((proc, op)) = self.draw(next) else { return };
        let op = if chance(self.rng, ODD) { change_field(self.rng, &op) } else { op };
        if self.overdoes(&op) || (self.waits(&op) && !chance(self.rng, 3)) {
            return;
        }
        if self.profile.fail_nth && chance(self.rng, 2) {
            let nth = self.rng.random_range(1..=12);
            self.push(proc, Op::FailNth { nth });
        }
        self.push(proc, op);
    }

    /// Whether the op might wait until its timeout, for an answer or for very many.
    fn waits(&self, op: &Op) -> bool {
        let mut after = self.sketch.clone();
        after.apply(ProcId(0), op);
        after.hazards > self.sketch.hazards || after.answers > self.sketch.answers + ANSWERS_WANTED
    }

    /// Whether the op would poison more pages than a program may, or fill a 1 GiB page.
    fn overdoes(&self, op: &Op) -> bool {
        let mut after = self.sketch.clone();
        after.apply(ProcId(0), op);
        let poisons = after.poisons > self.sketch.poisons && after.poisons > POISONS_MAX;
        poisons || after.giant_touches > 0
    }

    /// Two or three threads that work on the same memory; calm ones only fill and look.
    fn block(&mut self, family: Family, calm: bool) {
        let count = one(self.rng, &[2usize, 2, 3]);
        let mut threads = Vec::new();
        for _ in 0..count {
            let mut ops = Vec::new();
            for _ in 0..self.rng.random_range(1..=4usize) {
                let next = match calm {
                    true if family == Family::Pieces => one(self.rng, &[Touch, Touch, Fill, Piece]),
                    true => one(self.rng, &[Touch, Touch, Touch, Fill, Populate]),
                    false => weighted(self.rng, family.moves()),
                };
                let skip = matches!(next, Arm | Fork | Exit | Look | Knob | Map | Poison);
                let next = if skip { Touch } else { next };
                if let Some((_, op)) = self.draw(next)
                    && !matches!(op, Op::Pin { .. } | Op::Unpin { .. } | Op::CloseUffd { .. })
                    && !self.waits(&op)
                    && !self.overdoes(&op)
                {
                    ops.push(op);
                }
            }
            threads.push(ops);
        }
        threads.retain(|t| !t.is_empty());
        if threads.len() < 2 {
            return;
        }
        for op in threads.iter().flatten() {
            self.sketch.apply(ProcId(0), op);
        }
        self.program.steps.push(Step::par(threads));
    }

    fn draw(&mut self, next: Move) -> Option<(ProcId, Op)> {
        let proc = self.proc();
        let op = match next {
            Touch => self.touch(),
            Discard => self.discard(),
            Move::Thp => self.thp(),
            FileOp => self.file_op(),
            Map => self.another_map(),
            Unmap => self.unmap(),
            Remap => self.remap(),
            Protect => self.protect(),
            Lock => self.lock(),
            Populate => self.populate(),
            Advise => self.advise(),
            Arm => self.arm(),
            Fill => self.fill(),
            Piece => self.piece(),
            WriteProtect => self.write_protect(),
            UffdMisc => self.uffd_misc(),
            Migrate => self.migrate(),
            Poison => self.poison(),
            Gup => self.gup(),
            Knob => self.knob(),
            Look => self.look(),
            Fork => self.fork(),
            Exit => {
                let child = *self.sketch.children.first()?;
                return Some((child, Op::Exit {}));
            }
        }?;
        Some((proc, op))
    }

    pub fn careful(&self) -> bool {
        self.sketch.huge_pages >= HUGE_PAGES_WANTED
    }
}

mod moves;
mod scene;
