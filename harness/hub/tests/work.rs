//! Leased work over a real nats-server and in a folder: every task is answered, counted once, and goes
//! to the next when its holder is lost.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Access, Away, Due, Folder, LEASE, Lease, Ledger, Nats, RENEW, Scope, Task, Work};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};
use support::{Server, rounds, row, until};

fn scope(word: &str) -> Scope {
    Scope::new(word).unwrap()
}

fn task(kernel: &str, batch: &str, id: &str) -> Task {
    Task::new(&scope(kernel), batch, id, format!("do {id}").into_bytes()).unwrap()
}

fn nats(port: u16, kernel: &str) -> Box<dyn Work> {
    let access = Access::default();
    let open = Nats::open("127.0.0.1", port, false, &access, Some(scope(kernel)));
    let mut nats = open.unwrap();
    until("it is reached", || nats.loads().is_ok());
    Box::new(nats)
}

fn folder(dir: &Path, kernel: &str) -> Box<dyn Work> {
    Box::new(Folder::open(dir, Some(scope(kernel))).unwrap())
}

/// Tries until it is reached.
fn surely<T>(mut ask: impl FnMut() -> Result<T, Away>) -> T {
    let mut last = None;
    until("the hub does what it is asked", || {
        last = ask().ok();
        last.is_some()
    });
    last.unwrap()
}

/// As many tasks as that, which a worker sees after a while.
fn leased(worker: &mut Box<dyn Work>, many: usize) -> Vec<Lease> {
    let mut leases = Vec::new();
    until("it gets as many tasks as there are", || {
        leases.extend(surely(|| worker.lease(many - leases.len())));
        leases.len() == many
    });
    leases
}

