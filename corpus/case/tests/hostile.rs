//! What a guest sends and what people write, broken in every way: never a panic, bounded memory, and
//! no answer that depends on how the bytes came.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use case::link::{FromGuest, Look, RunRequest, ToGuest};
use case::wire::{Decoder, HEADER_BYTES, MAGIC, VERSION, check_from_guest, encode};
use case::{Program, check, text, wire};
use std::path::Path;
use std::time::Instant;
use trials::Trial;

#[path = "support/messages.rs"]
mod messages;

/// A frame with a right header around any payload: what a guest that means harm would send.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    frame.extend(VERSION.to_le_bytes());
    frame.extend([0, 0]);
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(crc32fast::hash(payload).to_le_bytes());
    frame.extend(payload);
    frame
}

/// All messages in a stream that comes in pieces of `size`, and whether it ended in an error.
fn messages_of(bytes: &[u8], size: usize) -> (Vec<FromGuest>, bool) {
    let mut decoder = Decoder::new();
    let mut all = Vec::new();
    for piece in bytes.chunks(size) {
        decoder.push(piece);
        loop {
            match decoder.next::<FromGuest>() {
                Ok(Some(message)) => all.push(message),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
    }
    (all, false)
}

fn judge_stream(bytes: &[u8]) {
    let whole = messages_of(bytes, bytes.len().max(1));
    for size in [1, 7, HEADER_BYTES] {
        assert_eq!(messages_of(bytes, size), whole, "in pieces of {size}");
    }
    for message in whole.0 {
        let fits = check_from_guest(&message);
        let Ok(again) = encode(&message) else { continue };
        let (back, broken) = messages_of(&again, again.len());
        assert!(!broken && back == [message], "{fits:?}");
    }
}

#[test]
fn frames_of_a_guest() {
    let start = Instant::now();
    let seeds = messages::all().into_iter().map(|m| encode(&m).unwrap()[HEADER_BYTES..].to_vec());
    let figures = Trial::new("frames", seeds.collect()).run(|bytes| {
        judge_stream(bytes);
        judge_stream(&frame(bytes));
        // Two frames, the second one broken at its end.
        let mut two = frame(bytes);
        two.extend(frame(bytes));
        two.pop();
        judge_stream(&two);
    });
    trials::fault("F12", "frames of a guest, mutated", figures.executions, 0, start);
}

fn folder(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let entries = std::fs::read_dir(path).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "hgm"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn judge_program(program: &Program) {
    let printed = text::print(program);
    let again = text::parse(&printed).unwrap_or_else(|e| panic!("{e}:\n{printed}"));
    assert_eq!(&again, program, "{printed}");
    assert_eq!(text::print(&again), printed);
    let bare = text::parse(&text::print_bare(program)).unwrap();
    assert_eq!(wire::program_id(&bare), wire::program_id(program), "notes do not count");
    let _ = check::check(program);
    let request = RunRequest {
        id: 1,
        program: bare.clone(),
        look: Look::Each,
        fresh: false,
        canary: None,
        op_timeout_ms: 1,
    };
    let frame = encode(&ToGuest::Run(request)).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&frame);
    let Ok(Some(ToGuest::Run(back))) = decoder.next::<ToGuest>() else { panic!("lost") };
    assert_eq!(back.program, bare);
}

#[test]
fn programs_as_text() {
    let start = Instant::now();
    let words =
        ["hgm 1\n", "par {\n", "}\n", "t0: ", "p1: ", "# ", "4K", "2M", "1G", "none", "\r\n"];
    let figures = Trial::new("programs", folder("seeds")).words(&words).run(|bytes| {
        if let Ok(program) = text::parse(&String::from_utf8_lossy(bytes)) {
            judge_program(&program);
        }
    });
    trials::fault("F6", "program text, mutated", figures.executions, 0, start);
}

/// Bytes a message may take in memory for each byte it was sent in: a run of pages is sent in 4 at
/// least and kept in 40.
const TIMES: usize = 12;

#[test]
fn the_longest_frames_take_little_memory() {
    let start = Instant::now();
    let (mut tried, mut lost) = (0, 0);
    for (name, payload) in messages::largest() {
        let sent = frame(&payload);
        let mut decoder = Decoder::new();
        decoder.push(&sent);
        let mut outcome = String::new();
        let memory = trials::memory_of(|| {
            let got = decoder.next::<FromGuest>();
            outcome = match got.and_then(|m| check_from_guest(&m.expect("it is whole"))) {
                Ok(()) => "taken".to_owned(),
                Err(why) => why.to_string(),
            };
        });
        println!(
            "{name}: {} KiB sent, {} KiB in memory: {outcome}",
            sent.len() >> 10,
            memory >> 10
        );
        tried += 1;
        lost += u64::from(memory > TIMES * sent.len());
    }
    trials::fault("F12", "longest frames, memory for each", tried, lost, start);
    assert_eq!(lost, 0);
}
