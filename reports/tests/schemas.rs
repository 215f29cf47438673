//! JUnit and SARIF against what their readers ask for. SARIF's own JSON schema comes with a package
//! of cargo's registry, so nobody's text is copied here; the checker below knows the keywords that
//! schema uses and fails on any other. JUnit has no schema that can be had like that: its elements
//! are checked against a table of what Jenkins' readers require and allow.

#![allow(clippy::unwrap_used)]

mod support;

use reports::{Case, Run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use support::{full, old};

/// The schema beside the sources of a package: fetched, checked and kept by cargo, never compiled.
fn sarif_schema() -> Value {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("Cargo.toml");
    let text = "[package]\nname = \"schema\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                [lib]\npath = \"lib.rs\"\n[workspace]\n[dependencies]\n\
                serde-sarif = { version = \"=0.8.0\", default-features = false }\n";
    std::fs::write(&manifest, text).unwrap();
    std::fs::write(dir.path().join("lib.rs"), "").unwrap();
    let metadata = |more: &[&str]| {
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let mut command = Command::new(cargo);
        command.args(["metadata", "--format-version", "1", "--manifest-path"]).arg(&manifest);
        command.args(more).output().unwrap()
    };
    let mut out = metadata(&["--offline"]);
    if !out.status.success() {
        out = metadata(&[]);
    }
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let package = metadata["packages"].as_array().unwrap().iter();
    let package = package.clone().find(|p| p["name"] == "serde-sarif").unwrap();
    let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
    let text = std::fs::read(manifest.with_file_name("src").join("schema.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Breaks of a JSON schema (draft 4 to 7, the keywords SARIF's schema has).
fn breaks(schema: &Value, root: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    let Some(rules) = schema.as_object() else { return };
    for (word, rule) in rules {
        let fits = match word.as_str() {
            "$ref" => {
                let path = rule.as_str().unwrap().strip_prefix('#').unwrap();
                breaks(root.pointer(path).unwrap(), root, value, at, out);
                true
            }
            "type" => match rule {
                Value::Array(list) => list.iter().any(|name| is(name.as_str().unwrap(), value)),
                name => is(name.as_str().unwrap(), value),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "required" => {
                let names = rule.as_array().unwrap().iter();
                value
                    .as_object()
                    .is_none_or(|o| names.clone().all(|n| o.contains_key(n.as_str().unwrap())))
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if let Some(rule) = rule.get(key) {
                        breaks(rule, root, inner, &format!("{at}/{key}"), out);
                    }
                }
                true
            }
            "additionalProperties" => {
                let named = schema.get("properties").and_then(Value::as_object);
                let other = |key: &String| named.is_none_or(|n| !n.contains_key(key));
                let others: Vec<_> =
                    value.as_object().into_iter().flatten().filter(|(k, _)| other(k)).collect();
                for (key, inner) in &others {
                    breaks(rule, root, inner, &format!("{at}/{key}"), out);
                }
                rule != &Value::Bool(false) || others.is_empty()
            }
            "items" => {
                for (n, inner) in value.as_array().into_iter().flatten().enumerate() {
                    breaks(rule, root, inner, &format!("{at}/{n}"), out);
                }
                true
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|one| {
                let mut inner = Vec::new();
                breaks(one, root, value, at, &mut inner);
                inner.is_empty()
            }),
            "minItems" => value.as_array().is_none_or(|l| l.len() as u64 >= rule.as_u64().unwrap()),
            "uniqueItems" => value
                .as_array()
                .is_none_or(|l| l.iter().enumerate().all(|(n, one)| !l[..n].contains(one))),
            "minimum" => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()),
            // Of the patterns, only ids and media types are not checked; we write none of them.
            "$schema" | "$id" | "id" | "title" | "description" | "default" | "definitions"
            | "format" | "pattern" | "deprecated" => true,
            other => panic!("{at}: the checker does not know `{other}`"),
        };
        if !fits {
            out.push(format!("{at}: {word} {rule}"));
        }
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("no type {other}"),
    }
}

fn sarif_breaks(schema: &Value, log: &Value) -> Vec<String> {
    let mut out = Vec::new();
    breaks(schema, schema, log, "", &mut out);
    out
}

#[test]
fn sarif_fits_its_schema() {
    let schema = sarif_schema();
    for kept in [full(), old(), reports::Kept::default()] {
        let text = reports::sarif(&Run::of(kept)).unwrap();
        let log: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(sarif_breaks(&schema, &log), Vec::<String>::new());
    }
}

#[test]
fn the_schema_checker_can_fail() {
    let schema = sarif_schema();
    let text = reports::sarif(&Run::of(full())).unwrap();
    let broken = |change: fn(&mut Value)| {
        let mut log: Value = serde_json::from_str(&text).unwrap();
        change(&mut log);
        sarif_breaks(&schema, &log).len()
    };
    assert_eq!(broken(|_| {}), 0);
    assert!(broken(|log| log["version"] = "2.0".into()) > 0);
    assert!(broken(|log| log["runs"][0]["results"][0]["level"] = "fatal".into()) > 0);
    assert!(broken(|log| log["runs"][0]["results"][0]["message"] = "text".into()) > 0);
    assert!(broken(|log| log["runs"][0]["results"][0]["nonsense"] = 1.into()) > 0);
    assert!(broken(|log| log["runs"][0]["tool"] = serde_json::json!({})) > 0);
}

#[test]
fn sarif_results_have_fingerprints_and_places() {
    let log: Value = serde_json::from_str(&reports::sarif(&Run::of(full())).unwrap()).unwrap();
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 12);
    for result in results {
        let index = result["ruleIndex"].as_u64().unwrap() as usize;
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["partialFingerprints"]["hgmSignature/v1"].is_string());
    }
    let places: Vec<&str> = results
        .iter()
        .map(|r| &r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])
        .map(|uri| uri.as_str().unwrap())
        .collect();
    assert!(places.contains(&"mm/hugetlb.c"), "{places:?}");
    let own = results.iter().find(|r| r["ruleId"] == "M-002").unwrap();
    let region = &own["locations"][0]["physicalLocation"]["region"];
    // Op 1 stands in the fourth line of the program.
    assert_eq!(region["startLine"], 4);
}

