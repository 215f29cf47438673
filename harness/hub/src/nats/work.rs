//! Work at a nats-server: a stream each of tasks, of who holds them, and of answers, with one message a
//! subject at most. A lease is the message of a holder, which only who knows the number of the last
//! one can replace: so one of those who want it gets it, and one who lost it is told so. Time is the
//! observer's: who has heard nothing new of a holder for the length of a lease takes over.
//!
//! A work queue of the server would be less to do, but is not to be trusted in 2.9: after a kill, or
//! a purge of other subjects, its consumer leaves messages out.

use super::connect::Connection;
use super::{Lane, Nats, Taken, create, prefix, publish, stream};
use crate::work::{LEASE, Lease, Load, Task, Work};
use crate::{Away, Kind, Parcel, Scope};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config as StreamConfig, RawMessageErrorKind, Stream};
use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use futures_util::TryStreamExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

const TASKS: &str = "work";
const TASKS_BYTES: i64 = 1 << 30;
const HELD: &str = "held";
const HELD_BYTES: i64 = 64 << 20;
const ANSWERS: &str = "done";
const ANSWERS_BYTES: i64 = 256 << 20;
/// Nobody waits for longer for what he asked.
const AGE: Duration = Duration::from_secs(24 * 3600);
/// What a holder says who gives his task back.
const FREE: &[u8] = b"free";

/// What a worker knows of the tasks of its kernel.
pub(super) struct Desk {
    /// A word for us, of which nobody else has the like.
    us: String,
    /// Every worker tries tasks in an order of its own.
    order: RandomState,
    lanes: Option<[Lane; 3]>,
    tasks: BTreeMap<String, Task>,
    held: HashMap<String, Holder>,
    done: HashSet<String>,
    /// Connections made when this was learned.
    of: u64,
    /// Answers to a batch.
    answers: Option<(String, Lane)>,
}

/// The last word of a holder.
#[derive(Clone)]
struct Holder {
    /// Number of the message.
    sequence: u64,
    /// How many there were before.
    turn: u64,
    us: bool,
    free: bool,
    heard: Instant,
}

impl Default for Desk {
    fn default() -> Desk {
        let order = RandomState::new();
        let us = format!("{:016x}", order.hash_one(std::process::id()));
        let (tasks, held, done) = Default::default();
        Desk { us, order, lanes: None, tasks, held, done, of: 0, answers: None }
    }
}

fn kept(lane: &str, bytes: i64) -> StreamConfig {
    StreamConfig {
        storage: StorageType::File,
        max_bytes: bytes,
        max_age: AGE,
        max_messages_per_subject: 1,
        // What was asked is not dropped for what is asked now.
        discard: if lane == TASKS { DiscardPolicy::New } else { DiscardPolicy::Old },
        ..stream(lane)
    }
}

