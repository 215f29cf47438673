//! Who asks: puts questions up at a hub, hands answers out once, and says so when nobody does them.

use super::{Answer, Question};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::fleet;
use crate::term::clean_str;
use hub::{Away, Ledger, Parcel, Scope, Task, Work};
use std::time::{Duration, Instant};
use vmimages::Kernel;

/// Time between two looks for answers.
const LOOK: Duration = Duration::from_millis(100);
/// Time without a sign of anybody until the user is told.
const SILENCE: Duration = Duration::from_secs(15);
/// Time between two looks for who works.
const ROLL_CALL: Duration = Duration::from_secs(2);
/// Time for taking back what nobody did.
const FAREWELL: Duration = Duration::from_secs(5);

/// See the module's head.
pub struct Asker {
    hub: Box<dyn Work>,
    address: String,
    kernel: String,
    scope: Scope,
    /// A name for all that is asked here.
    batch: String,
    ledger: Ledger,
    /// Questions asked.
    asked: u64,
    /// Last sign of somebody who works.
    sign: Instant,
    called: Option<Instant>,
    /// When the user is told next that nobody works.
    warn: Instant,
    patience: Duration,
    /// Why the hub did not do what it was asked last.
    why: Option<String>,
}

impl Asker {
    pub fn new(ctx: &Context, kernel: &Kernel) -> Result<Asker, ExpectedError> {
        let address = fleet::address(ctx)?;
        let scope = fleet::scope(kernel)?;
        let hub = fleet::open(ctx, address, Some(scope.clone()))?;
        let now = Instant::now();
        let told = format!("{:?} {}", std::time::SystemTime::now(), std::process::id());
        let told = format!("{told} {}", fleet::machine(""));
        let batch: String = blake3::hash(told.as_bytes()).to_hex().chars().take(16).collect();
        Ok(Asker {
            hub,
            address: clean_str(address),
            kernel: kernel.id.clone(),
            scope,
            batch,
            ledger: Ledger::default(),
            asked: 0,
            sign: now,
            called: None,
            warn: now + SILENCE,
            patience: ctx.config.hub_wait,
            why: None,
        })
    }

    /// Asks; the name is what the answer comes under. The number of the question is part of it: what
    /// is asked twice is answered twice. None: it is too large for a hub.
    pub fn ask(&mut self, program: &case::Program, question: &Question) -> Option<String> {
        self.asked += 1;
        let id = format!("{}-{}", case::wire::program_id(program), self.asked);
        self.ledger.ask(Task::new(&self.scope, &self.batch, &id, question.bytes())?);
        Some(id)
    }

    /// Answers that came, each once; waits for a moment if there are none. An error: nobody works,
    /// or the hub does not answer, for longer than the user wants to wait.
    pub fn answers(&mut self, ctx: &Context) -> Result<Vec<(String, Answer)>, ExpectedError> {
        let mut found = Vec::new();
        match self.look(&mut found) {
            Ok(()) => self.why = None,
            Err(away) => self.why = Some(away.0),
        }
        if !found.is_empty() {
            self.sign = Instant::now();
        } else if self.ledger.open() > 0 {
            self.wait(ctx)?;
        }
        Ok(found)
    }

    fn look(&mut self, found: &mut Vec<(String, Answer)>) -> Result<(), Away> {
        let epoch = self.hub.epoch();
        while let Some(task) = self.ledger.next(epoch).cloned() {
            self.hub.offer(&task)?;
            self.ledger.offered(task.id());
        }
        for (id, body) in self.hub.answers(&self.batch)? {
            // What is no answer is of somebody else's version of us; the task is lost with it.
            let answer = serde_json::from_slice::<Answer>(&body).unwrap_or_else(|error| {
                let why = format!("an answer nobody understands: {error}");
                let reply = super::Reply::Void { why, again: false, family: None };
                Answer { machine: "?".into(), reply }
            });
            if self.ledger.answered(&id) {
                found.push((id, answer));
            }
        }
        if self.called.is_none_or(|at| at.elapsed() >= ROLL_CALL) {
            self.called = Some(Instant::now());
            if self.hub.statuses()?.iter().any(works) {
                self.sign = Instant::now();
            }
        }
        Ok(())
    }

    fn wait(&mut self, ctx: &Context) -> Result<(), ExpectedError> {
        let silent = self.sign.elapsed();
        let what = match &self.why {
            Some(why) => {
                format!("the hub {} does not answer: {}", self.address, clean_str(why))
            }
            None => format!(
                "nobody works on {} at {}: {} task(s) wait",
                self.kernel,
                self.address,
                self.ledger.open()
            ),
        };
        let help = match self.why {
            Some(_) => "check that it runs, its address, hub_credentials and hub_ca".to_owned(),
            None => {
                format!("start: hgm work --hub {} --kernel {}", self.address, self.kernel)
            }
        };
        if silent >= self.patience {
            return Err(ExpectedError::infrastructure(what, help));
        }
        if silent >= SILENCE && Instant::now() >= self.warn {
            self.warn = Instant::now() + self.patience;
            ctx.term.warn(&what, &help);
        }
        std::thread::sleep(LOOK);
        Ok(())
    }

    /// Takes back what nobody did.
    pub fn end(mut self) {
        if self.ledger.open() == 0 {
            return;
        }
        // A hub that was away until now is not waited for again.
        let end = Instant::now() + if self.why.is_some() { Duration::ZERO } else { FAREWELL };
        while self.hub.withdraw(&self.batch).is_err() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }
}

/// Whether a machine says that it does what others ask for.
fn works(status: &Parcel) -> bool {
    let told = serde_json::from_slice::<serde_json::Value>(status.body());
    told.is_ok_and(|told| told["works"] == true)
}
