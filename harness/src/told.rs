//! A finding as machines tell it to each other: data, program and evidence in one parcel. What comes
//! in is from outside: its form is checked, and nothing it says is believed.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use case::{Finding, Program};
use hub::BODY_BYTES_MAX;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use store::{Evidence, Findings, Recorded};

/// Bytes of a console that travel: half of it from the start, half from the end.
const CONSOLE_MAX: usize = 128 << 10;
/// Bytes of each text beside a finding.
const TEXT_MAX: u64 = 64 << 10;

/// See the module's head. The first six fields are what machines of any version say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub machine: String,
    /// Kernel id there.
    pub kernel: String,
    pub signature: String,
    pub title: String,
    /// Shown, tried.
    pub reproduced: (u32, u32),
    /// Text of the program.
    pub program: String,
    #[serde(default)]
    finding: Option<Finding>,
    #[serde(default)]
    compared: String,
    #[serde(default)]
    report: String,
    /// What kernel.json says.
    #[serde(default)]
    about: Value,
    /// Base64.
    #[serde(default)]
    console: String,
}

impl Told {
    /// The finding of a folder. None if it cannot be read, or is not to be shown to others.
    pub fn of(folder: &Path, machine: &str) -> Option<Told> {
        let finding = Findings::read(folder).ok().filter(|finding| !finding.embargo)?;
        let program = case::text::print(&Findings::read_program(folder).ok()?);
        let texts = Findings::read_texts(folder, TEXT_MAX);
        let console = Findings::read_console(folder, 4 << 20).unwrap_or_default();
        Some(Told {
            machine: machine.to_owned(),
            kernel: finding.kernel.clone(),
            signature: finding.signature.clone(),
            title: finding.title.clone(),
            reproduced: finding.reproduced,
            program,
            finding: Some(finding),
            compared: texts.compared,
            report: texts.report,
            about: texts.kernel,
            console: BASE64_STANDARD.encode(ends(&console)),
        })
    }

    /// What fits into a parcel: the least that is worth telling is left out last.
    pub fn body(mut self) -> Vec<u8> {
        for shorten in [
            |_: &mut Told| {},
            |told: &mut Told| told.console.clear(),
            |told: &mut Told| told.report.clear(),
            |told: &mut Told| told.compared.clear(),
        ] {
            shorten(&mut self);
            let body = serde_json::to_vec(&self).unwrap_or_default();
            if body.len() <= BODY_BYTES_MAX {
                return body;
            }
        }
        self.finding = None;
        serde_json::to_vec(&self).unwrap_or_default()
    }

    /// What another machine told, if it has the form.
    pub fn read(body: &[u8]) -> Option<Told> {
        serde_json::from_slice(body).ok()
    }

    /// Keeps it as a finding of `to`, with what the sender called it left out.
    ///
    /// # Errors
    /// If it has no evidence (older versions send none) or contradicts itself, and if it cannot be
    /// written.
    pub fn save(&self, to: &mut Findings) -> Result<Recorded, String> {
        let finding = self.finding.clone().ok_or("it came without its data")?;
        let program = self.parsed().ok_or("its program cannot be read")?;
        if finding.signature != self.signature {
            return Err("it has two signatures".into());
        }
        let console = BASE64_STANDARD.decode(&self.console).map_err(|e| e.to_string())?;
        let evidence = Evidence {
            program: &program,
            compared: &self.compared,
            console: &console,
            report: &self.report,
            kernel: &self.about,
        };
        let saved = to.record(&finding, evidence).map_err(|error| error.to_string())?;
        let replay = format!("hgm repro {}", saved.folder.display());
        to.update(&saved.slug, |kept| kept.replay = replay).map_err(|error| error.to_string())?;
        Ok(saved)
    }

    fn parsed(&self) -> Option<Program> {
        case::text::parse(&self.program).ok()
    }
}

