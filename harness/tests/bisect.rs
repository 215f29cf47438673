//! `hgm bisect` on a scratch repository whose commits name one of two real kernels of Debian: 6.12,
//! which is good, and 6.1, which shows N03. Every commit is booted and replayed.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{DEVIATES, Home, json, the_kernel, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMITS: usize = 16;
/// The first commit with 6.1.
const FIRST_BAD: usize = 11;
/// One git asks for on the way, whose build fails.
const BROKEN: usize = 9;

fn git(tree: &Path, args: &[&str]) -> String {
    let who = ["-c", "user.name=a b", "-c", "user.email=a@b"];
    let out = Command::new("git").arg("-C").arg(tree).args(who).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// The repository, and its commits, oldest first.
fn tree(home: &Home, good: &str, bad: &str) -> (PathBuf, Vec<String>) {
    let tree = home.0.path().join("linux");
    std::fs::create_dir(&tree).unwrap();
    git(&tree, &["init", "-q"]);
    let commits = (0..COMMITS).map(|n| {
        let kernel = if n < FIRST_BAD { good } else { bad };
        let script = match n {
            BROKEN => "echo cannot >&2; exit 2\n".to_owned(),
            _ => format!("# {n}\necho $HGM_COMMIT >> $TRIED\necho {kernel}\n"),
        };
        std::fs::write(tree.join("build"), script).unwrap();
        git(&tree, &["add", "build"]);
        git(&tree, &["commit", "-q", "-m", &format!("change {n}")]);
        git(&tree, &["rev-parse", "HEAD"])
    });
    let commits = commits.collect();
    (tree, commits)
}

/// Every file of a folder with its bytes.
fn everything(dir: &Path) -> BTreeSet<(PathBuf, Vec<u8>)> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(everything(&path)),
            false => _ = all.insert((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

#[test]
fn the_commit_is_found_over_a_broken_build_and_a_kill() {
    let home = Home::new();
    let [bad, good] = ["6.1", "6.12"].map(the_kernel);
    let (tree, commits) = tree(&home, &good, &bad);
    let before = everything(&tree);
    let (path, program) = (tree.to_string_lossy(), home.file("n03.hgm", DEVIATES));
    let tried = home.0.path().join("tried");
    let bisect = |from: usize, to: usize| {
        let mut command = home.command(&["bisect", &program, "--json", "--times", "2"]);
        command.args(["--good", &commits[from], "--bad", &commits[to], "--tree", &path]);
        command.args(["--signature", "X-02/madvise/rsvd:low", "--build", "sh ./build"]);
        command.env("TRIED", &tried);
        command
    };
    // The good end shows it: nothing can be said.
    let wrong = bisect(FIRST_BAD, COMMITS - 1).output().unwrap();
    assert_eq!(wrong.status.code(), Some(3), "{}", String::from_utf8_lossy(&wrong.stderr));
    let error = json(&wrong)["error"].to_string();
    assert!(error.contains("the --good end") && error.contains("is bad"), "{error}");
    std::fs::remove_file(&tried).unwrap();

    // Killed when both ends and one commit between them have been tried.
    let mut first = bisect(0, COMMITS - 1).stdout(std::process::Stdio::null()).spawn().unwrap();
    let count = || std::fs::read_to_string(&tried).unwrap_or_default().lines().count();
    wait_for("a fourth commit", || count() >= 4 || first.try_wait().unwrap().is_some());
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("the end of QEMU", || home.qemus().is_empty());
    let out = bisect(0, COMMITS - 1).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("verdicts kept"), "{said}");
    let result = json(&out);
    assert_eq!(result["first_bad"], commits[FIRST_BAD].as_str(), "{result}");
    assert!(result["about"].as_str().unwrap().ends_with("change 11"), "{result}");
    // Only the commit in whose trial the kill came was tried twice.
    let all = std::fs::read_to_string(&tried).unwrap();
    let distinct: BTreeSet<&str> = all.lines().collect();
    assert!(all.lines().count() <= distinct.len() + 1, "{all}");
    let steps = result["steps"].as_array().unwrap();
    let verdict = |commit: &str| {
        let step = steps.iter().find(|step| step["commit"] == commit);
        step.map(|step: &Value| step["verdict"].as_str().unwrap().to_owned())
    };
    assert_eq!(verdict(&commits[0]).unwrap(), "good");
    assert_eq!(verdict(&commits[FIRST_BAD - 1]).unwrap(), "good");
    assert_eq!(verdict(&commits[FIRST_BAD]).unwrap(), "bad");
    assert_eq!(verdict(&commits[BROKEN]).unwrap(), "skip");

    assert!(everything(&tree) == before, "the user's tree was changed");
    assert!(home.qemus().is_empty());
}
