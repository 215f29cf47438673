//! Snapshots of a real guest: clones are whole VMs and see nothing of each other, and a snapshot
//! that is not what was written is never used. The golden VM is in the home, made if it is not.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

#[path = "support/replaced.rs"]
mod replaced;
#[allow(dead_code)] // other tests use the rest
mod support;

use case::link::{FromGuest, Look, RunOutcome, RunRequest, Sabotage, ToGuest};
use case::observation::LineObs;
use replaced::{Replaced, done, probes};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use support::{home, kernel, spec, spec_of};
use vm::{BootError, DeathKind, Snapshots, Vm, VmSpec};

const PROGRAM: &str = "hgm 1\n\
    f0 = memfd page=2M\n\
    ftruncate file=f0 len=4M\n\
    mmap at=r0 len=4M share=shared from=f0\n\
    write at=r0 len=8K\n\
    read at=r0 len=8K\n";

fn store(dir: &Path) -> Snapshots {
    Snapshots { dir: dir.to_path_buf(), label: "debian-6.1".into() }
}

fn logged(line: &str) {
    println!("{line}");
}

/// Runs the program to its end and gives what it saw.
fn run(vm: &mut Vm, id: u64, fresh: bool) -> Vec<LineObs> {
    let program = case::text::parse(PROGRAM).unwrap();
    let (look, op_timeout_ms) = (Look::Each, 5000);
    let request = RunRequest { id, program, look, fresh, canary: None, op_timeout_ms };
    vm.send(&ToGuest::Run(request)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match vm.recv(Duration::from_secs(1)).unwrap() {
            Some(FromGuest::Done { id: done, outcome: RunOutcome::Finished(seen) }) => {
                assert_eq!(done, id);
                return seen.lines;
            }
            Some(FromGuest::Done { outcome, .. }) => panic!("{outcome:?}"),
            _ => {}
        }
    }
    panic!("no answer; console: {}", String::from_utf8_lossy(&vm.console_since(0)));
}

fn results(lines: &[LineObs]) -> String {
    format!("{:?}", lines.iter().map(|line| (&line.status, &line.out)).collect::<Vec<_>>())
}