fn ends(console: &[u8]) -> Vec<u8> {
    if console.len() <= CONSOLE_MAX {
        return console.to_vec();
    }
    let half = CONSOLE_MAX / 2;
    let left_out = format!("\n[{} bytes left out]\n", console.len() - 2 * half);
    [&console[..half], left_out.as_bytes(), &console[console.len() - half..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use case::{FindingState, Source};
    use std::path::PathBuf;

    fn recorded(dir: &Path, console: &[u8], embargo: bool) -> PathBuf {
        let program = case::text::parse("hgm 1\n\nmmap at=r0 len=4K\n").unwrap();
        let finding = Finding {
            signature: "H-040/pread/ok->EIO".into(),
            title: "H-040 at pread".into(),
            source: Source::Oracle,
            state: FindingState::Confirmed,
            known: None,
            kernel: "k".into(),
            seed: 7,
            reproduced: (4, 5),
            elsewhere: None,
            count: 3,
            violation: None,
            embargo,
            replay: "hgm repro here".into(),
        };
        let evidence = Evidence {
            program: &program,
            compared: "expected this",
            console,
            report: "a report",
            kernel: &serde_json::json!({ "kernel": "k" }),
        };
        Findings::open(dir).unwrap().record(&finding, evidence).unwrap().folder
    }

    #[test]
    fn a_finding_arrives_with_its_evidence() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let console = b"\x00\xff BUG: bad page\r\n";
        let folder = recorded(here.path(), console, false);
        let body = Told::of(&folder, "lab-1").unwrap().body();
        let told = Told::read(&body).unwrap();
        assert_eq!((told.machine.as_str(), told.reproduced), ("lab-1", (4, 5)));
        let mut kept = Findings::open(there.path()).unwrap();
        let saved = told.save(&mut kept).unwrap();
        assert!(saved.new);
        assert_eq!(Findings::read_console(&saved.folder, 1 << 20).unwrap(), console);
        let texts = [&folder, &saved.folder].map(|folder| Findings::read_texts(folder, 1 << 20));
        assert_eq!(texts[0], texts[1]);
        assert_eq!(texts[0].report, "a report");
        let finding = Findings::read(&saved.folder).unwrap();
        assert_eq!(finding.replay, format!("hgm repro {}", saved.folder.display()));
        assert_eq!(Findings::read_program(&saved.folder).unwrap().lines(), 1);
    }

    #[test]
    fn an_embargo_does_not_travel() {
        let here = tempfile::tempdir().unwrap();
        assert_eq!(Told::of(&recorded(here.path(), b"", true), "lab-1"), None);
    }

    #[test]
    fn what_is_too_long_loses_its_middle_then_its_evidence() {
        let here = tempfile::tempdir().unwrap();
        let folder = recorded(here.path(), &vec![b'x'; 3 << 20], false);
        let mut told = Told::of(&folder, "lab-1").unwrap();
        let console = BASE64_STANDARD.decode(&told.console).unwrap();
        assert!(console.len() < CONSOLE_MAX + 100);
        assert!(String::from_utf8_lossy(&console).contains("bytes left out"));
        told.report = "r".repeat(BODY_BYTES_MAX);
        let short = Told::read(&told.clone().body()).unwrap();
        assert!(short.report.is_empty() && short.console.is_empty() && short.finding.is_some());
        told.program = "p".repeat(BODY_BYTES_MAX);
        let scope = hub::Scope::new("k").unwrap();
        // Such a program stays on its machine.
        assert_eq!(hub::Parcel::new(hub::Kind::Finding, &scope, "key", told.body()), None);
    }

    #[test]
    fn what_contradicts_itself_is_not_kept() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let told = Told::of(&recorded(here.path(), b"", false), "lab-1").unwrap();
        let mut kept = Findings::open(there.path()).unwrap();
        for spoilt in [
            Told { signature: "other".into(), ..told.clone() },
            Told { program: "no program".into(), ..told.clone() },
            Told { console: "not base64!".into(), ..told.clone() },
            Told { finding: None, ..told },
        ] {
            assert!(spoilt.save(&mut kept).is_err());
        }
        assert!(kept.is_empty());
        assert_eq!(Told::read(b"{\"machine\": 1}"), None);
    }
}
