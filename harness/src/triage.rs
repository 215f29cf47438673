//! What a run amounts to: sightings of faults out of judged observations, console reports and
//! deaths, and the rule that a sighting counts only after it showed again. Pure but for the clock
//! that times the judge; boots nothing, saves nothing.

use case::link::RunOutcome;
use case::observation::{Skip, Status};
use case::{Finding, FindingState, Observation, Profile, Program, Source, Verdict, Violation};
use oracles::console::{Class, Report as ConsoleReport};
use oracles::known::Known;
use std::collections::BTreeSet;
use std::time::Instant;

/// Console bytes kept with a sighting.
pub const EXCERPT_BYTES: usize = 128 << 10;
/// As many of them at most are from before the report.
const BEFORE_BYTES: usize = 32 << 10;

/// The rule of what must be given back at the end of a program.
pub const RULE_LEAK: &str = "O-10";

/// Whether two signatures name one fault. Where a guest hangs differs from time to time.
pub fn same_fault(a: &str, b: &str) -> bool {
    a == b || (a.starts_with(HANG) && b.starts_with(HANG))
}

/// Whether a program that shows `now` may be kept as a smaller form of one that showed `found`. A hang
/// may come at another op; what a signal ends is no smaller form of what none ends.
pub fn may_stand_for(found: &str, now: &str) -> bool {
    let how = |hang: &str| Some(hang.strip_prefix(HANG)?.split_once('/')?.1.to_owned());
    found == now || how(found).is_some_and(|found| how(now) == Some(found))
}

/// First part of a hang's signature.
const HANG: &str = "hang/";

/// A fault seen once.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    pub signature: String,
    pub title: String,
    pub source: Source,
    /// Id in known.toml, if the kernel's deviation is listed there.
    pub known: Option<String>,
    pub violation: Option<Violation>,
    pub observation: Option<Observation>,
    pub console: Vec<u8>,
}

impl Sighting {
    /// `known:ID` of what is listed, else the signature.
    pub fn short(&self) -> String {
        self.known.as_ref().map_or_else(|| self.signature.clone(), |id| format!("known:{id}"))
    }
}

/// Everything a finished program gave, judged.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    pub sightings: Vec<Sighting>,
    /// Mapping states reached, for the feedback.
    pub states: BTreeSet<u64>,
    /// Op, sort of entry it met, sort it left; for the report.
    pub steps: Vec<(&'static str, String, String)>,
    /// Ops that ran.
    pub ops: u32,
    /// Of them, those that waited until they were broken off.
    pub waits: u32,
    /// Why nothing can be said, if so.
    pub inconclusive: Option<String>,
    /// The kernel does not offer what some op needs, so that op was not issued.
    pub lacking: bool,
    pub judge_nanos: u64,
    /// Guest time from first op to end of teardown.
    pub guest_nanos: u64,
}

impl Judged {
    fn void(why: String) -> Judged {
        Judged { inconclusive: Some(why), ..Judged::default() }
    }
    /// True if something showed that is not listed as known.
    pub fn has_news(&self) -> bool {
        self.sightings.iter().any(|s| s.known.is_none())
    }
}

fn of_violation(violation: Violation, known: Option<String>, seen: &Observation) -> Sighting {
    Sighting {
        signature: violation.signature(),
        title: format!("{} at {}: {}", violation.rule, violation.op, violation.class),
        source: Source::Oracle,
        known,
        violation: Some(violation),
        observation: Some(seen.clone()),
        console: Vec::new(),
    }
}

/// Judges what the guest sent for one program.
pub fn judge(program: &Program, outcome: RunOutcome, profile: &Profile, known: &Known) -> Judged {
    let seen = match outcome {
        RunOutcome::Finished(seen) => seen,
        RunOutcome::WorkerDied { signal, line } => {
            return Judged::void(format!("the child died of signal {signal} at line {line}"));
        }
        RunOutcome::WorkerHung { line, stuck, killed } => {
            let mut sighting = of_hang(program, line, stuck, killed);
            sighting.known = known_console(&sighting, profile, known);
            return Judged { sightings: vec![sighting], ..Judged::default() };
        }
        RunOutcome::Refused(why) => return Judged::void(format!("the agent refused it: {why}")),
    };
    let start = Instant::now();
    let report = oracles::judge::judge(program, &seen, profile, known);
    let judge_nanos = start.elapsed().as_nanos() as u64;
    let mut judged = Judged {
        states: report.states,
        steps: report.steps,
        ops: report.ops,
        judge_nanos,
        guest_nanos: seen.nanos,
        waits: seen.lines.iter().filter(|l| l.status == Status::Timeout).count() as u32,
        lacking: seen.lines.iter().any(|l| l.status == Status::Skipped(Skip::Unavailable)),
        ..Judged::default()
    };
    for (violation, id) in report.known {
        judged.sightings.push(of_violation(violation, Some(id), &seen));
    }
    match report.verdict {
        Verdict::Pass => {}
        Verdict::Inconclusive(why) => judged.inconclusive = Some(why),
        Verdict::Violation(violation) => {
            judged.sightings.push(of_violation(violation, None, &seen));
        }
    }
    judged
}

