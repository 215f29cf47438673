//! The model every sink renders: one run, put together from what its folder held. Findings under
//! embargo are counted and dropped here, so no sink can forget to.

use crate::compared::Compared;
use crate::figures;
use crate::fleet::{self, Machine};
use crate::kept::{CoveredFile, Kept, KeptFinding};
use crate::steps::Steps;
use crate::verdict::Verdict;
use crate::words;
use case::{Finding, FindingState, Source};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Version of the JSON form of [`Run`].
pub const VERSION: u32 = 1;
/// Bytes of a kernel report, and of a console around it, that are kept.
pub const TEXT_MAX: usize = 24 << 10;
/// Characters of a rule's text or a result in a table.
const CELL_MAX: usize = 2000;

/// A run. Field names of its JSON form are a contract.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub v: u32,
    pub id: String,
    pub live: bool,
    pub verdict: Verdict,
    /// Kernel id.
    pub kernel: String,
    /// Configuration profile.
    pub profile: String,
    pub seed: Option<u64>,
    /// Version of hgm.
    pub version: String,
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub started: String,
    /// When the journal was last written to.
    pub last: String,
    pub figures: Figures,
    /// Gravest first: confirmed, unconfirmed, known; most often seen first.
    pub findings: Vec<FindingPage>,
    /// Findings left out because they are under embargo.
    pub withheld: u32,
    /// Rises with time; as it was sampled.
    pub series: Vec<Sample>,
    /// By VM.
    pub vms: BTreeMap<u64, Vec<Mark>>,
    /// By class: found, missed.
    pub canaries: BTreeMap<String, (u32, u32)>,
    #[serde(skip)]
    pub steps: Steps,
    pub coverage: Vec<CoveredFile>,
    /// Machines at the run's hub; empty if it had none.
    pub fleet: Vec<Machine>,
    /// Name and value, for people.
    pub health: Vec<(String, String)>,
    /// Group, name, value, and where the value came from.
    pub provenance: Vec<[String; 4]>,
    /// What is not in this report and why.
    pub trouble: Vec<String>,
}

/// Totals. `None` where the run has not kept it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub seconds: f64,
    pub programs: u64,
    pub programs_per_s: f64,
    pub ops: u64,
    /// Distinct mapping states.
    pub states: u64,
    /// Distinct (op, state before, state after), as far as they are counted.
    pub transitions: Option<u64>,
    pub corpus: u64,
    pub confirmed: u32,
    pub unconfirmed: u32,
    pub known: u32,
    pub inconclusive: u64,
    pub canaries_found: u64,
    pub canaries_planted: u64,
    pub blocks: Option<u64>,
    pub functions_reached: Option<u64>,
    pub functions_known: Option<u64>,
    pub vms: Option<u64>,
    pub vms_cloned: Option<u64>,
    pub vm_ready_ms: Option<u64>,
    pub vm_rss_kib: Option<u64>,
    pub exec_share: Option<f64>,
    /// VMs that were lost for no reason of the kernel's.
    pub vms_lost: u64,
    /// VMs that never answered.
    pub boots_failed: u64,
}

/// One point of the plots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds of campaign.
    pub s: f64,
    pub programs: u64,
    pub states: u64,
    pub corpus: u64,
    pub findings: u64,
    pub inconclusive: u64,
    pub blocks: Option<u64>,
    /// Resident memory of all QEMUs together.
    pub rss_kib: Option<u64>,
    /// VMs that answered.
    pub up: Option<u64>,
}

/// Something that happened to a VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// Seconds of campaign.
    pub s: f64,
    /// booted, replaced, died, boot-failed.
    pub kind: String,
    /// Died of a kernel fault, as told; empty otherwise.
    pub detail: String,
}

