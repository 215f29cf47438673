//! Laws of the wire form: messages survive, damage is refused, nothing is allocated on a guest's
//! word.
#![allow(clippy::unwrap_used)]

#[path = "support/messages.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod messages;
mod support;

use case::limits::*;
use case::link::*;
use case::observation::*;
use case::wire::*;
use case::*;
use messages::observation;
use proptest::prelude::*;

fn run(program: Program) -> ToGuest {
    ToGuest::Run(RunRequest {
        id: 7,
        program,
        look: Look::Each,
        fresh: true,
        canary: Some(Canary::WrongErrno),
        op_timeout_ms: 500,
    })
}

fn bare(mut program: Program) -> Program {
    program.about.clear();
    program.steps.iter_mut().for_each(|s| s.notes.clear());
    program
}

fn done(observation: Observation) -> FromGuest {
    FromGuest::Done { id: 7, outcome: RunOutcome::Finished(observation) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn programs_survive_in_any_pieces(
        program in support::program(), cuts in proptest::collection::vec(1usize..600, 1..40),
    ) {
        let message = run(bare(program.clone()));
        // Comments do not travel.
        let mut bytes = encode(&run(program)).unwrap();
        bytes.extend(encode(&ToGuest::Hello).unwrap());
        let mut decoder = Decoder::new();
        let mut got = Vec::new();
        let mut rest = &bytes[..];
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            decoder.push(now);
            rest = later;
            while let Some(m) = decoder.next::<ToGuest>().unwrap() {
                got.push(m);
            }
        }
        prop_assert_eq!(got, vec![message, ToGuest::Hello]);
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn flipped_bits_are_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let message = done(observation());
        let mut bytes = encode(&message).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        match decoder.next::<FromGuest>() {
            // A longer length: the frame is never complete.
            Ok(None) => prop_assert!((8..12).contains(&at)),
            Ok(Some(m)) => prop_assert!(false, "accepted {m:?}"),
            Err(first) => {
                decoder.push(&encode(&message).unwrap());
                prop_assert_eq!(decoder.next::<FromGuest>(), Err(first));
            }
        }
    }

    #[test]
    fn truncated_frames_wait_or_fail(at in any::<prop::sample::Index>()) {
        let bytes = encode(&done(observation())).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes[..at.index(bytes.len())]);
        prop_assert_eq!(decoder.next::<FromGuest>(), Ok(None));
    }

    #[test]
    fn rubbish_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new();
        decoder.push(&frame(&payload));
        if let Ok(Some(m)) = decoder.next::<FromGuest>() {
            let _ = check_from_guest(&m);
        }
        let mut decoder = Decoder::new();
        decoder.push(&payload);
        let _ = decoder.next::<FromGuest>();
    }
}

/// A frame with a right header around any payload.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC.to_vec();
    frame.extend(VERSION.to_le_bytes());
    frame.extend([0, 0]);
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(crc32fast::hash(payload).to_le_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn observations_survive() {
    let message = done(observation());
    let mut decoder = Decoder::new();
    decoder.push(&encode(&message).unwrap());
    let back = decoder.next::<FromGuest>().unwrap().unwrap();
    assert_eq!(back, message);
    assert_eq!(check_from_guest(&back), Ok(()));
}

#[test]
fn a_bad_header_is_refused_before_its_payload_comes() {
    let head = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = encode(&ToGuest::Hello).unwrap();
        bytes.truncate(HEADER_BYTES);
        edit(&mut bytes);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        decoder.next::<ToGuest>().unwrap_err()
    };
    assert!(matches!(head(|b| b[0] = b'x'), WireError::Magic(_)));
    let start = std::time::Instant::now();
    assert_eq!(head(|b| b[4] = 99), WireError::Version(99));
    // The agents of the version before and of the one to come.
    assert_eq!(head(|b| b[4] -= 1), WireError::Version(VERSION - 1));
    assert_eq!(head(|b| b[4] += 1), WireError::Version(VERSION + 1));
    trials::fault("F33", "an agent of another version", 3, 0, start);
    assert_eq!(head(|b| b[6] = 3), WireError::Kind(3));
    let long = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    assert_eq!(long.len(), 4);
    assert_eq!(
        head(|b| b[8..12].copy_from_slice(&u32::MAX.to_le_bytes())),
        WireError::TooLong(u32::MAX as usize)
    );
    let mut decoder = Decoder::new();
    decoder.push(b"[    0.000000] Linux version");
    assert!(matches!(decoder.next::<ToGuest>(), Err(WireError::Magic(_))));
}

#[test]
fn a_huge_count_in_a_small_payload_is_refused() {
    // FromGuest::Log with a length of 2^63: the claim must not be believed.
    let mut payload = vec![3];
    payload.extend([0xff; 9]);
    payload.push(0x01);
    let mut decoder = Decoder::new();
    decoder.push(&frame(&payload));
    assert!(matches!(decoder.next::<FromGuest>(), Err(WireError::Payload(_))));
    let mut whole = encode(&ToGuest::Hello).unwrap();
    whole = frame(&[&whole[HEADER_BYTES..], &[0]].concat());
    let mut decoder = Decoder::new();
    decoder.push(&whole);
    assert!(matches!(decoder.next::<ToGuest>(), Err(WireError::Payload(_))));
}

#[test]
fn messages_over_the_cap_are_not_sent() {
    let log = FromGuest::Log("x".repeat(FRAME_BYTES_MAX + 1));
    assert!(matches!(encode(&log), Err(WireError::TooLong(_))));
}

#[test]
fn collections_over_their_caps_are_refused() {
    let refused = |edit: &dyn Fn(&mut Observation)| {
        let mut o = observation();
        edit(&mut o);
        matches!(check_observation(&o), Err(WireError::OverCap { .. }))
    };
    let run = PageRun { pages: 1, bits: 0, frame: 0, kpage: None };
    let pages = |runs| View::Pages { proc: ProcId(0), at: Place::new(0, 0), runs };
    assert!(!refused(&|_| {}));
    assert!(refused(&|o| o.lines = vec![o.lines[2].clone(); LINES_MAX + 1]));
    assert!(refused(&|o| o.lines[0].events = vec![o.lines[0].events[0]; EVENTS_MAX + 1]));
    assert!(refused(&|o| o.end[0] = pages(vec![run; RUNS_MAX + 1])));
    assert!(refused(&|o| {
        o.end[0] = pages(vec![PageRun { pages: VIEW_PAGES_MAX + 1, ..run }]);
    }));
    assert!(refused(&|o| o.lines[1].out = Output::Nodes(vec![0; RUNS_MAX + 1])));
    assert!(refused(&|o| {
        let huge = ContentRun { pages: u32::MAX, head: Word::Zero, tail: Word::Zero };
        o.lines[0].out = Output::Content(vec![huge; 3]);
    }));
    assert!(refused(&|o| o.before.nodes_2m = vec![Pool::default(); 65]));
    let long = "x".repeat(STRING_BYTES_MAX + 1);
    assert!(refused(&|o| o.end[4] = View::Failed { what: long.clone(), errno: 0 }));
    assert!(refused(&|o| o.end[2] = View::Status { proc: ProcId(0), kb: vec![(long.clone(), 0)] }));
    assert!(check_from_guest(&FromGuest::Log(long.clone())).is_err());
    let profile = Profile { release: long.clone(), ..Profile::default() };
    assert!(check_from_guest(&FromGuest::Ready(profile)).is_err());
}