/// A program that did not end though its waits were broken off: signals were sent, events read and
/// userfaultfds closed, so what still runs or waits does so in the kernel. A busy machine does the
/// same, which is why a hang counts only after replays with more time ([`patience`]).
fn of_hang(program: &Program, line: u16, stuck: Vec<u8>, killed: bool) -> Sighting {
    let lines = program.each_line();
    let op = lines.get(usize::from(line)).map_or("end", |(_, _, op)| op.kind().spec().name);
    let how = if killed { "ends only when it is killed" } else { "cannot be killed" };
    Sighting {
        signature: oracles::known::hang_signature(program, line, killed),
        title: format!("{op} hangs and {how}"),
        source: Source::Hang,
        known: None,
        violation: None,
        observation: None,
        console: stuck,
    }
}

/// How many times the usual time a replay of this fault gets.
pub fn patience(signature: Option<&str>) -> u32 {
    if signature.is_some_and(|s| s.starts_with(HANG)) { 3 } else { 1 }
}

/// A console report as a sighting.
pub fn of_console(report: &ConsoleReport, console: &[u8]) -> Sighting {
    Sighting {
        signature: report.signature.clone(),
        title: report.title.clone(),
        source: Source::Console,
        known: None,
        violation: None,
        observation: None,
        console: excerpt(console, report.start as usize),
    }
}

/// The id of the listed deviation a console report or hang is an instance of.
pub fn known_console(sighting: &Sighting, profile: &Profile, known: &Known) -> Option<String> {
    let mut parts = sighting.signature.splitn(3, '/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    // The list speaks of `a/b/c`; rule, op and class of an oracle's violation, parts of a title's.
    let as_listed = Violation {
        rule: part(),
        op: part(),
        class: part(),
        line: 0,
        expected: String::new(),
        observed: String::new(),
        expectation: None,
    };
    known.find(profile, &as_listed).map(|deviation| deviation.id.clone())
}

/// What killed a guest, told from what the console says and how the link ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Cause {
    /// The kernel: a report, or silence.
    Guest(Box<Sighting>),
    /// QEMU, the link, or our own agent: nobody's fault but ours.
    Host(String),
}

/// Names the cause of a death. `silent` = nothing was heard for longer than any op may take, and
/// the function the guest said it hangs in, if it did.
pub fn cause_of_death(
    reports: &[ConsoleReport],
    console: &[u8],
    silent: Option<Option<String>>,
    how: &str,
) -> Cause {
    let kernel = reports.iter().find(|r| !is_our_init(r));
    if let Some(report) = kernel {
        return Cause::Guest(Box::new(of_console(report, console)));
    }
    if let Some(report) = reports.first() {
        return Cause::Host(format!("the agent ended: {}", report.title));
    }
    if let Some(place) = silent {
        let place = place.unwrap_or_else(|| "silent".into());
        return Cause::Guest(Box::new(Sighting {
            signature: format!("{HANG}guest/{place}"),
            title: format!("guest stopped answering ({place})"),
            source: Source::Hang,
            known: None,
            violation: None,
            observation: None,
            console: excerpt(console, console.len()),
        }));
    }
    Cause::Host(how.to_owned())
}

/// The panic a kernel ends in when its init, our agent, exits: no fault of the kernel.
fn is_our_init(report: &ConsoleReport) -> bool {
    report.class == Class::Panic && report.title.contains("kill init")
}

/// Whole lines around the one at `at`, up to the end if that is not too far: a guest may go on
/// talking for long after it reported.
fn excerpt(console: &[u8], at: usize) -> Vec<u8> {
    let last = console.len().saturating_sub(EXCERPT_BYTES);
    let start = at.saturating_sub(BEFORE_BYTES).min(last);
    let part = &console[start..console.len().min(start + EXCERPT_BYTES)];
    let cut = start > 0 && console[start - 1] != b'\n';
    let whole = part.iter().position(|&byte| byte == b'\n').filter(|_| cut);
    part[whole.map_or(0, |end| end + 1)..].to_vec()
}

