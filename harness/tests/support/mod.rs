//! A private place to run `hgm` in: empty home, empty folder, clean environment.

use assert_cmd::Command;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A folder of its own; gone when dropped.
pub struct Place {
    dir: tempfile::TempDir,
}

/// How a call ended.
pub struct Out {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Out {
    /// stdout as one JSON value.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.stdout, self.stderr))
    }
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }
    pub fn root(&self) -> &Path {
        self.dir.path()
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
    /// A shell script in the folder; gives its path.
    pub fn script(&self, name: &str, body: &str) -> String {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_string_lossy().into_owned()
    }

    pub fn hgm<S: AsRef<OsStr>>(&self, args: &[S]) -> Out {
        self.hgm_with(args, |_| {})
    }
    pub fn hgm_with<S: AsRef<OsStr>>(&self, args: &[S], set: impl FnOnce(&mut Command)) -> Out {
        let mut command = Command::from_std(self.plain(args));
        set(&mut command);
        let out = command.timeout(std::time::Duration::from_secs(60)).output().unwrap();
        Out {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
    pub fn plain<S: AsRef<OsStr>>(&self, args: &[S]) -> std::process::Command {
        self.program(env!("CARGO_BIN_EXE_hgm"), args)
    }
    /// Another program in the same place.
    pub fn program<S: AsRef<OsStr>>(&self, name: &str, args: &[S]) -> std::process::Command {
        let mut command = std::process::Command::new(name);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root())
            .env("HGM_HOME", self.path("home"))
            .env("COLUMNS", "80")
            .current_dir(self.root());
        command
    }
}

/// Registers a kernel that could never boot: enough for looking names up.
pub fn fake_kernel(place: &Place, id: &str) {
    let dir = place.path("home/kernels").join(id);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vmlinuz"), "not a kernel").unwrap();
    let manifest = serde_json::json!({
        "id": id, "source": "test", "release": id, "image_blake3": "00", "modules": [],
    });
    fs::write(dir.join("kernel.json"), manifest.to_string()).unwrap();
}

/// A finding as a campaign on the kernel `k1` records it, in this run of the home; gives its name.
pub fn finding(place: &Place, run: &str, signature: &str, count: u32) -> String {
    let dir = place.path("home/runs").join(run).join(store::RunDir::FINDINGS);
    let program = case::text::parse("hgm 1\nmmap at=r0 len=4K\n").unwrap();
    let finding = case::Finding {
        signature: signature.into(),
        title: signature.into(),
        source: case::Source::Oracle,
        state: case::FindingState::Confirmed,
        known: None,
        kernel: "k1".into(),
        seed: 1,
        reproduced: (5, 5),
        elsewhere: None,
        count,
        violation: None,
        embargo: false,
        replay: String::new(),
    };
    let evidence = store::Evidence {
        program: &program,
        compared: "",
        console: b"",
        report: "",
        kernel: &serde_json::Value::Null,
    };
    store::Findings::open(&dir).unwrap().record(&finding, evidence).unwrap().slug
}
