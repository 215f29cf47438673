//! Real guests: boot, talk, die. Each test boots stock Debian kernels under TCG.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use case::link::{FromGuest, Look, RunOutcome, RunRequest, Sabotage, ToGuest};
use case::profile::Family;
use std::time::{Duration, Instant};
use support::{kernel, spec, spec_of};
use vm::{BootError, Death, DeathKind, Vm};

const PROGRAM: &str = "hgm 1\n\
    f0 = memfd page=2M\n\
    ftruncate file=f0 len=2M\n\
    mmap at=r0 len=2M share=shared from=f0\n\
    write at=r0 len=8K\n\
    read at=r0 len=8K\n";

/// Its last op waits for a fault that nobody resolves, until the op timeout.
const SLOW: &str = "hgm 1\n\
    mmap at=r0 len=2M\n\
    u0 = uffd handler=none\n\
    register uffd=u0 at=r0 len=2M modes=missing\n\
    read at=r0 len=4K\n";

fn run(id: u64, text: &str) -> ToGuest {
    let program = case::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let look = Look::Asked;
    ToGuest::Run(RunRequest { id, program, look, fresh: false, canary: None, op_timeout_ms: 5000 })
}

/// Messages up to and with the answer to `id`.
fn answer(vm: &mut Vm, id: u64) -> RunOutcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match vm.recv(Duration::from_secs(1)).unwrap() {
            Some(FromGuest::Executing { id: started }) => assert_eq!(vm.executing(), Some(started)),
            Some(FromGuest::Done { id: done, outcome }) if done == id => return outcome,
            _ => {}
        }
    }
    panic!("no answer; console: {}", String::from_utf8_lossy(&vm.console_since(0)));
}

/// Waits for the death.
fn death(vm: &mut Vm) -> Death {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Err(death) = vm.recv(Duration::from_secs(1)) {
            return death;
        }
    }
    panic!("it lives");
}

fn boot_and_run(mut vm: Vm, family: Family) {
    let profile = vm.profile();
    assert_eq!(profile.family(), family);
    assert!(profile.huge_2m && profile.huge_1g, "a page of each size is there: {profile:?}");
    assert_eq!((profile.cpus, profile.nodes), (2, 2), "{profile:?}");
    let pid = vm.pid();
    // Pipelined: all sent before the first answer is read.
    for id in 1..=3 {
        vm.send(&run(id, PROGRAM)).unwrap();
    }
    for id in 1..=3 {
        let RunOutcome::Finished(seen) = answer(&mut vm, id) else { panic!("not finished") };
        assert_eq!(seen.lines.len(), 5);
        assert_eq!(seen.before.pool_2m.free, seen.after.pool_2m.free);
    }
    assert_eq!(vm.executing(), None);
    assert!(vm.rss_kib() > 10_000);
    vm.kill();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "QEMU is gone and reaped");
}

#[test]
fn stock_6_1_boots_and_runs_programs() {
    let (spec, _dir) = spec();
    boot_and_run(Vm::boot(&spec).unwrap(), Family::U61);
    let log = std::fs::read_to_string(spec.dir.join("console.log")).unwrap();
    assert!(log.contains("agent: link on"), "{log}");
    assert!(!log.contains("WARNING:"), "the machine itself makes the kernel complain: {log}");
    let left: Vec<_> = std::fs::read_dir(&spec.dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "only the two logs stay: {left:?}");
}

#[test]
fn stock_6_12_boots_and_runs_programs() {
    let (spec, _dir) = spec_of(&kernel("debian:6.12"));
    boot_and_run(Vm::boot(&spec).unwrap(), Family::U612);
}

#[test]
fn the_serial_link_works_when_asked_for() {
    let (mut spec, _dir) = spec();
    spec.serial_link = true;
    let vm = Vm::boot(&spec).unwrap();
    assert!(vm.serial_link());
    boot_and_run(vm, Family::U61);
}

#[test]
fn a_kernel_without_virtio_falls_back_to_the_serial_link() {
    let mut bare = kernel("debian:6.1");
    bare.modules.retain(|m| !m.to_string_lossy().contains("virtio"));
    let (spec, _dir) = spec_of(&bare);
    let vm = Vm::boot(&spec).unwrap();
    assert!(vm.serial_link());
    boot_and_run(vm, Family::U61);
}

#[test]
fn a_killed_qemu_is_an_exit_and_names_the_guilty_run() {
    let (spec, _dir) = spec();
    let mut vm = Vm::boot(&spec).unwrap();
    vm.send(&run(7, SLOW)).unwrap();
    let pid = vm.pid();
    loop {
        match vm.recv(Duration::from_secs(20)).unwrap() {
            Some(FromGuest::Executing { id: 7 }) => break,
            other => assert!(matches!(other, Some(FromGuest::Log(_))), "{other:?}"),
        }
    }
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().is_ok());
    let started = Instant::now();
    let death = death(&mut vm);
    assert!(started.elapsed() < Duration::from_secs(5));
    let DeathKind::Exited(status) = &death.kind else { panic!("{death}") };
    assert_eq!(vm::process::signal_of(*status), Some(9));
    assert_eq!(death.executing, Some(7));
    assert_eq!(vm.send(&ToGuest::Hello).unwrap_err().kind, death.kind, "dead stays dead");
    assert_eq!(vm.rss_kib(), 0);
    trials::fault("F8", "QEMU is killed while a program runs", 1, 0, started);
}

