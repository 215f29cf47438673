//! Campaigns and workers that meet at a real nats-server: each campaign has what the other found, and
//! what is asked is done once, also after one of them and the server were killed.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{DEVIATES, Home, PASSES, json, the_kernel, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, store: &Path) -> Server {
        let child = Command::new(server_path())
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"])
            .arg("--store_dir")
            .arg(store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed (ci/install --hub)");
        wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Server { child, port }
    }

    fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn entries(corpus: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(corpus).into_iter().flatten().flatten();
    names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.ends_with(".hgm")).collect()
}

/// A campaign of one VM; a test that fails leaves none behind.
struct Campaign(Child);

impl Drop for Campaign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn campaign(home: &Home, hub: &str, seed: &str, time: &str) -> Campaign {
    let corpus = home.0.path().join("corpus");
    let kernel = the_kernel("6.1");
    let args = ["fuzz", "--kernel", &kernel, "--jobs", "1", "--seed", seed, "--for", time, "--hub"];
    let more = ["--no-canaries", "--progress", "none", "--json", "--corpus"];
    let all: Vec<&str> =
        args.into_iter().chain([hub]).chain(more).chain([corpus.to_str().unwrap()]).collect();
    Campaign(home.start(&all))
}

#[test]
fn campaigns_have_what_the_others_found_whoever_is_killed() {
    let (a, b) = (Home::new(), Home::new());
    let start = Instant::now();
    let store = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Server::start(port, store.path());
    let hub = server.address();
    let corpora = [&a, &b].map(|home| home.0.path().join("corpus"));

    let mut first = campaign(&a, &hub, "1", "1h");
    let mut second = campaign(&b, &hub, "2", "1h");
    let shared = || entries(&corpora[0]).intersection(&entries(&corpora[1])).count();
    wait_for("both found things", || shared() >= 60);

    // The server is away for a while; both go on, and what they find meanwhile waits.
    server.kill();
    let before = [0, 1].map(|n| entries(&corpora[n]).len());
    wait_for("both go on", || (0..2).all(|n| entries(&corpora[n]).len() >= before[n] + 5));
    let mut server = Server::start(port, store.path());
    let alone = entries(&corpora[0]);
    wait_for("what was found alone arrives", || alone.is_subset(&entries(&corpora[1])));

    let status = || json(&a.run(&["status", "--hub", &hub, "--json"]));
    wait_for("both say how they do", || status()["machines"].as_array().unwrap().len() == 2);

    // One dies at once: what it had on disk and had sent, the other has; the rest comes when its
    // corpus is fuzzed again.
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let left = entries(&corpora[0]);
    let mut again = campaign(&a, &hub, "3", "1h");
    wait_for("it is back", || status()["machines"].as_array().unwrap().len() == 3);
    wait_for("nothing is lost", || left.is_subset(&entries(&corpora[1])));

    // Both end by themselves, and the hub has exactly the entries they have.
    for child in [&again, &second] {
        let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }
    assert_eq!(again.0.wait().unwrap().code(), Some(130));
    assert_eq!(second.0.wait().unwrap().code(), Some(130));
    // The run that lasted has kept who was there.
    let report = json(&b.run(&["report", "--json"]));
    let fleet = report["fleet"].as_array().unwrap();
    let own: Vec<&Value> = fleet.iter().filter(|machine| machine["own"] == true).collect();
    assert!(fleet.len() >= 2 && own.len() == 1, "{fleet:?}");
    assert!(own[0]["programs"].as_u64().unwrap() > 0 && fleet.iter().all(|m| m["does"] == "fuzz"));

    let seen = status();
    let kept = seen["kept"][0]["entries"].as_u64().unwrap();
    let union: BTreeSet<String> = corpora.iter().flat_map(|corpus| entries(corpus)).collect();
    let tried = union.len() as u64;
    trials::fault(
        "F31",
        "entries, hub and campaigns are killed",
        tried,
        tried.abs_diff(kept),
        start,
    );
    assert_eq!(kept, tried, "{seen}");
    server.kill();
}

/// Programs that pass and some that deviate, and what is expected of each.
fn cases(home: &Home, many: usize) -> String {
    let dir = home.0.path().join("cases");
    for n in 0..many {
        let case = dir.join(format!("{n:03}"));
        std::fs::create_dir_all(&case).unwrap();
        let (program, expect) = match n % 10 {
            0 => (format!("{DEVIATES}# {n}\n"), "known:N03"),
            // Expected wrongly: it must be told as it is.
            5 if n == 5 => (PASSES.to_owned(), "known:N03"),
            _ => (PASSES.replace("len=16K", &format!("len={}K", 4 * (n + 4))), "pass"),
        };
        std::fs::write(case.join("program.hgm"), program).unwrap();
        std::fs::write(case.join("expect.toml"), format!("[expect]\n\"*\" = \"{expect}\"\n"))
            .unwrap();
    }
    dir.to_string_lossy().into_owned()
}

