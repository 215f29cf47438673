//! The judge: walks a program and its observation side by side through the world.
//!
//! Sequential lines are judged exactly. Ops of a `par` block are not atomic, so no order of whole
//! ops need explain them: after threads that only fill pages the state is known but for the
//! content they stored; after others only invariants are judged, and the report says so.

use crate::known::Known;
use crate::mutants::Mutant;
use crate::racing::{
    brought_along, contested, copied_amid, filled_by_either, fills, own_copies, private_holes,
    raced,
};
use crate::rules::*;
use crate::step::{Cx, LineNote, Out, status_text, step};
use crate::views;
use crate::world::{ExpectedEvent, Slot, World};
use case::expect::{Expectation, PoolCounter};
use case::observation::{Counters, FaultSeen, LineObs, Observation, Pool, Spot, Status, event};
use case::{Act, Op, PageSize, Place, ProcId, Profile, Program, Verdict, Violation};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// What came of judging one observation.
#[derive(Clone, Debug)]
pub struct Report {
    pub verdict: Verdict,
    /// A violation that is a known deviation, with its id; judgement ends there.
    pub known: Vec<(Violation, String)>,
    /// Mapping-state feedback: hashed (op, state before, state after, uffd modes).
    pub states: BTreeSet<u64>,
    /// Of each line judged exactly: op, sort of entry it met, sort it left. For people.
    pub steps: Vec<(&'static str, String, String)>,
    /// Lines judged.
    pub ops: u32,
    /// Why only invariants were judged from some line on.
    pub blurred: Option<String>,
}

/// One line as `hgm run` shows it.
#[derive(Clone, Debug)]
pub struct LineVerdict {
    pub line: u16,
    pub rules: Vec<&'static str>,
    pub expected: String,
    pub observed: String,
    pub ok: bool,
}

/// Judges one observation.
pub fn judge(program: &Program, obs: &Observation, profile: &Profile, known: &Known) -> Report {
    Walk::new(program, obs, profile, Mutant::None).run(known).0
}

/// Judges and keeps what was expected of each line.
pub fn trace(
    program: &Program,
    obs: &Observation,
    profile: &Profile,
    known: &Known,
) -> (Vec<LineVerdict>, Report) {
    let (report, notes) = Walk::new(program, obs, profile, Mutant::None).run(known);
    (notes, report)
}

/// Judges with a mutated model: for the tests that prove the oracle notices.
pub fn judge_mutant(
    program: &Program,
    obs: &Observation,
    profile: &Profile,
    known: &Known,
    mutant: Mutant,
) -> Report {
    Walk::new(program, obs, profile, mutant).run(known).0
}

struct Walk<'a> {
    program: &'a Program,
    obs: &'a Observation,
    world: World,
    states: BTreeSet<u64>,
    steps: Vec<(&'static str, String, String)>,
    notes: Vec<LineVerdict>,
    line: u16,
}

impl<'a> Walk<'a> {
    fn new(program: &'a Program, obs: &'a Observation, profile: &Profile, mutant: Mutant) -> Self {
        Walk {
            program,
            obs,
            world: World::new(profile, &obs.before, mutant),
            states: BTreeSet::new(),
            steps: Vec::new(),
            notes: Vec::new(),
            line: 0,
        }
    }

    fn run(mut self, known: &Known) -> (Report, Vec<LineVerdict>) {
        let mut found = Vec::new();
        let verdict = if self.obs.lines.len() != self.program.lines() {
            Verdict::Inconclusive("the observation has another number of lines".into())
        } else {
            match self.walk() {
                Ok(()) => Verdict::Pass,
                Err(violation) => match known.find(&self.world.profile, &violation) {
                    Some(deviation) => {
                        found.push((*violation, deviation.id.clone()));
                        Verdict::Pass
                    }
                    None => Verdict::Violation(*violation),
                },
            }
        };
        let report = Report {
            verdict,
            known: found,
            states: self.states,
            steps: self.steps,
            ops: u32::from(self.line),
            blurred: self.world.blurred,
        };
        (report, self.notes)
    }