fn none_for(worker: &mut Box<dyn Work>) {
    for _ in 0..10 {
        assert_eq!(surely(|| worker.lease(5)), []);
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// What any hub has to do, by workers nothing happens to.
fn does_its_duty(open: &dyn Fn(&str) -> Box<dyn Work>) {
    let (mut asker, mut a, mut b, mut other) = (open("k"), open("k"), open("k"), open("other"));
    for n in 0..20 {
        surely(|| asker.offer(&task("k", "one", &n.to_string())));
        surely(|| asker.offer(&task("k", "one", &n.to_string())));
    }
    surely(|| asker.offer(&task("k", "two", "of-another-batch")));
    let mut load = surely(|| asker.loads())[&scope("k")];
    assert_eq!((load.open, load.held, load.done), (21, 0, 0), "each lies there once");

    let first = leased(&mut a, 15);
    let second = leased(&mut b, 6);
    let mut all = BTreeSet::new();
    let task_of = |lease: &Lease| (lease.task.batch().to_owned(), lease.task.id().to_owned());
    for lease in first.iter().chain(&second) {
        assert!(lease.lost == 0 && all.insert(task_of(lease)), "nobody has what another has");
        assert_eq!(lease.task.body(), format!("do {}", lease.task.id()).as_bytes());
    }
    none_for(&mut other);
    none_for(&mut b);
    load = surely(|| asker.loads())[&scope("k")];
    assert_eq!((load.open, load.held, load.done), (0, 21, 0));

    // One is given back, and the other worker gets it at once.
    surely(|| a.renew(&first[0]));
    surely(|| a.release(&first[0]));
    let again = leased(&mut b, 1);
    assert_eq!(again.iter().map(|l| &l.task).collect::<Vec<_>>(), [&first[0].task]);

    assert!(a.renew(&first[0]).is_err() && a.release(&first[0]).is_err(), "it is another's");

    for lease in &first[1..] {
        assert!(surely(|| a.answer(lease, b"a")));
    }
    for lease in second.iter().chain(&again) {
        assert!(surely(|| b.answer(lease, b"b")));
    }
    // Who lost it answers all the same: it is not counted.
    assert!(!surely(|| a.answer(&first[0], b"too late")));
    let mut answers = Vec::new();
    until("all answers arrive", || {
        answers.extend(surely(|| asker.answers("one")));
        answers.len() >= 20
    });
    let ids: BTreeSet<&String> = answers.iter().map(|(id, _)| id).collect();
    assert_eq!((answers.len(), ids.len()), (20, 20));
    assert!(answers.iter().all(|(_, body)| body == b"a" || body == b"b"));
    assert_eq!(surely(|| asker.answers("one")), []);
    load = surely(|| asker.loads())[&scope("k")];
    assert_eq!((load.open, load.held, load.done), (0, 0, 21));

    assert!(a.renew(&first[1]).is_err(), "what is answered is held by nobody");

    // What was put up again though it is answered is given to nobody.
    surely(|| asker.offer(&task("k", "one", "3")));
    none_for(&mut a);

    // What nobody waits for any more is taken away, and nothing else.
    surely(|| asker.offer(&task("k", "three", "1")));
    surely(|| asker.offer(&task("k", "four", "1")));
    surely(|| asker.withdraw("three"));
    let left = leased(&mut a, 1);
    assert_eq!(left.iter().map(|l| l.task.batch()).collect::<Vec<_>>(), ["four"]);
    none_for(&mut b);
}

/// Workers who all want the same few tasks at the same moment, again and again: each goes to one.
fn gives_each_to_one(open: &(dyn Fn() -> Box<dyn Work> + Sync)) {
    let (workers, rounds) = (4, 30);
    let mut asker = open();
    let (up, taken) = (Barrier::new(workers + 1), Barrier::new(workers + 1));
    let got: Vec<Lease> = std::thread::scope(|scope| {
        let work = || {
            let (mut worker, mut leases) = (open(), Vec::new());
            for _ in 0..rounds {
                up.wait();
                // The first look may come too early for what was just put up.
                (0..4).for_each(|_| leases.extend(surely(|| worker.lease(1))));
                taken.wait();
            }
            leases
        };
        let all: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for n in 0..rounds {
            surely(|| asker.offer(&task("k", "b", &n.to_string())));
            up.wait();
            taken.wait();
        }
        all.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let names: BTreeSet<&str> = got.iter().map(|lease| lease.task.id()).collect();
    assert_eq!(names.len(), got.len(), "nobody has what another has");
    assert!(names.len() > rounds / 2, "they seldom came in time: {}", names.len());
}

#[test]
fn of_those_who_want_it_at_once_one_gets_it_from_a_server() {
    let server = Server::start();
    gives_each_to_one(&|| nats(server.port, "k"));
}

#[test]
fn of_those_who_want_it_at_once_one_gets_it_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    gives_each_to_one(&|| folder(dir.path(), "k"));
}

#[test]
fn a_server_hands_work_out_and_answers_back() {
    let server = Server::start();
    does_its_duty(&|kernel| nats(server.port, kernel));
}

#[test]
fn a_folder_hands_work_out_and_answers_back() {
    let dir = tempfile::tempdir().unwrap();
    does_its_duty(&|kernel| folder(dir.path(), kernel));
}

/// Of every lease its holder is there or silent, and the clock of the folder says whatever it likes.
#[test]
fn a_folder_gives_what_its_holder_is_silent_about_to_one_other_whatever_its_clock_says() {
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let [mut a, mut b, mut c] = [(); 3].map(|()| folder(dir.path(), "k"));
    let hours: [i64; 5] = [0, 1, -1, 24 * 3650, -24 * 3650];
    for n in 0..2 * hours.len() {
        a.offer(&task("k", "b", &n.to_string())).unwrap();
    }
    let (there, silent): (Vec<Lease>, Vec<Lease>) = leased(&mut a, 2 * hours.len())
        .into_iter()
        .partition(|lease| lease.task.id().parse::<usize>().unwrap() < hours.len());
    // The clock jumps, and jumps on.
    let jump = |lease: &Lease, round: usize| {
        let hours = hours[(lease.task.id().parse::<usize>().unwrap() + round) % hours.len()];
        let (now, by) = (SystemTime::now(), Duration::from_secs(3600 * hours.unsigned_abs()));
        let time = if hours < 0 { now - by } else { now + by };
        let path = dir.path().join("v1/held").join(format!("{}+1", lease.task.name()));
        let file = std::fs::File::options().append(true).open(path);
        file.unwrap().set_modified(time).unwrap();
    };
    silent.iter().for_each(|lease| jump(lease, 0));
    let (look, mut heard, mut round) = (Instant::now(), None::<Instant>, 0);
    let (mut taken, mut lost) = (Vec::new(), 0);
    while look.elapsed() < LEASE + Duration::from_secs(3) {
        if heard.is_none_or(|heard| heard.elapsed() >= RENEW) {
            heard = Some(Instant::now());
            round += 1;
            there.iter().for_each(|lease| {
                a.renew(lease).unwrap();
                jump(lease, round);
            });
        }
        let got = b.lease(20).unwrap();
        if !got.is_empty() && look.elapsed() < LEASE {
            println!("{got:?} after {:?}", look.elapsed());
            lost += got.len();
        }
        taken.extend(got);
        std::thread::sleep(Duration::from_millis(100));
    }
    let ids = |leases: &[Lease]| -> BTreeSet<String> {
        leases.iter().map(|lease| lease.task.id().to_owned()).collect()
    };
    lost += ids(&taken).symmetric_difference(&ids(&silent)).count();
    let tried = 2 * hours.len() as u64;
    trials::fault("F18", "the clock of a folder jumps", tried, lost as u64, start);
    assert_eq!(lost, 0, "{taken:?}");

    assert!(taken.iter().all(|lease| lease.lost == 1) && c.lease(1).unwrap().is_empty());
    for (lost, taken) in silent.iter().map(|lost| (lost, find(&taken, lost))) {
        assert!(a.renew(lost).is_err(), "the first holder is told");
        assert!(b.answer(taken, b"b").unwrap());
        assert!(!a.answer(lost, b"a").unwrap());
    }
    there.iter().for_each(|lease| assert!(a.answer(lease, b"b").unwrap()));
    let answers = c.answers("b").unwrap();
    assert!(answers.len() == 10 && answers.iter().all(|(_, body)| body == b"b"), "{answers:?}");
    // Nothing is left of it.
    let left = std::fs::read_dir(dir.path().join("v1/held")).unwrap().count();
    assert_eq!((left, c.loads().unwrap()[&scope("k")].open), (0, 0));
}

fn find<'a>(leases: &'a [Lease], of: &Lease) -> &'a Lease {
    leases.iter().find(|lease| lease.task == of.task).unwrap()
}

/// The clock jumps ahead, and one who leaves removes what all the others put up as if it were old.
#[test]
fn what_a_folder_lost_to_its_clock_is_put_up_again() {
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let [mut asker, mut other, mut worker] = [(); 3].map(|()| folder(dir.path(), "k"));
    let mut ledger = Ledger::default();
    (0..20).for_each(|n| ledger.ask(task("k", "b", &n.to_string())));
    let mut counted = BTreeSet::new();
    let mut look = |asker: &mut Box<dyn Work>| {
        let epoch = asker.epoch();
        while let Some(next) = ledger.next(epoch).cloned() {
            asker.offer(&next).unwrap();
            ledger.offered(next.id());
        }
        for (id, _) in asker.answers("b").unwrap() {
            assert!(!ledger.answered(&id) || counted.insert(id), "counted twice");
        }
        ledger.open()
    };
    look(&mut asker);
    let mut jumps = 0;
    while look(&mut asker) > 0 && jumps < 60 {
        let some = worker.lease(4).unwrap();
        some.iter().skip(1).for_each(|lease| {
            worker.answer(lease, b"a").unwrap();
        });
        for place in ["work", "done"] {
            for file in std::fs::read_dir(dir.path().join("v1").join(place)).unwrap().flatten() {
                let file = std::fs::File::open(file.path()).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_secs(48 * 3600)).unwrap();
            }
        }
        other.withdraw("of-the-other").unwrap();
        some.first().map(|lease| worker.release(lease));
        jumps += 1;
        // Between two jumps somebody comes to look.
        if jumps % 2 == 0 {
            look(&mut asker);
            let some = worker.lease(2).unwrap();
            some.iter().for_each(|lease| {
                worker.answer(lease, b"a").unwrap();
            });
        }
    }
    let lost = ledger.open() as u64;
    trials::fault("F18", "a clock ahead makes tasks old", jumps, lost, start);
    assert!(lost == 0 && jumps > 3, "{jumps}");
}

