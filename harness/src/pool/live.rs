//! A running VM with its books: programs outstanding, console read so far, which program a kernel
//! report belongs to, and what the guest died of.

use super::{Counter, Job, TICK};
use crate::triage::{self, Cause, Sighting};
use case::Profile;
use oracles::console::{Report, Scanner};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};
use vm::{Death, DeathKind, Vm};

/// Ends of programs remembered, to say which one a console report belongs to.
const MARKS_MAX: usize = 512;
/// Time for the rest of a report to arrive after a guest died.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(300);
/// The same where the guest never stops talking.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);
/// Time for a silent guest to say where it hangs.
const NMI_WAIT: Duration = Duration::from_secs(2);

/// A running VM and what is outstanding in it.
pub(super) struct Live {
    pub(super) vm: Vm,
    pub(super) profile: Profile,
    pub(super) flight: VecDeque<(u64, Job)>,
    pub(super) next_id: u64,
    pub(super) ran: u32,
    /// When it last got on, and how far it was then.
    pub(super) heard: Instant,
    progress: u64,
    /// What KCOV saw of the run whose end is still to come.
    pub(super) kcov: Vec<u32>,
    scanner: Scanner,
    /// Console bytes before the first program.
    base: u64,
    /// Console bytes seen, up to where the scanner has read.
    scanned: u64,
    /// Bytes the scanner got: fewer than were seen where a flood was cut.
    fed: u64,
    /// Where in the scanner's stream each of the last programs ended.
    marks: VecDeque<(u64, Job)>,
    /// Signatures of this VM's reports. A kernel that goes on may say the same a thousand times.
    told: BTreeSet<String>,
}

impl Live {
    pub(super) fn new(vm: Vm, profile: Profile) -> Live {
        // What the kernel prints while it boots is not any program's doing.
        let scanned = vm.console_len();
        Live {
            vm,
            profile,
            flight: VecDeque::new(),
            next_id: 1,
            ran: 0,
            heard: Instant::now(),
            progress: 0,
            kcov: Vec::new(),
            scanner: Scanner::new(),
            base: scanned,
            scanned,
            fed: 0,
            marks: VecDeque::new(),
            told: BTreeSet::new(),
        }
    }

    /// Whether it has not got on with its programs for longer than `silence`, whatever else it says.
    pub(super) fn is_silent(&mut self, silence: Duration) -> bool {
        let progress = self.vm.progress();
        if progress != self.progress {
            self.progress = progress;
            self.heard = Instant::now();
        }
        self.heard.elapsed() > silence
    }

    /// Cells executed since the last call. Exact only while nothing runs, or right after a `Done`.
    pub(super) fn covered(&mut self, counter: Option<Counter>) -> Vec<u32> {
        match counter {
            Some(Counter::Plugin) => self.vm.covered(),
            Some(Counter::Kcov) => std::mem::take(&mut self.kcov),
            None => Vec::new(),
        }
    }

    fn feed(&mut self) -> Vec<Report> {
        let (bytes, end) = self.vm.console_read(self.scanned);
        self.scanned = end;
        self.fed += bytes.len() as u64;
        self.scanner.push(&bytes)
    }

    /// Reads what the console got since the last look; `job` has just ended.
    pub(super) fn read_console(&mut self, job: &Job) -> Vec<(Job, Sighting)> {
        let reports = self.feed();
        self.marks.push_back((self.fed, job.clone()));
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
        self.name_guilty(reports)
    }

    /// The program that ended last.
    pub(super) fn last_job(&self) -> Option<&Job> {
        self.marks.back().map(|(_, job)| job)
    }

    /// Reports that had no end yet.
    pub(super) fn last_reports(&mut self) -> Vec<(Job, Sighting)> {
        let mut reports = self.feed();
        if !self.told.is_empty() {
            // A kernel that reported may be at it again: half a report would be another one.
            reports.extend(self.hear_out());
        }
        reports.extend(std::mem::take(&mut self.scanner).finish());
        let named = self.name_guilty(reports);
        // The next scanner's stream starts here.
        (self.base, self.fed) = (self.scanned, 0);
        self.marks.clear();
        named
    }

    /// Each signature once, with the program that ended first after the report began.
    fn name_guilty(&mut self, reports: Vec<Report>) -> Vec<(Job, Sighting)> {
        if reports.is_empty() {
            return Vec::new();
        }
        let console = self.vm.console_since(self.base);
        let (marks, told) = (&self.marks, &mut self.told);
        let of = |report: &Report| {
            let job = marks.iter().find(|(end, _)| *end >= report.start);
            let (_, job) = job.or(marks.back())?;
            // What was planted must hide nothing that comes after it.
            let news = job.canary.is_some() || told.insert(report.signature.clone());
            news.then(|| (job.clone(), triage::of_console(report, &console)))
        };
        reports.iter().filter_map(of).collect()
    }

    /// Reads the console until it has been quiet for a while.
    fn hear_out(&mut self) -> Vec<Report> {
        let end = Instant::now() + LAST_WORDS_MAX;
        let (mut reports, mut quiet) = (Vec::new(), Instant::now());
        while quiet.elapsed() < LAST_WORDS && Instant::now() < end {
            std::thread::sleep(TICK);
            let scanned = self.scanned;
            reports.extend(self.feed());
            if self.scanned != scanned {
                quiet = Instant::now();
            }
        }
        reports
    }

    /// Reads the console for as long as `time`.
    fn listen_on(&mut self, time: Duration) -> Vec<Report> {
        let end = Instant::now() + time;
        let mut reports = self.feed();
        while Instant::now() < end {
            std::thread::sleep(TICK);
            reports.extend(self.feed());
        }
        reports
    }

    /// Why the guest died, and how many reports its console holds. A silent one is killed here.
    pub(super) fn autopsy(&mut self, death: &Death) -> (Cause, usize) {
        let silent = matches!(death.kind, DeathKind::Silent);
        let mut reports = self.listen_on(LAST_WORDS);
        let mut place = None;
        if silent && reports.is_empty() && self.vm.is_stopped() {
            self.vm.give_up();
            return (Cause::Host("QEMU was stopped by a signal".into()), 0);
        }
        if silent && reports.is_empty() {
            // An NMI makes the kernel print where it is. What it prints is an answer, no report.
            if self.vm.ask_where_it_hangs(NMI_WAIT) {
                let mut answer = self.listen_on(NMI_WAIT);
                answer.extend(std::mem::take(&mut self.scanner).finish());
                place = answer.into_iter().find_map(|report| report.guilty);
            }
            self.vm.give_up();
        }
        reports.extend(std::mem::take(&mut self.scanner).finish());
        let mut console = self.vm.console_since(self.base);
        if console.is_empty() {
            console.clone_from(&death.console);
        }
        let how = death.to_string();
        (triage::cause_of_death(&reports, &console, silent.then_some(place), &how), reports.len())
    }
}
