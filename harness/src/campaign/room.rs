//! Room on the disk: what a full disk refused is done again when there is room, so a campaign waits
//! instead of ending. Never here: what is written.

use crate::signals::Signals;
use crate::term::{Term, clean_str};
use std::time::{Duration, Instant};

/// So long is waited for room.
const PATIENCE: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_millis(500);

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    pub term: &'a Term,
    /// Who wants to end is not made to wait.
    pub signals: &'a Signals,
}

impl Room<'_> {
    /// Does `work`, again and again while the disk is full. It must be whole or not at all.
    pub fn until_done<T>(&self, mut work: impl FnMut() -> store::Result<T>) -> store::Result<T> {
        let mut full: Option<Instant> = None;
        loop {
            let done = work();
            let since = match (&done, full) {
                (Err(error), since) if error.is_full_disk() => since.unwrap_or_else(|| {
                    let (what, _, help) = error.parts();
                    let what = format!("{what}: the campaign waits for room");
                    self.term.warn(&clean_str(&what), &clean_str(&help));
                    Instant::now()
                }),
                (_, Some(since)) => {
                    let seconds = since.elapsed().as_secs();
                    self.term.note(&format!("there is room again after {seconds} s"));
                    return done;
                }
                (_, None) => return done,
            };
            if since.elapsed() >= PATIENCE || self.signals.count() > 0 {
                return done;
            }
            full = Some(since);
            std::thread::sleep(AGAIN);
        }
    }
}
