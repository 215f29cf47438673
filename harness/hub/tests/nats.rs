//! Posts over a real nats-server: what arrives, how soon, and what is left after kills, stops, lost
//! disks and wrong secrets.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Access, Kind, Nats, Post, Scope};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use support::{Got, Server, entry, kept, rounds, row, until};

/// Waits until `post` has handed over all of `keys`; nothing else may come.
fn arrive(post: &Post, got: &mut Got, keys: &[String]) {
    until("all arrive", || {
        got.look(post);
        keys.iter().all(|key| got.keys.contains(key))
    });
}

#[test]
fn what_one_finds_the_other_has_within_two_seconds() {
    let server = Server::start();
    let (a, b) = (server.post("k"), server.post("k"));
    let other = server.post("another-kernel");
    let mut got = Got::default();
    let mut times = Vec::new();
    for n in 0..10 * rounds() {
        let key = format!("{n}");
        let start = Instant::now();
        a.send(entry("k", &key));
        arrive(&b, &mut got, &[key]);
        times.push(start.elapsed());
    }
    times.sort();
    println!("of {}: median {:?}, longest {:?}", times.len(), times[times.len() / 2], times.last());
    assert!(times.last().is_some_and(|t| *t < Duration::from_secs(2)), "{times:?}");
    let mut strange = Got::default();
    strange.look(&other);
    assert!(strange.keys.is_empty(), "kernels are kept apart: {:?}", strange.keys);
    assert_eq!(a.figures().received, 0);
}

#[test]
fn a_late_comer_gets_everything_and_doubles_are_kept_once() {
    let server = Server::start();
    let (a, b) = (server.post("k"), server.post("k"));
    let many = 2000;
    for n in 0..many {
        a.send(entry("k", &format!("{n}")));
        b.send(entry("k", &format!("{n}")));
    }
    until("both are done", || a.figures().waiting == 0 && b.figures().waiting == 0);
    until("all are sent", || a.figures().sent + a.figures().again >= many);
    let start = Instant::now();
    let late = server.post("k");
    let mut got = Got::default();
    until("all arrive", || {
        got.look(&late);
        got.keys.len() as u64 == many
    });
    println!("{many} entries after {:?}", start.elapsed());
    std::thread::sleep(Duration::from_millis(500));
    got.look(&late);
    assert_eq!((got.keys.len() as u64, late.figures().again), (many, 0));
}

#[test]
fn a_killed_server_costs_nothing() {
    let mut server = Server::start();
    let start = Instant::now();
    let (a, b) = (server.post("k"), server.post("k"));
    let mut got = Got::default();
    let mut keys = Vec::new();
    for round in 0..rounds() {
        for n in 0..40 {
            let key = format!("{round}-{n}");
            a.send(entry("k", &key));
            keys.push(key);
            if n == 10 + (round * 7) % 20 {
                server.kill();
            }
        }
        std::thread::sleep(Duration::from_millis(u64::from(round % 5) * 40));
        server.restart();
        arrive(&b, &mut got, &keys);
    }
    until("nothing waits", || a.figures().waiting == 0);
    let (tried, there) = (keys.len(), kept(&server, "k"));
    println!("{} kills of the server; it was missed {} times", rounds(), a.figures().lost);
    row("F31", "parcels, the hub is killed", tried, there, start);
    assert_eq!((got.keys.len(), there), (tried, tried), "each is kept once");
}

#[test]
fn a_server_that_stands_still_costs_nothing() {
    let server = Server::start();
    let start = Instant::now();
    let (a, b) = (server.post("k"), server.post("k"));
    let mut got = Got::default();
    let mut keys = Vec::new();
    for round in 0..rounds() {
        server.signal(Signal::SIGSTOP);
        for n in 0..20 {
            let key = format!("{round}-{n}");
            a.send(entry("k", &key));
            keys.push(key);
        }
        // Longer than an answer may take, now and then: what was sent then arrives late and twice.
        std::thread::sleep(Duration::from_millis(if round % 3 == 1 { 6500 } else { 300 }));
        server.signal(Signal::SIGCONT);
        arrive(&b, &mut got, &keys);
    }
    until("nothing waits", || a.figures().waiting == 0);
    let (tried, there) = (keys.len(), kept(&server, "k"));
    println!("{} stops of the server", rounds());
    row("F31", "parcels, the hub stands still", tried, there, start);
    assert_eq!(there, tried, "each is kept once");
}

#[test]
fn a_server_that_lost_its_disk_is_given_everything_again() {
    let mut server = Server::start();
    let start = Instant::now();
    let (a, b) = (server.post("k"), server.post("k"));
    let keys: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
    keys.iter().for_each(|key| a.send(entry("k", key)));
    let mut got = Got::default();
    arrive(&b, &mut got, &keys);
    let mut own = Got::default();
    own.look(&a);
    server.kill();
    server.lose_disk();
    server.restart();
    let told = own.again;
    until("it is told", || {
        own.look(&a);
        own.again > told
    });
    keys.iter().for_each(|key| a.send(entry("k", key)));
    until("nothing waits", || a.figures().waiting == 0 && a.figures().sent >= 200);
    let there = kept(&server, "k");
    row("F31", "parcels, the hub loses its disk", keys.len(), there, start);
    assert_eq!(there, keys.len());
    got.look(&b);
    assert_eq!(got.keys.len(), keys.len(), "to the other it is no news");
}

#[test]
fn a_server_that_comes_late_is_found() {
    let mut server = Server::start();
    server.kill();
    let a = server.post("k");
    a.send(entry("k", "1"));
    until("it is missed", || a.figures().why.is_some());
    assert!(!a.figures().reached);
    server.restart();
    until("it is sent", || a.figures().sent == 1);
}

#[test]
fn who_does_not_know_the_token_gets_and_gives_nothing() {
    let server = Server::with(&["--auth", "right"]);
    let access = |name: &str, text: &str| Access {
        credentials: Some(server.file(name, text)),
        ..Access::default()
    };
    let right = server.post_with("k", &access("right", "right\n"));
    right.send(entry("k", "1"));
    until("it is sent", || right.figures().sent == 1);
    for wrong in [Access::default(), access("wrong", "wrong")] {
        let post = server.post_with("k", &wrong);
        post.send(entry("k", "2"));
        std::thread::sleep(Duration::from_millis(700));
        let mut got = Got::default();
        got.look(&post);
        assert!(got.keys.is_empty() && post.figures().sent == 0 && !post.figures().reached);
    }
    for text in ["", "two words", &"x".repeat(5000)] {
        let access = access("bad", text);
        let refused = Nats::open("127.0.0.1", server.port, false, &access, None);
        assert!(refused.unwrap_err().0.contains("bad"), "the file is named");
    }
}

#[test]
fn what_a_machine_says_of_itself_is_replaced() {
    let server = Server::start();
    let (a, b) = (server.post("k"), server.post("k"));
    let scope = Scope::new("k").unwrap();
    let say = |text: &str| {
        a.send(hub::Parcel::new(Kind::Status, &scope, "machine", text.into()).unwrap());
    };
    let mut last = Vec::new();
    let mut hear = |wanted: &str| {
        until(wanted, || {
            while let Some(news) = b.next() {
                if let hub::News::Parcel(parcel) = news {
                    last = parcel.body().to_vec();
                }
            }
            last == wanted.as_bytes()
        });
    };
    say("one");
    hear("one");
    say("two");
    hear("two");
    let late = server.post("k");
    let mut got = Got::default();
    until("the last arrives", || {
        got.look(&late);
        !got.keys.is_empty()
    });
    assert_eq!(late.figures().received, 1);
}
