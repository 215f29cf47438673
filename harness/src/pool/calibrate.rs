//! What a guest executes while it does next to nothing: its clock, its agent, its idle threads.
//! Measured once per VM thread, so that it is never taken for the doing of a program.

use super::live::Live;
use super::worker::{Worker, request};
use super::{Counter, Job, TICK};
use case::link::{FromGuest, ToGuest};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A program that does as little as a program can.
const IDLE: &str = "hgm 1\nmmap at=r0 len=4K\n";
/// Runs of it, every other one in a child of its own.
const RUNS: u64 = 6;
/// Time without any program.
const SLEEP: Duration = Duration::from_millis(500);
/// Time for one run.
const PATIENCE: Duration = Duration::from_secs(30);

impl Worker {
    /// Cells an idle guest executes; empty after the first call, and where nothing counts. A guest
    /// that dies of it is found dead by whoever uses it next.
    pub(super) fn calibrate(&mut self, live: &mut Live) -> Vec<u32> {
        let Some((counter, ranges)) = &self.spec.cover else { return Vec::new() };
        let cover = ToGuest::Cover((**ranges).clone());
        if *counter == Counter::Kcov && live.vm.send(&cover).is_err() {
            return Vec::new();
        }
        // The boot is nobody's doing.
        live.vm.covered();
        let first = !std::mem::replace(&mut self.calibrated, true);
        let Some(program) = case::text::parse(IDLE).ok().filter(|_| first) else {
            return Vec::new();
        };
        let mut idle = BTreeSet::new();
        for run in 0..RUNS {
            let fresh = run % 2 == 1;
            let job =
                Job { ticket: 0, program: program.clone(), fresh, check: false, canary: None };
            let request = request(&self.spec, live.next_id, &job);
            live.next_id += 1;
            if live.vm.send(&ToGuest::Run(request)).is_err() || !finish(live) {
                break;
            }
            idle.extend(live.covered(Some(*counter)));
        }
        std::thread::sleep(SLEEP);
        idle.extend(live.covered(Some(*counter)));
        live.heard = Instant::now();
        idle.into_iter().collect()
    }
}

/// Waits for the end of the one run outstanding.
fn finish(live: &mut Live) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match live.vm.recv(TICK) {
            Ok(Some(FromGuest::Done { .. })) => return true,
            Ok(Some(FromGuest::Covered { cells, .. })) => live.kcov = cells,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}
