//! How often each op met each mapping state and what it left: counted by the campaign, kept as one
//! note of the journal, drawn as heat maps.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Distinct (op, before, after) that are counted; what comes later is only numbered.
const STEPS_MAX: usize = 4096;
/// Letters of a name that are kept.
const NAME_MAX: usize = 80;

/// Counts of (op, state before, state after).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    counts: BTreeMap<(String, String, String), u64>,
    /// Steps of tuples there was no room for.
    pub dropped: u64,
}

/// The form on disk.
#[derive(Serialize, Deserialize)]
struct Saved {
    steps: Vec<(String, String, String, u64)>,
    #[serde(default)]
    dropped: u64,
}

impl Steps {
    /// Counts one step.
    pub fn count(&mut self, op: &str, before: &str, after: &str) {
        self.add(op, before, after, 1);
    }

    fn add(&mut self, op: &str, before: &str, after: &str, times: u64) {
        let name = |text: &str| text.chars().take(NAME_MAX).collect::<String>();
        let key = (name(op), name(before), name(after));
        let room = self.counts.len() < STEPS_MAX;
        match self.counts.get_mut(&key) {
            Some(count) => *count = count.saturating_add(times),
            None if room => drop(self.counts.insert(key, times)),
            None => self.dropped = self.dropped.saturating_add(times),
        }
    }

    /// For the journal.
    pub fn to_json(&self) -> serde_json::Value {
        let steps = self.counts.iter();
        let saved = Saved {
            steps: steps.map(|((o, b, a), n)| (o.clone(), b.clone(), a.clone(), *n)).collect(),
            dropped: self.dropped,
        };
        serde_json::to_value(saved).unwrap_or_default()
    }

    /// From the journal; what does not parse is nothing.
    pub fn of_json(value: &serde_json::Value) -> Steps {
        let mut steps = Steps::default();
        if let Ok(saved) = Saved::deserialize(value) {
            steps.dropped = saved.dropped;
            for (op, before, after, times) in &saved.steps {
                steps.add(op, before, after, *times);
            }
        }
        steps
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Distinct (op, before, after).
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Op against the state it met.
    pub fn by_op(&self) -> BTreeMap<(String, String), u64> {
        let keys = self.counts.iter();
        sum(keys.map(|((op, before, _), n)| ((op.clone(), before.clone()), *n)))
    }

    /// State before against state after.
    pub fn by_state(&self) -> BTreeMap<(String, String), u64> {
        let keys = self.counts.iter();
        sum(keys.map(|((_, before, after), n)| ((before.clone(), after.clone()), *n)))
    }

    /// Keys both maps of two runs are compared by: "op: before -> after".
    pub fn names(&self) -> std::collections::BTreeSet<String> {
        self.counts.keys().map(|(op, before, after)| format!("{op}: {before} -> {after}")).collect()
    }
}

fn sum(items: impl Iterator<Item = ((String, String), u64)>) -> BTreeMap<(String, String), u64> {
    let mut out = BTreeMap::new();
    for (key, times) in items {
        let count = out.entry(key).or_insert(0u64);
        *count = count.saturating_add(times);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_the_journal_and_are_bounded() {
        let mut steps = Steps::default();
        steps.count("write", "none", "own");
        steps.count("write", "none", "own");
        steps.count("read", "none", "zero");
        assert_eq!(Steps::of_json(&steps.to_json()), steps);
        assert_eq!(steps.by_op()[&("write".into(), "none".into())], 2);
        assert_eq!(steps.by_state()[&("none".into(), "zero".into())], 1);
        for at in 0..STEPS_MAX + 5 {
            steps.count("op", &at.to_string(), "x");
        }
        assert_eq!((steps.len(), steps.dropped), (STEPS_MAX, 7));
        assert_eq!(Steps::of_json(&serde_json::json!("no")), Steps::default());
    }
}
