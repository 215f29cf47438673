//! Where the programs of a shrink are replayed: in VMs of this machine, or on those that work at a
//! hub. Never here: which programs, and what their replays mean.

use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::{Event, Order, Pool, Replay};
use crate::term::clean_str;
use crate::work::asker::Asker;
use crate::work::replays::{Replays, Sum};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use vmimages::Kernel;

/// Boots that fail in a row until there is no use in trying.
const BOOTS_MAX: u32 = 3;
/// Programs that are out at a time at a hub: who works there, and how many, nobody knows.
const OUT: usize = 8;

/// See the module's head.
pub trait Place {
    /// Replays that may be out at a time.
    fn width(&self) -> usize;
    /// Begins a replay; there must be room for it.
    fn order(&mut self, replay: Replay) -> Result<(), ExpectedError>;
    /// The key of one that ended, and what it came to; waits for a moment.
    fn next(&mut self, ctx: &Context) -> Result<Option<(u64, Sum)>, ExpectedError>;
    fn close(self: Box<Self>);
}

/// VMs of this machine.
pub struct Here {
    pool: Pool,
    slots: usize,
    free: Vec<usize>,
}

impl Here {
    pub fn new(pool: Pool, slots: usize) -> Here {
        Here { pool, slots, free: (0..slots).rev().collect() }
    }
}

impl Place for Here {
    fn width(&self) -> usize {
        self.slots
    }

    fn order(&mut self, replay: Replay) -> Result<(), ExpectedError> {
        if let Some(slot) = self.free.pop() {
            self.pool.order(slot, Order::Replay(replay));
        }
        Ok(())
    }

    fn next(&mut self, ctx: &Context) -> Result<Option<(u64, Sum)>, ExpectedError> {
        match self.pool.events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Replayed(seen)) => {
                self.free.push(seen.slot);
                Ok(Some((seen.replay.key, Sum::of(*seen))))
            }
            Ok(Event::BootFailed { why, failures, .. }) if failures >= BOOTS_MAX => {
                Err(ExpectedError::infrastructure("no VM boots", "try hgm doctor").cause(why))
            }
            Ok(Event::Note(line)) => {
                ctx.term.note(&clean_str(&line));
                Ok(None)
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(ExpectedError::infrastructure("every VM thread ended", "try hgm doctor"))
            }
        }
    }

    fn close(self: Box<Self>) {
        self.pool.close(Duration::from_secs(5));
    }
}

/// Machines that work at a hub.
pub struct There {
    replays: Replays,
    /// Answers that were not taken yet.
    seen: Vec<(u64, Sum)>,
}

impl There {
    pub fn new(ctx: &Context, kernel: &Kernel) -> Result<There, ExpectedError> {
        Ok(There { replays: Replays::new(Asker::new(ctx, kernel)?), seen: Vec::new() })
    }
}

impl Place for There {
    fn width(&self) -> usize {
        OUT
    }

    fn order(&mut self, replay: Replay) -> Result<(), ExpectedError> {
        let Replay { key, program, signature, times } = replay;
        self.replays.ask(key, &program, signature, times)
    }

    fn next(&mut self, ctx: &Context) -> Result<Option<(u64, Sum)>, ExpectedError> {
        if self.seen.is_empty() {
            self.seen = self.replays.done(ctx)?;
        }
        Ok(self.seen.pop())
    }

    fn close(self: Box<Self>) {
        self.replays.end();
    }
}