    fn walk(&mut self) -> Out {
        for item in &self.program.steps {
            match &item.act {
                Act::One(line) => self.one(line.proc, &line.op)?,
                Act::Par(threads) => self.block(threads)?,
            }
        }
        self.end()
    }

    fn one(&mut self, proc: ProcId, op: &Op) -> Out {
        let obs = &self.obs.lines[usize::from(self.line)];
        let cx = context(self.line, proc, op, obs, false);
        self.line += 1;
        if self.world.blurred.is_some() {
            unfollowed(&mut self.world, op);
            return sane(&cx, obs);
        }
        let place = place_of(op);
        let before = place.map(|p| state_class(&self.world, proc, p));
        let result = line(&mut self.world, &cx, &self.obs.before);
        self.note(&cx, result.as_ref().err().map(|v| &**v));
        result?;
        if let (Some(place), Some(before)) = (place, before) {
            let after = state_class(&self.world, proc, place);
            let class = crate::step::status_class(&obs.status);
            let name = op.kind().spec().name;
            self.states.insert(hash(&[name, &class, &before.whole(), &after.whole()]));
            self.steps.push((name, before.sort, after.sort));
        }
        Ok(())
    }

    /// A block. Threads that only fill pages and look at them leave a known state whatever their
    /// order, but for the content of pages that were stored to; after any other block only
    /// invariants are judged.
    fn block(&mut self, threads: &[Vec<Op>]) -> Out {
        let first = self.line;
        self.world.threads = self.world.threads.max(threads.len());
        self.line += threads.iter().map(Vec::len).sum::<usize>() as u16;
        let known = threads.iter().flatten().all(fills);
        if self.world.blurred.is_some() || !known {
            threads.iter().flatten().for_each(|op| unfollowed(&mut self.world, op));
        }
        if self.world.blurred.is_some() {
            return Ok(());
        }
        if !known {
            self.world.blur("a par block changed mappings");
            return Ok(());
        }
        let holes = private_holes(&self.world);
        let copies = own_copies(&self.world);
        let contested = contested(&self.world, threads);
        let mut last = None;
        for (op, line) in threads.iter().flatten().zip(first..) {
            let obs = &self.obs.lines[usize::from(line)];
            let cx = context(line, ProcId(0), op, obs, true);
            self.world.expected_events.clear();
            let explained = step(&mut self.world, &cx).is_ok();
            self.world.collect();
            raced(&mut self.world, op, explained);
            last = Some(cx);
        }
        for op in threads.iter().flatten() {
            brought_along(&mut self.world, op);
        }
        filled_by_either(&mut self.world, contested);
        copied_amid(&mut self.world, &copies);
        if holes.iter().any(|hole| hole.filled_twice(&self.world)) {
            self.world.blur("a private mapping looked at a hole while another filled it");
        }
        self.states.insert(hash(&["par", if self.world.blurred.is_some() { "-" } else { "+" }]));
        match last {
            Some(cx) if self.world.blurred.is_none() => {
                looks(&mut self.world, &cx, &self.obs.before)
            }
            _ => Ok(()),
        }
    }

    fn note(&mut self, cx: &Cx<'_>, broken: Option<&Violation>) {
        let note = cx.note.borrow();
        let (expected, observed) = match broken {
            Some(v) => (v.expected.clone(), v.observed.clone()),
            None => (note.expected.clone(), status_text(&cx.obs.status)),
        };
        let mut rules = note.rules.clone();
        rules.dedup();
        self.notes.push(LineVerdict {
            line: cx.line,
            rules,
            expected,
            observed,
            ok: broken.is_none(),
        });
    }