fn configs() -> [(&'static str, StreamConfig); 3] {
    [(TASKS, TASKS_BYTES), (HELD, HELD_BYTES), (ANSWERS, ANSWERS_BYTES)]
        .map(|(lane, bytes)| (lane, kept(lane, bytes)))
}

fn config(lane: &str) -> StreamConfig {
    let [(_, tasks), (_, held), (_, answers)] = configs();
    match lane {
        TASKS => tasks,
        HELD => held,
        _ => answers,
    }
}

fn away(error: impl std::fmt::Display) -> Away {
    Away(error.to_string())
}

fn subject(lane: &str, name: &str) -> String {
    format!("{}{name}", prefix(lane))
}

async fn open(context: &Context, lane: &str) -> Result<Stream, Away> {
    context.get_or_create_stream(config(lane)).await.map_err(away)
}

/// Number and body of the message of a name.
async fn last(context: &Context, lane: &str, name: &str) -> Result<Option<(u64, Vec<u8>)>, Away> {
    let stream = open(context, lane).await?;
    match stream.get_last_raw_message_by_subject(&subject(lane, name)).await {
        Ok(message) => Ok(Some((message.sequence, message.payload.to_vec()))),
        Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(away(error)),
    }
}

/// Takes the message of a name away; by its number, since a purge moves readers of other subjects.
async fn delete(context: &Context, lane: &str, name: &str) -> Result<(), Away> {
    if let Some((sequence, _)) = last(context, lane, name).await? {
        // Somebody else may have done it in between.
        let _ = open(context, lane).await?.delete_message(sequence).await;
    }
    Ok(())
}

impl Desk {
    /// Learns what was put up, taken and answered since the last time.
    async fn look(&mut self, link: &Connection, scope: &Scope) -> Result<(), Away> {
        let connection = link.made();
        if self.of != connection {
            // What was kept may be gone.
            (self.tasks, self.held, self.done) = Default::default();
            self.of = connection;
        }
        let filter = format!("{}.>", scope.as_str());
        let new = || configs().map(|(lane, config)| Lane::new(lane, &filter, config));
        let [tasks, held, answers] = self.lanes.get_or_insert_with(new);
        for taken in answers.all(&link.context, connection).await? {
            self.tasks.remove(&taken.name);
            self.held.remove(&taken.name);
            self.done.insert(taken.name);
        }
        for taken in tasks.all(&link.context, connection).await? {
            if !self.done.contains(&taken.name) {
                let task = Task::of_name(&taken.name, taken.body);
                self.tasks.extend(task.map(|task| (taken.name, task)));
            }
        }
        for taken in held.all(&link.context, connection).await? {
            if let Some(holder) = self.holder(&taken) {
                self.held.insert(taken.name, holder);
            }
        }
        Ok(())
    }

    fn holder(&self, taken: &Taken) -> Option<Holder> {
        let text = std::str::from_utf8(&taken.body).ok()?;
        let (turn, who) = text.split_once(' ')?;
        Some(Holder {
            sequence: taken.sequence,
            turn: turn.parse().ok()?,
            us: who == self.us,
            free: who.as_bytes() == FREE,
            heard: Instant::now(),
        })
    }

    /// Says that a task is ours, if the last word of a holder is the one we know. False if not.
    async fn hold(
        &mut self,
        context: &Context,
        name: &str,
        (after, turn): (u64, u64),
        who: &str,
    ) -> Result<bool, Away> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", after.to_string().as_str());
        let body = format!("{turn} {who}").into_bytes();
        let heard = Instant::now();
        let kept = publish(context, subject(HELD, name), headers, body, &config(HELD)).await?;
        if let Some(sequence) = kept {
            let (us, free) = (who == self.us, who.as_bytes() == FREE);
            self.held.insert(name.to_owned(), Holder { sequence, turn, us, free, heard });
        }
        Ok(kept.is_some())
    }

    async fn lease(
        &mut self,
        link: &Connection,
        scope: &Scope,
        most: usize,
    ) -> Result<Vec<Lease>, Away> {
        self.look(link, scope).await?;
        let mut leases = Vec::new();
        let ours = |holder: &Holder| holder.us && !holder.free;
        let open = |holder: &Holder| holder.free || holder.heard.elapsed() >= LEASE;
        let mut names: Vec<String> = self
            .tasks
            .keys()
            .filter(|name| self.held.get(*name).is_none_or(open))
            .cloned()
            .collect();
        names.sort_by_key(|name| self.order.hash_one(name));
        for name in names {
            if leases.len() >= most {
                break;
            }
            let known = self.held.get(&name);
            if known.is_some_and(|holder| ours(holder) && holder.heard.elapsed() < LEASE) {
                continue;
            }
            let (after, turn) = known.map_or((0, 1), |holder| (holder.sequence, holder.turn + 1));
            // It may have been taken back.
            if last(&link.context, TASKS, &name).await?.is_none() {
                self.tasks.remove(&name);
                continue;
            }
            let asked = Instant::now();
            let us = self.us.clone();
            if self.hold(&link.context, &name, (after, turn), &us).await?
                && let Some(task) = self.tasks.get(&name)
            {
                leases.push(Lease::new(task.clone(), turn - 1, turn, asked));
            }
        }
        Ok(leases)
    }

    /// Says one more word of ours, as a holder who stays or who goes.
    async fn say(&mut self, link: &Connection, lease: &Lease, who: &str) -> Result<(), Away> {
        let (name, lost) = (lease.task.name(), || Away("somebody else has it".into()));
        let known = self.held.get(&name).filter(|holder| holder.us && holder.turn == lease.turn);
        let after = known.ok_or_else(lost)?.sequence;
        if self.hold(&link.context, &name, (after, lease.turn), who).await? {
            return Ok(());
        }
        // A word of ours whose receipt was lost is ours all the same.
        let ours = format!("{} {}", lease.turn, self.us).into_bytes();
        match last(&link.context, HELD, &name).await? {
            Some((sequence, body)) if body == ours => {
                let again = self.hold(&link.context, &name, (sequence, lease.turn), who).await?;
                again.then_some(()).ok_or_else(lost)
            }
            _ => Err(lost()),
        }
    }
}

/// How many names there are of each scope, and all names.
async fn names(context: &Context, lane: &str, filter: &str) -> Result<Vec<String>, Away> {
    let stream = open(context, lane).await?;
    let told = stream.info_with_subjects(subject(lane, filter)).await.map_err(away)?;
    let named: Vec<(String, usize)> = told.try_collect().await.map_err(away)?;
    let name =
        |(subject, _): (String, usize)| subject.strip_prefix(&prefix(lane)).map(str::to_owned);
    Ok(named.into_iter().filter_map(name).collect())
}

