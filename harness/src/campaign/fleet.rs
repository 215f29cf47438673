//! A campaign among others on the same kernel: what it keeps goes to them, what they keep comes in.
//! A hub that is away changes nothing but that. Never here: how it travels (`hub`).

use super::Campaign;
use crate::term::clean_str;
use crate::told::Told;
use case::Program;
use hub::{Kind, News, Parcel, Post, Scope};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two words on how this machine does.
const STATUS: Duration = Duration::from_secs(5);
/// Note in the journal of what all of them said, and time between two of it.
const FLEET: &str = "fleet";
const NOTED: Duration = Duration::from_secs(30);
/// Machines that are remembered, and bytes of what one says.
const MACHINES_MAX: usize = 1000;
const WORDS_MAX: usize = 4 << 10;
/// Parcels taken between two looks at the VMs.
const TAKEN: usize = 256;
/// Time at the end for what is not yet delivered.
const FAREWELL: Duration = Duration::from_secs(5);

/// See the module's head.
#[derive(Debug)]
pub struct Fleet {
    post: Post,
    scope: Scope,
    /// Host and process, as a name.
    machine: String,
    kernel: String,
    run: String,
    said: Option<Instant>,
    /// What each machine said last, this one among them.
    machines: BTreeMap<String, Value>,
    noted: Instant,
    /// Whether the hub was reached when last looked.
    reached: bool,
    /// Parcels that were not what their names said.
    refused: u64,
}

impl Fleet {
    pub fn new(post: Post, scope: Scope, machine: String, kernel: String, run: String) -> Fleet {
        Fleet {
            post,
            scope,
            machine,
            kernel,
            run,
            said: None,
            machines: BTreeMap::new(),
            noted: Instant::now(),
            reached: false,
            refused: 0,
        }
    }

    /// A program that is in the corpus folder.
    pub fn entry(&self, program: &Program) {
        let body = case::text::print_bare(program).into_bytes();
        let key = case::wire::program_id(program);
        self.send(Parcel::new(Kind::Entry, &self.scope, &key, body));
    }

    /// A finding that is in the run's folder.
    fn finding(&self, folder: &Path) {
        let Some(told) = Told::of(folder, &self.machine) else { return };
        let body = told.body();
        let key = blake3::hash(&body).to_hex().chars().take(32).collect::<String>();
        self.send(Parcel::new(Kind::Finding, &self.scope, &key, body));
    }

    fn status(&mut self, mut body: Value) {
        body["kernel"] = self.kernel.clone().into();
        body["run"] = self.run.clone().into();
        body["at"] = jiff::Timestamp::now().to_string().into();
        let bytes = body.to_string().into_bytes();
        self.send(Parcel::new(Kind::Status, &self.scope, &self.machine, bytes));
        self.machines.insert(self.machine.clone(), body);
    }

    /// What another machine says of itself. False if that is nothing.
    fn heard(&mut self, parcel: &Parcel) -> bool {
        let told = Some(parcel.body()).filter(|body| body.len() <= WORDS_MAX);
        let told = told.and_then(|body| serde_json::from_slice::<Value>(body).ok());
        let Some(told) = told.filter(Value::is_object) else { return false };
        let room = self.machines.len() < MACHINES_MAX || self.machines.contains_key(parcel.key());
        if room && parcel.key() != self.machine {
            self.machines.insert(parcel.key().to_owned(), told);
        }
        true
    }

    /// For the report of the run.
    fn note(&mut self) -> String {
        self.noted = Instant::now();
        json!({ "own": self.machine, "machines": self.machines }).to_string()
    }

    /// What is too large for a parcel stays on this machine.
    fn send(&self, parcel: Option<Parcel>) {
        if let Some(parcel) = parcel {
            self.post.send(parcel);
        }
    }

    /// The program of a parcel, if it is what the parcel's name says.
    fn program(parcel: &Parcel) -> Option<Program> {
        let text = std::str::from_utf8(parcel.body()).ok()?;
        let program = case::text::parse(text).ok()?;
        (case::wire::program_id(&program) == parcel.key()).then_some(program)
    }
}

/// What another machine says of a finding, for a line; everything in it comes from outside.
pub fn finding_line(body: &[u8]) -> Option<String> {
    let told = Told::read(body)?;
    let word = |text: &str| clean_str(text).chars().take(200).collect::<String>();
    let [machine, signature, title] =
        [&told.machine, &told.signature, &told.title].map(|t| word(t));
    Some(format!("{machine} found {signature}: {title}"))
}

