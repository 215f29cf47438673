//! Who does what others ask for: one VM a task at a time, leases renewed while a VM is at it, answers
//! delivered when the hub is there. A worker that is lost loses nothing: the hub gives what it held to
//! the next.

use super::{Answer, Question, Reply};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::{Event, Job, Order, Pool, Replay, Replayed};
use crate::signals::Signals;
use crate::term::clean_str;
use crate::triage::{Cause, Judged, Sighting};
use case::Program;
use hub::{Away, Due, Kind, Lease, Parcel, Scope, Work};
use serde_json::json;
use std::time::{Duration, Instant};

/// Boots that fail in a row until there is no use in trying.
const BOOTS_MAX: u32 = 3;
/// Holders that did not answer until a task is answered with that.
const LOST_MAX: u64 = 5;
/// A task that takes longer is no longer held: another worker may try.
const TASK_MAX: Duration = Duration::from_secs(15 * 60);
/// What the kernel says of a program may come so much later than its end.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause after a hub had nothing, or was away.
const PAUSE: Duration = Duration::from_millis(250);
/// Time between two words on how this machine does.
const STATUS: Duration = Duration::from_secs(5);
/// Time at the end for answers that are not delivered.
const FAREWELL: Duration = Duration::from_secs(5);

/// A task one VM is at.
struct Held {
    lease: Lease,
    question: Question,
    /// Number of the order; what comes of another is old.
    ticket: u64,
    since: Instant,
    /// What the kernel said when, or after, the program ended.
    after: Option<String>,
}

enum Slot {
    /// No VM was there yet.
    Down,
    Idle,
    Busy(Box<Held>),
    /// Answered but for what the kernel may still say.
    Settling(Box<Held>, Reply, Instant),
}

/// See the module's head.
pub struct Shift {
    pub hub: Box<dyn Work>,
    pub scope: Scope,
    pub machine: String,
    pub kernel: String,
    pool: Pool,
    slots: Vec<Slot>,
    family: Option<String>,
    /// Answers the hub does not have yet.
    answered: Vec<(Lease, Answer)>,
    tickets: u64,
    start: Instant,
    said: Option<Instant>,
    /// The hub is not asked for work before.
    ask: Instant,
    /// Whether the hub did what it was asked last, once it was asked.
    reached: Option<bool>,
    /// Answers that are there, and those somebody else had given before.
    pub done: u64,
    pub again: u64,
}

impl Shift {
    pub fn new(
        hub: Box<dyn Work>,
        scope: Scope,
        names: (String, String),
        pool: Pool,
        slots: usize,
    ) -> Shift {
        let now = Instant::now();
        Shift {
            hub,
            scope,
            machine: names.0,
            kernel: names.1,
            pool,
            slots: (0..slots).map(|_| Slot::Down).collect(),
            family: None,
            answered: Vec::new(),
            tickets: 0,
            start: now,
            said: None,
            ask: now,
            reached: None,
            done: 0,
            again: 0,
        }
    }

    /// Works until a signal comes, or until nothing is left to do after `limit`.
    pub fn work(
        &mut self,
        signals: &Signals,
        limit: Option<Duration>,
        ctx: &Context,
    ) -> Result<(), ExpectedError> {
        while signals.count() == 0 {
            let over = limit.is_some_and(|limit| self.start.elapsed() >= limit);
            let busy = |slot: &Slot| matches!(slot, Slot::Busy(_) | Slot::Settling(..));
            if over && self.answered.is_empty() && !self.slots.iter().any(busy) {
                break;
            }
            if !over {
                self.lease(ctx);
            }
            self.renew(ctx);
            if let Ok(event) = self.pool.events.recv_timeout(Duration::from_millis(20)) {
                self.take(event, ctx)?;
            }
            self.settle();
            self.deliver(ctx);
            self.say_how_it_goes(ctx);
        }
        Ok(())
    }

    /// Gives back what is not done, and delivers what is.
    pub fn end(mut self, ctx: &Context) -> (u64, u64, usize) {
        for slot in &mut self.slots {
            if let Slot::Busy(held) = std::mem::replace(slot, Slot::Down) {
                // If this does not get through, the lease ends by itself.
                let _ = self.hub.release(&held.lease);
            }
        }
        let end = Instant::now() + FAREWELL;
        while !self.answered.is_empty() && Instant::now() < end {
            self.deliver(ctx);
        }
        self.pool.close(Duration::from_secs(5));
        (self.done, self.again, self.answered.len())
    }