/// One element of a JUnit file.
#[derive(Debug)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    children: Vec<Element>,
    text: String,
}

impl Element {
    fn number(&self, key: &str) -> usize {
        self.attributes.get(key).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
    }
}

/// A strict reader of the XML we write; anything else is an error.
fn read_xml(text: &str) -> Result<Element, String> {
    let rest =
        text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").ok_or("no head")?;
    let (root, rest) = read_element(rest)?;
    if rest.trim().is_empty() { Ok(root) } else { Err(format!("after the end: {rest}")) }
}

fn unescaped(text: &str) -> Result<String, String> {
    let legal = |c: char| {
        matches!(c, '\n' | '\t' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}') || c >= '\u{10000}'
    };
    if let Some(bad) = text.chars().find(|c| !legal(*c) || *c == '<' || *c == '>') {
        return Err(format!("{bad:?} in {text}"));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        let (name, tail) = after.split_once(';').ok_or("a bare &")?;
        out.push_str(before);
        out.push_str(match name {
            "amp" => "&",
            "lt" => "<",
            "gt" => ">",
            "quot" => "\"",
            other => return Err(format!("no entity {other}")),
        });
        rest = tail;
    }
    Ok(out + rest)
}

fn read_element(text: &str) -> Result<(Element, &str), String> {
    let text = text.trim_start().strip_prefix('<').ok_or("no element")?;
    let end = text.find([' ', '>', '/']).ok_or("no name")?;
    let (name, mut rest) = text.split_at(end);
    let mut element = Element {
        name: name.to_owned(),
        attributes: BTreeMap::new(),
        children: Vec::new(),
        text: String::new(),
    };
    while let Some(tail) = rest.strip_prefix(' ') {
        let (key, tail) = tail.split_once("=\"").ok_or("no value")?;
        let (value, tail) = tail.split_once('"').ok_or("an open value")?;
        if element.attributes.insert(key.to_owned(), unescaped(value)?).is_some() {
            return Err(format!("{key} twice"));
        }
        rest = tail;
    }
    if let Some(rest) = rest.strip_prefix("/>") {
        return Ok((element, rest));
    }
    rest = rest.strip_prefix('>').ok_or_else(|| format!("{name} is not closed"))?;
    loop {
        let at = rest.find('<').ok_or_else(|| format!("{name} has no end"))?;
        element.text.push_str(&unescaped(&rest[..at])?);
        rest = &rest[at..];
        if let Some(tail) = rest.strip_prefix(&format!("</{name}>")) {
            return Ok((element, tail));
        }
        let (child, tail) = read_element(rest)?;
        element.children.push(child);
        rest = tail;
    }
}

