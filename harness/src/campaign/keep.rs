//! What a campaign must not lose, handed to the store: corpus entries, findings, journal rows,
//! checkpoints. What a call here acknowledged is on disk; on a full one it waits for room.

use super::room::Room;
use super::{CHECKING, Confirm, FAST, Figures, Summary, Suspect};
use crate::coverage::{self, Report};
use crate::render;
use crate::symbols::{Symbols, tell};
use crate::term::clean_str;
use crate::triage::{self, Sighting};
use case::{Elsewhere, Finding, FindingState, Profile, Program, Source};
use reports::Steps;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use store::{Corpus, Counters, Evidence, Findings, Journal, RunDir, RunMeta};

/// Inconclusive programs whose text is kept in the journal; the rest is only counted.
const VOIDS_MAX: u32 = 200;
/// Note of the journal: which op met which mapping state.
const STEPS: &str = "steps";

/// A kernel, as evidence of a finding needs it.
#[derive(Debug)]
pub struct Bench {
    pub id: String,
    /// Id and source, for the finding's folder.
    pub about: serde_json::Value,
    pub known: Arc<oracles::known::Known>,
    /// Once a VM of it has told.
    pub profile: Option<Profile>,
    pub symbols: Symbols,
}

/// See the module's head.
#[derive(Debug)]
pub struct Keeper<'a> {
    room: Room<'a>,
    run: RunDir,
    journal: Journal,
    findings: Findings,
    corpus: Corpus,
    /// By tier.
    benches: Vec<Bench>,
    /// Counts as last written.
    counts: BTreeMap<String, u32>,
    /// Totals of the run before this call.
    base: Counters,
    voids: u32,
    vm_restarts: u64,
    begun: Instant,
}

