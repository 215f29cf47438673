//! A network that is cut: server and one machine in one network namespace, another machine in a second,
//! a pair of virtual cables between them of which one end is pulled. Needs user namespaces or root; a
//! machine that allows neither fails the test and says so.
//!
//! HGM_CUT is the length of a cut in seconds.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Access, Nats, Post, Scope};
use nix::sched::{CloneFlags, setns};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Got, entry, rounds, row, server_path, until};

/// Set in the process that is in namespaces of its own.
const INSIDE: &str = "HGM_HUB_TEST_INSIDE";
const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";
const PORT: u16 = 4222;
/// A machine is cut off for so long, if nothing else is said: too short for its connection to end, and
/// every third time long enough.
const CUTS: [Duration; 3] =
    [Duration::from_secs(4), Duration::from_secs(20), Duration::from_secs(4)];
/// What may pass after a cut until everything is everywhere: a try to connect that was just begun may
/// take five seconds, the pause before the next one two.
const CATCH_UP: Duration = Duration::from_secs(12);

/// Runs a tool to its end.
fn tool(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let done = Command::new(words.next().unwrap()).args(words).output();
    let done = done.map_err(|error| format!("{line}: {error}"))?;
    let told = String::from_utf8_lossy(&done.stderr);
    done.status.success().then_some(()).ok_or_else(|| format!("{line}: {told}"))
}

/// Something that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The namespace at the other end of the cable, kept by a process that sleeps.
struct Far(Guard);

impl Far {
    fn new() -> Far {
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let sleeper = Command::new("unshare").args(["--net", "sleep", "3600"]).spawn().unwrap();
        let far = Far(Guard(sleeper));
        until("it has a namespace", || std::fs::read_link(far.net()).is_ok_and(|ns| ns != own));
        let pid = far.0.0.id();
        for line in [
            "ip link set lo up".to_owned(),
            format!("ip link add near type veth peer name far netns {pid}"),
            format!("ip addr add {NEAR}/24 dev near"),
            "ip link set near up".to_owned(),
        ] {
            tool(&line).unwrap();
        }
        for line in ["link set lo up", &format!("addr add {FAR}/24 dev far"), "link set far up"] {
            far.ip(line);
        }
        far
    }

    fn net(&self) -> String {
        format!("/proc/{}/ns/net", self.0.0.id())
    }

    fn ip(&self, words: &str) {
        tool(&format!("nsenter --net={} ip {words}", self.net())).unwrap();
    }

    fn server(&self, store: &str) -> Guard {
        let server = Command::new("nsenter")
            .args([&format!("--net={}", self.net()), "--", server_path(), "--jetstream"])
            .args(["--addr", FAR, "--port", &PORT.to_string(), "--store_dir", store])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed (ci/install --hub)");
        until("the server listens", || TcpStream::connect((FAR, PORT)).is_ok());
        Guard(server)
    }

    /// A post of the other namespace: threads it starts stay there, and so does this one.
    fn post(&self) -> Post {
        let net = File::open(self.net()).unwrap();
        let inside = std::thread::spawn(move || {
            setns(net, CloneFlags::CLONE_NEWNET).unwrap();
            post()
        });
        inside.join().unwrap()
    }
}

fn post() -> Post {
    let nats = Nats::open(FAR, PORT, false, &Access::default(), Scope::new("k")).unwrap();
    Post::open(Box::new(nats)).unwrap()
}

/// What lets this process have namespaces of its own.
fn unshare() -> Vec<&'static str> {
    let ways: [&[&str]; 2] = [&["--user", "--map-root-user", "--net"], &["--net"]];
    let works = |way: &&&[&str]| tool(&format!("unshare {} true", way.join(" "))).is_ok();
    let way = ways.iter().find(works);
    way.expect("this test needs user namespaces (kernel.unprivileged_userns_clone) or root")
        .to_vec()
}

#[test]
fn a_cut_costs_nothing_and_both_sides_go_on() {
    if std::env::var_os(INSIDE).is_some() {
        return cuts();
    }
    let status = Command::new("unshare")
        .args(unshare())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_cut_costs_nothing_and_both_sides_go_on", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn cuts() {
    let asked = std::env::var("HGM_CUT").ok().and_then(|seconds| seconds.parse().ok());
    let cut = |round: u32| asked.map_or(CUTS[round as usize % 3], Duration::from_secs);
    let store = tempfile::tempdir().unwrap();
    let far = Far::new();
    let _server = far.server(store.path().to_str().unwrap());
    let (near, by_the_hub) = (post(), far.post());
    until("both are there", || near.figures().reached && by_the_hub.figures().reached);
    let (mut got, mut got_there) = (Got::default(), Got::default());
    let (mut sent, mut sent_there) = (BTreeSet::new(), BTreeSet::new());
    let say = |post: &Post, all: &mut BTreeSet<String>, word: &str, n: usize| {
        let key = format!("{word}-{n}");
        post.send(entry("k", &key));
        all.insert(key);
    };
    let (start, mut times, mut n) = (Instant::now(), Vec::new(), 0);
    for round in 0..rounds() {
        // Traffic in both directions when the cable is pulled, and all the while.
        far.ip("link set far down");
        let end = Instant::now() + cut(round);
        let before = by_the_hub.figures().sent;
        while Instant::now() < end {
            say(&near, &mut sent, "near", n);
            say(&by_the_hub, &mut sent_there, "far", n);
            n += 1;
            got.look(&near);
            got_there.look(&by_the_hub);
            std::thread::sleep(Duration::from_millis(40));
        }
        // A word on its way when the cable was pulled may have made it; nothing later did.
        let missing = sent.difference(&got_there.keys).count();
        assert!(missing >= 20, "round {round}: the cable was not cut: {missing} missing");
        assert!(by_the_hub.figures().sent > before + 20, "who is not cut off goes on");
        far.ip("link set far up");
        let back = Instant::now();
        until("both have everything", || {
            got.look(&near);
            got_there.look(&by_the_hub);
            sent.is_subset(&got_there.keys) && sent_there.is_subset(&got.keys)
        });
        times.push(back.elapsed());
    }
    until("nothing waits", || near.figures().waiting == 0);
    let there = got.keys.len() + got_there.keys.len();
    row("F31", "parcels, the network is cut", sent.len() + sent_there.len(), there, start);
    assert_eq!((got.keys, got_there.keys), (sent_there, sent));
    times.sort();
    let longest = times[times.len() - 1];
    println!(
        "{} cuts of {:?} or {:?}: caught up after {:?} in the median, {longest:?} at most; the hub was \
         missed {} times",
        rounds(),
        cut(0),
        cut(1),
        times[times.len() / 2],
        near.figures().lost,
    );
    assert!(longest < CATCH_UP, "{times:?}");
    let missed = (0..rounds()).any(|round| cut(round) >= CUTS[1]);
    assert!(!missed || near.figures().lost > 0, "a long cut was not noticed");
}