#[test]
fn clones_are_whole_vms_and_strangers_to_each_other() {
    let (spec, dir) = spec();
    let snapshot = store(&home().join("snapshots")).find_or_make(&spec, &mut logged).unwrap();
    let before = snapshot.memory_hash().unwrap();
    let clone = |name: &str| {
        let spec = VmSpec { dir: dir.path().join(name), ..spec.clone() };
        Vm::clone_from(&snapshot, &spec).unwrap()
    };
    let (mut one, mut two) = (clone("one"), clone("two"));
    assert_eq!(one.profile(), snapshot.profile());
    assert_eq!(one.profile(), two.profile());
    assert_eq!((one.profile().cpus, one.profile().nodes), (2, 2));
    for id in 1..=5 {
        let seen = [run(&mut one, id, id > 3), run(&mut two, id, id > 3)];
        assert_eq!(seen[0].len(), 5);
        assert_eq!(results(&seen[0]), results(&seen[1]));
    }
    assert!(one.private_kib() > 1000 && one.private_kib() < one.rss_kib());

    // What one guest does to itself, neither its twin nor the golden memory sees.
    one.send(&ToGuest::Sabotage(Sabotage::Panic)).unwrap();
    let death = loop {
        if let Err(death) = one.recv(Duration::from_secs(30)) {
            break death;
        }
    };
    assert!(matches!(death.kind, DeathKind::Exited(_)), "{death}");
    let console = String::from_utf8_lossy(&death.console).into_owned();
    assert!(console.contains("Kernel panic - not syncing"), "{console}");
    assert_eq!(run(&mut two, 9, false).len(), 5);
    assert_eq!(snapshot.memory_hash().unwrap(), before);

    // However long ago the snapshot was made, no time passed for the guest: no watchdog barks.
    // (A guest whose snapshot was made early may still choose its clock: that is no bark.)
    let console = String::from_utf8_lossy(&two.console_since(0)).to_lowercase();
    for bark in ["lockup", "stall", "hung", "blocked for", "unstable"] {
        assert!(!console.contains(bark), "{console}");
    }
    let place = format!("/proc/{}/cmdline", two.pid());
    let line = std::fs::read(&place).unwrap();
    assert!(!line.is_empty());
    two.kill();
    // Its number may be another's by now; and its memory may take a moment to be given back.
    let end = Instant::now() + Duration::from_secs(5);
    while std::fs::read(&place).is_ok_and(|now| now == line) {
        assert!(Instant::now() < end, "it lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// It inherits the memory all later VMs are cloned from.
#[test]
fn a_clone_whose_qemu_was_replaced_changes_nothing_for_the_next() {
    let (spec, dir) = spec();
    let snapshot = store(&home().join("snapshots")).find_or_make(&spec, &mut logged).unwrap();
    let before = snapshot.memory_hash().unwrap();
    let start = Instant::now();
    let replaced = Replaced::new(true);
    let taken = VmSpec {
        qemu: replaced.qemu.clone(),
        dir: replaced.dir.path().join("vm"),
        jail: vm::jail::Jail::find().unwrap(),
        ..spec.clone()
    };
    let error = Vm::clone_from(&snapshot, &taken).unwrap_err();
    assert!(matches!(error, BootError::Refused { .. }), "{error}");
    let seen = probes(&taken.dir.join("qemu.log"));
    let tried = |name: &str| seen.keys().filter(|key| key.contains(name)).count();
    assert_eq!(tried("golden memory"), 12, "of two nodes: {seen:?}");
    let done = done(&seen);
    let (tried, lost) = (seen.len() as u64, done.len() as u64);
    trials::fault("J2", "probes of a program in a clone's QEMU's place", tried, lost, start);
    assert!(done.is_empty(), "{done:?}");
    assert_eq!(snapshot.memory_hash().unwrap(), before);
    let next = VmSpec { dir: dir.path().join("next"), ..spec };
    assert_eq!(run(&mut Vm::clone_from(&snapshot, &next).unwrap(), 1, false).len(), 5);
}

/// A store of its own with a copy of the home's snapshot of `spec`, and the copy's folder.
fn copied(spec: &VmSpec, dir: &Path) -> (Snapshots, PathBuf) {
    let shared = store(&home().join("snapshots"));
    drop(shared.find_or_make(spec, &mut logged).unwrap());
    let own = store(&dir.join("snapshots"));
    std::fs::create_dir(&own.dir).unwrap();
    let (from, to) = (shared.path(spec), own.path(spec));
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-r").args([&from, &to]).status().unwrap().success());
    (own, to)
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn damage_is_seen_and_the_snapshot_made_again_by_one_of_two() {
    let (spec, dir) = spec();
    let (own, folder) = copied(&spec, dir.path());
    assert!(own.find(&spec).is_some(), "the copy is good");

    // Another kernel command line, another initramfs: other snapshots.
    let other = VmSpec { extra_cmdline: "hgm.test=1".into(), ..spec.clone() };
    assert!(own.find(&other).is_none());
    let initrd = dir.path().join("initrd");
    std::fs::copy(&spec.initrd, &initrd).unwrap();
    let moved = VmSpec { initrd: initrd.clone(), ..spec.clone() };
    assert!(own.find(&moved).is_some(), "its place does not matter");
    File::options().append(true).open(&initrd).unwrap().set_len(1 << 23).unwrap();
    assert!(own.find(&moved).is_none());

    // A byte anywhere.
    let whole = |name: &str| std::fs::metadata(folder.join(name)).unwrap().len();
    for (name, at) in [
        ("ram0.img", 20 << 20),
        ("ram1.img", whole("ram1.img") - 1),
        ("state.bin", 1000),
        ("profile", 40),
        ("key", 3),
        ("sums", 5),
    ] {
        flip(&folder.join(name), at);
        assert!(own.find(&spec).is_none(), "{name}");
        flip(&folder.join(name), at);
    }
    assert!(own.find(&spec).is_some(), "whole again");

    // Half a snapshot, what a killed process left, and one of a QEMU that is gone.
    let ram = File::options().write(true).open(folder.join("ram0.img")).unwrap();
    ram.set_len(whole("ram0.img") / 2).unwrap();
    assert!(own.find(&spec).is_none());
    let (half, old) = (own.dir.join(".build-debian-6.1-x"), "debian-6.1-01234567-89abcdef");
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("ram0.img"), "half").unwrap();
    std::fs::create_dir(own.dir.join(old)).unwrap();
    std::fs::create_dir(own.dir.join("debian-6.1-kept")).unwrap();

    let said = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (own, said) = (&own, &said);
            let spec = VmSpec { dir: dir.path().join(name), ..spec.clone() };
            scope.spawn(move || {
                let mut say = |line: &str| said.lock().unwrap().push(line.to_string());
                let snapshot = own.find_or_make(&spec, &mut say).unwrap();
                run(&mut Vm::clone_from(&snapshot, &spec).unwrap(), 1, true);
            });
        }
    });
    let said = said.into_inner().unwrap();
    let of = |what: &str| said.iter().filter(|line| line.contains(what)).count();
    assert_eq!(of("every VM after it is a clone"), 1, "made once: {said:?}");
    assert!(of("of no use") >= 1 && of("waiting") >= 1, "{said:?}");
    assert!(own.find(&spec).is_some());
    assert!(!half.exists() && !own.dir.join(old).exists());
    assert!(own.dir.join("debian-6.1-kept").exists(), "another kernel's");
}

#[test]
fn a_kernel_without_virtio_is_cloned_over_the_serial_link() {
    let mut bare = kernel("debian:6.1");
    bare.modules.retain(|m| !m.to_string_lossy().contains("virtio"));
    let (spec, dir) = spec_of(&bare);
    let own = store(&dir.path().join("snapshots"));
    let made = own.find_or_make(&spec, &mut logged).unwrap();
    let found = own.find(&spec).unwrap();
    for snapshot in [&made, &found] {
        let mut vm = Vm::clone_from(snapshot, &spec).unwrap();
        assert!(vm.serial_link());
        assert_eq!(vm.profile(), snapshot.profile());
        assert_eq!(run(&mut vm, 1, true).len(), 5);
    }
}

#[test]
fn a_home_that_cannot_be_written_costs_only_the_next_boot() {
    let (spec, dir) = spec();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let mut said = String::new();
    let mut say = |line: &str| said = format!("{said}{line}\n");
    let snapshot = store(&file).find_or_make(&spec, &mut say).unwrap();
    assert_eq!(run(&mut Vm::clone_from(&snapshot, &spec).unwrap(), 1, false).len(), 5);
    assert!(said.contains("cannot be kept"), "{said}");
}