impl<'a> Keeper<'a> {
    /// Opens everything of a run this process owns.
    pub fn open(
        run: RunDir,
        meta: &RunMeta,
        corpus: &Path,
        benches: Vec<Bench>,
        room: Room<'a>,
    ) -> store::Result<Keeper<'a>> {
        let mut journal = run.journal()?;
        journal.begin(meta)?;
        let base = journal.last_counters()?.unwrap_or_default();
        Ok(Keeper {
            room,
            findings: run.findings()?,
            corpus: Corpus::open(corpus)?,
            run,
            journal,
            benches,
            counts: BTreeMap::new(),
            base,
            voids: 0,
            vm_restarts: 0,
            begun: Instant::now(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.run.path
    }

    /// Programs of the corpus folder, in id order.
    pub fn programs(&self) -> Vec<Program> {
        self.corpus.programs().map(|(_, program)| program).collect()
    }

    /// The engine as last kept.
    pub fn last_checkpoint(&self) -> store::Result<Option<Vec<u8>>> {
        self.journal.checkpoint()
    }

    /// Findings the run has already. Those never replayed wait for it again.
    pub fn suspects(&self) -> Vec<Suspect> {
        let revive = |(slug, finding): (&str, &Finding)| {
            let program = Findings::read_program(&self.findings.folder(slug)).ok()?;
            let open = finding.state == FindingState::Unconfirmed && finding.reproduced.1 == 0;
            let checking = self.benches.get(CHECKING).is_some_and(|b| b.id == finding.kernel);
            let elsewhere = finding.elsewhere.as_ref().map(|e| e.reproduced);
            let both = elsewhere.is_some_and(|(shown, _)| shown > 0);
            Some(Suspect {
                tier: if checking { CHECKING } else { FAST },
                seen: [!checking || both, checking || both],
                elsewhere,
                id: slug.to_owned(),
                program,
                count: finding.count,
                reproduced: finding.reproduced,
                confirm: if open { Confirm::Waiting } else { Confirm::Over },
                first: None,
                sighting: Sighting {
                    signature: finding.signature.clone(),
                    title: finding.title.clone(),
                    source: finding.source,
                    known: finding.known.clone(),
                    violation: finding.violation.clone(),
                    observation: None,
                    console: Vec::new(),
                },
            })
        };
        self.findings.iter().filter_map(revive).collect()
    }

    pub fn profile(&mut self, tier: usize, profile: &Profile) -> store::Result<()> {
        let text = serde_json::to_string(profile).unwrap_or_default();
        self.benches[tier].profile = Some(profile.clone());
        let note = if tier == FAST { "profile" } else { "profile-verify" };
        self.room.until_done(|| self.journal.set_note(note, &text))
    }

    /// Programs put down for the checking kernel, by how their check ended.
    pub fn checks(&self) -> store::Result<BTreeMap<String, u64>> {
        self.journal.checks()
    }

    /// See [`Journal::set_note`].
    pub fn note(&mut self, key: &str, value: &str) -> store::Result<()> {
        self.room.until_done(|| self.journal.set_note(key, value))
    }

    /// See [`Journal::want_check`].
    pub fn want_check(&mut self, program: &Program) -> store::Result<bool> {
        let (id, text) = (case::wire::program_id(program), case::text::print(program));
        self.room.until_done(|| self.journal.want_check(&id, &text))
    }

    /// See [`Journal::end_check`].
    pub fn end_check(&mut self, id: &str, ended: &str) -> store::Result<()> {
        self.room.until_done(|| self.journal.end_check(id, ended))
    }

    /// Programs that wait for their check. What an older version wrote and this one cannot read
    /// is left where it is.
    pub fn waiting_checks(
        &self,
        limit: usize,
        except: &BTreeSet<String>,
    ) -> store::Result<Vec<Program>> {
        let texts = self.journal.waiting_checks(limit, except)?;
        Ok(texts.iter().filter_map(|text| case::text::parse(text).ok()).collect())
    }

    /// True if the corpus had no such program.
    pub fn program(&mut self, program: &Program) -> store::Result<bool> {
        self.room.until_done(|| self.corpus.add(program)).map(|added| added.new)
    }

    /// What another machine found.
    pub fn elsewhere(&mut self, line: &str) -> store::Result<()> {
        self.event("elsewhere", &json!({ "line": line }))
    }

    pub fn finding_folder(&self, id: &str) -> PathBuf {
        self.findings.folder(id)
    }

    pub fn is_embargoed(&self, id: &str) -> bool {
        self.findings.get(id).is_some_and(|finding| finding.embargo)
    }

    /// Coverage as last kept; `None` if there is none, or none that can be read.
    pub fn last_coverage(&self) -> Option<Report> {
        coverage::load(&self.run.path).ok()
    }

    pub fn coverage(&mut self, report: &Report) -> store::Result<()> {
        let bytes = serde_json::to_vec(report).unwrap_or_default();
        self.room.until_done(|| self.run.save(coverage::FILE, &bytes))
    }

    pub fn vm(&mut self, slot: usize, what: &str, detail: &str) -> store::Result<()> {
        self.vm_restarts += u64::from(what == "booted");
        self.event(&format!("vm-{what}"), &json!({ "slot": slot, "detail": detail }))
    }

    pub fn canary(&mut self, name: &str, ended: &str) -> store::Result<()> {
        self.event("canary", &json!({ "class": name, "ended": ended }))
    }

    pub fn inconclusive(&mut self, program: &Program, why: &str) -> store::Result<()> {
        self.voids += 1;
        if self.voids > VOIDS_MAX {
            return Ok(());
        }
        let body = json!({ "why": why, "program": case::text::print(program) });
        self.event("inconclusive", &body)
    }

    /// Every event says when it was, in milliseconds of campaign.
    fn event(&mut self, kind: &str, body: &serde_json::Value) -> store::Result<()> {
        let mut body = body.clone();
        body["ms"] = (self.base.elapsed_ms + self.begun.elapsed().as_millis() as u64).into();
        self.room.until_done(|| self.journal.event(kind, &body)).map(|_| ())
    }

    /// A point of the report's curves. Totals are those of the whole run.
    pub fn sample(&mut self, figures: &Figures, rss_kib: u64, up: usize) -> store::Result<()> {
        self.event(
            "sample",
            &json!({
                "programs": self.base.programs + figures.programs,
                "states": figures.states,
                "corpus": figures.corpus,
                "findings": figures.findings,
                "inconclusive": self.base.inconclusive + figures.inconclusive,
                "blocks": figures.blocks,
                "rss_kib": rss_kib,
                "up": up,
            }),
        )
    }

    /// Steps counted before this part of the run.
    pub fn last_steps(&self) -> Steps {
        let note = self.journal.note(STEPS).ok().flatten().unwrap_or_default();
        serde_json::from_str(&note).map(|value| Steps::of_json(&value)).unwrap_or_default()
    }

    pub fn steps(&mut self, steps: &Steps) -> store::Result<()> {
        let text = steps.to_json().to_string();
        self.room.until_done(|| self.journal.set_note(STEPS, &text))
    }

    /// Saves a suspect, or what its replay changed; gives its id.
    pub fn finding(&mut self, suspect: &Suspect, seed: u64) -> store::Result<String> {
        let Suspect { sighting, program, count, reproduced, .. } = suspect;
        let bench = &self.benches[suspect.tier];
        let compared = render::compared(program, sighting, bench.profile.as_ref(), &bench.known);
        let mut finding = triage::finding(
            sighting,
            &bench.id,
            seed,
            &suspect.id,
            *reproduced,
            *count,
            &bench.known,
        );
        let other = self.benches.get(CHECKING - suspect.tier);
        finding.elsewhere = other.and_then(|other| {
            let kernel = other.id.clone();
            suspect.elsewhere.map(|reproduced| Elsewhere { kernel, reproduced })
        });
        if suspect.id.is_empty() {
            let report = report(sighting, &bench.symbols);
            let evidence = Evidence {
                program,
                compared: &compared,
                console: &sighting.console,
                report: &report,
                kernel: &json!({ "kernel": bench.about, "profile": bench.profile }),
            };
            let recorded = self.room.until_done(|| self.findings.record(&finding, evidence))?;
            let slug = recorded.slug;
            finding.replay = format!("hgm repro {slug}");
            self.change(&slug, |kept| kept.replay.clone_from(&finding.replay))?;
            self.room.until_done(|| self.journal.index_finding(&slug, &finding))?;
            self.counts.insert(slug.clone(), *count);
            let kind = if sighting.known.is_some() { "known" } else { "finding" };
            self.event(kind, &json!({ "id": slug, "signature": sighting.signature }))?;
            return Ok(slug);
        }
        let slug = &suspect.id;
        if sighting.observation.is_some() || !sighting.console.is_empty() {
            let findings = &mut self.findings;
            self.room.until_done(|| findings.replace_program(slug, program, &compared))?;
        }
        // Somebody may have said so in the meantime.
        finding.embargo |= self.is_embargoed(slug);
        self.change(slug, |kept| kept.clone_from(&finding))?;
        self.room.until_done(|| self.journal.index_finding(slug, &finding))?;
        let (k, n) = *reproduced;
        self.event("replayed", &json!({ "id": slug, "shown": k, "tried": n }))?;
        Ok(slug.clone())
    }

    /// Writes a count that has risen.
    pub fn recount(&mut self, suspect: &Suspect) -> store::Result<()> {
        if self.counts.get(&suspect.id) == Some(&suspect.count) {
            return Ok(());
        }
        self.change(&suspect.id, |kept| kept.count = suspect.count)?;
        if let Some(finding) = self.findings.get(&suspect.id).cloned() {
            self.room.until_done(|| self.journal.index_finding(&suspect.id, &finding))?;
        }
        self.counts.insert(suspect.id.clone(), suspect.count);
        Ok(())
    }

    fn change(&mut self, slug: &str, change: impl Fn(&mut Finding)) -> store::Result<()> {
        self.room.until_done(|| self.findings.update(slug, &change)).map(|_| ())
    }

    pub fn checkpoint(&mut self, programs: u64, bytes: &[u8]) -> store::Result<()> {
        let programs = self.base.programs + programs;
        self.room.until_done(|| self.journal.save_checkpoint(programs, bytes))
    }

    pub fn figures(&mut self, figures: &Figures) -> store::Result<()> {
        let base = self.base;
        let counters = Counters {
            elapsed_ms: base.elapsed_ms + figures.elapsed.as_millis() as u64,
            programs: base.programs + figures.programs,
            ops: base.ops + figures.ops,
            states: figures.states as u64,
            corpus: figures.corpus as u64,
            findings: figures.findings as u64,
            inconclusive: base.inconclusive + figures.inconclusive,
            vm_restarts: base.vm_restarts + self.vm_restarts,
            canaries_planted: base.canaries_planted + u64::from(figures.canaries.1),
            canaries_found: base.canaries_found + u64::from(figures.canaries.0),
        };
        self.room.until_done(|| self.journal.count(&counters))
    }

    /// Closes the run's books.
    pub fn finish(&mut self, summary: &Summary) -> store::Result<()> {
        let text = serde_json::to_string(summary).unwrap_or_default();
        self.room.until_done(|| self.journal.set_note("summary", &text))?;
        self.event("end", &json!({ "programs": summary.programs }))
    }
}

/// What the kernel reported, with lines of source where its vmlinux has them.
fn report(sighting: &Sighting, symbols: &Symbols) -> String {
    let told = tell(&sighting.console, symbols);
    let meant = told.iter().find(|told| told.signature == sighting.signature);
    let Some(told) = meant.or(told.first()) else {
        // Where its threads stand is all there is of a hang.
        let hangs = sighting.source == Source::Hang && !sighting.console.is_empty();
        let text = hangs.then(|| symbols.decode(&sighting.console));
        return clean_str(&text.unwrap_or_default());
    };
    let note = symbols.note().map(|note| format!("\n{note}\n")).unwrap_or_default();
    clean_str(&format!("{}{note}\n{}", told.head(), told.text))
}