    /// Looks before the teardown, and what is left after it.
    fn end(&mut self) -> Out {
        let nothing = LineObs {
            status: Status::Ok(0),
            out: case::observation::Output::Nothing,
            also: None,
            events: Vec::new(),
            views: Vec::new(),
            pools: None,
        };
        let look =
            Op::Observe { at: Place::new(0, 0), len: case::Bytes(0), what: case::What::NONE };
        let cx = context(self.line, ProcId(0), &look, &nothing, false);
        if self.world.blurred.is_none() {
            views::judge(&mut self.world, &cx, &self.obs.end).map_err(at_end)?;
        }
        leaks(&self.world, &cx, &self.obs.before, &self.obs.after).map_err(at_end)
    }
}

fn at_end(mut violation: Box<Violation>) -> Box<Violation> {
    "end".clone_into(&mut violation.op);
    violation
}

fn context<'a>(line: u16, proc: ProcId, op: &'a Op, obs: &'a LineObs, racing: bool) -> Cx<'a> {
    Cx { line, proc, op, obs, racing, note: RefCell::new(LineNote::default()) }
}

/// One line: the op, then everything that was seen after it.
fn line(w: &mut World, cx: &Cx<'_>, start: &Counters) -> Out {
    w.expected_events.clear();
    step(w, cx)?;
    w.collect();
    w.haze_huge_files();
    crate::ops::mapping::haze_shared_tables(w);
    crate::ops::mapping::merge::share_anon_vmas(w);
    if w.blurred.is_some() {
        return Ok(());
    }
    if !cx.racing {
        events(w, cx)?;
        stray_signal(cx)?;
    }
    looks(w, cx, start)
}

/// Views and pools after a line.
fn looks(w: &mut World, cx: &Cx<'_>, start: &Counters) -> Out {
    views::judge(w, cx, &cx.obs.views)?;
    sane(cx, cx.obs)?;
    let Some(seen) = cx.obs.pools else { return Ok(()) };
    let sizes = [(PageSize::Huge2M, start.pool_2m), (PageSize::Huge1G, start.pool_1g)];
    for ((page, before), seen) in sizes.into_iter().zip(seen) {
        if !w.pool_state(page).witness {
            pool(w, cx, page, before, seen)?;
        } else {
            w.adopt_pool(page, seen);
        }
    }
    Ok(())
}

fn pool(w: &World, cx: &Cx<'_>, page: PageSize, before: Pool, got: Pool) -> Out {
    let want = w.pool_now(page);
    let parts = [
        ("total", PoolCounter::Total, want.total, got.total, before.total),
        ("free", PoolCounter::Free, want.free, got.free, before.free),
        ("rsvd", PoolCounter::Rsvd, want.rsvd, got.rsvd, before.rsvd),
        ("surp", PoolCounter::Surp, want.surp, got.surp, before.surp),
    ];
    for (name, counter, want, got, before) in parts {
        if want != got {
            let size = case::PageSize::word(page);
            let sign = if got < want { "low" } else { "high" };
            let suffix = if got > want { divided(w) } else { "" };
            let class = format!("{name}:{sign}{suffix}");
            let broken = cx.broken(
                O_POOL,
                &class,
                format!("{size} pool {name} {want}"),
                format!("{name} {got}"),
            );
            return Err(broken.expecting(Expectation::Pool {
                page,
                counter,
                change: want - before,
            }));
        }
    }
    Ok(())
}

/// X-01, which holds whatever happened.
fn sane(cx: &Cx<'_>, obs: &LineObs) -> Out {
    for p in obs.pools.iter().flatten() {
        if p.rsvd < 0
            || p.free < 0
            || p.surp < 0
            || p.rsvd > p.free
            || p.free > p.total
            || p.surp > p.total
        {
            let text = "0 <= Rsvd <= Free <= Total";
            let broken = cx.broken(O_POOL_SANE, "order", text, format!("{p:?}"));
            return Err(broken.expecting(Expectation::PoolOrder));
        }
    }
    Ok(())
}

/// A signal beside a normal return is only right where an op says so: memory failure.
fn stray_signal(cx: &Cx<'_>) -> Out {
    let poisons = matches!(cx.op, Op::Madvise { advice: case::Advice::HwPoison, .. });
    match &cx.obs.also {
        Some(signal) if !poisons => {
            let text = crate::step::signal_text(signal);
            let broken = cx.broken(F_COMPLETES, "signal", "no signal", text);
            Err(broken.expecting(Expectation::Beside { on: false }))
        }
        _ => Ok(()),
    }
}

/// Handler messages: each expected one was read, and no others (repeats of expected ones are
/// legal, U-065).
fn events(w: &World, cx: &Cx<'_>) -> Out {
    if cx.obs.events.len() >= case::limits::EVENTS_MAX {
        // The record was cut: what is missing proves nothing.
        return Ok(());
    }
    let mut seen = cx.obs.events.iter();
    let wants = removals_as_seen(w, &cx.obs.events);
    for want in &wants {
        if !seen.any(|got| same_event(want, got)) {
            let rule = if elsewhere_in_page(w, want, &cx.obs.events) { HG_ADDR } else { F_EVENT };
            // What a refused COLLAPSE filled or a refused UNREGISTER let go of (C-34), or
            // what lost its registration when it moved beside another mapping (D-10).
            let gone = match want.event == event::PAGEFAULT {
                true if w.collapse_refused => ":collapsed",
                true if w.unregister_refused => ":refused",
                _ if w.moved_beside => ":moved",
                _ => "",
            };
            let class = format!("missing:{}{gone}", event_name(want.event, want.flags));
            let text = format!("{} at {}", event_name(want.event, want.flags), want.at);
            let broken = cx.broken(rule, &class, text, events_text(&cx.obs.events));
            return Err(broken.expecting(Expectation::Event {
                uffd: want.uffd,
                event: want.event,
                flags: want.flags,
                at: (want.event != event::FORK).then_some(want.at),
                on: true,
            }));
        }
    }
    let stray = cx.obs.events.iter().find(|got| !wants.iter().any(|want| same_event(want, got)));
    let Some(got) = stray else { return Ok(()) };
    // The right fault at a differently rounded address breaks another rule.
    let moved = wants.iter().any(|want| want.event == got.event && want.flags == got.flags);
    let rule = if moved && got.event == event::PAGEFAULT { F_EVENT_ADDR } else { F_NO_EVENT };
    let at = match got.at {
        Spot::In(place) if got.event != event::FORK => Some(place),
        _ => None,
    };
    // Mapped once, and unmapped by D-09.
    let vma = at.and_then(|place| w.vma_at(ProcId(0), place.addr()));
    let again = vma.is_some_and(|vma| w.head_punched(vma)) && got.flags & event::FLAG_MINOR != 0;
    let again = if again { ":head-punched" } else { "" };
    let class = format!("extra:{}{again}", event_name(got.event, got.flags));
    let broken = cx.broken(rule, &class, "no such event", events_text(&cx.obs.events));
    let FaultSeen { uffd, event, flags, .. } = *got;
    Err(broken.expecting(Expectation::Event { uffd, event, flags, at, on: false }))
}

/// Did the fault of a base page of a huge one that may be mapped in pieces come with the address
/// of another of its base pages?
fn elsewhere_in_page(w: &World, want: &ExpectedEvent, seen: &[FaultSeen]) -> bool {
    let Some(vma) = w.vma_at(ProcId(0), want.at.addr()).filter(|v| v.flags.hgm) else {
        return false;
    };
    let page = vma.unit_addr(want.at.addr());
    let inside = |spot: Spot| matches!(spot, Spot::In(at) if vma.unit_addr(at.addr()) == page);
    want.event == event::PAGEFAULT
        && seen
            .iter()
            .any(|got| (got.event, got.flags) == (want.event, want.flags) && inside(got.at))
}

/// madvise removes mapping by mapping, and whether neighbours of equal attributes are one mapping
/// is the kernel's choice (V-030): several expected REMOVE events count as the one that was seen
/// of their whole range.
fn removals_as_seen(w: &World, seen: &[FaultSeen]) -> Vec<ExpectedEvent> {
    let mut wants: Vec<ExpectedEvent> = Vec::new();
    for next in &w.expected_events {
        let joins = |last: &ExpectedEvent| {
            let (start, end) = (last.at.addr(), next.at.addr() + next.len);
            let adjoins = (last.uffd, last.event, last.at.addr() + last.len)
                == (next.uffd, event::REMOVE, next.at.addr())
                && next.event == event::REMOVE;
            if !adjoins || w.span(ProcId(0), start, end).is_none() {
                return None;
            }
            let whole = ExpectedEvent { len: end - start, ..*last };
            let wider = |got: &FaultSeen| {
                let same = ExpectedEvent { len: got.len, ..*last };
                same_event(&same, got) && got.len >= whole.len
            };
            let one = seen.iter().any(wider);
            one.then_some(whole)
        };
        match wants.last().and_then(joins) {
            Some(whole) => {
                wants.pop();
                wants.push(whole);
            }
            None => wants.push(*next),
        }
    }
    wants
}

fn same_event(want: &ExpectedEvent, got: &FaultSeen) -> bool {
    let at = |spot: Spot, place: Place| spot == Spot::In(place);
    want.uffd == got.uffd
        && want.event == got.event
        && want.flags == got.flags
        && (want.event == event::FORK || at(got.at, want.at))
        && (want.event != event::REMAP || got.to == want.to)
        && (want.event == event::PAGEFAULT || want.event == event::FORK || len_fits(want, got))
}

/// A move that also shrinks or grows tells the old length or the moved one: the manual's "original
/// length" leaves both.
fn len_fits(want: &ExpectedEvent, got: &FaultSeen) -> bool {
    want.len == got.len || (want.event == event::REMAP && got.len != 0)
}

fn event_name(code: u8, flags: u8) -> String {
    match code {
        event::PAGEFAULT if flags & event::FLAG_WP != 0 => "wp fault".into(),
        event::PAGEFAULT if flags & event::FLAG_MINOR != 0 => "minor fault".into(),
        event::PAGEFAULT => "missing fault".into(),
        event::FORK => "fork".into(),
        event::REMAP => "remap".into(),
        event::REMOVE => "remove".into(),
        event::UNMAP => "unmap".into(),
        _ => "unknown event".into(),
    }
}

fn events_text(events: &[FaultSeen]) -> String {
    if events.is_empty() {
        return "no events".into();
    }
    let one = |e: &FaultSeen| match e.at {
        Spot::In(place) => format!("{} at {place}", event_name(e.event, e.flags)),
        Spot::Outside(_) => event_name(e.event, e.flags),
    };
    let shown: Vec<String> = events.iter().take(8).map(one).collect();
    format!("{} events: {}", events.len(), shown.join(", "))
}

/// After the teardown everything is as before the program, poison aside.
fn leaks(w: &World, cx: &Cx<'_>, before: &Counters, after: &Counters) -> Out {
    let pools = [
        (PageSize::Huge2M, before.pool_2m, after.pool_2m),
        (PageSize::Huge1G, before.pool_1g, after.pool_1g),
    ];
    for (page, before, after) in pools {
        if before != after && !w.pool_state(page).witness {
            let size = case::PageSize::word(page);
            let (want, got) = (format!("{size} {before:?}"), format!("{after:?}"));
            let class = leak_class(before, after) + divided(w);
            let broken = cx.broken(O_LEAK, &class, want, got);
            return Err(broken.expecting(Expectation::NoLeak { page }));
        }
    }
    let nodes: i64 = after.nodes_2m.iter().map(|p| p.total).sum();
    if !after.nodes_2m.is_empty() && nodes != after.pool_2m.total {
        let want = format!("sum of nodes {}", after.pool_2m.total);
        return Err(cx.broken(O_POOL_SANE, "node-sum", want, format!("{nodes}")));
    }
    let grown = (after.hwcorrupted_kb - before.hwcorrupted_kb) / 4;
    let (low, high) = w.hw_pages;
    if w.blurred.is_none() && !(low..=high).contains(&grown) {
        let want = format!("{low}..={high} pages more in HardwareCorrupted");
        let broken = cx.broken(O_HWPOISON, "count", want, format!("{grown}"));
        return Err(broken.expecting(Expectation::Corrupted { low, high }));
    }
    Ok(())
}

fn divided(w: &World) -> &'static str {
    if w.reserve_divided { ":divided" } else { "" }
}