#[test]
fn a_panic_is_an_exit_with_its_report_on_the_console() {
    let (spec, _dir) = spec();
    for how in [Sabotage::Panic, Sabotage::AgentExit] {
        let mut vm = Vm::boot(&spec).unwrap();
        let mark = vm.console_len();
        vm.send(&ToGuest::Sabotage(how)).unwrap();
        let death = death(&mut vm);
        assert!(matches!(death.kind, DeathKind::Exited(_)), "{death}");
        let text = String::from_utf8_lossy(&death.console).into_owned();
        assert!(text.contains("Kernel panic - not syncing"), "{how:?}: {text}");
        assert!(text.contains("Call Trace:"), "{how:?}: {text}");
        // The report is complete: this is the last line before the kernel restarts the machine.
        assert!(text.contains("Kernel Offset:"), "{how:?}: {text}");
        assert_eq!(vm.console_since(mark), death.console);
    }
}

#[test]
fn a_stopped_qemu_is_silent_and_given_up_quickly() {
    let (spec, _dir) = spec();
    let mut vm = Vm::boot(&spec).unwrap();
    let pid = vm.pid().to_string();
    assert!(std::process::Command::new("kill").args(["-STOP", &pid]).status().is_ok());
    vm.send(&run(1, PROGRAM)).unwrap();
    assert_eq!(vm.recv(Duration::from_millis(500)), Ok(None));
    assert!(vm.is_stopped());
    let started = Instant::now();
    let death = vm.give_up();
    assert_eq!(death.kind, DeathKind::Silent);
    assert!(!vm.is_stopped());
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    trials::fault("F9", "QEMU is stopped", 1, 0, started);
}

#[test]
fn a_hung_guest_says_where_it_hangs() {
    let started = Instant::now();
    let (spec, _dir) = spec();
    let mut vm = Vm::boot(&spec).unwrap();
    assert!(vm.ask_where_it_hangs(Duration::from_secs(5)));
    let death = death(&mut vm);
    let text = String::from_utf8_lossy(&death.console).into_owned();
    assert!(text.contains("NMI") && text.contains("Call Trace:"), "{text}");
    trials::fault("F9", "a guest with its interrupts off", 1, 0, started);
}

#[test]
fn an_image_that_is_no_kernel_is_refused_by_qemu_in_its_own_words() {
    let (mut spec, dir) = spec();
    spec.kernel = dir.path().join("garbage");
    std::fs::write(&spec.kernel, vec![0x90u8; 1 << 20]).unwrap();
    spec.boot_timeout = Duration::from_secs(20);
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(error, BootError::Refused { .. } | BootError::NoReady { .. }), "{error}");
    spec.kernel = dir.path().join("absent");
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(&error, BootError::Refused { stderr, .. } if stderr.contains("absent")));
    assert!(error.help().contains("QEMU's own"));
}

#[test]
fn a_kernel_that_panics_at_boot_is_named_with_its_panic() {
    let (mut spec, _dir) = spec();
    let started = Instant::now();
    spec.extra_cmdline = "rdinit=/absent".into();
    let error = Vm::boot(&spec).unwrap_err();
    let BootError::Panicked { panic, console } = &error else { panic!("{error}") };
    assert!(panic.contains("VFS: Unable to mount root fs"), "{panic}");
    assert!(console.contains("Call Trace:"));
    trials::fault("F15", "a kernel that panics as it boots", 1, 0, started);
}

#[test]
fn a_boot_that_takes_too_long_shows_how_far_it_came() {
    let (mut spec, _dir) = spec();
    spec.boot_timeout = Duration::from_millis(2500);
    let started = Instant::now();
    let error = Vm::boot(&spec).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(8));
    let BootError::NoReady { console, .. } = &error else { panic!("{error}") };
    assert!(error.to_string().contains("2 s") || error.to_string().contains("3 s"), "{error}");
    assert!(console.len() < 5000);
}

#[test]
fn the_accelerator_is_proven_in_seconds_and_remembered() {
    let (spec, dir) = spec();
    let cache = dir.path().join("cache");
    let started = Instant::now();
    let verdict = vm::probe_accel(&spec, &cache);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(vm::probe_accel(&spec, &cache), verdict);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    println!("accelerator here: {}", verdict.name());
}

/// `cargo test -p vm --test boot -- --nocapture figures` shows them.
#[test]
fn figures_of_boot_and_round_trip_are_sane() {
    for name in ["debian:6.1", "debian:6.12"] {
        let (spec, _dir) = spec_of(&kernel(name));
        let started = Instant::now();
        let mut vm = Vm::boot(&spec).unwrap();
        let boot = started.elapsed();
        let idle = vm.rss_kib();
        let cpu = support::cpu_seconds(vm.pid());
        vm.send(&run(0, "hgm 1\n")).unwrap();
        answer(&mut vm, 0);
        let started = Instant::now();
        for id in 1..=100 {
            vm.send(&run(id, "hgm 1\n")).unwrap();
            answer(&mut vm, id);
        }
        let trip = started.elapsed() / 100;
        vm.send(&run(101, PROGRAM)).unwrap();
        answer(&mut vm, 101);
        println!(
            "{name}: ready in {:.1} s ({cpu:.1} s CPU), {} MiB, empty program {:.2} ms",
            boot.as_secs_f64(),
            idle >> 10,
            trip.as_secs_f64() * 1e3
        );
        assert!(trip < Duration::from_millis(200), "{trip:?}");
        assert!(idle < 1 << 20, "{idle} KiB before any program");
    }
}
