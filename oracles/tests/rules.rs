//! The rule table, the seeds and the known deviations fit each other: ids are unique, sources are
//! named, every rule has a seed that was written for it, every deviation a program that shows it.

#![allow(clippy::unwrap_used)]

use oracles::known::Known;
use oracles::rules::{self, RuleRef};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Rules without a seed, each with the reason.
const NO_SEED: [(&str, &str); 0] = [];

/// Deviations that are reported in private: no program of them is kept (SECURITY.md).
const EMBARGOED: [&str; 4] = ["E-01", "E-02", "E-03", "E-05"];

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("corpus").join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let dir = corpus(name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|e| e.unwrap().path()).collect()
}

/// Ids in the `# rules:` lines of the seeds.
fn cited() -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for path in files("seeds") {
        let text = std::fs::read_to_string(&path).unwrap();
        let lists = text.lines().filter_map(|line| line.strip_prefix("# rules:"));
        let words = lists.flat_map(|list| list.split([',', ' '])).filter(|word| !word.is_empty());
        ids.extend(words.map(str::to_owned));
    }
    ids
}

#[test]
fn an_id_names_one_rule() {
    let mut by_id: BTreeMap<&str, RuleRef> = BTreeMap::new();
    for rule in rules::all() {
        if let Some(other) = by_id.insert(rule.id, rule) {
            assert_eq!(other.text, rule.text, "two rules are called {}", rule.id);
        }
    }
    assert!(by_id.len() > 100, "only {} rules", by_id.len());
}

#[test]
fn every_rule_says_what_it_rests_on() {
    for rule in rules::all() {
        assert!(!rule.source.trim().is_empty(), "{} has no source", rule.id);
        assert!(rule.text.ends_with('.'), "{} is no sentence", rule.id);
    }
}

#[test]
fn every_rule_has_a_seed() {
    let cited = cited();
    let excused: BTreeSet<&str> = NO_SEED.iter().map(|(id, _)| *id).collect();
    let lacking = |rule: &RuleRef| !cited.contains(rule.id) && !excused.contains(rule.id);
    let without: BTreeSet<&str> = rules::all().into_iter().filter(lacking).map(|r| r.id).collect();
    assert!(without.is_empty(), "no seed names {without:?}");
    let idle: Vec<&&str> = excused.iter().filter(|id| cited.contains(**id)).collect();
    assert!(idle.is_empty(), "excused but named by a seed: {idle:?}");
}

#[test]
fn every_known_deviation_has_a_program_that_shows_it() {
    let known = Known::builtin();
    assert!(!known.deviation.is_empty());
    let mut ids = BTreeSet::new();
    for deviation in &known.deviation {
        let id = &deviation.id;
        assert!(ids.insert(id.clone()), "{id} is listed twice");
        let prefix = format!("{}-", id.to_lowercase());
        let named = |path: &PathBuf| {
            path.file_name().unwrap().to_string_lossy().starts_with(prefix.as_str())
        };
        let folder = files("regressions").into_iter().find(named);
        let embargoed = EMBARGOED.contains(&id.as_str());
        assert_eq!(deviation.embargo, embargoed, "{id}: embargo");
        if embargoed {
            assert!(folder.is_none(), "{id} is under embargo and has a folder");
            continue;
        }
        let folder = folder.unwrap_or_else(|| panic!("no corpus/regressions/{prefix}*"));
        for file in ["program.hgm", "expect.toml", "README.md"] {
            assert!(folder.join(file).is_file(), "no {file} in {}", folder.display());
        }
        let program = std::fs::read_to_string(folder.join("program.hgm")).unwrap();
        case::text::parse(&program).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        expects(deviation, &std::fs::read_to_string(folder.join("expect.toml")).unwrap());
    }
}

/// The families of the deviation, and they alone, expect to see it.
fn expects(deviation: &oracles::known::Deviation, text: &str) {
    let table: toml::Table = text.parse().unwrap();
    let expect = table["expect"].as_table().unwrap();
    for family in ["U61", "U612"] {
        let found = expect.get(family).or(expect.get("*")).and_then(toml::Value::as_str);
        let shown = found == Some(format!("known:{}", deviation.id).as_str());
        let listed = deviation.families.iter().any(|f| f == family);
        assert_eq!(shown, listed, "{} on {family}", deviation.id);
    }
}
