//! Replays on the machines that work at a hub: what one wants to know is asked in several questions,
//! whose answers add up.

use super::asker::Asker;
use super::{Question, Reply};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::Replayed;
use case::Program;
use std::collections::{BTreeMap, BTreeSet};

/// Replays asked for in one question: they have a VM of their own.
const TOGETHER: u32 = 5;
/// Times a question is asked again whose VM died of something else.
const RETRIES: u32 = 2;

/// What some replays of a program come to, of one VM or of all answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub shown: u32,
    pub tried: u32,
    /// What showed.
    pub signature: Option<String>,
    /// What showed instead.
    pub others: BTreeSet<String>,
    /// Why some replays said nothing.
    pub void: Option<String>,
    /// Who answered at a hub.
    pub machines: BTreeSet<String>,
}

/// What is asked, by the number the asker gave it.
struct Wish {
    program: Program,
    signature: Option<String>,
    sum: Sum,
    /// Questions that are open.
    open: u32,
}

/// See the module's head.
pub struct Replays {
    asker: Asker,
    wishes: BTreeMap<u64, Wish>,
    /// By name of the question: whose it is, how many replays it is for, how often it was asked.
    questions: BTreeMap<String, (u64, u32, u32)>,
}

impl Sum {
    /// Of a VM of this machine.
    pub fn of(replayed: Replayed) -> Sum {
        let Replayed { shown, tried, evidence, others, void, .. } = replayed;
        let signature = evidence.map(|evidence| evidence.signature);
        Sum { shown, tried, signature, others, void, ..Sum::default() }
    }

    /// Adds an answer to a question for `times` replays. False: it may be worth another try.
    fn add(&mut self, machine: String, times: u32, reply: Reply) -> bool {
        self.machines.insert(machine);
        match reply {
            Reply::Verify { signature, shown, tried, others, void }
                if tried <= times && shown <= tried =>
            {
                self.shown += shown;
                self.tried += tried;
                if shown > 0 {
                    self.signature = self.signature.take().or(signature);
                }
                self.others.extend(others);
                self.void = void.or(self.void.take());
            }
            Reply::Void { why, again, .. } => {
                self.void = Some(why);
                return !again;
            }
            Reply::Verify { .. } | Reply::Regress { .. } | Reply::Skipped { .. } => {
                self.void = Some("an answer that cannot be".into());
            }
        }
        true
    }
}

impl Replays {
    pub fn new(asker: Asker) -> Replays {
        Replays { asker, wishes: BTreeMap::new(), questions: BTreeMap::new() }
    }

    /// Asks for `times` replays under the number `key`; its answer comes out of [`Replays::done`].
    pub fn ask(
        &mut self,
        key: u64,
        program: &Program,
        signature: Option<String>,
        times: u32,
    ) -> Result<(), ExpectedError> {
        let program = program.clone();
        let wish = Wish { program, signature, sum: Sum::default(), open: 0 };
        self.wishes.insert(key, wish);
        let mut left = times;
        while left > 0 {
            let some = left.min(TOGETHER);
            self.question(key, some, 0)?;
            left -= some;
        }
        Ok(())
    }

    fn question(&mut self, key: u64, times: u32, retries: u32) -> Result<(), ExpectedError> {
        let Some(wish) = self.wishes.get_mut(&key) else { return Ok(()) };
        let program = case::text::print_bare(&wish.program);
        let question = Question::Verify { program, signature: wish.signature.clone(), times };
        let name = self.asker.ask(&wish.program, &question).ok_or_else(|| {
            ExpectedError::config("the program is too large for a hub", "do it without --hub")
        })?;
        wish.open += 1;
        self.questions.insert(name, (key, times, retries));
        Ok(())
    }

    /// Those of which every question is answered; waits for a moment if there are none.
    pub fn done(&mut self, ctx: &Context) -> Result<Vec<(u64, Sum)>, ExpectedError> {
        let mut done = Vec::new();
        for (name, answer) in self.asker.answers(ctx)? {
            let Some((key, times, retries)) = self.questions.remove(&name) else { continue };
            let Some(wish) = self.wishes.get_mut(&key) else { continue };
            wish.open -= 1;
            if !wish.sum.add(answer.machine, times, answer.reply) && retries < RETRIES {
                self.question(key, times, retries + 1)?;
            } else if wish.open == 0
                && let Some(wish) = self.wishes.remove(&key)
            {
                done.push((key, wish.sum));
            }
        }
        Ok(done)
    }

    /// Takes back what nobody did.
    pub fn end(self) {
        self.asker.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_add_up_and_those_that_cannot_be_do_not_count() {
        let verify = |shown, tried| Reply::Verify {
            signature: Some("s".into()),
            shown,
            tried,
            others: vec!["other".into()],
            void: None,
        };
        let void = |again| Reply::Void { why: "gone".into(), again, family: None };
        let mut sum = Sum::default();
        assert!(sum.add("a".into(), 5, verify(2, 5)));
        assert!(sum.add("b".into(), 5, verify(0, 4)));
        assert_eq!((sum.shown, sum.tried, sum.void.clone()), (2, 9, None));
        for reply in [verify(6, 6), verify(3, 2), Reply::Skipped { family: "U61".into() }] {
            assert!(sum.add("liar".into(), 5, reply));
            assert_eq!((sum.shown, sum.tried), (2, 9));
        }
        assert!(!sum.add("a".into(), 5, void(true)) && sum.add("a".into(), 5, void(false)));
        assert_eq!(sum.void.as_deref(), Some("gone"));
        assert_eq!((sum.machines.len(), sum.others.len()), (3, 1));
    }
}
