//! `hgm gate` on real kernels of Debian: 6.1 against itself, against 6.12, which lacks some of its
//! deviations, and against an image of it that is damaged.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{DEVIATES, Home, PASSES, json, plugin, the_kernel};
use serde_json::{Value, json as value};
use std::process::Output;
use std::time::{Duration, Instant};

const N03: &str = "X-02/madvise/rsvd:low";
/// Takes N03 off the list of what is known of 6.1, which makes it a finding.
const NOT_KNOWN: &str = "[[deviation]]\nid = \"N03\"\nfamilies = []\nsignatures = []\n\
    title = \"taken out\"\nwhy = \"to be found\"\n";
/// Changes what every program with a huge page runs, and what none does.
const PATCH: &str = "--- a/mm/hugetlb.c\n+++ b/mm/hugetlb.c\n\
    @@ -10,2 +10,3 @@ vm_fault_t hugetlb_fault(struct mm_struct *mm,\n \tx;\n+\ty;\n \tz;\n\
    @@ -90,2 +91,3 @@ void hugetlb_show_meminfo_node(int nid)\n \tx;\n+\ty;\n \tz;\n";

/// Two regressions: one passes everywhere, one shows N03 on 6.1.
fn place() -> Home {
    let home = Home::new();
    for (name, text) in [("deviates", DEVIATES), ("passes", PASSES)] {
        let dir = home.0.path().join("cases").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("program.hgm"), text).unwrap();
        std::fs::write(dir.join("expect.toml"), "[expect]\n\"*\" = \"pass\"\n").unwrap();
    }
    home
}

