//! Which crate may import which, and under what licence each stands. A new crate gets a row here
//! or the check is red.

use serde_json::Value;

/// Crates of ours a crate may import, tests included where `TESTS` does not say otherwise.
const ALLOWED: &[(&str, &[&str])] = &[
    ("case", &[]),
    ("store", &["case"]),
    ("generators", &["case"]),
    ("oracles", &["case"]),
    ("reproducers", &["case"]),
    ("agent", &["case"]),
    ("vm", &["case"]),
    ("vmimages", &["case"]),
    ("coverage", &[]),
    ("reports", &["case", "store", "generators", "oracles", "vm"]),
    ("hub", &["case", "store", "generators", "oracles", "vm"]),
    (
        "harness",
        &[
            "case",
            "store",
            "generators",
            "oracles",
            "reproducers",
            "vm",
            "vmimages",
            "reports",
            "hub",
        ],
    ),
    ("trials", &[]),
    ("xtask", &[]),
];

/// Edges that only tests may have: laws that hold between two pure crates, and real guests.
const TESTS: &[(&str, &[&str])] = &[
    ("oracles", &["generators"]),
    ("generators", &["oracles"]),
    ("vm", &["vmimages"]),
    ("vmimages", &["vm"]),
];
/// What the tests of every crate may import.
const ALL_TESTS: &str = "trials";

const LICENCE: &str = "MIT OR Apache-2.0";
/// Crates that are linked into GPL programs stand under their licence.
const GPL: &[&str] = &["coverage"];

/// One crate of the workspace.
#[derive(Debug)]
pub struct Package {
    pub name: String,
    licence: String,
    publishable: bool,
    /// Imported crates with whether only tests import them.
    imports: Vec<(String, bool)>,
}

/// The packages of `cargo metadata --no-deps`.
pub fn packages(metadata: &str) -> Result<Vec<Package>, String> {
    let value: Value = serde_json::from_str(metadata).map_err(|e| format!("metadata: {e}"))?;
    let list = value["packages"].as_array().ok_or("metadata holds no packages")?;
    Ok(list.iter().map(package).collect())
}

fn package(value: &Value) -> Package {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let imports = value["dependencies"].as_array().into_iter().flatten();
    Package {
        name: text(&value["name"]),
        licence: text(&value["license"]),
        publishable: value["publish"].as_array().is_none_or(|list| !list.is_empty()),
        // Only crates of the checkout have a path.
        imports: imports
            .filter(|d| d["path"].is_string())
            .map(|d| (text(&d["name"]), d["kind"] == "dev"))
            .collect(),
    }
}

/// Imports no row allows.
pub fn broken(packages: &[Package]) -> Vec<String> {
    let mut out = Vec::new();
    for package in packages {
        let Some(allowed) = row(ALLOWED, &package.name) else {
            out.push(format!("crate {}: no row in the table of allowed imports", package.name));
            continue;
        };
        let tests = row(TESTS, &package.name).unwrap_or(&[]);
        for (import, only_tests) in &package.imports {
            let fine = allowed.contains(&import.as_str())
                || *only_tests && (tests.contains(&import.as_str()) || import == ALL_TESTS)
                || *import == package.name;
            if !fine {
                out.push(format!("crate {}: may not import {import}", package.name));
            }
        }
    }
    out
}

/// Crates with another licence than the house's, or that could be published by accident.
pub fn licences(packages: &[Package]) -> Vec<String> {
    let mut out = Vec::new();
    for package in packages {
        let wanted =
            if GPL.contains(&package.name.as_str()) { "GPL-2.0-or-later" } else { LICENCE };
        if package.licence != wanted {
            let Package { name, licence, .. } = package;
            out.push(format!("crate {name}: licence is `{licence}`, not `{wanted}`"));
        }
        if package.publishable {
            out.push(format!("crate {}: publish is not false", package.name));
        }
    }
    out
}

fn row(
    table: &'static [(&'static str, &'static [&'static str])],
    name: &str,
) -> Option<&'static [&'static str]> {
    table.iter().find(|(crate_name, _)| *crate_name == name).map(|(_, list)| *list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, import: &str, kind: &str) -> Vec<Package> {
        let text = format!(
            r#"{{"packages":[{{"name":"{name}","license":"MIT OR Apache-2.0","publish":[],
            "dependencies":[{{"name":"{import}","path":"/x","kind":{kind}}},
                            {{"name":"serde","kind":null}}]}}]}}"#
        );
        packages(&text).unwrap()
    }

    #[test]
    fn forbidden_edges_are_named() {
        assert!(broken(&one("oracles", "case", "null")).is_empty());
        assert_eq!(broken(&one("case", "oracles", "null")).len(), 1);
        assert_eq!(broken(&one("oracles", "vm", "null")).len(), 1);
        assert_eq!(broken(&one("oracles", "generators", "null")).len(), 1);
        assert!(broken(&one("oracles", "generators", "\"dev\"")).is_empty());
        assert_eq!(broken(&one("harness", "agent", "null")).len(), 1);
        assert!(broken(&one("case", "trials", "\"dev\"")).is_empty());
        assert_eq!(broken(&one("case", "trials", "null")).len(), 1);
        assert_eq!(broken(&one("newcomer", "case", "null")).len(), 1);
    }

    #[test]
    fn licences_are_checked() {
        let mut packages = one("case", "serde", "null");
        assert!(licences(&packages).is_empty());
        packages[0].licence = "MIT".into();
        packages[0].publishable = true;
        assert_eq!(licences(&packages).len(), 2);
    }
}