/// A finding and its evidence.
#[derive(Clone, Debug, Serialize)]
pub struct FindingPage {
    pub id: String,
    pub signature: String,
    pub title: String,
    pub source: Source,
    pub state: FindingState,
    pub known: Option<String>,
    pub kernel: String,
    pub count: u32,
    /// Shown, tried.
    pub reproduced: (u32, u32),
    /// The other kernel, shown, tried.
    pub elsewhere: Option<(String, u32, u32)>,
    pub first_at: String,
    pub last_at: String,
    pub rule: String,
    pub line: Option<u16>,
    pub expected: String,
    pub observed: String,
    pub replay: String,
    pub program: String,
    /// As `hgm shrink` left it; empty if it was not shrunk.
    pub small: String,
    pub ops: Vec<crate::compared::OpRow>,
    pub report: String,
    pub console: String,
    /// Release and version of the kernel as its guest told them.
    pub release: String,
}

impl FindingPage {
    /// Which detector saw it.
    pub fn oracle(&self) -> &'static str {
        source_word(self.source)
    }

    pub fn state_word(&self) -> &'static str {
        state_word(self.state)
    }

    /// Ops of a program text.
    pub fn ops_of(program: &str) -> usize {
        let op = |line: &&str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && !line.starts_with("hgm ")
        };
        program.lines().filter(op).count()
    }

    /// File and line of the kernel its report blames, if a line table knew them.
    pub fn place(&self) -> Option<(String, u64)> {
        let told = self.report.lines().find_map(|line| line.trim().strip_prefix("function "))?;
        let word = told.split_whitespace().nth(1)?;
        let (file, line) = word.rsplit_once(':')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let inside = !file.starts_with('/') && !file.contains("..") && file.chars().all(plain);
        Some((file.to_owned(), line.parse().ok()?)).filter(|_| inside)
    }
}

/// Detector in one word.
pub fn source_word(source: Source) -> &'static str {
    match source {
        Source::Oracle => "model",
        Source::Console => "console",
        Source::Hang => "hang",
    }
}

/// State in one word.
pub fn state_word(state: FindingState) -> &'static str {
    match state {
        FindingState::Confirmed => "confirmed",
        FindingState::Unconfirmed => "unconfirmed",
        FindingState::Known => "known",
    }
}

impl Run {
    /// Puts a run together. Whatever is missing is left empty, never guessed.
    pub fn of(kept: Kept) -> Run {
        let Kept { id, live, meta, notes, counters, events, findings, .. } = kept;
        let (findings, embargo) = sort_out(findings, &kept.embargoed);
        let summary = notes.get("summary").cloned().unwrap_or(Value::Null);
        let started = meta.as_ref().map(|m| m.started.clone()).unwrap_or_default();
        let last = counters.last().map(|(at, _)| at.clone());
        let last = last.max(events.last().map(|e| e.at.clone())).unwrap_or_default();
        let steps = notes.get("steps").map(Steps::of_json).unwrap_or_default();
        let mut figures = figures::totals(&summary, &counters, &events, &findings);
        figures.transitions = (!steps.is_empty()).then_some(steps.len() as u64);
        let vms = figures::lanes(&events, &started, &embargo);
        let exit = notes.get("exit").and_then(Value::as_u64).and_then(|n| u8::try_from(n).ok());
        let ended = !summary.is_null();
        let verdict = Verdict::of(&figures, embargo.withheld, exit, live, ended);
        let family = summary["profile"].as_str().unwrap_or_default().to_owned();
        let health = figures::health(&figures, &events, &summary);
        Run {
            v: VERSION,
            id,
            live,
            verdict,
            kernel: meta.as_ref().map(|m| m.kernel.clone()).unwrap_or_default(),
            profile: meta.as_ref().map(|m| m.profile.clone()).unwrap_or_default(),
            seed: meta.as_ref().map(|m| m.seed),
            version: meta.as_ref().map(|m| m.version.clone()).unwrap_or_default(),
            command: meta.as_ref().map(|m| m.command.clone()).unwrap_or_default(),
            provenance: figures::provenance(meta.as_ref(), &notes, &family),
            started,
            last,
            figures,
            findings,
            withheld: embargo.withheld,
            series: figures::series(&counters, &events),
            vms,
            canaries: figures::canaries(&events),
            steps,
            coverage: kept.coverage,
            fleet: fleet::machines(notes.get("fleet")),
            health,
            trouble: kept.trouble,
        }
    }