fn leak_class(before: Pool, after: Pool) -> String {
    let parts = [
        ("total", before.total, after.total),
        ("free", before.free, after.free),
        ("rsvd", before.rsvd, after.rsvd),
        ("surp", before.surp, after.surp),
    ];
    let sign = |b: i64, a: i64| if a > b { '+' } else { '-' };
    let names = parts.iter().filter(|(_, b, a)| b != a);
    names.map(|(n, b, a)| format!("{}{n}", sign(*b, *a))).collect()
}

/// What an op that is not followed any more may mean for the check of leaks at the end.
fn unfollowed(w: &mut World, op: &Op) {
    use case::Advice;
    match op {
        // A poisoned huge page leaves its pool for good.
        Op::Madvise { advice: Advice::HwPoison | Advice::SoftOffline, .. } => {
            for page in [PageSize::Huge2M, PageSize::Huge1G] {
                w.pool_state_mut(page).witness = true;
            }
        }
        Op::Mremap { .. } => w.reserve_divided = true,
        _ => {}
    }
}

/// The place an op is about, for feedback.
fn place_of(op: &Op) -> Option<Place> {
    match op {
        Op::Mmap { at, .. }
        | Op::Munmap { at, .. }
        | Op::Mremap { at, .. }
        | Op::Mprotect { at, .. }
        | Op::Mlock { at, .. }
        | Op::Munlock { at, .. }
        | Op::Madvise { at, .. }
        | Op::Register { at, .. }
        | Op::Unregister { at, .. }
        | Op::Continue { at, .. }
        | Op::Copy { at, .. }
        | Op::Zeropage { at, .. }
        | Op::WriteProtect { at, .. }
        | Op::UffdPoison { at, .. }
        | Op::Wake { at, .. }
        | Op::Read { at, .. }
        | Op::Write { at, .. }
        | Op::MovePages { at, .. }
        | Op::Mbind { at, .. }
        | Op::VmRead { at, .. }
        | Op::Vmsplice { at, .. }
        | Op::DirectIo { at, .. }
        | Op::Pin { at, .. }
        | Op::GupTest { at, .. }
        | Op::Unpoison { at }
        | Op::Observe { at, .. } => Some(*at),
        _ => None,
    }
}