fn gate(home: &Home, base: &str, new: &str, more: &[&str]) -> Output {
    let args = ["gate", "--base", base, "--new", new, "--regressions", "cases", "--json"];
    let few = ["--jobs", "2", "--seed", "7", "--times", "3", "--need", "2"];
    let floor = ["--set", "programs_min=8", "--set", "states_min=8"];
    let out = home.run(&[&args[..], &few[..], &floor[..], more].concat());
    assert!(home.qemus().is_empty());
    out
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The notes of a kind, by signature.
fn notes(result: &Value, word: &str) -> Vec<String> {
    let rows = result["notes"].as_array().unwrap().iter();
    rows.filter(|row| row["word"] == word).map(|row| row["signature"].to_string()).collect()
}

#[test]
fn a_kernel_against_itself_is_clean_and_says_what_that_stands_on() {
    let home = place();
    let one = the_kernel("6.1");
    let patch = home.file("fix.patch", PATCH);
    let mut command = home.command(&["gate", "--base", &one, "--new", &one, "--json"]);
    command.args(["--patch", &patch, "--regressions", "cases", "--programs", "10"]);
    command.args(["--jobs", "2", "--seed", "7", "--times", "3", "--need", "2"]);
    command.args(["--set", "programs_min=8", "--set", "states_min=8"]);
    let out = command
        .env("HGM_COVERAGE", "plugin")
        .env("HGM_COVERAGE_PLUGIN", plugin())
        .output()
        .unwrap();
    let result = json(&out);
    assert_eq!(out.status.code(), Some(0), "{result} {}", said(&out));
    assert_eq!((&result["verdict"], &result["findings"]), (&"clean".into(), &value!([])));
    let evidence = &result["evidence"];
    assert!(evidence["programs"].as_u64().unwrap() >= 10, "{evidence}");
    assert!(evidence["states"].as_u64().unwrap() >= 8, "{evidence}");
    assert_eq!(
        (&evidence["regressions"], &evidence["regressions_on_base"]),
        (&value!([2, 2]), &2.into())
    );
    assert_eq!(evidence["canaries"], value!({ "found": 10, "planted": 10 }));
    let functions = &evidence["functions"];
    assert!(
        functions["reached"].as_array().unwrap().contains(&"hugetlb_fault".into()),
        "{functions}"
    );
    assert_eq!(functions["not_reached"], value!(["hugetlb_show_meminfo_node"]));
    assert!(notes(&result, "known").contains(&format!("\"{N03}\"")), "{result}");
    // The result stays with the run.
    let journal = store::Journal::view(&home.the_run()).unwrap();
    let kept: Value = serde_json::from_str(&journal.note("gate").unwrap().unwrap()).unwrap();
    assert_eq!(kept, result);
}

#[test]
fn what_only_the_new_kernel_shows_fails_the_gate_within_its_budget() {
    let home = place();
    let [new, base] = ["6.1", "6.12"].map(the_kernel);
    home.own_known_list(&new, NOT_KNOWN);
    let start = Instant::now();
    let out = gate(&home, &base, &new, &["--budget", "10m"]);
    let result = json(&out);
    assert_eq!(out.status.code(), Some(100), "{result} {}", said(&out));
    assert!(start.elapsed() < Duration::from_secs(600));
    let finding = &result["findings"][0];
    assert_eq!((&result["verdict"], &finding["signature"]), (&"findings".into(), &N03.into()));
    assert!(finding["new"][0].as_u64().unwrap() >= 2, "{finding}");
    assert_eq!(finding["base"], value!([0, 3]));
    let program = std::fs::read_to_string(finding["program"].as_str().unwrap()).unwrap();
    assert!(program.contains("advice=dontneed"), "{program}");

    // Too little time for anything: neither clean nor a finding.
    let out = gate(&home, &base, &new, &["--budget", "1s"]);
    let result = json(&out);
    assert_eq!(out.status.code(), Some(5), "{result} {}", said(&out));
    assert_eq!((&result["verdict"], &result["exit"]), (&"inconclusive".into(), &5.into()));
    let lacks = result["lacks"].to_string();
    assert!(lacks.contains("programs, 8 are the least"), "{lacks}");
    assert!(lacks.contains("of 2 regressions were run"), "{lacks}");
}

#[test]
fn what_both_show_is_a_note() {
    let home = place();
    let one = the_kernel("6.1");
    home.own_known_list(&one, NOT_KNOWN);
    let out = gate(&home, &one, &one, &["--programs", "8"]);
    let result = json(&out);
    assert_eq!(out.status.code(), Some(0), "{result} {}", said(&out));
    assert_eq!(result["verdict"], "clean");
    assert_eq!(notes(&result, "base-too"), [format!("\"{N03}\"")], "{result}");
}

/// A copy of a kernel image with some of its packed part overwritten, registered.
fn damaged(home: &Home, kernel: &str) -> String {
    let mut image =
        std::fs::read(home.0.path().join("kernels").join(kernel).join("vmlinuz")).unwrap();
    // boot.rst: setup_sects, payload_offset, payload_length.
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let middle = (usize::from(image[0x1f1]) + 1) * 512 + number(0x248) + number(0x24c) / 2;
    image[middle..middle + 4096].fill(0x5a);
    let path = home.0.path().join("damaged");
    std::fs::write(&path, image).unwrap();
    let out = home.run(&["kernel", "add", path.to_str().unwrap(), "--json"]);
    assert!(out.status.success(), "{}", said(&out));
    json(&out)["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_kernel_that_does_not_boot_fails_the_gate_only_where_its_base_does() {
    let home = place();
    let good = the_kernel("6.1");
    home.own_kernels();
    let bad = damaged(&home, &good);
    let start = Instant::now();
    let out = gate(&home, &good, &bad, &["--programs", "8"]);
    let error = json(&out).to_string();
    assert_eq!(out.status.code(), Some(101), "{error}");
    for word in ["the new kernel does not boot, and its base does", &bad, "-- System halted"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(start.elapsed() < Duration::from_secs(100), "a halt is seen, not waited for");
    let out = gate(&home, &bad, &good, &["--programs", "8"]);
    let error = json(&out).to_string();
    assert_eq!(out.status.code(), Some(75), "{error}");
    assert!(error.contains("the base does not boot"), "{error}");
}
