//! What a QEMU that was taken over could do to its host: `jail/probes.rs` takes its place, behind the
//! wall and without it, and tries.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};
use vm::jail::Jail;
use vm::process::Process;
use vm::{Accel, VmSpec};

/// Fewer than these were tried: the list was cut, and the test proves less than it says.
const PROBES_MIN: usize = 30;

/// Probe by probe, what came of it in the jail.
fn tried(jail: &Jail, pass_all: bool) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let words = [
        format!("port={}", listener.local_addr().unwrap().port()),
        format!("pid={}", std::process::id()),
        format!("secret={}", secret.display()),
        format!("walled={}", *jail != Jail::Open),
    ];
    let args: Vec<OsString> = words.map(Into::into).into();
    let log = dir.path().join("log");
    let probes = Path::new(env!("CARGO_BIN_EXE_jail-probes"));
    let launch = jail.around(probes, args, &[], Accel::Tcg);
    let out = File::create(&log).unwrap();
    let status = if pass_all {
        // As a user starts QEMU by hand.
        let mut command = std::process::Command::new(launch.program);
        command.args(launch.args).stdout(out).status().ok()
    } else {
        let mut process = Process::start(launch, Vec::new(), out).unwrap();
        process.wait(Duration::from_secs(30))
    };
    let text = fs::read_to_string(&log).unwrap();
    println!("{text}");
    assert!(status.is_some_and(|s| s.success()), "{status:?} {text}");
    let row = |line: &str| {
        let (name, outcome) = line.strip_prefix("probe ")?.split_once(": ")?;
        Some((name.to_owned(), outcome.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_probe_is_denied_behind_the_wall() {
    let start = Instant::now();
    let jail = Jail::find().unwrap();
    let seen = tried(&jail, false);
    for (name, outcome) in &seen {
        println!("{name:36} {outcome}");
    }
    assert!(seen.len() >= PROBES_MIN, "{} probes", seen.len());
    let done: Vec<&String> = seen.iter().filter(|(_, o)| *o == "done").map(|(n, _)| n).collect();
    trials::fault("J1", "probes from inside the jail", seen.len() as u64, done.len() as u64, start);
    assert!(done.is_empty(), "{done:?}");
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
    let spec = VmSpec {
        qemu: "/bin/sh".into(),
        kernel: path("kernel"),
        initrd: path("initrd"),
        memory_mib: 4096,
        cpus: 2,
        accel: Accel::Tcg,
        jail: jail.clone(),
        dir: path("vm"),
        boot_timeout: Duration::from_secs(10),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    let place = dir.path().display();
    let line = format!(
        "cat {place}/kernel {place}/initrd; cat {place}/other; echo x >{place}/kernel; ls {place}"
    );
    let args = vec!["-c".into(), line.into()];
    let launch = jail.around(&spec.qemu, args, &vm::jail::files(&spec), spec.accel);
    let log = path("log");
    let out = File::create(&log).unwrap();
    let mut process = Process::start(launch, Vec::new(), out).unwrap();
    process.wait(Duration::from_secs(20)).unwrap();
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("kernelinitrd"), "{text}");
    assert!(text.ends_with("initrd\nkernel\n"), "{text}");
    assert_eq!(fs::read(path("kernel")).unwrap(), b"kernel");
}
