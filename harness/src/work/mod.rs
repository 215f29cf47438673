//! What machines ask each other to do: the forms of questions and replies, who asks (`asker`, `replays`)
//! and who does it (`shift`). Never here: how it travels (`hub`).

pub mod asker;
pub mod replays;
pub mod shift;

use case::Program;
use serde::{Deserialize, Serialize};

/// Replays one question may ask for; more are asked in several.
pub const REPLAYS_MAX: u32 = 100;

/// One thing to do on one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    /// A program once, in a fresh child, looked at after every op.
    Regress {
        program: String,
        /// Kernel families it was written for; `*` is any.
        families: Vec<String>,
    },
    /// A program again and again, in fresh children of a fresh VM.
    Verify { program: String, signature: Option<String>, times: u32 },
}

/// What came of it. Everything in it comes from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Reply {
    Regress {
        family: String,
        /// Signatures, or `known:ID`; nothing is a pass.
        got: Vec<String>,
        /// What the kernel said when the program had ended.
        after: Option<String>,
    },
    Verify {
        /// What showed, if anything did.
        signature: Option<String>,
        shown: u32,
        tried: u32,
        /// What showed instead.
        others: Vec<String>,
        /// Why some replays said nothing.
        void: Option<String>,
    },
    /// It is not for kernels of this family.
    Skipped { family: String },
    /// Nothing can be said.
    Void {
        why: String,
        /// Whether it may be worth another try.
        again: bool,
        family: Option<String>,
    },
}

/// A reply and who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub machine: String,
    pub reply: Reply,
}

impl Question {
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A question and its program, or why it is none.
    pub fn read(bytes: &[u8]) -> Result<(Question, Program), String> {
        let question: Question = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let (Question::Regress { program, .. } | Question::Verify { program, .. }) = &question;
        let program = case::text::parse(program).map_err(|error| error.to_string())?;
        case::check::check(&program).map_err(|error| error.to_string())?;
        match question {
            Question::Verify { times, .. } if times == 0 || times > REPLAYS_MAX => {
                Err(format!("{times} replays"))
            }
            question => Ok((question, program)),
        }
    }
}

impl Answer {
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "hgm 1\n\nmmap at=r0 len=4K\n";

    #[test]
    fn questions_that_are_none_are_refused() {
        let verify = |times| Question::Verify {
            program: PROGRAM.into(),
            signature: Some("s".into()),
            times,
        };
        let (question, program) = Question::read(&verify(3).bytes()).unwrap();
        assert_eq!((question, case::text::print_bare(&program)), (verify(3), PROGRAM.into()));
        assert!(Question::read(&verify(0).bytes()).is_err());
        assert!(Question::read(&verify(REPLAYS_MAX + 1).bytes()).is_err());
        let bad = Question::Regress { program: "hgm 1\n\nfly at=r0\n".into(), families: vec![] };
        assert!(Question::read(&bad.bytes()).is_err());
        for text in [
            "",
            "{}",
            "\u{0}",
            r#"{"kind":"fly","program":"hgm 1"}"#,
            r#"{"kind":"verify","program":"hgm 1","signature":null,"times":-1}"#,
            r#"{"kind":"verify","program":"hgm 1","signature":null,"times":1,"run":"rm"}"#,
        ] {
            assert!(Question::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let reply = Reply::Void { why: "x".into(), again: true, family: None };
        let answer = Answer { machine: "m".into(), reply };
        let back: Answer = serde_json::from_slice(&answer.bytes()).unwrap();
        assert_eq!(back, answer);
    }
}
