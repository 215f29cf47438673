//! Messages of a guest: one of each kind, and the ones that take the most memory for their bytes.

#![allow(clippy::unwrap_used)]

use case::cover::Symbol;
use case::limits::FRAME_BYTES_MAX;
use case::link::{ExecutableEnd, FromGuest, RunOutcome};
use case::observation::*;
use case::*;

fn line(out: Output) -> LineObs {
    let seen = FaultSeen {
        uffd: UffdId(1),
        event: event::PAGEFAULT,
        flags: event::FLAG_MINOR,
        at: Spot::In(Place::new(0, 4096)),
        to: Spot::Outside(12),
        len: 0,
        answer: 17,
    };
    let signal = SignalSeen { signo: 7, code: 2, at: Spot::In(Place::new(1, 8)), lsb: 0 };
    LineObs {
        status: Status::Signal(signal),
        out,
        also: Some(signal),
        events: vec![seen],
        views: vec![View::Counters(Counters::default())],
        pools: Some([Pool::default(); 2]),
    }
}

pub fn observation() -> Observation {
    let words = [Word::Unread, Word::Zero, Word::Tag(Tag { serial: 3, page: 9 })];
    let runs = words.map(|w| ContentRun { pages: 2, head: w, tail: Word::Zero });
    let page = PageRun { pages: 3, bits: pm::PRESENT, frame: 513, kpage: None };
    let vma = VmaObs {
        at: Place::new(2, 0),
        len: 1 << 21,
        perms: 11,
        off: 4096,
        kb: vec![("Rss".into(), 2048)],
        flags: vec![*b"rd", *b"ht"],
        numa: Some("default".into()),
    };
    Observation {
        before: Counters { nodes_2m: vec![Pool::default(); 2], ..Counters::default() },
        lines: vec![
            line(Output::Content(runs.to_vec())),
            line(Output::Nodes(vec![0, -14, NODE_UNTOUCHED])),
            line(Output::Field(FIELD_UNTOUCHED)),
        ],
        end: vec![
            View::Pages { proc: ProcId(0), at: Place::new(0, 0), runs: vec![page] },
            View::Vmas { proc: ProcId(1), at: Place::new(2, 0), len: 4096, vmas: vec![vma] },
            View::Rollup { proc: ProcId(0), kb: vec![("Pss".into(), 4)] },
            View::Mincore { proc: ProcId(0), at: Place::new(0, 0), result: Ok(vec![(2, true)]) },
            View::Failed { what: "smaps".into(), errno: 3 },
        ],
        after: Counters::default(),
        fresh: false,
        nanos: 123_456,
    }
}

/// One of each kind.
pub fn all() -> Vec<FromGuest> {
    let done = |outcome| FromGuest::Done { id: 7, outcome };
    let symbol = Symbol { addr: 0xffff_ffff_8100_0000, name: "hugetlb_fault".into() };
    vec![
        FromGuest::Ready(Profile { release: "6.1.0".into(), ..Profile::default() }),
        FromGuest::Executing { id: 300 },
        done(RunOutcome::Finished(observation())),
        done(RunOutcome::WorkerDied { signal: 11, line: 3 }),
        done(RunOutcome::WorkerHung { line: 3, stuck: b"stack".to_vec(), killed: true }),
        done(RunOutcome::Refused("no memory".into())),
        FromGuest::Provoked { errno: 22 },
        FromGuest::Log("a line".into()),
        FromGuest::Symbols { part: vec![symbol; 3], more: true },
        FromGuest::Covered { id: 7, cells: vec![1, 2, 300] },
        FromGuest::Executed { end: ExecutableEnd::Exit(1), printed: b"text".to_vec() },
    ]
}

/// A message with so many elements.
type Maker<'a> = Box<dyn Fn(usize) -> FromGuest + 'a>;

/// Payloads as long as a frame may be, of elements that are as short as they can be sent.
pub fn largest() -> Vec<(&'static str, Vec<u8>)> {
    let blank = || Observation { lines: Vec::new(), end: Vec::new(), ..observation() };
    let done = |o: Observation| FromGuest::Done { id: 0, outcome: RunOutcome::Finished(o) };
    let line = || LineObs {
        status: Status::Ok(0),
        out: Output::Nothing,
        also: None,
        events: Vec::new(),
        views: Vec::new(),
        pools: None,
    };
    let kb = |n| vec![(String::new(), 0); n];
    let run = ContentRun { pages: 0, head: Word::Unread, tail: Word::Unread };
    let page = PageRun { pages: 0, bits: 0, frame: 0, kpage: None };
    let content = |n| LineObs { out: Output::Content(vec![run; n]), ..line() };
    let pages = |n| View::Pages { proc: ProcId(0), at: Place::new(0, 0), runs: vec![page; n] };
    let rollup = |n| View::Rollup { proc: ProcId(0), kb: kb(n) };
    let symbol = Symbol { addr: 0, name: Vec::new() };
    let makers: Vec<(&'static str, Maker<'_>)> = vec![
        (
            "symbols",
            Box::new(move |n| FromGuest::Symbols { part: vec![symbol.clone(); n], more: false }),
        ),
        ("cells", Box::new(|n| FromGuest::Covered { id: 0, cells: vec![0; n] })),
        ("lines", Box::new(move |n| done(Observation { lines: vec![line(); n], ..blank() }))),
        ("views", Box::new(move |n| done(Observation { end: vec![rollup(0); n], ..blank() }))),
        ("labels", Box::new(move |n| done(Observation { end: vec![rollup(n)], ..blank() }))),
        ("content", Box::new(move |n| done(Observation { lines: vec![content(n)], ..blank() }))),
        ("pages", Box::new(move |n| done(Observation { end: vec![pages(n)], ..blank() }))),
        (
            "pages of many lines",
            Box::new(move |n| {
                let views = |_| LineObs { views: vec![pages(n / 192)], ..line() };
                done(Observation { lines: (0..192).map(views).collect(), ..blank() })
            }),
        ),
    ];
    makers.iter().map(|(name, make)| (*name, longest(make.as_ref()))).collect()
}

/// As many elements as fit.
fn longest(make: &dyn Fn(usize) -> FromGuest) -> Vec<u8> {
    let bytes = |n| postcard::to_stdvec(&make(n)).unwrap();
    let one = (bytes(20_000).len() - bytes(10_000).len()) as f64 / 10_000.0;
    let mut n = (FRAME_BYTES_MAX as f64 / one) as usize;
    loop {
        let payload = bytes(n);
        if payload.len() <= FRAME_BYTES_MAX {
            return payload;
        }
        n -= n / 1000;
    }
}
