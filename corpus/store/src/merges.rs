//! Which signatures are one bug: `merges.jsonl` in the home, a line a decision, only ever added to.
//!
//! Findings stay as they were recorded. Merging is a way to look at them, so taking it back loses
//! nothing. A line that a kill cut short, or that nobody can read, stays and is passed over.

use crate::{Result, StoreError, durable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "merges.jsonl";
/// Bytes of it that are read.
const BYTES_MAX: u64 = 16 << 20;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// RFC 3339, UTC; for people. Order is that of the lines.
    time: String,
    #[serde(flatten)]
    decision: Decision,
}

/// What a person decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Decision {
    /// All of them are one bug, which is called by the first.
    Merge(Vec<String>),
    /// This one stands for itself again; if it gave its bug the name, all of that bug do.
    Split(String),
}

/// Signatures that are one bug, as decided so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merges {
    path: PathBuf,
    /// Signature → the one its bug is called by. Never a chain.
    heads: BTreeMap<String, String>,
    /// Lines nobody can read.
    broken: usize,
}

impl Merges {
    /// As decided in this home. No file, no decisions.
    pub fn of(home: &Path) -> Result<Merges> {
        let path = home.join(FILE);
        let bytes = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
            Ok(file) => read(&file, &path)?,
        };
        Ok(Merges::replay(path, &bytes))
    }

    fn replay(path: PathBuf, bytes: &[u8]) -> Merges {
        let mut merges = Merges { path, ..Merges::default() };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(line) => merges.apply(&line.decision),
                Err(_) => merges.broken += 1,
            }
        }
        merges
    }

    fn apply(&mut self, decision: &Decision) {
        match decision {
            Decision::Merge(signatures) => {
                let Some((first, rest)) = signatures.split_first() else { return };
                let head = self.head(first).to_owned();
                let others: Vec<String> =
                    rest.iter().map(|other| self.head(other).to_owned()).collect();
                for other in others.into_iter().filter(|other| *other != head) {
                    self.heads.values_mut().filter(|h| **h == other).for_each(|h| {
                        h.clone_from(&head);
                    });
                    self.heads.insert(other, head.clone());
                }
            }
            Decision::Split(signature) => {
                self.heads.retain(|member, head| member != signature && head != signature);
            }
        }
    }

    /// The signature this one's bug is called by: its own, if it was merged with nothing.
    pub fn head<'a>(&'a self, signature: &'a str) -> &'a str {
        self.heads.get(signature).map_or(signature, String::as_str)
    }

    /// The other signatures of the bug that is called by this one.
    pub fn members(&self, head: &str) -> Vec<&str> {
        let of_it = self.heads.iter().filter(|(_, h)| *h == head);
        of_it.map(|(member, _)| member.as_str()).collect()
    }

    /// Lines nobody can read, and where.
    pub fn broken(&self) -> (usize, &Path) {
        (self.broken, &self.path)
    }

    /// Makes all of them one bug, called by what the first one's bug is called by; durable when
    /// this returns. False: they were one already, and nothing was written.
    pub fn merge(&mut self, signatures: &[String]) -> Result<bool> {
        self.decide(Decision::Merge(signatures.to_vec()))
    }

    /// Takes a signature out of its bug; if it gave the bug its name, takes the bug apart. False:
    /// it was merged with nothing, and nothing was written.
    pub fn split(&mut self, signature: &str) -> Result<bool> {
        self.decide(Decision::Split(signature.to_owned()))
    }

    fn decide(&mut self, decision: Decision) -> Result<bool> {
        durable::make_dir(durable::parent(&self.path))?;
        durable::no_link(&self.path)?;
        let fail = |doing| StoreError::io(doing, &self.path);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&self.path)
            .map_err(fail("open"))?;
        // Another process may decide at the same time: what it wrote comes first.
        file.lock().map_err(fail("lock"))?;
        let bytes = read(&file, &self.path)?;
        let mut next = Merges::replay(self.path.clone(), &bytes);
        let before = next.heads.clone();
        next.apply(&decision);
        let news = next.heads != before;
        if news {
            let line = Line { time: jiff::Timestamp::now().to_string(), decision };
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            if bytes.last().is_some_and(|byte| *byte != b'\n') {
                // The end of a line that was cut short.
                text.insert(0, b'\n');
            }
            file.write_all(&text).map_err(fail("write"))?;
        }
        // What was decided before may come from one who was killed before he got here.
        file.sync_all().map_err(fail("write"))?;
        durable::sync_dir(durable::parent(&self.path))?;
        *self = next;
        Ok(news)
    }
}

fn read(mut file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(StoreError::io("read", path))?;
    if bytes.len() as u64 > BYTES_MAX {
        let why = format!("more than {BYTES_MAX} bytes");
        return Err(StoreError::Unparseable { path: path.to_owned(), why });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn merged_signatures_have_one_name_until_they_are_split() {
        let home = tempfile::tempdir().unwrap();
        let mut merges = Merges::of(home.path()).unwrap();
        assert!(merges.merge(&words("a b")).unwrap());
        assert!(!merges.merge(&words("a b")).unwrap(), "nothing new");
        assert!(merges.merge(&words("c d")).unwrap());
        // Two bugs become one: the first one named gives the name, and no chain is left.
        assert!(merges.merge(&words("d b")).unwrap());
        let merges_again = Merges::of(home.path()).unwrap();
        assert_eq!(merges_again, merges);
        for signature in ["a", "b", "c", "d"] {
            assert_eq!(merges.head(signature), "c");
        }
        assert_eq!(merges.members("c"), ["a", "b", "d"]);
        assert_eq!((merges.head("e"), merges.members("e").len()), ("e", 0));

        assert!(merges.split("b").unwrap());
        assert_eq!((merges.head("b"), merges.head("a")), ("b", "c"));
        assert!(!merges.split("b").unwrap());
        // The one that gave the name: the bug is taken apart.
        assert!(merges.split("c").unwrap());
        assert_eq!((merges.head("a"), merges.head("d")), ("a", "d"));
        let text = std::fs::read_to_string(home.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 5, "every decision is kept: {text}");
    }

    #[test]
    fn a_line_cut_short_costs_only_itself() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(FILE);
        let mut merges = Merges::of(home.path()).unwrap();
        merges.merge(&words("a b")).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"time\":\"2026-11-22T0");
        std::fs::write(&path, &bytes).unwrap();
        let mut merges = Merges::of(home.path()).unwrap();
        assert_eq!(merges.broken(), (1, path.as_path()));
        assert!(merges.merge(&words("a c")).unwrap());
        let merges = Merges::of(home.path()).unwrap();
        assert_eq!((merges.head("b"), merges.head("c"), merges.broken().0), ("a", "a", 1));
        assert!(std::fs::read(&path).unwrap().starts_with(&bytes), "nothing is taken away");
    }

    #[test]
    fn two_who_decide_at_once_lose_nothing() {
        let home = tempfile::tempdir().unwrap();
        let mut one = Merges::of(home.path()).unwrap();
        let mut two = Merges::of(home.path()).unwrap();
        one.merge(&words("a b")).unwrap();
        two.merge(&words("b c")).unwrap();
        assert_eq!(two.head("c"), "a");
        assert_eq!(Merges::of(home.path()).unwrap(), two);
    }
}
