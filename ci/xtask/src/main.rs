//! Checks of the house that no compiler makes: allowed imports, sizes, heads, licences.
//!
//! `cargo run -p xtask -- check` prints every broken rule and ends with 1 if there is one.
//! It reads the tree and `cargo metadata`; it changes nothing.

mod edges;
mod source;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args != ["check"] {
        eprintln!("error: xtask takes one word: check\nhelp: cargo run -p xtask -- check");
        return ExitCode::from(2);
    }
    match check(&root()) {
        Ok(broken) if broken.is_empty() => {
            println!("xtask: every rule holds");
            ExitCode::SUCCESS
        }
        Ok(broken) => {
            for line in &broken {
                eprintln!("error: {line}");
            }
            eprintln!("help: the rules are in ci/xtask/src; ARCHITECTURE.md says why");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("error: {e}\nhelp: run it from a checkout with cargo in PATH");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every broken rule of the tree at `root`, one line each.
fn check(root: &Path) -> Result<Vec<String>, String> {
    let packages = edges::packages(&metadata(root)?)?;
    let mut broken = edges::broken(&packages);
    broken.extend(edges::licences(&packages));
    for path in tree::rust_files(root)? {
        let text = std::fs::read_to_string(root.join(&path))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        broken.extend(source::broken(&path, &text));
    }
    Ok(broken)
}

fn metadata(root: &Path) -> Result<String, String> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo metadata did not start: {e}"))?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim()));
    }
    String::from_utf8(out.stdout).map_err(|e| format!("cargo metadata: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_keeps_the_rules() {
        let broken = check(&root()).unwrap();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }
}