/// Set in a process that works: how to reach the hub, and how long a task takes in milliseconds.
const WORKER: &str = "HGM_HUB_TEST_WORKER";

/// A worker of one task at a time, as `hgm work` is one.
fn worker(port: u16, millis: u64) {
    let mut hub = nats(port, "k");
    let mut holds: Option<(Lease, Instant)> = None;
    let start = Instant::now();
    // Nobody ends it but a kill; left alone it does not stay.
    while start.elapsed() < Duration::from_secs(300) {
        let Some((mut lease, since)) = holds.take() else {
            let leased = hub.lease(1).ok().and_then(|mut leases| leases.pop());
            holds = leased.map(|lease| (lease, Instant::now()));
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let asked = Instant::now();
        if lease.due(asked) == Due::Renew && hub.renew(&lease).is_ok() {
            lease.renewed(asked);
        }
        let ready = since.elapsed() >= Duration::from_millis(millis);
        let by = std::process::id().to_string();
        if !ready || hub.answer(&lease, by.as_bytes()).is_err() {
            holds = Some((lease, since));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start_worker(port: u16, millis: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "workers_that_are_killed_or_stand_still_cost_no_task_and_no_count"])
        .env(WORKER, format!("{port} {millis}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A worker is killed in the middle of a task, another one is stopped for longer than a lease, and the
/// server is killed: all tasks of all batches are answered once.
#[test]
fn workers_that_are_killed_or_stand_still_cost_no_task_and_no_count() {
    if let Ok(told) = std::env::var(WORKER) {
        let (port, millis) = told.split_once(' ').unwrap();
        return worker(port.parse().unwrap(), millis.parse().unwrap());
    }
    let mut server = Server::start();
    let start = Instant::now();
    let mut asker = nats(server.port, "k");
    let (mut ledger, mut counted) = (Ledger::default(), BTreeSet::new());
    // Kept busy one after the other, killed one after the other: of the killed ones each holds a task.
    let doomed = rounds();
    let tasks = 40 + doomed;
    (0..tasks).for_each(|n| ledger.ask(task("k", "b", &format!("{n}"))));
    let mut look = |asker: &mut Box<dyn Work>, counted: &mut BTreeSet<String>| {
        let epoch = asker.epoch();
        while let Some(next) = ledger.next(epoch).cloned() {
            if asker.offer(&next).is_err() {
                break;
            }
            ledger.offered(next.id());
        }
        for (id, _) in asker.answers("b").unwrap_or_default() {
            if ledger.answered(&id) {
                assert!(counted.insert(id.clone()), "{id} twice");
            }
        }
        ledger.open()
    };
    look(&mut asker, &mut counted);
    for n in 0..doomed {
        let mut slow = start_worker(server.port, 600_000);
        let held = |asker: &mut Box<dyn Work>| {
            asker.loads().ok().and_then(|all| all.get(&scope("k")).map(|load| load.held))
        };
        until("it holds a task", || held(&mut asker) == Some(u64::from(n + 1)));
        slow.kill().unwrap();
        slow.wait().unwrap();
    }
    let mut frozen = start_worker(server.port, 1500);
    until("it works", || look(&mut asker, &mut counted) < tasks as usize);
    kill(Pid::from_raw(frozen.id() as i32), Signal::SIGSTOP).unwrap();
    let mut quick = start_worker(server.port, 30);
    until("half is done", || look(&mut asker, &mut counted) <= tasks as usize / 2);
    server.kill();
    server.restart();
    // The leases of the killed and of the stopped one end while the quick one works.
    let taken = Instant::now();
    let end = taken + LEASE + Duration::from_secs(60);
    while look(&mut asker, &mut counted) > 0 {
        assert!(Instant::now() < end, "{} of {tasks} answered", counted.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = taken.elapsed();
    kill(Pid::from_raw(frozen.id() as i32), Signal::SIGCONT).unwrap();
    // It answers what it held when it was stopped; nobody counts that.
    std::thread::sleep(Duration::from_secs(3));
    look(&mut asker, &mut counted);
    for child in [&mut frozen, &mut quick] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let load = surely(|| asker.loads())[&scope("k")];
    println!(
        "{doomed} workers killed, one stopped, the hub killed; the last lease was taken over after \
         {took:?}"
    );
    row("F31", "tasks, workers are killed and frozen", tasks as usize, counted.len(), start);
    assert_eq!((load.open, load.held, load.done), (0, 0, u64::from(tasks)));
    assert_eq!(counted.len(), tasks as usize);
}

#[test]
fn who_says_that_he_is_there_keeps_his_task() {
    let server = Server::start();
    let (mut a, mut b) = (nats(server.port, "k"), nats(server.port, "k"));
    surely(|| a.offer(&task("k", "b", "1")));
    let mut lease = leased(&mut a, 1).pop().unwrap();
    let end = Instant::now() + LEASE + Duration::from_secs(5);
    let mut renewed = 0;
    while Instant::now() < end {
        let asked = Instant::now();
        assert!(lease.due(asked) != Due::Over);
        if lease.due(asked) == Due::Renew && a.renew(&lease).is_ok() {
            lease.renewed(asked);
            renewed += 1;
        }
        assert_eq!(surely(|| b.lease(1)), []);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(renewed >= 3, "{renewed}");
    assert!(surely(|| a.answer(&lease, b"done")));
}
