//! Laws of everything that makes programs: it passes the check, reads back the same, stays
//! within what a guest can bear, and comes out the same for the same seed.
#![allow(clippy::unwrap_used)]

use case::check::check;
use case::text::{parse, print};
use case::wire::program_id;
use case::*;
use generators::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// A stock kernel of 2022 or, with `new`, of 2024.
fn profile(new: bool) -> Profile {
    Profile {
        uffd_features: if new { 0x1ffff } else { 0x1fff },
        huge_2m: true,
        huge_1g: true,
        thp: true,
        collapse: true,
        unpoison: true,
        ram_disk: true,
        io_uring: true,
        cpus: 2,
        nodes: 2,
        ..Profile::default()
    }
}

/// A kernel that maps huge pages in pieces.
fn with_pieces() -> Profile {
    Profile { madv_split: true, hgm_feature: true, uffd_features: 0x3fff, ..profile(false) }
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn fits(program: &Program) {
    check(program).unwrap_or_else(|e| panic!("{e}\n{}", print(program)));
    let text = print(program);
    assert_eq!(&parse(&text).unwrap(), program, "{text}");
    assert!(within_means(program), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_fit(seed in any::<u64>(), size in 0usize..60, new in any::<bool>()) {
        let program = random(&mut rng(seed), &profile(new), size);
        fits(&program);
        prop_assert!((LINES.0..=LINES.1).contains(&program.lines()), "{}", print(&program));
        prop_assert_eq!(random(&mut rng(seed), &profile(new), size), program);
    }

    #[test]
    fn a_bare_kernel_gets_programs_too(seed in any::<u64>()) {
        let program = random(&mut rng(seed), &Profile::default(), 20);
        fits(&program);
    }

    #[test]
    fn mutants_fit(seed in any::<u64>(), rounds in 1usize..12) {
        let mut rng = rng(seed);
        let p = profile(seed % 2 == 0);
        let mut program = random(&mut rng, &p, 20);
        let donor = random(&mut rng, &p, 30);
        for round in 0..rounds {
            let next = mutate(&mut rng, &p, &program, (round % 2 == 0).then_some(&donor));
            fits(&next);
            prop_assert_ne!(&next.steps, &program.steps);
            program = next;
        }
    }

    #[test]
    fn scenarios_fit(seed in any::<u64>(), new in any::<bool>()) {
        for name in SCENARIOS {
            let program = scenario(name, &mut rng(seed), &profile(new)).unwrap();
            fits(&program);
            prop_assert!(program.lines() >= 7, "{}: {}", name, print(&program));
        }
    }

    #[test]
    fn programs_of_pieces_fit(seed in any::<u64>(), size in 0usize..60) {
        fits(&random(&mut rng(seed), &with_pieces(), size));
        fits(&scenario("postcopy", &mut rng(seed), &with_pieces()).unwrap());
    }

    #[test]
    fn any_text_is_repaired(seed in any::<u64>()) {
        // Steps of a random program in random order, without what they need.
        let mut rng = rng(seed);
        let a = random(&mut rng, &profile(true), 40);
        let b = random(&mut rng, &profile(true), 40);
        let mut mixed = Program::of([&b.steps[..], &a.steps[..], &b.steps[..]].concat());
        mixed.steps.reverse();
        repair(&mut mixed);
        check(&mixed).unwrap();
    }
}

#[test]
fn an_unknown_scenario_is_none() {
    assert_eq!(scenario("nonsense", &mut rng(0), &profile(false)), None);
}

#[test]
fn postcopy_comes_first_and_is_whole() {
    assert_eq!(SCENARIOS[0], "postcopy");
    let program = scenario("postcopy", &mut rng(1), &profile(false)).unwrap();
    let text = print(&program);
    for part in ["modes=minor", "continue uffd=u0", "write at=r1", "advice=collapse"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn kernels_with_pieces_get_programs_about_them() {
    let pieces = |text: &str| {
        let small = |line: &str| line.starts_with("continue") && line.ends_with('K');
        text.contains("advice=split") && text.lines().any(small)
    };
    let count = |p: &Profile| {
        (0..200).filter(|seed| pieces(&print(&random(&mut rng(*seed), p, 24)))).count()
    };
    assert!(count(&with_pieces()) > 30, "{}", count(&with_pieces()));
    let text = print(&scenario("postcopy", &mut rng(3), &with_pieces()).unwrap());
    assert!(pieces(&text) && text.contains("advice=collapse"), "{text}");
}

#[test]
fn the_same_seed_gives_the_same_programs() {
    let mut rng = rng(0xC0FFEE);
    let mut ids = Vec::new();
    let mut last = scenario("postcopy", &mut rng, &profile(false)).unwrap();
    for i in 0..200 {
        let program = random(&mut rng, &profile(i % 2 == 0), 4 + i % 37);
        let mutant = mutate(&mut rng, &profile(false), &program, Some(&last));
        ids.push(program_id(&program));
        ids.push(program_id(&mutant));
        last = mutant;
    }
    for name in SCENARIOS {
        ids.push(program_id(&scenario(name, &mut rng, &profile(true)).unwrap()));
    }
    let golden = blake3::hash(ids.join("\n").as_bytes()).to_hex()[..16].to_string();
    // A change here means that saved seeds no longer replay: say so in the change log.
    assert_eq!(golden, "862fb4f13c7054b8");
}

#[test]
fn every_op_and_mostly_sense() {
    let mut seen: BTreeMap<OpKind, u32> = BTreeMap::new();
    let (mut lines, mut par, mut giant, mut forks) = (0usize, 0, 0, 0);
    let total = 4000;
    for seed in 0..total {
        let mut rng = rng(seed);
        let injects = seed % 4 == 0;
        let profile = Profile { fail_nth: injects, gup_test: injects, ..profile(seed % 2 == 0) };
        let program = random(&mut rng, &profile, 30);
        for (_, _, op) in program.each_line() {
            *seen.entry(op.kind()).or_default() += 1;
        }
        let text = print(&program);
        lines += program.lines();
        par += u32::from(program.has_par());
        giant += u32::from(text.contains("page=1G"));
        forks += u32::from(text.contains("= fork"));
    }
    let lacking: Vec<_> = OpKind::ALL.iter().filter(|k| !seen.contains_key(k)).collect();
    assert!(lacking.is_empty(), "never made: {lacking:?}");
    let average = lines / total as usize;
    assert!((10..=30).contains(&average), "{average} lines on average");
    assert!((120..=800).contains(&par), "{par} with par");
    assert!((1..=80).contains(&giant), "{giant} with 1 GiB pages");
    assert!((400..=2400).contains(&forks), "{forks} with fork");
}