    fn lease(&mut self, ctx: &Context) {
        let idle: Vec<usize> =
            (0..self.slots.len()).filter(|at| matches!(self.slots[*at], Slot::Idle)).collect();
        if idle.is_empty() || Instant::now() < self.ask {
            return;
        }
        let leased = self.hub.lease(idle.len());
        let Some(leases) = self.heard(leased, ctx) else { return };
        if leases.len() < idle.len() {
            self.ask = Instant::now() + PAUSE;
        }
        for (slot, lease) in idle.into_iter().zip(leases) {
            self.begin(slot, lease);
        }
    }

    fn begin(&mut self, slot: usize, lease: Lease) {
        let (question, program) = match Question::read(lease.task.body()) {
            Ok(question) => question,
            Err(why) => {
                return self.void(lease, format!("not understood by this version: {why}"), false);
            }
        };
        if lease.lost >= LOST_MAX {
            let why = format!("{} workers had it and did not answer", lease.lost);
            return self.void(lease, why, false);
        }
        if let (Question::Regress { families, .. }, Some(own)) = (&question, &self.family)
            && !families.iter().any(|family| family == "*" || family == own)
        {
            let reply = Reply::Skipped { family: own.clone() };
            return self.reply(lease, reply);
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.pool.order(slot, order(&question, program, ticket));
        let since = Instant::now();
        let held = Held { lease, question, ticket, since, after: None };
        self.slots[slot] = Slot::Busy(Box::new(held));
    }

    fn void(&mut self, lease: Lease, why: String, again: bool) {
        let family = self.family.clone();
        self.reply(lease, Reply::Void { why, again, family });
    }

    fn reply(&mut self, lease: Lease, reply: Reply) {
        self.answered.push((lease, Answer { machine: self.machine.clone(), reply }));
    }

    /// Says that we are there, as long as a VM is at it: VM threads end what takes too long.
    fn renew(&mut self, ctx: &Context) {
        for at in 0..self.slots.len() {
            let (Slot::Busy(held) | Slot::Settling(held, ..)) = &self.slots[at] else { continue };
            let asked = Instant::now();
            if held.lease.due(asked) != Due::Renew || held.since.elapsed() >= TASK_MAX {
                continue;
            }
            let heard = self.hub.renew(&held.lease);
            if self.heard(heard, ctx).is_none() {
                return;
            }
            if let Slot::Busy(held) | Slot::Settling(held, ..) = &mut self.slots[at] {
                held.lease.renewed(asked);
            }
        }
    }

    fn take(&mut self, event: Event, ctx: &Context) -> Result<(), ExpectedError> {
        match event {
            Event::Note(line) => ctx.term.note(&clean_str(&line)),
            Event::Booted { slot, profile, .. } => {
                self.family.get_or_insert(profile.family().name().to_owned());
                if matches!(self.slots[slot], Slot::Down) {
                    self.slots[slot] = Slot::Idle;
                }
            }
            Event::BootFailed { slot, why, failures, .. } => {
                if failures >= BOOTS_MAX && self.family.is_none() {
                    let error = ExpectedError::infrastructure("no VM boots", "try hgm doctor");
                    return Err(error.cause(why));
                }
                ctx.term.warn(&clean_str(&format!("boot failed: {why}")), "trying again");
                if failures >= BOOTS_MAX
                    && matches!(self.slots[slot], Slot::Busy(_))
                    && let Slot::Busy(held) = std::mem::replace(&mut self.slots[slot], Slot::Down)
                {
                    // Somebody else may have more luck; the next boot makes this one idle again.
                    let _ = self.hub.release(&held.lease);
                }
            }
            Event::Done(done) => {
                let reply = self.judged(&done.judged);
                self.finish(done.slot, done.job.ticket, reply);
            }
            Event::Replayed(replayed) => {
                let (slot, ticket) = (replayed.slot, replayed.replay.key);
                self.finish(slot, ticket, verified(*replayed));
            }
            Event::Console { slot, job, sighting } => self.heard_after(slot, job.ticket, *sighting),
            Event::Died { slot, job: Some(job), cause: Cause::Guest(sighting) } => {
                let reply = self.seen(vec![sighting.signature]);
                self.finish(slot, job.ticket, reply);
            }
            Event::Died { slot, job: Some(job), cause: Cause::Host(why) } => {
                self.lost(slot, job.ticket, why);
            }
            Event::Lost { slot, jobs } => {
                for job in jobs {
                    self.lost(slot, job.ticket, "its VM went away".into());
                }
            }
            Event::Died { job: None, .. } | Event::Stopped { .. } => {}
        }
        Ok(())
    }

    fn judged(&self, judged: &Judged) -> Reply {
        let got: Vec<String> = judged.sightings.iter().map(Sighting::short).collect();
        match &judged.inconclusive {
            Some(why) if got.is_empty() => {
                let family = self.family.clone();
                Reply::Void { why: why.clone(), again: false, family }
            }
            _ => self.seen(got),
        }
    }

    fn seen(&self, got: Vec<String>) -> Reply {
        Reply::Regress { family: self.family.clone().unwrap_or_default(), got, after: None }
    }

    fn lost(&mut self, slot: usize, ticket: u64, why: String) {
        let reply = Reply::Void { why, again: true, family: self.family.clone() };
        self.finish(slot, ticket, reply);
    }

    fn finish(&mut self, slot: usize, ticket: u64, reply: Reply) {
        if !matches!(&self.slots[slot], Slot::Busy(held) if held.ticket == ticket) {
            return;
        }
        if let Slot::Busy(held) = std::mem::replace(&mut self.slots[slot], Slot::Idle) {
            self.slots[slot] = Slot::Settling(held, reply, Instant::now() + SETTLE);
        }
    }

    fn heard_after(&mut self, slot: usize, ticket: u64, sighting: Sighting) {
        if let Slot::Busy(held) | Slot::Settling(held, ..) = &mut self.slots[slot]
            && held.ticket == ticket
        {
            held.after.get_or_insert(sighting.signature);
        }
    }

    fn settle(&mut self) {
        for at in 0..self.slots.len() {
            if !matches!(&self.slots[at], Slot::Settling(_, _, end) if Instant::now() >= *end) {
                continue;
            }
            let settled = std::mem::replace(&mut self.slots[at], Slot::Idle);
            let Slot::Settling(held, mut reply, _) = settled else { continue };
            if let Reply::Regress { after, .. } = &mut reply {
                *after = held.after;
            }
            tracing::debug!(question = ?held.question, ?reply, "done");
            self.reply(held.lease, reply);
        }
    }

    fn deliver(&mut self, ctx: &Context) {
        while let Some((lease, answer)) = self.answered.first() {
            let told = self.hub.answer(lease, &answer.bytes());
            let Some(first) = self.heard(told, ctx) else {
                std::thread::sleep(PAUSE.min(Duration::from_millis(50)));
                return;
            };
            let (lease, answer) = self.answered.remove(0);
            if first {
                self.done += 1;
            } else {
                self.again += 1;
            }
            if ctx.json {
                ctx.term.json(&json!({
                    "task": lease.task.name(),
                    "reply": answer.reply,
                    "counted": first,
                }));
            }
        }
    }

    /// What was asked of the hub, if it did it. A loss and its end are said once.
    fn heard<T>(&mut self, told: Result<T, Away>, ctx: &Context) -> Option<T> {
        match told {
            Ok(done) => {
                if self.reached.replace(true) != Some(true) {
                    ctx.term.note("the hub is reached");
                }
                Some(done)
            }
            Err(away) => {
                // One that was not there yet is given a moment to be.
                let patient = self.reached.is_none() && self.start.elapsed() < STATUS;
                if !patient && self.reached.replace(false) != Some(false) {
                    let why = clean_str(&away.0);
                    ctx.term.note(&format!("the hub is away, it is tried again: {why}"));
                }
                self.ask = Instant::now() + PAUSE;
                None
            }
        }
    }

    fn say_how_it_goes(&mut self, ctx: &Context) {
        if self.said.is_some_and(|said| said.elapsed() < STATUS) || self.reached == Some(false) {
            return;
        }
        self.said = Some(Instant::now());
        let up = self.slots.iter().filter(|slot| !matches!(slot, Slot::Down)).count();
        let leases = self.slots.iter().filter(|slot| !matches!(slot, Slot::Down | Slot::Idle));
        let body = json!({
            "works": true,
            "leases": leases.count() + self.answered.len(),
            "kernel": self.kernel,
            "at": jiff::Timestamp::now().to_string(),
            "vms": up,
            "programs": self.done + self.again,
            "seconds": self.start.elapsed().as_secs(),
        });
        let body = body.to_string().into_bytes();
        if let Some(parcel) = Parcel::new(Kind::Status, &self.scope, &self.machine, body) {
            let told = self.hub.put(&parcel);
            if self.heard(told, ctx).is_none() {
                self.said = None;
            }
        }
    }
}

fn order(question: &Question, program: Program, ticket: u64) -> Order {
    match question {
        Question::Regress { .. } => {
            Order::Run(Job { ticket, program, fresh: true, check: false, canary: None })
        }
        Question::Verify { signature, times, .. } => {
            let (signature, times) = (signature.clone(), *times);
            Order::Replay(Replay { key: ticket, program, signature, times })
        }
    }
}

fn verified(replayed: Replayed) -> Reply {
    let shown = replayed.evidence.map(|seen| seen.signature);
    Reply::Verify {
        signature: shown.or(replayed.replay.signature),
        shown: replayed.shown,
        tried: replayed.tried,
        others: replayed.others.into_iter().collect(),
        void: replayed.void,
    }
}