impl Campaign<'_> {
    /// Takes what came in, and says how this machine does when it is time.
    pub(super) fn meet(&mut self) -> anyhow::Result<()> {
        for _ in 0..TAKEN {
            let Some(news) = self.fleet.as_ref().and_then(|fleet| fleet.post.next()) else { break };
            match news {
                News::Again => self.offer_all(),
                News::Parcel(parcel) => self.welcome(&parcel)?,
            }
        }
        self.tell_how_it_goes();
        let due = |fleet: &&mut Fleet| fleet.noted.elapsed() >= NOTED;
        match self.fleet.as_mut().filter(due) {
            Some(fleet) => Ok(self.keeper.note(FLEET, &fleet.note())?),
            None => Ok(()),
        }
    }

    /// Everything of the corpus folder. What the hub has is not sent again.
    fn offer_all(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        fleet.said = None;
        for program in self.keeper.programs() {
            fleet.entry(&program);
        }
    }

    fn welcome(&mut self, parcel: &Parcel) -> anyhow::Result<()> {
        match parcel.kind {
            Kind::Entry => match Fleet::program(parcel) {
                Some(program) => {
                    if self.keeper.program(&program)?
                        && let Some(engine) = &mut self.engine
                    {
                        engine.queue(program);
                    }
                }
                None => self.refuse(parcel),
            },
            Kind::Finding => match finding_line(parcel.body()) {
                Some(line) => {
                    self.progress.event(&line);
                    self.keeper.elsewhere(&line)?;
                }
                None => self.refuse(parcel),
            },
            Kind::Status => {
                if !self.fleet.as_mut().is_none_or(|fleet| fleet.heard(parcel)) {
                    self.refuse(parcel);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, parcel: &Parcel) {
        if let Some(fleet) = &mut self.fleet {
            fleet.refused += 1;
            if fleet.refused == 1 {
                let name = parcel.name();
                self.progress.event(&format!("{name} is not what its name says; it is left out"));
            }
        }
    }

    fn tell_how_it_goes(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let post = fleet.post.figures();
        if post.reached != fleet.reached {
            fleet.reached = post.reached;
            let why = clean_str(post.why.as_deref().unwrap_or("no answer"));
            self.progress.event(&match post.reached {
                true => "the hub is reached".to_owned(),
                false => format!("the hub is away, fuzzing goes on: {why}"),
            });
        }
        if fleet.said.is_some_and(|said| said.elapsed() < STATUS) {
            return;
        }
        fleet.said = Some(Instant::now());
        let figures = self.figures();
        let up = self.slots.iter().filter(|slot| slot.up).count();
        let Some(fleet) = &mut self.fleet else { return };
        fleet.status(json!({
            "vms": up,
            "programs": figures.programs,
            "seconds": self.start.elapsed().as_secs(),
            "states": figures.states,
            "corpus": figures.corpus,
            "findings": figures.findings,
            "sent": post.sent,
            "received": post.received,
            "waiting": post.waiting,
            "refused": fleet.refused,
        }));
    }

    /// A confirmed finding that may be shown to others.
    pub(super) fn tell_of(&self, suspect: &super::Suspect) {
        let Some(fleet) = &self.fleet else { return };
        if !suspect.is_confirmed() || self.keeper.is_embargoed(&suspect.id) {
            return;
        }
        fleet.finding(&self.keeper.finding_folder(&suspect.id));
    }

    /// Delivers what can be delivered soon.
    pub(super) fn part(&mut self) {
        let Some(mut fleet) = self.fleet.take() else { return };
        if let Err(error) = self.keeper.note(FLEET, &fleet.note()) {
            self.progress.event(&format!("the machines at the hub are not in the report: {error}"));
        }
        let waiting = fleet.post.close(FAREWELL).waiting;
        if waiting > 0 {
            self.progress.event(&format!("{waiting} parcel(s) did not reach the hub; they are sent when this corpus is fuzzed again"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_what_its_name_says_is_refused() {
        let scope = Scope::new("k").unwrap();
        let program = case::text::parse("hgm 1\n\nmmap at=r0 len=4K\n").unwrap();
        let text = case::text::print_bare(&program);
        let key = case::wire::program_id(&program);
        let parcel =
            |key: &str, body: &[u8]| Parcel::new(Kind::Entry, &scope, key, body.to_vec()).unwrap();
        assert_eq!(Fleet::program(&parcel(&key, text.as_bytes())), Some(program));
        for (key, body) in [
            ("0000000000000000", text.as_bytes()),
            (key.as_str(), b"hgm 1\n\nmmap at=r0 len=8K\n".as_slice()),
            (key.as_str(), b"not a program"),
            (key.as_str(), b"\xff\xfe"),
            (key.as_str(), b""),
        ] {
            assert_eq!(Fleet::program(&parcel(key, body)), None);
        }
    }

    #[test]
    fn what_others_say_of_a_finding_is_cleaned() {
        let body = json!({ "machine": "a\u{1b}[31m", "signature": "s", "title": "x".repeat(9999),
            "kernel": "k", "reproduced": [5, 5], "program": "" });
        let line = finding_line(body.to_string().as_bytes()).unwrap();
        assert!(!line.contains('\u{1b}') && line.len() < 700, "{line}");
        assert_eq!(finding_line(b"{"), None);
    }
}
