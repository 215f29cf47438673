//! A QEMU that was taken over: `jail/probes.rs` in its place, which tries and tells.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with the program in QEMU's place, and what it may not reach.
pub struct Replaced {
    pub dir: TempDir,
    pub qemu: PathBuf,
    /// Reachable from the host.
    _listener: TcpListener,
}

impl Replaced {
    /// `walled` is what the probes are told: without a wall, and run by root, some would do what they try.
    pub fn new(walled: bool) -> Replaced {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let qemu = dir.path().join("bin/qemu");
        // What lies there is seen behind the wall, too.
        let beside = dir.path().join("bin/pc-bios");
        fs::create_dir_all(&beside).unwrap();
        let words = [
            format!("port={}", listener.local_addr().unwrap().port()),
            format!("pid={}", std::process::id()),
            format!("secret={}", secret.display()),
            format!("walled={walled}"),
        ];
        fs::write(beside.join("host"), words.join("\n")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_jail-probes"), &qemu).unwrap();
        Replaced { dir, qemu, _listener: listener }
    }
}

/// Probe by probe, what came of it, as QEMU's log has it.
pub fn probes(log: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(log).unwrap();
    println!("{text}");
    let row = |line: &str| {
        let (name, outcome) = line.strip_prefix("probe ")?.split_once(": ")?;
        Some((name.to_owned(), outcome.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// Those that were not denied.
pub fn done(seen: &BTreeMap<String, String>) -> Vec<&String> {
    seen.iter().filter(|(_, outcome)| *outcome == "done").map(|(name, _)| name).collect()
}
