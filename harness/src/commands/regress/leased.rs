//! The programs on the machines that work at a hub.

use super::sheet::Sheet;
use super::{RETRIES, heartbeat};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::signals::Signals;
use crate::work::asker::Asker;
use crate::work::{Question, Reply};
use std::collections::BTreeMap;
use std::time::Instant;
use vmimages::Kernel;

/// Has all of them run, or as many as are done until a signal comes; the rest is taken back.
pub fn fill(
    sheet: &mut Sheet,
    kernel: &Kernel,
    signals: &Signals,
    ctx: &Context,
) -> anyhow::Result<()> {
    let mut asker = Asker::new(ctx, kernel)?;
    let mut asked = Asked { names: BTreeMap::new(), retries: vec![0; sheet.entries.len()] };
    for at in 0..sheet.entries.len() {
        asked.ask(at, sheet, &mut asker);
    }
    let ended = asked.wait(sheet, &mut asker, signals, ctx);
    asker.end();
    Ok(ended?)
}

/// What is asked for.
struct Asked {
    /// Which program a question is about.
    names: BTreeMap<String, usize>,
    retries: Vec<u32>,
}

impl Asked {
    fn ask(&mut self, at: usize, sheet: &mut Sheet, asker: &mut Asker) {
        let entry = &sheet.entries[at];
        let program = case::text::print_bare(&entry.program);
        let families = entry.expect.keys().cloned().collect();
        match asker.ask(&entry.program, &Question::Regress { program, families }) {
            Some(name) => drop(self.names.insert(name, at)),
            None => sheet.void(at, "it is too large for a hub"),
        }
    }

    fn wait(
        &mut self,
        sheet: &mut Sheet,
        asker: &mut Asker,
        signals: &Signals,
        ctx: &Context,
    ) -> Result<(), ExpectedError> {
        let mut said = Instant::now();
        while !sheet.is_full() && signals.count() == 0 {
            heartbeat(&mut said, sheet, ctx);
            for (name, answer) in asker.answers(ctx)? {
                let Some(at) = self.names.remove(&name) else { continue };
                tracing::debug!(name, machine = answer.machine, "answered");
                self.take(at, answer.reply, sheet, asker);
            }
        }
        Ok(())
    }

    fn take(&mut self, at: usize, reply: Reply, sheet: &mut Sheet, asker: &mut Asker) {
        match reply {
            Reply::Regress { family, got, after } => {
                sheet.family.get_or_insert(family);
                sheet.compare(at, &got);
                if let Some(signature) = after {
                    sheet.compare(at, &[signature]);
                }
            }
            Reply::Skipped { family } => {
                sheet.family.get_or_insert(family);
                sheet.skip(at);
            }
            Reply::Void { again: true, .. } if self.retries[at] < RETRIES => {
                self.retries[at] += 1;
                self.ask(at, sheet, asker);
            }
            Reply::Void { why, family, .. } => {
                if let Some(family) = family {
                    sheet.family.get_or_insert(family);
                }
                sheet.void(at, &why);
            }
            Reply::Verify { .. } => sheet.void(at, "the answer is to another question"),
        }
    }
}
