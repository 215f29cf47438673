//! What a hub carries: simulated machines that publish as campaigns do, without any VM. One process
//! plays them all, so its CPU is theirs together.
//!
//! `cargo run --release -p harness --example hub_load -- PORT PID MACHINES PER_MINUTE SECONDS`, where
//! a nats-server with JetStream listens on PORT of loopback as process PID and each machine finds
//! PER_MINUTE entries. Prints one row; `ci/bench/hub` makes the table.

use anyhow::{Context, Result};
use hub::{Access, Kind, Nats, News, Parcel, Post, Scope};
use std::time::{Duration, Instant};

/// As often a campaign says how it does.
const STATUS: Duration = Duration::from_secs(5);
/// Bytes of an entry: what programs of campaigns have.
const BODY: usize = 700;
/// After the last parcel was sent, so long are the others waited for.
const LAST: Duration = Duration::from_secs(10);
/// Clock ticks a second in /proc on every Linux ABI.
const TICKS: f64 = 100.0;

struct Machine {
    post: Post,
    next_entry: Instant,
    next_status: Instant,
    found: u64,
}

#[derive(Default)]
struct Seen {
    /// Microseconds from `send` to the other machine's `next`, of entries.
    late: Vec<u32>,
    received: u64,
    sent: u64,
}

fn main() -> Result<()> {
    let args: Vec<u64> =
        std::env::args().skip(1).map(|a| a.parse().context(a)).collect::<Result<_>>()?;
    let [port, pid, machines, per_minute, seconds] = args[..] else {
        anyhow::bail!("usage: hub_load PORT PID MACHINES PER_MINUTE SECONDS")
    };
    let scope = Scope::new("load").context("a name")?;
    let mut all = Vec::new();
    let begin = Instant::now();
    // Not all in step: machines are started by people.
    let every = Duration::from_secs_f64(60.0 / per_minute as f64);
    for n in 0..machines {
        let access = Access::default();
        let nats =
            Nats::open("127.0.0.1", u16::try_from(port)?, false, &access, Some(scope.clone()))?;
        let post = Post::open(Box::new(nats))?;
        let share = n as f64 / machines as f64;
        let later = |of: Duration| begin + of.mul_f64(share);
        all.push(Machine { post, next_entry: later(every), next_status: later(STATUS), found: 0 });
    }
    let ready = begin.elapsed();
    let (own, server) = (cpu("self")?, cpu(&pid.to_string())?);
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    for machine in &mut all {
        machine.next_entry += ready;
        machine.next_status += ready;
    }
    let mut seen = Seen::default();
    let sending = |now: Instant| now < end;
    loop {
        let now = Instant::now();
        for (n, machine) in all.iter_mut().enumerate() {
            turn(n, machine, &scope, every, begin, sending(now), &mut seen);
        }
        let wanted = seen.sent * (machines - 1);
        if !sending(now) && (seen.received >= wanted || now > end + LAST) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let wall = start.elapsed().as_secs_f64();
    seen.late.sort_unstable();
    let at = |share: f64| {
        let index = (seen.late.len() as f64 * share) as usize;
        seen.late.get(index).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    };
    let wanted = seen.sent * (machines - 1);
    println!(
        "| {machines:>8} | {:>7.1} | {:>11.0} | {:>8.1} | {:>8.1} | {:>8.1}% | {:>9.1}% | {:>9} |",
        seen.sent as f64 / seconds as f64,
        seen.received as f64 / wall,
        at(0.5),
        at(0.99),
        100.0 * (cpu(&pid.to_string())? - server) / wall,
        100.0 * (cpu("self")? - own) / wall / machines as f64,
        wanted.saturating_sub(seen.received),
    );
    Ok(())
}

/// What a machine does between two looks of ours.
fn turn(
    n: usize,
    machine: &mut Machine,
    scope: &Scope,
    every: Duration,
    begin: Instant,
    sending: bool,
    seen: &mut Seen,
) {
    let now = Instant::now();
    let micros = |at: Instant| at.duration_since(begin).as_micros() as u64;
    if sending && now >= machine.next_entry {
        machine.next_entry += every;
        machine.found += 1;
        let mut body = format!("{:020}", micros(now)).into_bytes();
        body.resize(BODY, b'#');
        let key = format!("{n}-{}", machine.found);
        if let Some(parcel) = Parcel::new(Kind::Entry, scope, &key, body) {
            machine.post.send(parcel);
            seen.sent += 1;
        }
    }
    if sending && now >= machine.next_status {
        machine.next_status += STATUS;
        if let Some(parcel) = Parcel::new(Kind::Status, scope, &n.to_string(), vec![b'{'; 300]) {
            machine.post.send(parcel);
        }
    }
    while let Some(news) = machine.post.next() {
        let News::Parcel(parcel) = news else { continue };
        if parcel.kind != Kind::Entry {
            continue;
        }
        seen.received += 1;
        let text = String::from_utf8_lossy(parcel.body().get(..20).unwrap_or_default());
        if let Ok(sent) = text.parse::<u64>() {
            seen.late.push(micros(Instant::now()).saturating_sub(sent) as u32);
        }
    }
}

/// Seconds of CPU a process has used.
fn cpu(pid: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("no such process")?;
    // The name of the program may hold spaces: fields count from its bracket.
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields = rest.split_whitespace().skip(11).take(2);
    Ok(fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS)
}
