//! Symbols against ELF files the compiler makes for the test, and against broken ones.

#[path = "../../tests/support/elf.rs"]
mod elf;

use super::{Found, Symbols, Told, Vmlinux, tell};
use case::cover::Symbol;
use oracles::console::{Frame, Place, address};
use std::path::Path;

fn frame(text: &str) -> Frame {
    address(text).unwrap().1
}

/// What `text`, with the printed form of a mark in place of `{}`, is told to be.
fn places(vmlinux: &Path, text: &str, mark: usize) -> Vec<(String, String)> {
    let printed = elf::printed(vmlinux, elf::marks(vmlinux)[mark]);
    let symbols = Symbols::at("k", Some(vmlinux.to_owned()));
    let places = symbols.places(&frame(&text.replace("{}", &printed)));
    places.into_iter().map(|Place { function, at }| (function, at)).collect()
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn an_address_is_its_line_with_what_was_inlined() {
    for in_tree in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let vmlinux = elf::build(dir.path(), in_tree, &["-g"]);
        let inlined = [("inner", "include/linux/inner.h:4"), ("hugetlb_fault", "mm/hugetlb.c:10")];
        assert_eq!(places(&vmlinux, "RIP: 0010:{}", 2), pairs(&inlined), "in tree: {in_tree}");
        // The same address as an instruction, and as where a call returns to.
        assert_eq!(places(&vmlinux, "RIP: 0010:{}", 1), pairs(&[("same", "mm/hugetlb.c:5")]));
        assert_eq!(places(&vmlinux, " {}", 1), pairs(&[("same", "mm/hugetlb.c:4")]));
        // Two functions of one name: the length tells which.
        assert_eq!(places(&vmlinux, "RIP: 0010:{}", 5), pairs(&[("same", "mm/mmap.c:6")]));
        assert_eq!(places(&vmlinux, " {} [ext4]", 1), [], "a module's is not the kernel's");
    }
}

#[test]
fn another_build_is_told_by_its_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = elf::build(dir.path(), true, &["-g"]);
    let symbols = Symbols::at("k", Some(vmlinux.clone()));
    assert!(symbols.places(&frame(&elf::printed(&vmlinux, elf::marks(&vmlinux)[0]))).len() == 1);
    assert_eq!(symbols.note(), None);
    assert_eq!(symbols.build_id().map(str::len), Some(40));
    assert!(symbols.places(&frame(" hugetlb_fault+0x1/0x9999")).is_empty());
    assert!(symbols.note().unwrap().contains("another build"), "{:?}", symbols.note());
    let opened = Vmlinux::open(&vmlinux).unwrap();
    assert_eq!(opened.find(&frame(" no_such_thing+0x1/0x2")), Found::Missing);
    assert_eq!(opened.find(&frame(" same+0x1/0x9999")), Found::Other);
}

#[test]
fn files_come_from_the_units_if_the_addresses_agree() {
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = elf::build(dir.path(), false, &["-g"]);
    let symbols = Symbols::at("k", Some(vmlinux.clone()));
    let mut guest: Vec<Symbol> = elf::functions(&vmlinux)
        .into_iter()
        .map(|(name, addr, _)| Symbol { addr, name: name.into_bytes() })
        .collect();
    let files = symbols.files(&guest).unwrap();
    let of = |name: &str| {
        let symbol = guest.iter().find(|s| s.name == name.as_bytes()).unwrap();
        files[&symbol.addr].as_str()
    };
    assert_eq!(of("hugetlb_fault"), "mm/hugetlb.c");
    assert_eq!(of("vm_munmap"), "mm/mmap.c");
    // Another kernel's addresses.
    guest.iter_mut().for_each(|symbol| symbol.addr += 0x40);
    assert_eq!(symbols.files(&guest), None);
}

