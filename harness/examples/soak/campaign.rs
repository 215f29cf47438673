//! The campaign as the soak sees it: what it says on stderr, its process, and its end.

use crate::Plan;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of the summary, which is a line of JSON.
const SUMMARY_MAX: u64 = 64 << 20;

/// What its log said so far.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub programs: u64,
    pub corpus: u64,
    /// Pid of the QEMU in each slot.
    pub vms: BTreeMap<String, i32>,
}

/// A running `hgm fuzz`; a soak that fails leaves none behind.
pub struct Campaign {
    child: Child,
    said: Arc<Mutex<Said>>,
    summary: Option<std::thread::JoinHandle<String>>,
}

/// The last line of its stdout.
pub struct Summary {
    pub text: String,
    pub value: serde_json::Value,
    pub code: Option<i32>,
}

impl Campaign {
    pub fn start(plan: &Plan, hub: &str) -> Result<Campaign> {
        let minutes = format!("{}s", plan.time.as_secs());
        let seed = plan.seed.to_string();
        let mut child = Command::new(&plan.hgm)
            .args(["fuzz", "--kernel", &plan.kernel, "--jobs", &plan.jobs, "--seed", &seed])
            .args(["--for", &minutes, "--hub", hub, "--progress", "lines", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", plan.hgm.display()))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let said = Arc::new(Mutex::new(Said::default()));
        let log = File::create(plan.out.join("campaign.log"))?;
        if let Some(err) = err {
            let said = said.clone();
            std::thread::spawn(move || listen(BufReader::new(err), log, &said));
        }
        let summary = out.map(|out| {
            std::thread::spawn(move || {
                let mut text = String::new();
                let _ = out.take(SUMMARY_MAX).read_to_string(&mut text);
                text
            })
        });
        Ok(Campaign { child, said, summary })
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn said(&self) -> Said {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    pub fn is_over(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Its summary, when it has ended.
    pub fn summary(&mut self, patience: Duration) -> Result<Summary> {
        let end = Instant::now() + patience;
        while !self.is_over()? {
            if Instant::now() > end {
                bail!("the campaign does not end");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let code = self.child.wait()?.code();
        let text = self.summary.take().and_then(|t| t.join().ok()).unwrap_or_default();
        let last = text.lines().last().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(last)
            .with_context(|| format!("no summary (exit {code:?}): see campaign.log"))?;
        if let Some(error) = value["error"].as_str() {
            bail!("the campaign ended by itself with {code:?}: {error}");
        }
        Ok(Summary { text, value, code })
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Summary {
    /// Folder of its corpus, in that of its run.
    pub fn corpus(&self) -> PathBuf {
        PathBuf::from(self.value["run"].as_str().unwrap_or_default()).join("corpus")
    }
}

/// Keeps the log and what it says of programs and VMs.
fn listen(lines: impl BufRead, mut log: File, said: &Mutex<Said>) {
    for line in lines.lines().map_while(Result::ok) {
        let _ = writeln!(log, "{line}");
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((slot, pid)) = booted(&line) {
            said.vms.insert(slot, pid);
        } else if let Some(programs) = before(&line, " programs (") {
            said.programs = programs;
            said.corpus = after(&line, ", corpus ").unwrap_or(said.corpus);
        }
    }
}

/// `vm0: up after 512 ms, pid 4711`
fn booted(line: &str) -> Option<(String, i32)> {
    let (slot, rest) = line.split_once(": up after ")?;
    let (_, pid) = rest.rsplit_once("pid ")?;
    Some((slot.to_owned(), pid.trim().parse().ok()?))
}

/// `0:10/60:00  312 programs (31.2/s), 4711 ops, 815 states, corpus 233, ...`: the number before a
/// word, and that behind one.
fn before(line: &str, word: &str) -> Option<u64> {
    line.split_once(word)?.0.rsplit(' ').next()?.parse().ok()
}

fn after(line: &str, word: &str) -> Option<u64> {
    line.split_once(word)?.1.split([',', ' ']).next()?.parse().ok()
}