/// What the schema of Jenkins' readers requires of each element, and that the counts are right.
fn junit_breaks(text: &str) -> Vec<String> {
    let root = match read_xml(text) {
        Ok(root) => root,
        Err(error) => return vec![error],
    };
    let mut out = Vec::new();
    // Element: attributes it must have, others it may have, children it may have.
    type Rule =
        (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);
    const RULES: [Rule; 7] = [
        ("testsuites", &[], &["name", "time", "tests", "failures", "errors"], &["testsuite"]),
        (
            "testsuite",
            &["name", "tests", "failures", "errors"],
            &["skipped", "timestamp", "time", "hostname", "id", "package"],
            &["properties", "testcase", "system-out", "system-err"],
        ),
        (
            "testcase",
            &["name", "classname"],
            &["time", "status", "assertions"],
            &["skipped", "error", "failure", "system-out", "system-err"],
        ),
        ("failure", &["message", "type"], &[], &[]),
        ("error", &["message", "type"], &[], &[]),
        ("skipped", &[], &["message"], &[]),
        ("system-out", &[], &[], &[]),
    ];
    let mut open = vec![&root];
    while let Some(element) = open.pop() {
        let Some((name, must, may, inside)) = RULES.iter().find(|r| r.0 == element.name) else {
            out.push(format!("no element {}", element.name));
            continue;
        };
        let has = |key: &&&str| element.attributes.contains_key(**key);
        out.extend(must.iter().filter(|k| !has(k)).map(|k| format!("{name} without {k}")));
        let known = |key: &str| must.contains(&key) || may.contains(&key);
        out.extend(
            element.attributes.keys().filter(|k| !known(k)).map(|k| format!("{name} with {k}")),
        );
        let wrong = element.children.iter().filter(|c| !inside.contains(&c.name.as_str()));
        out.extend(wrong.map(|child| format!("{} in {name}", child.name)));
        open.extend(&element.children);
    }
    let mut tests = 0;
    for suite in &root.children {
        let with = |what: &str| {
            suite
                .children
                .iter()
                .filter(|case| case.children.iter().any(|c| c.name == what))
                .count()
        };
        let told = ["tests", "failures", "errors", "skipped"].map(|key| suite.number(key));
        let real = [suite.children.len(), with("failure"), with("error"), with("skipped")];
        if told != real {
            out.push(format!("{:?}: {told:?}, not {real:?}", suite.attributes["name"]));
        }
        tests += suite.children.len();
    }
    if root.number("tests") != tests {
        out.push("testsuites counts wrong".into());
    }
    out
}

#[test]
fn junit_is_what_its_readers_ask_for() {
    for kept in [full(), old(), reports::Kept::default()] {
        let text = reports::junit(&Run::of(kept));
        assert_eq!(junit_breaks(&text), Vec::<String>::new());
    }
    let text = reports::junit(&Run::of(full()));
    let root = read_xml(&text).unwrap();
    let names: Vec<&str> = root.children.iter().map(|s| s.attributes["name"].as_str()).collect();
    assert_eq!(names, ["campaign", "model", "console", "hang", "canaries"]);
    // Confirmed findings fail, known and unconfirmed ones do not.
    assert_eq!((root.number("failures"), root.number("errors")), (2, 0));
    let outs = root.children[1].children.iter().flat_map(|case| &case.children);
    assert!(outs.clone().any(|c| c.name == "system-out" && c.text.contains("hgm repro a-003")));
    let hostile = &root.children[2].children[0];
    assert!(hostile.attributes["name"].contains("<script>"), "what was escaped is read back");
}

#[test]
fn the_junit_check_can_fail() {
    let text = reports::junit(&Run::of(full()));
    for (from, to) in [
        ("failures=\"1\"", "failures=\"7\""),
        (" classname=\"hgm.model\"", ""),
        ("</testcase>", ""),
        ("&lt;script", "<script"),
        ("&quot;", "&"),
        ("<system-out>", "<system-out>\u{1}"),
    ] {
        let broken = text.replacen(from, to, 2);
        assert_ne!(text, broken, "{from}");
        assert!(!junit_breaks(&broken).is_empty(), "{from} -> {to}");
    }
}

#[test]
fn regressions_are_cases() {
    let case = |name: &str, ok, void| Case {
        name: name.into(),
        expected: "pass".into(),
        got: "X-02/madvise/rsvd:low\u{1b}".into(),
        ok,
        void,
    };
    let cases = [
        case("a", true, false),
        case("b", false, false),
        case("c", false, true),
        case("d", true, true),
    ];
    let text = reports::regress("debian-6.1", &cases);
    assert_eq!(junit_breaks(&text), Vec::<String>::new());
    let root = read_xml(&text).unwrap();
    let counts = ["tests", "failures", "errors"].map(|key| root.number(key));
    assert_eq!(counts, [4, 1, 1]);
}