#[test]
fn without_line_tables_the_report_stands_as_it_is_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = elf::build(dir.path(), true, &[]);
    let at = elf::printed(&vmlinux, elf::marks(&vmlinux)[0]);
    let console = format!(
        "[    1.000001] WARNING: CPU: 0 PID: 7 at mm/hugetlb.c:4 {at}\n\
         [    1.000002] RIP: 0010:{at}\n[    1.000003] ---[ end trace 0 ]---\n"
    );
    let kernels = [(Some(vmlinux), "no line tables"), (None, "has no vmlinux")];
    for (path, why) in kernels {
        let symbols = Symbols::at("k", path);
        let told: Vec<Told> = tell(console.as_bytes(), &symbols);
        assert_eq!(told[0].text, console);
        assert_eq!((told[0].guilty.as_deref(), &told[0].guilty_at), (Some("same"), &None));
        assert!(symbols.note().unwrap().contains(why), "{:?}", symbols.note());
    }
    assert!(Symbols::none().note().unwrap().contains("no kernel"));
}

#[test]
fn a_report_is_told_with_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = elf::build(dir.path(), false, &["-g"]);
    let marks = elf::marks(&vmlinux);
    let at = |mark: usize| elf::printed(&vmlinux, marks[mark]);
    let console = format!(
        "noise\n[    1.000001] BUG: KASAN: use-after-free in {0}\n\
         [    1.000002] Call Trace:\n[    1.000003]  kasan_report+0x1/0x2\n\
         [    1.000004]  {0}\n[    1.000005]  {1}\n[    1.000006] Freed by task 7:\n\
         [    1.000007]  {2}\n[    1.000008] {3}\n",
        at(2),
        at(1),
        at(5),
        "=".repeat(60)
    );
    let symbols = Symbols::at("k", Some(vmlinux.clone()));
    let told = tell(console.as_bytes(), &symbols);
    assert_eq!(told.len(), 1);
    let told = &told[0];
    assert_eq!(told.guilty.as_deref(), Some("hugetlb_fault"));
    assert!(told.guilty_at.as_deref().unwrap().starts_with("mm/hugetlb.c:"), "{told:?}");
    let headings: Vec<&str> = told.stacks.iter().map(|s| s.of.as_str()).collect();
    assert_eq!(headings, ["report", "Call Trace", "Freed by task 7"]);
    assert!(told.text.contains(&format!(" {} mm/mmap.c:5\n", at(5))), "{}", told.text);
    assert!(told.text.contains("] BUG: KASAN: use-after-free in "), "{}", told.text);
    assert!(!told.text.contains("noise"));
    let json = serde_json::to_value(told).unwrap();
    let frame = &json["stacks"][2]["frames"][0];
    assert_eq!((&frame["function"], &frame["kind"]), (&"same".into(), &"call".into()), "{json}");
    assert_eq!(frame["places"][0]["at"], "mm/mmap.c:5");
}

#[test]
fn broken_files_are_a_note_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(elf::build(dir.path(), true, &["-g"])).unwrap();
    let printed = " hugetlb_fault+0x4/0x10";
    let path = dir.path().join("broken");
    let ask = |bytes: &[u8]| {
        std::fs::remove_file(&path).ok();
        std::fs::write(&path, bytes).unwrap();
        let symbols = Symbols::at("k", Some(path.clone()));
        (symbols.places(&frame(printed)), symbols.note())
    };
    for bytes in [&b""[..], b"not an ELF file", &whole[..whole.len() / 2], &whole[..63]] {
        let (places, note) = ask(bytes);
        assert!(places.is_empty() && note.unwrap().contains("of no use"));
    }
    for cut in (0..whole.len()).step_by(whole.len() / 97) {
        ask(&whole[..cut]);
        let mut flipped = whole.clone();
        flipped[cut] ^= 0xff;
        ask(&flipped);
        flipped[cut..].iter_mut().take(16).for_each(|b| *b = 0xff);
        ask(&flipped);
    }
}
