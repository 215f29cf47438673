//! The coverage plugin in a real QEMU: it counts the blocks of a kernel function when, and only
//! when, a program calls it. Boots stock Debian 6.1 under TCG.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

#[allow(dead_code)] // other tests use the rest
mod support;

use case::cover::{Ranges, Symbol};
use case::link::{FromGuest, Look, RunRequest, ToGuest};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm::{BootError, CoverSpec, Vm, VmSpec};

const WITHOUT: &str =
    "hgm 1\nmmap at=r0 len=4M\nwrite at=r0 len=8K\nmprotect at=r0 len=4K prot=read\n";
const WITH: &str = "hgm 1\nmmap at=r0 len=4M\nwrite at=r0 len=8K\nmremap at=r0 len=2M new=2M to=r1 flags=maymove,fixed\n";

fn plugin() -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let built = Command::new("ci/coverage").current_dir(root).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    root.join(String::from_utf8(built.stdout).unwrap().lines().last().unwrap())
}

/// Where a function lies: from its symbol to the next.
fn place(symbols: &[Symbol], name: &str) -> (u64, u64) {
    let at = symbols.iter().position(|s| s.name == name.as_bytes()).unwrap();
    let start = symbols[at].addr;
    let end = symbols[at..].iter().map(|s| s.addr).find(|addr| *addr > start).unwrap();
    (start, end)
}

fn boot(spec: &VmSpec) -> Vm {
    // A boot may die of the emulator's race in patched text; three in a row are our fault.
    let mut tries = (0..3).map(|_| Vm::boot(spec));
    let vm = tries.find_map(|vm| vm.map_err(|e| eprintln!("{e}")).ok());
    vm.unwrap_or_else(|| panic!("no boot of three succeeded"))
}

/// Cells executed while the program ran, and nothing else.
fn cells(vm: &mut Vm, id: u64, text: &str) -> Vec<u32> {
    let program = case::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    vm.covered();
    let look = Look::Asked;
    let request = RunRequest { id, program, look, fresh: false, canary: None, op_timeout_ms: 5000 };
    vm.send(&ToGuest::Run(request)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(FromGuest::Done { .. }) = vm.recv(Duration::from_secs(1)).unwrap() {
            return vm.covered();
        }
    }
    panic!("no answer");
}

#[test]
fn a_function_is_counted_when_a_program_calls_it_and_only_then() {
    let (mut spec, _dir) = support::spec();
    let mut vm = boot(&spec);
    let symbols = vm.symbols(Duration::from_secs(30)).unwrap();
    vm.kill();
    assert!(symbols.len() > 20_000, "{} symbols", symbols.len());
    let (mremap, mprotect) =
        (place(&symbols, "move_page_tables"), place(&symbols, "mprotect_fixup"));
    let ranges = Arc::new(Ranges::of(vec![mremap, mprotect]).unwrap());
    spec.cover = Some(CoverSpec { plugin: plugin(), ranges: ranges.clone() });
    let mut vm = boot(&spec);
    let hits = |cells: &[u32], (start, end): (u64, u64)| {
        cells.iter().filter(|c| (start..end).contains(&ranges.addr(**c).unwrap())).count()
    };
    // Twice each: what is counted once and never again would pass for a count.
    for id in [1, 3] {
        let without = cells(&mut vm, id, WITHOUT);
        assert_eq!(hits(&without, mremap), 0, "{without:?}");
        assert!(hits(&without, mprotect) >= 3, "{without:?}");
        let with = cells(&mut vm, id + 1, WITH);
        assert!(hits(&with, mremap) >= 5, "{with:?}");
        assert_eq!(hits(&with, mprotect), 0, "{with:?}");
    }
}

#[test]
fn a_plugin_that_is_none_is_refused_by_name() {
    let (mut spec, _dir) = support::spec();
    let ranges = Arc::new(Ranges::of(vec![(0x1000, 0x2000)]).unwrap());
    spec.cover = Some(CoverSpec { plugin: "/nowhere/plugin.so".into(), ranges });
    match Vm::boot(&spec) {
        Err(BootError::Refused { stderr, .. }) => {
            assert!(stderr.contains("/nowhere/plugin.so"), "{stderr}");
        }
        other => panic!("{other:?}"),
    }
}