fn worker(home: &Home, hub: &str) -> Campaign {
    let kernel = the_kernel("6.1");
    Campaign(home.start(&["work", "--hub", hub, "--kernel", &kernel, "--jobs", "1", "--json"]))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

#[test]
fn work_is_done_once_by_whoever_is_left() {
    let (asker, a, b) = (Home::new(), Home::new(), Home::new());
    let start = Instant::now();
    let store = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Server::start(port, store.path());
    let (hub, kernel) = (server.address(), the_kernel("6.1"));
    let many = 120;
    let dir = cases(&asker, many);
    let regress = ["regress", &dir, "--kernel", &kernel, "--json", "--hub", &hub];

    // Nobody is there: one error, and nothing is left behind.
    let short: Vec<&str> = regress.into_iter().chain(["--set", "hub_wait_s=2"]).collect();
    let nobody = asker.run(&short);
    let told = json(&nobody);
    assert_eq!(nobody.status.code(), Some(75), "{told}");
    let error = told["error"].as_str().unwrap();
    assert!(error.starts_with("nobody works on "), "{error}");
    let status = || json(&asker.run(&["status", "--hub", &hub, "--json"]));
    let load = || {
        let work = &status()["work"][0];
        ["open", "held", "done"].map(|what| work[what].as_u64().unwrap_or(0))
    };
    assert_eq!(load(), [0, 0, 0], "what was asked is taken back");

    let mut first = worker(&a, &hub);
    let second = worker(&b, &hub);
    wait_for("both are there", || {
        let seen = status();
        let up = |machine: &Value| machine["works"] == true && machine["vms"] == 1;
        seen["machines"].as_array().unwrap().iter().filter(|machine| up(machine)).count() == 2
    });
    let asked = asker.start(&regress);
    wait_for("they work", || load()[2] >= 5);
    // One is killed while it holds a task.
    let mut left = [0, 0, 0];
    wait_for("both hold a task", || {
        [&first, &second].iter().for_each(|child| signal(&child.0, Signal::SIGSTOP));
        left = load();
        if left[1] != 2 {
            [&first, &second].iter().for_each(|child| signal(&child.0, Signal::SIGCONT));
        }
        left[1] == 2 || left[2] == many as u64
    });
    assert_eq!(left[1], 2, "the tasks were too few: {left:?}");
    let killed = Instant::now();
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    signal(&second.0, Signal::SIGCONT);
    let told = asked.wait_with_output().unwrap();
    println!("{left:?} when one was killed; all answered {:?} later", killed.elapsed());

    // The same table as on this host, and every task counted once.
    let here = asker.run(&regress[..5]);
    assert_eq!((told.status.code(), json(&told)), (here.status.code(), json(&here)));
    assert_eq!((told.status.code(), json(&told)["failed"].as_u64()), (Some(100), Some(1)));
    let (tried, done) = (many as u64, load()[2]);
    trials::fault("F31", "tasks, a worker with a VM is killed", tried, tried.abs_diff(done), start);
    assert_eq!(load(), [0, 0, tried]);

    // Replays are shared, too.
    let file = asker.file("deviates.hgm", DEVIATES);
    let repro = ["repro", &file, "--times", "7", "--kernel", &kernel, "--json", "--hub", &hub];
    let known = json(&asker.run(&repro));
    assert_eq!((known["shown"].as_u64(), known["tried"].as_u64()), (Some(0), Some(7)), "{known}");
    let signature = known["others"][0].as_str().unwrap();
    let meant: Vec<&str> = repro.into_iter().chain(["--signature", signature]).collect();
    let shown = asker.run(&meant);
    assert_eq!((shown.status.code(), json(&shown)["shown"].as_u64()), (Some(100), Some(7)));

    // It ends by itself, and gives back what it has.
    signal(&second.0, Signal::SIGINT);
    let mut second = second;
    assert_eq!(second.0.wait().unwrap().code(), Some(130));
    assert_eq!(load()[..2], [0, 0]);
    server.kill();
}

/// Where the package puts it, which is not in everybody's PATH.
fn server_path() -> &'static str {
    let package = "/usr/sbin/nats-server";
    if std::path::Path::new(package).exists() { package } else { "nats-server" }
}

#[test]
fn a_program_is_shrunk_by_who_works() {
    let (asker, a) = (Home::new(), Home::new());
    let hub = format!("file://{}", asker.0.path().join("hub").display());
    let long = DEVIATES.replace("madvise", "mmap at=r1 len=16K\nwrite at=r1 len=8K\nmadvise");
    let program = asker.file("long.hgm", &long);
    let _worker = worker(&a, &hub);
    let kernel = the_kernel("6.1");
    let out = asker.run(&[
        "shrink",
        &program,
        "--hub",
        &hub,
        "--kernel",
        &kernel,
        "--signature",
        "X-02/madvise/rsvd:low",
        "--times",
        "5",
        "--json",
    ]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let ended = json(&out);
    assert_eq!((&ended["before"]["shown"], &ended["after"]["shown"]), (&5.into(), &5.into()));
    assert_eq!(
        (&ended["before"]["size"]["lines"], &ended["after"]["size"]["lines"]),
        (&6.into(), &3.into())
    );
}
