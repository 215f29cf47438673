//! What a QEMU that was taken over could do to its host: `jail/probes.rs` takes its place, behind the
//! wall and without it, and tries.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

#[path = "support/replaced.rs"]
mod replaced;

use replaced::{Replaced, done, probes};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};
use vm::jail::Jail;
use vm::process::Process;
use vm::{Accel, BootError, Vm, VmSpec};

/// Fewer than these were tried: the list was cut, and the test proves less than it says.
const PROBES_MIN: usize = 30;

/// Probe by probe, what came of it in the jail.
fn tried(jail: &Jail, pass_all: bool) -> BTreeMap<String, String> {
    let replaced = Replaced::new(*jail != Jail::Open);
    let log = replaced.dir.path().join("log");
    let launch = jail.around(&replaced.qemu, Vec::new(), &[], Accel::Tcg);
    let out = File::create(&log).unwrap();
    let status = if pass_all {
        // As a user starts QEMU by hand.
        let mut command = std::process::Command::new(launch.program);
        command.args(launch.args).stdout(out).status().ok()
    } else {
        let mut process = Process::start(launch, Vec::new(), out).unwrap();
        process.wait(Duration::from_secs(30))
    };
    let seen = probes(&log);
    assert!(status.is_some_and(|s| s.success()), "{status:?} {seen:?}");
    seen
}

/// A VM of the files in `dir`.
fn spec(qemu: &Path, dir: &Path, jail: Jail) -> VmSpec {
    VmSpec {
        qemu: qemu.into(),
        kernel: dir.join("kernel"),
        initrd: dir.join("initrd"),
        memory_mib: 4096,
        cpus: 2,
        accel: Accel::Tcg,
        jail,
        dir: dir.join("vm"),
        boot_timeout: Duration::from_secs(10),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    }
}

#[test]
fn every_probe_is_denied_behind_the_wall() {
    let start = Instant::now();
    let jail = Jail::find().unwrap();
    let seen = tried(&jail, false);
    assert!(seen.len() >= PROBES_MIN, "{} probes", seen.len());
    let done = done(&seen);
    trials::fault("J1", "probes from inside the jail", seen.len() as u64, done.len() as u64, start);
    assert!(done.is_empty(), "{done:?}");
}

/// Started as every VM is: with its descriptors, its files and its command line.
#[test]
fn a_qemu_that_was_replaced_gets_nowhere() {
    let start = Instant::now();
    let replaced = Replaced::new(true);
    let path = |name: &str| replaced.dir.path().join(name);
    for name in ["kernel", "initrd", "other"] {
        fs::write(path(name), name).unwrap();
    }
    let spec = spec(&replaced.qemu, replaced.dir.path(), Jail::find().unwrap());
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(error, BootError::Refused { .. }), "{error}");
    let seen = probes(&spec.dir.join("qemu.log"));
    for name in ["change the kernel", "inherit descriptors", "see the folder of the VM"] {
        assert!(seen.contains_key(name), "{name} was not tried: {seen:?}");
    }
    assert!(seen.len() > PROBES_MIN + 5, "{} probes", seen.len());
    let done = done(&seen);
    let (tried, lost) = (seen.len() as u64, done.len() as u64);
    trials::fault("J2", "probes of a program in QEMU's place", tried, lost, start);
    assert!(done.is_empty(), "{done:?}");
    for name in ["kernel", "initrd", "other", "secret"] {
        assert_eq!(fs::read_to_string(path(name)).unwrap(), name);
    }
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(replaced.dir.path()), names(&spec.dir)), (6, 2), "something was left");
}

/// Without it most are possible: the probes can tell.
#[test]
fn without_the_wall_they_are_not() {
    let seen = tried(&Jail::Open, true);
    for name in [
        "read the host's users",
        "read a file of the user",
        "write beside a file of the user",
        "connect to the host",
        "signal a process of the user",
        "see other processes",
        "inherit the environment",
        "gain privileges by exec",
        "open 300 files",
        "write 65 MiB",
    ] {
        assert_eq!(seen[name], "done", "{name}");
    }
}

/// The wall ends with who started it, and its QEMU with it.
#[test]
fn what_is_inside_dies_with_the_wall() {
    let jail = Jail::find().unwrap();
    let script = vec!["-c".into(), "sleep 1000 & sleep 1000".into()];
    let launch = jail.around(Path::new("/bin/sh"), script, &[], Accel::Tcg);
    let mut process = Process::start(launch, Vec::new(), tempfile::tempfile().unwrap()).unwrap();
    let inside = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid())).ok()?;
        (name == "sleep\n").then(|| process.pid())
    });
    let inside = inside.unwrap();
    process.kill();
    assert!(process.wait(Duration::from_secs(5)).is_some());
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        // Not even as a zombie.
        !Path::new(&format!("/proc/{inside}")).exists()
    });
    assert!(gone, "the namespace outlives its wall");
}

/// What a VM reads by name is seen, at its own path and nothing beside it.
#[test]
fn the_files_of_a_vm_are_seen_and_cannot_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["kernel", "initrd", "other"] {
        fs::write(path(name), name).unwrap();
    }
    let jail = Jail::find().unwrap();
    let spec = spec(Path::new("/bin/sh"), dir.path(), jail.clone());
    let place = dir.path().display();
    let line = format!(
        "cat {place}/kernel {place}/initrd; cat {place}/other; echo x >{place}/kernel; ls {place}"
    );
    let args = vec!["-c".into(), line.into()];
    let launch = jail.around(&spec.qemu, args, &vm::jail::files(&spec, false), spec.accel);
    let log = path("log");
    let out = File::create(&log).unwrap();
    let mut process = Process::start(launch, Vec::new(), out).unwrap();
    process.wait(Duration::from_secs(20)).unwrap();
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("kernelinitrd"), "{text}");
    assert!(text.ends_with("initrd\nkernel\n"), "{text}");
    assert_eq!(fs::read(path("kernel")).unwrap(), b"kernel");
}