    /// Findings in this state.
    pub fn in_state(&self, state: FindingState) -> impl Iterator<Item = &FindingPage> {
        self.findings.iter().filter(move |f| f.state == state)
    }
}

/// What must not be told.
#[derive(Debug, Default)]
pub struct Embargo {
    pub withheld: u32,
    /// Signatures and titles, with which other texts are searched.
    words: BTreeSet<String>,
}

impl Embargo {
    /// The text, or a word in its place if it speaks of something under embargo.
    pub fn clear(&self, text: &str) -> String {
        let told = |word: &String| !word.is_empty() && text.contains(word.as_str());
        match self.words.iter().any(told) {
            true => "withheld (embargo)".to_owned(),
            false => text.to_owned(),
        }
    }
}

/// Findings that may be told, gravest first, and what must not be told.
fn sort_out(
    findings: Vec<KeptFinding>,
    embargoed: &BTreeSet<String>,
) -> (Vec<FindingPage>, Embargo) {
    let mut embargo = Embargo { withheld: 0, words: embargoed.clone() };
    let mut pages = Vec::new();
    for kept in findings {
        if kept.finding.embargo || embargoed.contains(&kept.finding.signature) {
            embargo.withheld += 1;
            embargo.words.insert(kept.finding.signature);
            embargo.words.insert(kept.finding.title);
        } else {
            pages.push(page(kept));
        }
    }
    pages.sort_by(|a, b| {
        (a.state, std::cmp::Reverse(a.count), &a.id).cmp(&(
            b.state,
            std::cmp::Reverse(b.count),
            &b.id,
        ))
    });
    (pages, embargo)
}

fn page(kept: KeptFinding) -> FindingPage {
    let Finding { violation, elsewhere, .. } = &kept.finding;
    let cut = |text: &str| crate::escape::head(text, CELL_MAX);
    let mut ops = Compared::parse(&kept.compared).rows;
    for row in &mut ops {
        for text in [&mut row.op, &mut row.result, &mut row.expected, &mut row.observed] {
            *text = cut(text);
        }
    }
    let told = |key: &str| kept.kernel["profile"][key].as_str().unwrap_or_default().to_owned();
    FindingPage {
        rule: violation.as_ref().map(|v| v.rule.clone()).unwrap_or_default(),
        line: violation.as_ref().map(|v| v.line),
        expected: violation.as_ref().map(|v| cut(&v.expected)).unwrap_or_default(),
        observed: violation.as_ref().map(|v| cut(&v.observed)).unwrap_or_default(),
        elsewhere: elsewhere.as_ref().map(|e| (e.kernel.clone(), e.reproduced.0, e.reproduced.1)),
        program: crate::escape::head(&kept.program, TEXT_MAX),
        small: crate::escape::head(&kept.small, TEXT_MAX),
        report: crate::escape::head(&kept.report, TEXT_MAX),
        console: crate::escape::tail(&String::from_utf8_lossy(&kept.console), TEXT_MAX),
        release: format!("{} {}", told("release"), told("version")).trim().to_owned(),
        first_at: words::time(&kept.first_at),
        last_at: words::time(&kept.last_at),
        ops,
        id: kept.slug,
        signature: kept.finding.signature,
        title: kept.finding.title,
        source: kept.finding.source,
        state: kept.finding.state,
        known: kept.finding.known,
        kernel: kept.finding.kernel,
        count: kept.finding.count,
        reproduced: kept.finding.reproduced,
        replay: kept.finding.replay,
    }
}
