//! Machines that met the run's machine at a hub, each as it spoke of itself last. What they say
//! comes from outside.

use crate::words::{grouped, rate, time};
use serde::Serialize;
use serde_json::Value;

/// Machines in a report.
const MACHINES_MAX: usize = 1000;
/// Characters of a name.
const NAME_MAX: usize = 64;

/// A machine. Field names of its JSON form are a contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    pub name: String,
    /// The machine this run ran on.
    pub own: bool,
    /// `fuzz`, or `work` for one that does what others ask.
    pub does: &'static str,
    /// Kernel id there.
    pub kernel: String,
    pub vms: u64,
    pub programs: u64,
    pub programs_per_s: f64,
    pub corpus: u64,
    pub findings: u64,
    /// Tasks it holds.
    pub leases: u64,
    /// RFC 3339, by its own clock; empty if it said none.
    pub last: String,
}

/// A machine in a table for people.
#[derive(Debug)]
pub struct Row<'a> {
    pub name: &'a str,
    pub own: bool,
    pub does: &'static str,
    pub kernel: &'a str,
    pub vms: String,
    pub programs: String,
    /// Programs a second.
    pub speed: String,
    pub corpus: String,
    pub findings: String,
    pub leases: String,
    pub last: String,
}

impl Machine {
    pub fn row(&self) -> Row<'_> {
        Row {
            name: &self.name,
            own: self.own,
            does: self.does,
            kernel: &self.kernel,
            vms: grouped(self.vms),
            programs: grouped(self.programs),
            speed: rate(self.programs_per_s),
            corpus: grouped(self.corpus),
            findings: grouped(self.findings),
            leases: grouped(self.leases),
            last: time(&self.last),
        }
    }
}

/// Those of the note `fleet`: `{"own": NAME, "machines": {NAME: WORDS, ...}}`.
pub fn machines(note: Option<&Value>) -> Vec<Machine> {
    let Some(note) = note else { return Vec::new() };
    let own = note["own"].as_str().unwrap_or_default();
    let all = note["machines"].as_object().into_iter().flatten().take(MACHINES_MAX);
    all.map(|(name, told)| machine(name, told, name == own)).collect()
}

fn machine(name: &str, told: &Value, own: bool) -> Machine {
    let number = |key: &str| told[key].as_u64().unwrap_or(0);
    let word = |key: &str| -> String {
        told[key].as_str().unwrap_or_default().chars().take(NAME_MAX).collect()
    };
    Machine {
        name: name.chars().take(NAME_MAX).collect(),
        own,
        does: if told["works"] == true { "work" } else { "fuzz" },
        kernel: word("kernel"),
        vms: number("vms"),
        programs: number("programs"),
        programs_per_s: number("programs") as f64 / number("seconds").max(1) as f64,
        corpus: number("corpus"),
        findings: number("findings"),
        leases: number("leases"),
        last: word("at"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whatever_others_say_becomes_a_row() {
        let note = json!({ "own": "a-1", "machines": {
            "a-1": { "kernel": "k", "vms": 2, "programs": 100, "seconds": 10, "corpus": 7,
                "findings": 1, "at": "2026-11-21T19:50:11Z" },
            "b-2": { "works": true, "programs": -3, "kernel": ["k"], "leases": 2 },
            "c-3": "nonsense",
        }});
        let all = machines(Some(&note));
        assert_eq!(all.len(), 3);
        assert!(all[0].own && all[0].does == "fuzz" && all[0].programs_per_s == 10.0);
        let worker = ("work", 0, 2, "");
        assert_eq!((all[1].does, all[1].programs, all[1].leases, all[1].kernel.as_str()), worker);
        assert_eq!((all[2].row().name, all[2].row().speed.as_str()), ("c-3", "0.00"));
        assert_eq!(machines(None), []);
        assert_eq!(machines(Some(&json!([1]))), []);
    }
}