/// Mapping state at a place, for feedback: entry class, modes, neighbours in other processes.
/// What an op meets, and leaves, at the place it names.
struct Met {
    /// The sort of the entry; "unmapped" if there is no mapping.
    sort: String,
    /// Everything else that counts as another state, with a slash before each part.
    rest: String,
}

impl Met {
    fn whole(&self) -> String {
        format!("{}{}", self.sort, self.rest)
    }
}

fn state_class(w: &World, proc: ProcId, place: Place) -> Met {
    let Some(vma) = w.vma_at(proc, place.addr()) else {
        return Met { sort: "unmapped".into(), rest: String::new() };
    };
    let (unit, entry) = w.slot(proc, vma, place.addr());
    let sort = views::node_class(w, proc, vma, unit, entry);
    let modes = vma.uffd.map(|(_, m)| m.0).unwrap_or(0);
    let maps = match entry.map(|e| e.slot) {
        Some(Slot::Page(b)) => w.mapcount(b).min(3),
        _ => 0,
    };
    let part = if place.off.is_multiple_of(vma.unit_bytes()) { "whole" } else { "inside" };
    let f = &vma.flags;
    let bits = [f.locked, f.hugepage, f.nohugepage, f.dontfork, f.wipeonfork, vma.starved];
    let mut flags: String = bits.iter().map(|b| if *b { '1' } else { '0' }).collect();
    if f.hgm {
        flags.push_str("hm");
    }
    let child = u8::from(proc.0 != 0);
    let rest = format!("/{}/{modes}/{maps}/{part}/{flags}/{child}", vma.prot.0);
    Met { sort, rest }
}

/// FNV-1a over the parts: stable over runs and versions.
fn hash(parts: &[&str]) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|p| p.bytes().chain([0xff])) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    h
}
