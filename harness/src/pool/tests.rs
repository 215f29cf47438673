//! The pool against real VMs: deaths of every sort, told apart, and nothing lost. Needs QEMU, the
//! agent, and a Debian 6.1 kernel in the home (fetched if it is not there).

use super::*;
use crate::assets;
use case::Source;
use case::link::{FromGuest, Sabotage, ToGuest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use vm::{Accel, Snapshots};

/// A guest that takes longer than this to do anything is broken.
const PATIENCE: Duration = Duration::from_secs(240);

const PASSES: &str = "hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len=2M\n\
    mmap at=r0 len=2M share=shared from=f0\nwrite at=r0 len=8K\nread at=r0 len=12K\n";
/// Waits for its op timeout: nobody answers the fault.
const SLOW: &str = "hgm 1\nmmap at=r0 len=4K\nu0 = uffd\nregister uffd=u0 at=r0 len=4K \
    modes=missing\nread at=r0 len=4K\n";

fn spec(dir: &std::path::Path) -> PoolSpec {
    let home = std::env::var_os("HGM_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/hgm"));
    let find = || vmimages::kernels(&home).into_iter().find(|k| k.id.starts_with("debian-6.1"));
    let kernel =
        find().unwrap_or_else(|| vmimages::add(&home, "debian:6.1", None, &mut |_| {}).unwrap());
    let initrd = vmimages::initramfs(&home, &kernel, &assets::agent().unwrap()).unwrap();
    let vm = VmSpec {
        qemu: "qemu-system-x86_64".into(),
        kernel: kernel.image,
        initrd,
        memory_mib: 1024,
        cpus: 2,
        accel: Accel::Tcg,
        jail: vm::Jail::find().unwrap_or_default(),
        dir: dir.to_owned(),
        boot_timeout: Duration::from_secs(180),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    PoolSpec {
        vm,
        look: Look::Asked,
        op_timeout: Duration::from_secs(1),
        depth: 4,
        programs_max: 1000,
        replace_on_violation: true,
        known: Arc::new(Known::builtin()),
        cradle: Arc::new(Cradle::warm(Snapshots { dir: home.join("snapshots"), label: kernel.id })),
        cover: None,
    }
}

fn next(pool: &Pool) -> Event {
    let mut event = pool.events.recv_timeout(PATIENCE).expect("the pool went silent");
    while let Event::Note(line) = &event {
        println!("{line}");
        event = pool.events.recv_timeout(PATIENCE).expect("the pool went silent");
    }
    if let Event::BootFailed { why, .. } = &event {
        panic!("boot failed: {why}");
    }
    event
}

fn booted(pool: &Pool) -> u32 {
    match next(pool) {
        Event::Booted { pid, .. } => pid,
        other => panic!("expected a boot, got {other:?}"),
    }
}

fn job(ticket: u64, text: &str) -> Job {
    Job {
        ticket,
        program: case::text::parse(text).unwrap(),
        fresh: false,
        check: false,
        canary: None,
    }
}

fn died(pool: &Pool) -> (Option<Job>, Cause) {
    match next(pool) {
        Event::Died { job, cause, .. } => (job, cause),
        other => panic!("expected a death, got {other:?}"),
    }
}

#[test]
fn deaths_are_told_apart_and_no_program_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::start(&spec(dir.path()), 1).unwrap();

    booted(&pool);
    pool.order(0, Order::Run(job(1, PASSES)));
    let Event::Done(done) = next(&pool) else { panic!("no result") };
    assert!(done.judged.sightings.is_empty(), "{:?}", done.judged.sightings);
    assert!(done.judged.inconclusive.is_none() && !done.judged.states.is_empty());

    // It died between programs: the last one is the suspect.
    let start = Instant::now();
    pool.order(0, Order::Sabotage(Sabotage::Panic));
    let Event::Console { job: last, sighting, .. } = next(&pool) else { panic!("no report") };
    assert_eq!((last.ticket, sighting.source), (1, Source::Console));
    let (guilty, cause) = died(&pool);
    let Cause::Guest(sighting) = cause else { panic!("a panic is the kernel's: {cause:?}") };
    assert_eq!((guilty, sighting.source), (None, Source::Console), "{}", sighting.title);
    trials::fault("F15", "a kernel that panics between programs", 1, 0, start);

    // QEMU is killed from outside while a program runs and others wait: the host's doing, and
    // every program comes back.
    let (start, pid) = (Instant::now(), booted(&pool));
    for ticket in 10..14 {
        pool.order(0, Order::Run(job(ticket, SLOW)));
    }
    std::thread::sleep(Duration::from_millis(700));
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let (mut back, mut dead) = (BTreeSet::new(), false);
    while back.len() < 4 {
        match next(&pool) {
            Event::Done(done) => back.extend([done.job.ticket]),
            Event::Lost { jobs, .. } => back.extend(jobs.iter().map(|j| j.ticket)),
            Event::Died { job, cause, .. } => {
                assert!(matches!(cause, Cause::Host(_)), "{cause:?}");
                back.extend(job.map(|j| j.ticket));
                dead = true;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(dead && back == BTreeSet::from([10, 11, 12, 13]));
    trials::fault("F8", "QEMU is killed, four programs wait", 1, 0, start);

    booted(&pool);
    pool.order(0, Order::Sabotage(Sabotage::AgentExit));
    let (_, cause) = died(&pool);
    assert!(matches!(cause, Cause::Host(_)), "our init ended, not the kernel: {cause:?}");

    booted(&pool);
    let start = Instant::now();
    pool.order(0, Order::Sabotage(Sabotage::Hang));
    let (_, cause) = died(&pool);
    let Cause::Guest(sighting) = cause else { panic!("a hang is the guest's: {cause:?}") };
    assert_eq!(sighting.source, Source::Hang, "{}", sighting.title);
    trials::fault("F9", "a guest that hangs under a pool", 1, 0, start);
    pool.close(Duration::from_secs(10));
}

/// An executable for a guest, of a C file beside this one.
fn built(dir: &std::path::Path, source: &str, flags: &[&str]) -> Vec<u8> {
    let out = dir.join("executable");
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pool").join(source);
    let mut cc = std::process::Command::new("cc");
    cc.args(["-static", "-std=gnu11", "-O1", "-pthread", "-s", "-o"]).arg(&out);
    assert!(cc.args(flags).arg(source).status().unwrap().success());
    std::fs::read(out).unwrap()
}

/// A hung task, which the kernel reports at each of its looks, and a warning, twice: with lines of
/// somebody else in between and without.
#[test]
fn a_kernel_that_reports_and_goes_on_is_told_once_a_life() {
    let dir = tempfile::tempdir().unwrap();
    let built = |flags: &[&str]| built(dir.path(), "reports.c", flags);
    let (alone, mixed) = (built(&[]), built(&["-DNOISE"]));
    let pool = Pool::start(&spec(dir.path()), 1).unwrap();
    let (start, lives) = (Instant::now(), trials::rounds(4));
    let (mut lost, mut signatures) = (0, BTreeSet::new());
    for life in 0..lives {
        booted(&pool);
        let binary = if life % 2 == 0 { &mixed } else { &alone }.clone();
        pool.order(0, Order::Tell(ToGuest::Execute { binary, seconds: 60 }));
        pool.order(0, Order::Run(job(life.into(), PASSES)));
        let Event::Done(done) = next(&pool) else { panic!("no result") };
        assert!(done.judged.sightings.is_empty() && done.judged.inconclusive.is_none());
        let mut told: Vec<String> = Vec::new();
        while told.len() < 2 {
            let Event::Console { sighting, .. } = next(&pool) else { panic!("told: {told:?}") };
            let text = String::from_utf8_lossy(&sighting.console).into_owned();
            let said = |what: &str| text.matches(what).count();
            assert!(said("blocked for more than") >= 2 && said("WARNING: CPU") == 2, "{text}");
            assert_eq!(said("somebody else") > 20, life % 2 == 0, "{text}");
            told.push(sighting.signature);
        }
        println!("life {life}: {told:?}");
        let wrong = told[0] == told[1] || told.iter().any(|t| life > 0 && !signatures.contains(t));
        lost += u64::from(wrong);
        signatures.extend(told);
    }
    // The last VM is put away as well, with not a word more.
    booted(&pool);
    trials::fault("F17", "a kernel reports the same again and goes on", lives.into(), lost, start);
    assert_eq!((lost, signatures.len()), (0, 2), "{signatures:?}");
    pool.close(Duration::from_secs(10));
}

/// Programs per second of VM 1 until `over` is true of an event; two are always on their way.
fn run_beside(pool: &Pool, ticket: &mut u64, mut over: impl FnMut(Option<Event>) -> bool) -> f64 {
    let (start, mut ran, mut ended) = (Instant::now(), 0, false);
    while !ended {
        match pool.events.recv_timeout(Duration::from_millis(100)) {
            Ok(Event::Done(done)) if done.slot == 1 => {
                assert!(done.judged.sightings.is_empty() && done.judged.inconclusive.is_none());
                ran += 1;
                *ticket += 1;
                pool.order(1, Order::Run(job(*ticket, PASSES)));
                ended = over(None);
            }
            Ok(Event::Note(line)) => println!("{line}"),
            event => ended = over(event.ok()),
        }
    }
    f64::from(ran) / start.elapsed().as_secs_f64()
}

/// One VM writes all its memory on all its CPUs and floods console and link; it is given up although it
/// never stops talking, and meanwhile the other one goes on.
#[test]
fn a_guest_that_takes_all_it_can_stops_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let frame = case::wire::encode(&FromGuest::Log("x".repeat(4000))).unwrap();
    let frame: Vec<String> = frame.iter().map(u8::to_string).collect();
    let binary = built(dir.path(), "greedy.c", &[&format!("-DFRAME={}", frame.join(","))]);
    let (op_timeout, programs_max) = (Duration::from_millis(500), u32::MAX);
    let spec = PoolSpec { op_timeout, programs_max, ..spec(dir.path()) };
    let pool = Pool::start(&spec, 2).unwrap();
    let mut greedy = 0;
    for _ in 0..2 {
        let Event::Booted { slot, pid, .. } = next(&pool) else { panic!("no boot") };
        greedy = if slot == 0 { pid } else { greedy };
    }
    (0..2).for_each(|ticket| pool.order(1, Order::Run(job(ticket, PASSES))));
    let (mut ticket, end) = (1, Instant::now() + Duration::from_secs(5));
    let alone = run_beside(&pool, &mut ticket, |_| Instant::now() > end);

    let start = Instant::now();
    pool.order(0, Order::Tell(ToGuest::Execute { binary, seconds: 600 }));
    pool.order(0, Order::Run(job(1 << 32, PASSES)));
    let (mut given_up, silence) = (None, spec.silence());
    let rss = || figure(&format!("/proc/{greedy}/status"), "VmRSS:");
    let (before, mut most) = (rss(), 0);
    let beside = run_beside(&pool, &mut ticket, |event| {
        most = most.max(rss());
        match event {
            Some(Event::Died { slot: 0, cause, .. }) => {
                assert!(matches!(cause, Cause::Guest(_)), "{cause:?}");
                given_up = Some(start.elapsed());
            }
            Some(Event::Booted { slot: 0, .. }) if given_up.is_some() => return true,
            None | Some(Event::Lost { slot: 0, .. }) => {}
            other => panic!("unexpected {other:?}"),
        }
        assert!(start.elapsed() < silence * 3, "it keeps its place: {given_up:?}");
        false
    });
    let own = figure("/proc/self/status", "VmHWM:");
    // Its CPUs and its QEMU, our thread that reads, and the other VM want a core each.
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    let share = (cores / 5.0).min(0.9);
    println!(
        "alone {alone:.1} programs/s, beside it {beside:.1}; given up after {given_up:?}; its memory \
         {} MiB, ours {} MiB",
        most >> 10,
        own >> 10
    );
    let wrong =
        [own > 512 << 10, own == 0, most < before + (64 << 10), beside < alone * share / 2.0];
    let lost = wrong.iter().filter(|wrong| **wrong).count() as u64;
    trials::fault("J4", "a guest takes all it can beside another", ticket, lost, start);
    assert_eq!(lost, 0, "{wrong:?}");
    pool.close(Duration::from_secs(10));
}

/// A row in KiB of a file of /proc; 0 without it.
fn figure(file: &str, row: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(row));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_replay_counts_what_showed() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::start(&spec(dir.path()), 1).unwrap();
    let program = case::text::parse(PASSES).unwrap();
    pool.order(0, Order::Replay(Replay { key: 0, program, signature: None, times: 3 }));
    booted(&pool);
    let Event::Replayed(replayed) = next(&pool) else { panic!("no answer") };
    assert_eq!((replayed.shown, replayed.tried), (0, 3), "{replayed:?}");
    pool.close(Duration::from_secs(10));
}

#[test]
fn twenty_clones_in_a_row_each_pass_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    // One program a VM: each finds a clone that ran nothing.
    let mut spec = PoolSpec { programs_max: 1, depth: 1, look: Look::Each, ..spec(dir.path()) };
    // Seeds want a page of 1 GiB.
    spec.vm.memory_mib = vm::MEMORY_MIB_DEFAULT;
    let pool = Pool::start(&spec, 1).unwrap();
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/seeds");
    let mut paths: Vec<_> =
        std::fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "hgm"));
    paths.sort();
    let (mut clones, mut ran) = (0, 0);
    for (ticket, path) in paths.iter().take(20).enumerate() {
        let text = std::fs::read_to_string(path).unwrap();
        pool.order(0, Order::Run(Job { fresh: true, ..job(ticket as u64, &text) }));
        loop {
            match next(&pool) {
                Event::Booted { cloned, .. } => {
                    assert!(cloned, "booted instead of cloned");
                    clones += 1;
                }
                Event::Done(done) => {
                    let news: Vec<_> =
                        done.judged.sightings.iter().filter(|s| s.known.is_none()).collect();
                    assert!(news.is_empty(), "{}: {news:?}", path.display());
                    assert_eq!(done.judged.inconclusive, None, "{}", path.display());
                    ran += 1;
                    break;
                }
                // The order came while the last VM was put away.
                Event::Lost { jobs, .. } => {
                    jobs.into_iter().for_each(|job| pool.order(0, Order::Run(job)));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    trials::fault("F30", "a VM is made, runs one program, ends", clones, 0, start);
    assert_eq!(ran, 20);
    assert!(clones >= 20, "{clones} clones");
    pool.close(Duration::from_secs(10));
}

#[test]
fn a_snapshot_that_cannot_be_cloned_costs_a_boot_and_no_program() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let home = spec.cradle.clone();
    let label = "damaged".to_owned();
    let (good, bad) = (home.store().unwrap(), Snapshots { dir: dir.path().join("s"), label });
    good.find_or_make(&spec.vm, &mut |line| println!("{line}")).unwrap();
    let (from, to) = (good.path(&spec.vm), bad.path(&spec.vm));
    std::fs::create_dir(&bad.dir).unwrap();
    let copied = std::process::Command::new("cp")
        .args(["-r", "--sparse=always"])
        .args([&from, &to])
        .status()
        .unwrap();
    assert!(copied.success());
    // Half the state of its devices, with a hash that fits: only QEMU can tell.
    let state = std::fs::read(to.join("state.bin")).unwrap();
    let half = &state[..state.len() / 2];
    std::fs::write(to.join("state.bin"), half).unwrap();
    let sums = std::fs::read_to_string(to.join("sums")).unwrap();
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    std::fs::write(to.join("sums"), sums.replace(&hash(&state), &hash(half))).unwrap();

    assert!(bad.find(&spec.vm).is_some(), "nothing but a clone shows the damage");
    spec.cradle = Arc::new(Cradle::warm(bad));
    let pool = Pool::start(&spec, 1).unwrap();
    let mut said = String::new();
    let cloned = loop {
        match pool.events.recv_timeout(PATIENCE).unwrap() {
            Event::Note(line) => said += &line,
            Event::Booted { cloned, .. } => break cloned,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert!(!cloned && said.contains("cloning failed, a VM is booted instead"), "{said}");
    pool.order(0, Order::Run(job(1, PASSES)));
    let Event::Done(done) = next(&pool) else { panic!("no result") };
    assert!(done.judged.sightings.is_empty() && done.judged.inconclusive.is_none());
    pool.close(Duration::from_secs(10));
}
