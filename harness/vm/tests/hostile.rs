//! QEMUs that lie, hang, or are not QEMU: scripts that speak just enough to be believed.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

use case::link::{FromGuest, RunOutcome, ToGuest};
use case::profile::Profile;
use case::wire;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vm::{Accel, BootError, DeathKind, Vm, VmSpec};

/// Finds its descriptors and answers the monitor's handshake; then `body`.
fn script(body: &str) -> String {
    let greeting = r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7},"package":""},"capabilities":[]}}"#;
    format!(
        r#"#!/usr/bin/env bash
here=$(dirname "$0")
for arg in "$@"; do
  case $arg in
    socket,id=console,fd=*) console=${{arg##*=}} ;;
    socket,id=link,fd=*) link=${{arg##*=}} ;;
    socket,id=qmp,fd=*) qmp=${{arg##*=}} ;;
  esac
done
hello() {{
  printf '%s\n' '{greeting}' >&"$qmp"
  read -r _ <&"$qmp"
  printf '{{"return":{{}}}}\n' >&"$qmp"
}}
{body}
"#
    )
}

fn spec(body: &str) -> (VmSpec, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let qemu = dir.path().join("qemu");
    std::fs::write(&qemu, script(body)).unwrap();
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let frame = |name: &str, message: &FromGuest| {
        std::fs::write(dir.path().join(name), wire::encode(message).unwrap()).unwrap();
    };
    frame("ready", &FromGuest::Ready(Profile::default()));
    frame("executing-9", &FromGuest::Executing { id: 9 });
    frame("done-9", &FromGuest::Done { id: 9, outcome: RunOutcome::Refused("x".into()) });
    let spec = VmSpec {
        qemu,
        kernel: "/k".into(),
        initrd: "/i".into(),
        memory_mib: 4096,
        cpus: 2,
        accel: Accel::Tcg,
        // They read what they say from files beside them.
        jail: vm::Jail::Open,
        dir: dir.path().join("vm"),
        boot_timeout: Duration::from_secs(10),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    (spec, dir)
}

fn boot_error(body: &str) -> BootError {
    let (spec, _dir) = spec(body);
    Vm::boot(&spec).unwrap_err()
}

/// Boots a script and waits for its death.
fn death(body: &str) -> (Vm, DeathKind) {
    let (spec, _dir) = spec(body);
    let mut vm = Vm::boot(&spec).unwrap();
    for _ in 0..200 {
        if let Err(death) = vm.recv(Duration::from_millis(100)) {
            return (vm, death.kind);
        }
    }
    panic!("it lives");
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn no_qemu_at_all_says_where_it_was_looked_for() {
    let (mut spec, dir) = spec("");
    spec.qemu = "/no/such/qemu-system-x86_64".into();
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(error, BootError::NoQemu { .. }));
    assert_eq!(error.to_string(), "there is no QEMU at `/no/such/qemu-system-x86_64`");
    assert!(error.help().contains("apt-get install"));
    spec.qemu = dir.path().join("ready");
    assert!(matches!(Vm::boot(&spec).unwrap_err(), BootError::Start { .. }));
}

#[test]
fn a_refusal_carries_what_qemu_said() {
    let start = Instant::now();
    let error = boot_error("echo 'qemu: no such machine' >&2; exit 1");
    assert!(matches!(&error, BootError::Refused { stderr, .. } if stderr.contains("no such")));
    let error = boot_error("hello; echo 'late refusal' >&2; exit 1");
    assert!(matches!(&error, BootError::Refused { stderr, .. } if stderr.contains("late")));
    let error = boot_error("exit 0");
    assert!(error.to_string().contains("gave no reason"), "{error}");
    trials::fault("F10", "a QEMU that refuses to start", 3, 0, start);
}

#[test]
fn what_speaks_no_qmp_is_not_waited_for() {
    let started = Instant::now();
    let error = boot_error(r#"echo 'SSH-2.0-OpenSSH' >&"$qmp"; sleep 1000"#);
    assert!(matches!(error, BootError::Start { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    trials::fault("F10", "a QEMU that is another program", 1, 0, started);
}

#[test]
fn garbage_before_ready_is_a_protocol_error() {
    let start = Instant::now();
    let error = boot_error(r#"hello; head -c 4096 /dev/urandom >&"$link"; sleep 1000"#);
    assert!(matches!(error, BootError::Protocol { .. }), "{error}");
    let error = boot_error(r#"hello; cat "$here/executing-9" >&"$link"; sleep 1000"#);
    assert!(matches!(error, BootError::Protocol { .. }), "{error}");
    trials::fault("F13", "rubbish before the first message", 2, 0, start);
}

#[test]
fn lies_after_ready_end_the_vm() {
    let start = Instant::now();
    let version = case::wire::VERSION;
    let huge = format!(r"printf 'hgmF\{version:o}\0\0\0\377\377\377\377\0\0\0\0'");
    let lies = [
        (r#"cat "$here/executing-9""#, "started run 9"),
        (r#"cat "$here/done-9""#, "answered run 9"),
        (r#"cat "$here/ready""#, "second Ready"),
        (huge.as_str(), "cap"),
        ("head -c 100000 /dev/zero", "magic"),
    ];
    for (lie, why) in lies {
        let body = format!(
            r#"hello; cat "$here/ready" >&"$link"; sleep 0.3; {lie} >&"$link"; sleep 1000"#
        );
        let (vm, kind) = death(&body);
        let DeathKind::Protocol(text) = kind else { panic!("{lie}: {kind:?}") };
        assert!(text.contains(why), "{lie}: {text}");
        assert!(gone(vm.pid()), "a liar is killed at once");
    }
    trials::fault("F13", "an agent that lies", lies.len() as u64, 0, start);
}

#[test]
fn a_clean_exit_a_crash_and_a_lost_link_are_told_apart() {
    let start = Instant::now();
    let ready = r#"hello; cat "$here/ready" >&"$link"; sleep 0.3;"#;
    let (_, kind) = death(&format!("{ready} exit 0"));
    assert!(matches!(kind, DeathKind::Exited(status) if status.success()));
    let (_, kind) = death(&format!("{ready} kill -SEGV $$"));
    assert!(matches!(kind, DeathKind::Exited(status) if !status.success()));
    let (vm, kind) = death(&format!(r#"{ready} eval "exec $link>&-"; sleep 1000"#));
    assert_eq!(kind, DeathKind::LinkLost);
    assert!(gone(vm.pid()));
    trials::fault("F10", "a QEMU that exits, crashes, drops the link", 3, 0, start);
}

#[test]
fn last_words_before_the_exit_are_heard() {
    let body = r#"hello; cat "$here/ready" >&"$link"; sleep 0.3
        printf 'Kernel panic - not syncing: x\n' >&"$console"; exit 0"#;
    let (spec, _dir) = spec(body);
    let mut vm = Vm::boot(&spec).unwrap();
    let death = loop {
        if let Err(death) = vm.recv(Duration::from_secs(5)) {
            break death;
        }
    };
    assert_eq!(death.console, b"Kernel panic - not syncing: x\n");
}

#[test]
fn a_guest_that_never_reads_does_not_block_the_host_for_ever() {
    let body = r#"hello; cat "$here/ready" >&"$link"; sleep 1000"#;
    let (spec, _dir) = spec(body);
    let mut vm = Vm::boot(&spec).unwrap();
    let started = Instant::now();
    let death = loop {
        if let Err(death) = vm.send(&ToGuest::Hello) {
            break death;
        }
        assert!(started.elapsed() < Duration::from_secs(60));
    };
    assert_eq!(death.kind, DeathKind::Silent);
    assert!(gone(vm.pid()));
    trials::fault("F12", "a guest that never reads", 1, 0, started);
}

#[test]
fn a_console_flood_neither_stalls_nor_grows() {
    let start = Instant::now();
    let body = r#"hello; printf 'first line\n' >&"$console"
        head -c 100000000 /dev/zero >&"$console"; printf 'last line' >&"$console"
        cat "$here/ready" >&"$link"; sleep 1000"#;
    let (mut spec, _dir) = spec(body);
    spec.boot_timeout = Duration::from_secs(60);
    let vm = Vm::boot(&spec).unwrap();
    let seen = vm.console_since(0);
    assert!(seen.starts_with(b"first line\n") && seen.ends_with(b"last line"));
    assert!(seen.len() <= vm::HEAD_BYTES + vm::PIN_BYTES + vm::TAIL_BYTES + 200);
    assert_eq!(vm.console_len(), 100_000_020);
    let log = std::fs::metadata(spec.dir.join("console.log")).unwrap();
    assert_eq!(log.len(), 16 << 20);
    trials::fault("F14", "a console of 100 MB at full speed", 1, 0, start);
}

#[test]
fn a_wrapper_that_ignores_signals_is_gone_after_drop() {
    let start = Instant::now();
    let body = r#"trap '' TERM INT HUP; hello; cat "$here/ready" >&"$link"
        sleep 1000 & sleep 1000 & echo "children: $!" >&"$console"; wait"#;
    let (spec, _dir) = spec(body);
    let mut vm = Vm::boot(&spec).unwrap();
    vm.recv(Duration::from_millis(500)).unwrap();
    let text = String::from_utf8(vm.console_since(0)).unwrap();
    let child: u32 = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let pid = vm.pid();
    drop(vm);
    assert!(gone(pid));
    let deadline = Instant::now() + Duration::from_secs(5);
    while !gone(child) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Re-parented, it may stay a zombie until its new parent reaps it.
    let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(gone(child) || state.contains(") Z "), "{state}");
    trials::fault("F10", "a QEMU that is a script and ignores signals", 1, 0, start);
}
