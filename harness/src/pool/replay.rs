//! Replays: one program again and again in fresh children, in a VM booted for it.

use super::live::Live;
use super::worker::{Gone, Worker, request};
use super::{Event, Job, Replay, Replayed, TICK, stop};
use crate::triage::{self, Cause, Sighting};
use case::Program;
use case::link::{FromGuest, ToGuest};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vm::{Death, DeathKind};

/// What one replay gave.
struct Showing {
    sightings: Vec<Sighting>,
    /// Some op was not issued for lack of a kernel's feature.
    lacking: bool,
}

impl Worker {
    /// Runs one program again and again, each time in a fresh child, first in a fresh VM; a VM
    /// that showed anything is not used again.
    pub(super) fn replay(&mut self, replay: Replay) -> Result<(), Gone> {
        if self.live.as_ref().is_some_and(|live| live.ran > 0) {
            self.drop_vm()?;
        }
        let mut result = Replayed {
            slot: self.slot,
            shown: 0,
            tried: 0,
            evidence: None,
            others: BTreeSet::new(),
            instead: Vec::new(),
            lacking: false,
            void: None,
            replay,
        };
        let patience = triage::patience(result.replay.signature.as_deref());
        for _ in 0..result.replay.times {
            while self.live.is_none() {
                if self.stopping() != stop::RUN {
                    return self.tell(Event::Replayed(Box::new(result)));
                }
                if !self.boot()? && self.failures >= 3 {
                    result.void = Some("no VM would boot for it".into());
                    return self.tell(Event::Replayed(Box::new(result)));
                }
            }
            let seen = self.replay_once(&result.replay.program, patience);
            result.count(seen);
            if result.tainted() {
                self.live = None;
            }
        }
        if let Some(live) = &mut self.live {
            // What the replays executed is no other program's.
            live.vm.covered();
            live.kcov.clear();
        }
        self.tell(Event::Replayed(Box::new(result)))
    }

    /// What one replay gave, or why it says nothing.
    fn replay_once(&mut self, program: &Program, patience: u32) -> Result<Showing, String> {
        let silence = self.spec.silence() * patience;
        let Some(live) = &mut self.live else { return Err("no VM".into()) };
        let id = live.next_id;
        live.next_id += 1;
        live.ran += 1;
        let job =
            Job { ticket: 0, program: program.clone(), fresh: true, check: false, canary: None };
        let mut request = request(&self.spec, id, &job);
        request.op_timeout_ms *= patience;
        live.heard = Instant::now();
        let mut sent = live.vm.send(&ToGuest::Run(request));
        loop {
            let message = match sent.and_then(|()| live.vm.recv(TICK)) {
                Ok(message) => message,
                Err(death) => return live.replay_death(&death),
            };
            sent = Ok(());
            let silent = live.is_silent(silence);
            match message {
                Some(FromGuest::Done { id: got, outcome }) if got == id => {
                    let judged = triage::judge(program, outcome, &live.profile, &self.spec.known);
                    let mut sightings = judged.sightings;
                    std::thread::sleep(TICK);
                    sightings.extend(live.read_console(&job).into_iter().map(|(_, s)| s));
                    return match judged.inconclusive {
                        Some(why) if sightings.is_empty() => Err(why),
                        _ => Ok(Showing { sightings, lacking: judged.lacking }),
                    };
                }
                _ if silent => {
                    let death =
                        Death { kind: DeathKind::Silent, executing: None, console: Vec::new() };
                    return live.replay_death(&death);
                }
                _ if self.stop.load(Ordering::SeqCst) == stop::NOW => {
                    return Err("stopped".into());
                }
                _ => {}
            }
        }
    }
}

impl Replayed {
    fn count(&mut self, seen: Result<Showing, String>) {
        let seen = match seen {
            Ok(Showing { sightings, lacking }) => {
                self.lacking |= lacking;
                sightings
            }
            Err(why) => {
                self.void = Some(why);
                return;
            }
        };
        self.tried += 1;
        let wanted = |s: &Sighting| match &self.replay.signature {
            Some(signature) => triage::same_fault(&s.signature, signature),
            None => s.known.is_none(),
        };
        if let Some(hit) = seen.iter().find(|s| wanted(s)) {
            self.shown += 1;
            self.evidence.get_or_insert_with(|| hit.clone());
        }
        let others: Vec<Sighting> = seen.iter().filter(|s| !wanted(s)).cloned().collect();
        for other in others {
            if self.others.insert(other.signature.clone()) {
                self.instead.push(other);
            }
        }
    }

    /// Whether the VM may be spoilt for the next replay. A leak is not: each run is measured
    /// against the counters it started from.
    fn tainted(&self) -> bool {
        let grave = self.evidence.as_ref().is_some_and(|e| e.source != case::Source::Oracle);
        grave || self.void.is_some() || !self.others.is_empty()
    }
}

impl Live {
    fn replay_death(&mut self, death: &Death) -> Result<Showing, String> {
        match self.autopsy(death).0 {
            Cause::Guest(sighting) => Ok(Showing { sightings: vec![*sighting], lacking: false }),
            Cause::Host(why) => Err(why),
        }
    }
}