impl Work for Nats {
    fn offer(&mut self, task: &Task) -> Result<(), Away> {
        self.link.is_up()?;
        let (name, body) = (task.name(), task.body().to_vec());
        // Of each connection, so that a task which was lost may be put up again at once.
        let id = format!("{name}.{}.{}", self.desk.us, self.link.made());
        let (context, config) = (&self.link.context, config(TASKS));
        let put = create(context, subject(TASKS, &name), &id, body, &config);
        self.link.runtime.block_on(put).map(drop)
    }

    fn lease(&mut self, most: usize) -> Result<Vec<Lease>, Away> {
        self.link.is_up()?;
        let Nats { link, scope, desk, .. } = self;
        let Some(scope) = scope else { return Ok(Vec::new()) };
        link.runtime.block_on(desk.lease(link, scope, most))
    }

    fn renew(&mut self, lease: &Lease) -> Result<(), Away> {
        self.link.is_up()?;
        let Nats { link, desk, .. } = self;
        let us = desk.us.clone();
        link.runtime.block_on(desk.say(link, lease, &us))
    }

    fn release(&mut self, lease: &Lease) -> Result<(), Away> {
        self.link.is_up()?;
        let Nats { link, desk, .. } = self;
        let free = String::from_utf8_lossy(FREE);
        link.runtime.block_on(desk.say(link, lease, &free))
    }

    fn answer(&mut self, lease: &Lease, body: &[u8]) -> Result<bool, Away> {
        self.link.is_up()?;
        let name = lease.task.name();
        let Nats { link, desk, .. } = self;
        let context = &link.context;
        let config = config(ANSWERS);
        let first = link.runtime.block_on(async {
            let first = create(context, subject(ANSWERS, &name), &name, body.to_vec(), &config);
            let first = first.await?;
            for lane in [TASKS, HELD] {
                // If this is lost, others see that it is answered.
                let _ = delete(context, lane, &name).await;
            }
            Ok(first)
        })?;
        desk.tasks.remove(&name);
        desk.held.remove(&name);
        desk.done.insert(name);
        Ok(first)
    }

    fn answers(&mut self, batch: &str) -> Result<Vec<(String, Vec<u8>)>, Away> {
        self.link.is_up()?;
        let Nats { link, scope, desk, .. } = self;
        let Some(scope) = scope else { return Ok(Vec::new()) };
        if desk.answers.as_ref().is_none_or(|(of, _)| of != batch) {
            let filter = format!("{}.{batch}.>", scope.as_str());
            desk.answers = Some((batch.to_owned(), Lane::new(ANSWERS, &filter, config(ANSWERS))));
        }
        let Some((_, lane)) = &mut desk.answers else { return Ok(Vec::new()) };
        let taken = link.runtime.block_on(lane.all(&link.context, link.made()))?;
        let task = |taken: Taken| {
            let task = Task::of_name(&taken.name, Vec::new())?;
            Some((task.id().to_owned(), taken.body))
        };
        Ok(taken.into_iter().filter_map(task).collect())
    }

    fn withdraw(&mut self, batch: &str) -> Result<(), Away> {
        self.link.is_up()?;
        let Nats { link, scope, .. } = self;
        let Some(scope) = scope else { return Ok(()) };
        let filter = format!("{}.{batch}.>", scope.as_str());
        link.runtime.block_on(async {
            for lane in [TASKS, HELD] {
                for name in names(&link.context, lane, &filter).await? {
                    delete(&link.context, lane, &name).await?;
                }
            }
            Ok(())
        })
    }

    fn statuses(&mut self) -> Result<Vec<Parcel>, Away> {
        self.link.is_up()?;
        let Nats { link, lanes, .. } = self;
        let lane = &mut lanes[Nats::lane(Kind::Status)];
        let taken = link.runtime.block_on(lane.all(&link.context, link.made()))?;
        Ok(taken.into_iter().filter_map(Taken::parcel).collect())
    }

    fn loads(&mut self) -> Result<BTreeMap<Scope, Load>, Away> {
        self.link.is_up()?;
        let context = &self.link.context;
        let told = async {
            let done: HashSet<String> = names(context, ANSWERS, ">").await?.into_iter().collect();
            let held: HashSet<String> = names(context, HELD, ">").await?.into_iter().collect();
            Ok((names(context, TASKS, ">").await?, held, done))
        };
        let (tasks, held, done) = self.link.runtime.block_on(told)?;
        let mut loads: BTreeMap<Scope, Load> = BTreeMap::new();
        let mut count = |name: &str, add: fn(&mut Load)| {
            let scope = name.split('.').next().and_then(Scope::new);
            scope.into_iter().for_each(|scope| add(loads.entry(scope).or_default()));
        };
        for name in tasks.iter().filter(|name| !done.contains(*name)) {
            match held.contains(name) {
                true => count(name, |load| load.held += 1),
                false => count(name, |load| load.open += 1),
            }
        }
        done.iter().for_each(|name| count(name, |load| load.done += 1));
        Ok(loads)
    }
}
