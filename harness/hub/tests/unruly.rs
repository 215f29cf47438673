//! A network that doubles and mixes what it carries, and a sender that is killed: over a real
//! nats-server everything arrives, and is counted once.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Access, Away, Exchange, Nats, News, Parcel, Post, Scope};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Got, Server, entry, kept, rounds, row, until};

/// Every parcel is put up to three times, some only much later, and each look brings what it brings in
/// any order and up to three times.
struct Unruly {
    inner: Nats,
    rng: ChaCha8Rng,
    late: Vec<Parcel>,
    doubles: u64,
}

impl Exchange for Unruly {
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
        for _ in 0..self.rng.random_range(1..=3) {
            self.inner.put(parcel)?;
            self.doubles += 1;
        }
        if self.rng.random_bool(0.2) {
            self.late.push(parcel.clone());
        }
        if self.rng.random_bool(0.05) {
            self.late.shuffle(&mut self.rng);
            for parcel in std::mem::take(&mut self.late) {
                self.inner.put(&parcel)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
        let mut all = Vec::new();
        for parcel in self.inner.take(wait)? {
            let times = self.rng.random_range(1..=3);
            all.extend(vec![parcel; times]);
        }
        all.shuffle(&mut self.rng);
        Ok(all)
    }

    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
}

fn unruly(server: &Server, seed: u64) -> Post {
    let access = Access::default();
    let inner = Nats::open("127.0.0.1", server.port, false, &access, Scope::new("k")).unwrap();
    let rng = ChaCha8Rng::seed_from_u64(seed);
    Post::open(Box::new(Unruly { inner, rng, late: Vec::new(), doubles: 0 })).unwrap()
}

#[test]
fn counts_are_exact_whatever_comes_twice_and_in_any_order() {
    let (start, mut tried, mut there) = (Instant::now(), 0, 0);
    for round in 0..rounds() {
        let server = Server::start();
        let posts: Vec<Post> = (0..3).map(|n| unruly(&server, u64::from(round * 3 + n))).collect();
        // Each has some of its own and some that all have.
        let keys = |n: usize| (0..60).map(move |k| if k < 40 { 100 * n + k } else { 1000 + k });
        let all: BTreeSet<String> = (0..3).flat_map(keys).map(|key| key.to_string()).collect();
        for (n, post) in posts.iter().enumerate() {
            keys(n).for_each(|key| post.send(entry("k", &key.to_string())));
        }
        for (n, post) in posts.iter().enumerate() {
            let mut got = Got::default();
            let own: BTreeSet<String> = keys(n).map(|key| key.to_string()).collect();
            until("what others have arrives", || {
                got.look(post);
                all.difference(&own).all(|key| got.keys.contains(key))
            });
            assert!(got.keys.is_disjoint(&own), "own parcels come back to nobody");
            assert_eq!(post.figures().received, got.keys.len() as u64);
        }
        until("nothing waits", || posts.iter().all(|post| post.figures().waiting == 0));
        there += kept(&server, "k");
        tried += all.len();
    }
    row("F32", "parcels a server carries 1-3 times, mixed", tried, there, start);
    assert_eq!(there, tried, "each is kept once");
}

/// Set in the process that is killed: port of the server and folder of its entries.
const KILLED: &str = "HGM_HUB_TEST_KILLED";

/// A worker as a campaign is one: an entry is on disk before it is sent, and all that is there is sent
/// again at the start and whenever the hub was lost.
fn worker(port: u16, dir: &Path) {
    let nats = Nats::open("127.0.0.1", port, false, &Access::default(), Scope::new("k")).unwrap();
    let post = Post::open(Box::new(nats)).unwrap();
    let offer_all = || {
        for file in std::fs::read_dir(dir).unwrap().flatten() {
            let name = file.file_name().into_string().unwrap();
            if !name.starts_with('.') {
                post.send(entry("k", &name));
            }
        }
    };
    offer_all();
    let start = Instant::now();
    for n in 0.. {
        let key = format!("{}-{n}", std::process::id());
        store::write_whole(&dir.join(&key), b"on disk").unwrap();
        post.send(entry("k", &key));
        while let Some(news) = post.next() {
            if news == News::Again {
                offer_all();
            }
        }
        // Nobody ends it but a kill; left alone it does not stay.
        if start.elapsed() > Duration::from_secs(60) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// This test again, as the worker.
fn start_worker(port: u16, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_worker_loses_nothing_it_has_on_disk"])
        .env(KILLED, format!("{port} {}", dir.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_worker_loses_nothing_it_has_on_disk() {
    if let Ok(told) = std::env::var(KILLED) {
        let (port, dir) = told.split_once(' ').unwrap();
        return worker(port.parse().unwrap(), Path::new(dir));
    }
    let server = Server::start();
    let start = Instant::now();
    let dir = tempfile::tempdir().unwrap();
    let other = server.post("k");
    let mut got = Got::default();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..rounds() {
        let mut child = start_worker(server.port, dir.path());
        std::thread::sleep(Duration::from_millis(rng.random_range(20..600)));
        child.kill().unwrap();
        child.wait().unwrap();
        got.look(&other);
    }
    // The last one is let alone until the hub has everything.
    let mut child = start_worker(server.port, dir.path());
    let names = || -> BTreeSet<String> {
        let all = std::fs::read_dir(dir.path()).unwrap().flatten();
        all.filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| !n.starts_with('.'))
            .collect()
    };
    let acknowledged = names();
    until("all arrive", || {
        got.look(&other);
        acknowledged.is_subset(&got.keys)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    got.look(&other);
    let (there, on_disk) = (kept(&server, "k"), names());
    println!("{} kills of the sender", rounds());
    let arrived = acknowledged.intersection(&got.keys).count();
    row("F31", "parcels, their sender is killed", acknowledged.len(), arrived, start);
    assert!(got.keys.is_subset(&on_disk), "sent before it was on disk");
    assert_eq!(there, got.keys.len(), "each is kept once");
}
