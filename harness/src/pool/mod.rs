//! VM threads: one thread owns one VM, keeps a few programs outstanding in it, judges what comes
//! back and reports to the dispatcher in closed [`Event`]s. Threads share nothing but channels,
//! one stop word and the golden VM they clone. Never here: choosing programs, counting, saving.

mod calibrate;
mod cradle;
mod live;
mod replay;
#[cfg(test)]
mod tests;
mod worker;

use crate::triage::{Cause, Judged, Sighting};
use case::cover::Ranges;
use case::link::{Canary, Look};
use case::{Profile, Program};
pub use cradle::Cradle;
use oracles::known::Known;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm::VmSpec;
use worker::Worker;

/// Events a dispatcher may leave unread before VM threads wait for it.
const EVENTS_AHEAD: usize = 256;
/// How long a VM thread waits for one message before it looks at orders and clocks again.
const TICK: Duration = Duration::from_millis(20);

/// How far a stop has been asked for.
pub mod stop {
    pub const RUN: u8 = 0;
    /// Finish what is outstanding.
    pub const DRAIN: u8 = 1;
    /// Kill the VMs.
    pub const NOW: u8 = 2;
}

/// Who counts executed kernel text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counter {
    /// A plugin of QEMU's TCG, on any kernel (`VmSpec::cover` is set).
    Plugin,
    /// The kernel itself, if it was built so.
    Kcov,
}

/// What every VM of a pool has in common.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// `dir` is the pool's folder; each VM gets a folder below it.
    pub vm: VmSpec,
    pub look: Look,
    pub op_timeout: Duration,
    /// Programs outstanding in one VM.
    pub depth: usize,
    /// Programs until a VM is replaced.
    pub programs_max: u32,
    /// Whether the first violation of each signature costs the VM, or only leaks and reports do.
    pub replace_on_violation: bool,
    pub known: Arc<Known>,
    pub cradle: Arc<Cradle>,
    /// Who counts, and the text that counts.
    pub cover: Option<(Counter, Arc<Ranges>)>,
}

impl PoolSpec {
    /// Silence that means the guest hangs. The agent breaks off single ops and whole programs
    /// itself; only a guest that no longer schedules the agent stays silent for longer.
    pub fn silence(&self) -> Duration {
        self.op_timeout * 6 + Duration::from_secs(20)
    }

    /// Programs the guest holds at a time. The plugin cannot tell programs apart: its counters are
    /// looked at while nothing runs, so there the next one is sent after the look.
    fn in_guest(&self) -> usize {
        match self.cover {
            Some((Counter::Plugin, _)) => 1,
            _ => self.depth,
        }
    }
}

/// One program to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The dispatcher's number.
    pub ticket: u64,
    /// Another kernel has run it before: the number is one of the checks, not of the engine.
    pub check: bool,
    pub program: Program,
    pub fresh: bool,
    pub canary: Option<Canary>,
}

/// A replay in fresh children, in a VM booted for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// The dispatcher's number.
    pub key: u64,
    pub program: Program,
    /// Signature that must show; `None` = anything that is not known.
    pub signature: Option<String>,
    pub times: u32,
}

/// Dispatcher to VM thread.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    Run(Job),
    Replay(Replay),
    /// Kills the guest for real, from inside.
    #[cfg(test)]
    Sabotage(case::link::Sabotage),
    /// Says something to the guest that no campaign does.
    #[cfg(test)]
    Tell(case::link::ToGuest),
}

/// A finished program.
#[derive(Clone, Debug)]
pub struct Done {
    pub slot: usize,
    pub job: Job,
    pub judged: Judged,
    /// Cells of kernel text it executed, ascending; empty where nothing counts.
    pub cells: Vec<u32>,
    /// Memory of its VM, where it was measured: not after every program.
    pub rss_kib: Option<u64>,
}

/// How a replay went.
#[derive(Clone, Debug)]
pub struct Replayed {
    pub slot: usize,
    pub replay: Replay,
    /// Replays in which the signature showed, of those that said anything.
    pub shown: u32,
    pub tried: u32,
    /// Evidence from the first that showed.
    pub evidence: Option<Sighting>,
    /// Other signatures that showed instead.
    pub others: BTreeSet<String>,
    /// The first sighting of each of them.
    pub instead: Vec<Sighting>,
    /// The kernel does not offer what some op needs.
    pub lacking: bool,
    /// Last reason for a replay that said nothing.
    pub void: Option<String>,
}

/// VM thread to dispatcher.
#[derive(Clone, Debug)]
pub enum Event {
    /// About the making of VMs: a line for the user.
    Note(String),
    Booted {
        slot: usize,
        /// A clone of the golden VM.
        cloned: bool,
        profile: Box<Profile>,
        ready: Duration,
        rss_kib: u64,
        pid: u32,
        /// Cells that are executed by a guest that does next to nothing; of a thread's first VM.
        idle: Vec<u32>,
    },
    BootFailed {
        slot: usize,
        why: String,
        failures: u32,
        pause: Duration,
    },
    Done(Box<Done>),
    /// A kernel report that came while, or just after, this program ran.
    Console {
        slot: usize,
        job: Job,
        sighting: Box<Sighting>,
    },
    /// The guest died. `job` is the program that was executing, if any.
    Died {
        slot: usize,
        job: Option<Job>,
        cause: Cause,
    },
    /// Sent but never run: their VM went away.
    Lost {
        slot: usize,
        jobs: Vec<Job>,
    },
    Replayed(Box<Replayed>),
    Stopped {
        slot: usize,
    },
}

/// All VM threads.
#[derive(Debug)]
pub struct Pool {
    pub events: Receiver<Event>,
    orders: Vec<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicU8>,
}

impl Pool {
    /// Starts `slots` threads; each starts its VM at once.
    pub fn start(spec: &PoolSpec, slots: usize) -> std::io::Result<Pool> {
        Pool::start_tiers(&[(spec, slots)])
    }

    /// Starts the slots of each specification, numbered through.
    pub fn start_tiers(tiers: &[(&PoolSpec, usize)]) -> std::io::Result<Pool> {
        let (event_tx, events) = std::sync::mpsc::sync_channel(EVENTS_AHEAD);
        let stop = Arc::new(AtomicU8::new(stop::RUN));
        let mut pool = Pool { events, orders: Vec::new(), threads: Vec::new(), stop: stop.clone() };
        let slots = tiers.iter().flat_map(|(spec, slots)| std::iter::repeat_n(*spec, *slots));
        for (slot, spec) in slots.enumerate() {
            let (tx, rx) = std::sync::mpsc::channel();
            let worker = Worker::new(slot, spec, rx, event_tx.clone(), stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vm{slot}"))
                .spawn(move || worker.run())?;
            pool.orders.push(tx);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Never blocks. An order to a thread that ended is dropped; its `Stopped` tells.
    pub fn order(&self, slot: usize, order: Order) {
        if let Some(orders) = self.orders.get(slot) {
            let _ = orders.send(order);
        }
    }

    /// Asks all threads to stop, see [`stop`].
    pub fn stop(&self, how: u8) {
        self.stop.fetch_max(how, Ordering::SeqCst);
    }

    /// Kills all VMs and waits for the threads, at most `limit`. Events still unread are dropped.
    pub fn close(mut self, limit: Duration) {
        self.stop(stop::NOW);
        self.orders.clear();
        let end = Instant::now() + limit;
        while Instant::now() < end && self.threads.iter().any(|t| !t.is_finished()) {
            let _ = self.events.recv_timeout(TICK);
        }
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}
