//! A home of its own for tests that boot guests: the kernels, images and snapshots of the shared
//! one, and runs that are nobody else's.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Drops the reservation of a private hugetlb mapping: a deviation of 6.1, listed as N03.
pub const DEVIATES: &str = "hgm 1\nmmap at=r0 len=4M page=2M\nwrite at=r0 len=4K\n\
    madvise at=r0 len=2M advice=dontneed\nread at=r0 len=4K\n";
pub const PASSES: &str = "hgm 1\nmmap at=r0 len=16K\nwrite at=r0 len=8K\nread at=r0 len=16K\n";
/// More than any boot takes here.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A home with the shared kernels and images, and runs of its own.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new() -> Home {
        let shared = shared_home();
        the_kernel("6.1");
        let home = tempfile::tempdir().unwrap();
        for name in ["kernels", "initramfs", "snapshots", "text"] {
            std::fs::create_dir_all(shared.join(name)).unwrap();
            std::os::unix::fs::symlink(shared.join(name), home.path().join(name)).unwrap();
        }
        Home(home)
    }

    /// A folder of kernels of its own, with those of the shared home in it.
    pub fn own_kernels(&self) {
        let kernels = self.0.path().join("kernels");
        let shared = std::fs::read_link(&kernels).unwrap();
        std::fs::remove_file(&kernels).unwrap();
        std::fs::create_dir_all(&kernels).unwrap();
        for name in names(&shared) {
            std::os::unix::fs::symlink(shared.join(&name), kernels.join(&name)).unwrap();
        }
    }

    /// A kernel of the shared home, but with a list of known deviations of its own.
    pub fn own_known_list(&self, kernel: &str, list: &str) {
        let kernels = self.0.path().join("kernels");
        let shared = std::fs::read_link(&kernels).unwrap();
        self.own_kernels();
        std::fs::remove_file(kernels.join(kernel)).unwrap();
        std::fs::create_dir_all(kernels.join(kernel)).unwrap();
        for file in names(&shared.join(kernel)).iter().filter(|file| *file != "known.toml") {
            let to = kernels.join(kernel).join(file);
            std::os::unix::fs::symlink(shared.join(kernel).join(file), to).unwrap();
        }
        std::fs::write(kernels.join(kernel).join("known.toml"), list).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        hgm(self.0.path(), args)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Folder of the only run.
    pub fn the_run(&self) -> PathBuf {
        let mut runs = std::fs::read_dir(self.0.path().join("runs")).unwrap();
        let run = runs.next().unwrap().unwrap().path();
        assert!(runs.next().is_none(), "more than one run");
        run
    }

    /// QEMUs whose command line names this home.
    pub fn qemus(&self) -> BTreeSet<i32> {
        let marker = self.0.path().to_string_lossy().into_owned();
        let ours = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = line.split('\0').next().unwrap_or_default();
            let is_qemu = Path::new(program)
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("qemu-system"));
            is_qemu && line.contains(&marker)
        };
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(ours).collect()
    }
}

pub fn shared_home() -> PathBuf {
    let set = std::env::var_os("HGM_HOME").map(PathBuf::from);
    set.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/hgm"))
}

/// Debian's kernel of a series, by its id in the shared home; registered if need be.
pub fn the_kernel(series: &str) -> String {
    let (home, prefix) = (shared_home(), format!("debian-{series}."));
    let find = || names(&home.join("kernels")).into_iter().find(|name| name.starts_with(&prefix));
    find().unwrap_or_else(|| {
        let added = hgm(&home, &["kernel", "add", &format!("debian:{series}")]).output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        find().unwrap()
    })
}

pub fn hgm(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hgm"));
    command.args(args).args(["--home", &home.to_string_lossy()]);
    // Seeds beside the current folder would be run first: these tests bring their own.
    command
        .current_dir(home)
        .env_remove("HGM_HOME")
        .env("HGM_ACCEL", "tcg")
        .env("HGM_COVERAGE", "off");
    command
}

pub fn json(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&out.stdout);
        panic!("{error}: {text:?} {}", String::from_utf8_lossy(&out.stderr))
    })
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The plugin, built if need be.
pub fn plugin() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let built = Command::new("ci/coverage").current_dir(root).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let path = String::from_utf8(built.stdout).unwrap();
    root.join(path.lines().last().unwrap()).to_string_lossy().into_owned()
}
