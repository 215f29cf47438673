//! What another machine says, broken in every way, and what comes several times and in any order.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use hub::{Away, Exchange, Kind, News, Parcel, Post, Scope};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trials::Trial;

#[test]
fn parcels() {
    let start = Instant::now();
    let good = ["ab12.entry.00ff\nhgm 1\n", "k.finding.a-1\n{}", "k.status.machine\n{\"vms\": 2}"];
    let seeds = good.map(|text| text.as_bytes().to_vec()).to_vec();
    let words = [".", "..", "/", "*", ">", "\0", "entry", "finding", "status", " "];
    let figures = Trial::new("parcels", seeds).words(&words).run(|bytes| {
        let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (name, body) = bytes.split_at(at);
        let name = String::from_utf8_lossy(name).into_owned();
        let Some(parcel) = Parcel::of_name(&name, body.to_vec()) else { return };
        // What is taken is its name and its body, and no other path or subject.
        assert_eq!((parcel.name(), parcel.body()), (name.clone(), body));
        assert!(Kind::ALL.contains(&parcel.kind));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        assert!(name.chars().all(plain) && name.matches('.').count() == 2, "{name}");
    });
    trials::fault("F6", "parcels of other machines, mutated", figures.executions, 0, start);
}

/// An exchange that hands over each parcel one to three times, late, in any order, and old ones again.
struct Disorder {
    store: Arc<Mutex<Vec<Parcel>>>,
    seen: usize,
    due: Vec<Parcel>,
    rng: ChaCha8Rng,
}

impl Exchange for Disorder {
    fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
        self.store.lock().unwrap().push(parcel.clone());
        // Kept, and the sender does not hear of it.
        if self.rng.random_ratio(1, 5) { Err(Away("the answer is lost".into())) } else { Ok(()) }
    }

    fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
        let store = self.store.lock().unwrap().clone();
        for parcel in &store[self.seen..] {
            let times = self.rng.random_range(1..=3);
            self.due.extend(std::iter::repeat_n(parcel.clone(), times));
        }
        self.seen = store.len();
        if !store.is_empty() && self.rng.random_ratio(1, 3) {
            self.due.push(store[self.rng.random_range(0..store.len())].clone());
        }
        self.due.shuffle(&mut self.rng);
        let now = self.rng.random_range(0..=self.due.len().min(20));
        let out: Vec<Parcel> = self.due.drain(..now).collect();
        if out.is_empty() {
            std::thread::sleep(wait.min(Duration::from_millis(2)));
        }
        Ok(out)
    }

    fn epoch(&self) -> u64 {
        0
    }
}

#[test]
fn counts_are_exact_whatever_comes_twice_and_in_any_order() {
    let start = Instant::now();
    let (rounds, each) = (trials::rounds(8), 60);
    let mut lost = 0;
    for round in 0..u64::from(rounds) {
        let store = Arc::new(Mutex::new(Vec::new()));
        let post = |seed| {
            let rng = ChaCha8Rng::seed_from_u64(2 * round + seed);
            let all = Disorder { store: store.clone(), seen: 0, due: Vec::new(), rng };
            Post::open(Box::new(all)).unwrap()
        };
        let (a, b) = (post(0), post(1));
        let scope = Scope::new("k").unwrap();
        for n in 0..each {
            let parcel = Parcel::new(Kind::Entry, &scope, &n.to_string(), b"x".to_vec());
            a.send(parcel.unwrap());
        }
        let mut got = Vec::new();
        let end = Instant::now() + Duration::from_secs(20);
        let mut quiet = Instant::now();
        while Instant::now() < end && (got.len() < each || quiet.elapsed().as_millis() < 50) {
            while let Some(news) = b.next() {
                quiet = Instant::now();
                if let News::Parcel(parcel) = news {
                    got.push(parcel.key().to_owned());
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let handed = got.len();
        got.sort();
        got.dedup();
        let exact = handed == each && got.len() == each && a.figures().received == 0;
        lost += u64::from(!exact);
    }
    let tried = u64::from(rounds) * each as u64;
    trials::fault("F32", "parcels that come 1-3 times in any order", tried, lost, start);
    assert_eq!(lost, 0);
}