/// The data of finding.json for a sighting; `reproduced` = (shown, tried), (0, 0) before triage.
pub fn finding(
    sighting: &Sighting,
    kernel: &str,
    seed: u64,
    id: &str,
    reproduced: (u32, u32),
    count: u32,
    known: &Known,
) -> Finding {
    let state = match (&sighting.known, reproduced.0) {
        (Some(_), _) => FindingState::Known,
        (None, 0) => FindingState::Unconfirmed,
        (None, _) => FindingState::Confirmed,
    };
    Finding {
        signature: sighting.signature.clone(),
        title: sighting.title.clone(),
        source: sighting.source,
        state,
        known: sighting.known.clone(),
        kernel: kernel.to_owned(),
        seed,
        reproduced,
        elsewhere: None,
        embargo: sighting.known.as_ref().is_some_and(|id| known.is_embargoed(id)),
        count,
        violation: sighting.violation.clone(),
        replay: format!("hgm repro {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARN: &[u8] = b"[    5.123456] ------------[ cut here ]------------\n\
        [    5.123456] WARNING: CPU: 0 PID: 77 at mm/hugetlb.c:5000 hugetlb_fault+0x1/0x2\n\
        [    5.123456] RIP: 0010:hugetlb_fault+0x1/0x2\n\
        [    5.123456] ---[ end trace 0000000000000000 ]---\n";
    const INIT: &[u8] = b"[    5.123456] Kernel panic - not syncing: Attempted to kill init! \
        exitcode=0x00000100\n";

    fn cause(console: &[u8], silent: bool) -> Cause {
        cause_of_death(
            &oracles::console::scan(console),
            console,
            silent.then_some(None),
            "status 0",
        )
    }

    #[test]
    fn the_kernel_is_blamed_only_for_what_the_kernel_did() {
        assert!(matches!(cause(WARN, false), Cause::Guest(s) if s.source == Source::Console));
        assert!(matches!(cause(b"", true), Cause::Guest(s) if s.source == Source::Hang));
        assert!(matches!(cause(b"", false), Cause::Host(_)));
        assert!(matches!(cause(INIT, false), Cause::Host(_)));
        let both = [WARN, INIT].concat();
        assert!(matches!(cause(&both, false), Cause::Guest(s) if s.signature.contains("hugetlb")));
    }

    #[test]
    fn a_report_is_in_its_excerpt_whatever_is_said_before_and_after() {
        let noise = b"[    1.000000] another: line of somebody else\n".repeat(10_000);
        let of = |console: &[u8]| match cause(console, false) {
            Cause::Guest(sighting) => String::from_utf8(sighting.console).unwrap(),
            Cause::Host(why) => panic!("{why}"),
        };
        for console in [[&noise, WARN].concat(), [WARN, &noise].concat()] {
            assert!(console.len() > 3 * EXCERPT_BYTES);
            let text = of(&console);
            assert!(text.contains("WARNING: CPU") && text.contains("end trace"), "{text}");
            assert!(text.starts_with('[') && text.len() <= EXCERPT_BYTES);
        }
        let both = of(&[&noise, WARN, &noise].concat());
        let at = both.find("WARNING: CPU").unwrap();
        assert!(at.abs_diff(BEFORE_BYTES) < 200, "{at}");
        assert_eq!(of(WARN).as_bytes(), WARN);
        assert_eq!(excerpt(b"", 0), b"");
    }

    #[test]
    fn what_shows_an_embargoed_deviation_is_under_embargo() {
        let known = Known::builtin();
        let of = |id: Option<&str>| {
            let sighting = Sighting {
                signature: "X-02/mmap/rsvd:high:divided".into(),
                title: String::new(),
                source: Source::Oracle,
                known: id.map(str::to_owned),
                violation: None,
                observation: None,
                console: Vec::new(),
            };
            finding(&sighting, "k", 1, "id", (0, 0), 1, &known).embargo
        };
        assert_eq!([of(Some("E-01")), of(Some("N03")), of(None)], [true, false, false]);
    }

    #[test]
    fn a_hang_names_its_op_and_is_replayed_with_more_time() {
        let text = "hgm 1\n\nmmap at=r0 len=4K\nmadvise at=r0 len=4K advice=collapse\n";
        let program = case::text::parse(text).unwrap();
        let (profile, known) = (Profile::default(), Known::builtin());
        let hung = |killed: bool| {
            let outcome = RunOutcome::WorkerHung { line: 1, stuck: b"state D".to_vec(), killed };
            judge(&program, outcome, &profile, &known).sightings.remove(0)
        };
        assert_eq!(hung(false).signature, "hang/madvise/unkillable");
        assert_eq!(hung(true).signature, "hang/madvise/killable");
        assert_eq!((hung(true).source, hung(true).console), (Source::Hang, b"state D".to_vec()));
        assert!(same_fault(&hung(true).signature, &hung(false).signature));
        assert!(!may_stand_for(&hung(true).signature, &hung(false).signature));
        assert!(may_stand_for("hang/mprotect/unkillable", "hang/pin/unkillable"));
        assert!(!may_stand_for("hang/pin/killable:rearmed", "hang/pin/killable"));
        assert!(may_stand_for("A-003/madvise/x", "A-003/madvise/x"));
        assert!(!may_stand_for("A-003/madvise/x", "hang/madvise/killable"));
        assert!(patience(Some(&hung(true).signature)) > patience(Some("A-003/madvise/x")));
    }
}
