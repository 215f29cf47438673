//! Whole campaigns against real VMs: QEMU, the agent and a Debian 6.1 kernel (fetched into the
//! home if it is not there). What must hold when everything is fine, when QEMU is killed, when we
//! are killed, and when the user has had enough.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{DEVIATES, Home, PASSES, PATIENCE, json, names, plugin, the_kernel, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Findings are the oracle's and the kernel's business: 0, 5 and 100 all mean the machinery works.
fn went_through(code: Option<i32>) -> bool {
    matches!(code, Some(0 | 5 | 100))
}

#[test]
fn a_campaign_finds_its_canaries_and_a_saved_finding_replays() {
    let home = Home::new();
    let start = Instant::now();
    let corpus = home.0.path().join("mine");
    std::fs::create_dir(&corpus).unwrap();
    std::fs::write(corpus.join("deviates.hgm"), DEVIATES).unwrap();
    let out = home.run(&[
        "fuzz",
        "--programs",
        "12",
        "--jobs",
        "1",
        "--seed",
        "7",
        "--json",
        "--corpus",
        "mine",
        "--set",
        "look=each",
        "--set",
        "confirm_times=1",
    ]);
    assert!(went_through(out.status.code()), "{:?}", out.status);
    let summary = json(&out);
    let keys: BTreeSet<&str> = summary.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = [
        "run",
        "kernel",
        "profile",
        "seconds",
        "programs",
        "ops",
        "programs_per_s",
        "states",
        "findings",
        "inconclusive",
        "canaries",
        "seconds_to_first_program",
        "exec_share",
        "judge_us_per_program",
        "vms",
        "vms_cloned",
        "vm_ready_ms",
        "vm_rss_kib",
    ];
    assert_eq!(keys, BTreeSet::from(wanted));
    assert_eq!(summary["canaries"], serde_json::json!({ "planted": 5, "found": 5 }));
    trials::fault("F26", "planted faults that must be found", 5, 0, start);
    assert!(summary["programs"].as_u64().unwrap() >= 12);
    assert!(summary["states"].as_u64().unwrap() > 5);
    assert_eq!(summary["profile"], "U61");
    let n03 = "X-02/madvise/rsvd:low";
    assert_eq!(summary["findings"][n03]["state"], "known", "{summary}");
    assert!(names(&corpus).len() > 1, "nothing was added to the corpus");

    // Planted faults leave no trace among the findings; the real one replays.
    let folders = names(&home.the_run().join("findings"));
    assert_eq!(folders.len(), summary["findings"].as_object().unwrap().len());
    let id = folders.iter().find(|name| name.starts_with("x-02-madvise-rsvd-low")).unwrap();
    let again = home.run(&["repro", id, "--times", "2", "--json", "--set", "look=each"]);
    assert_eq!(again.status.code(), Some(100));
    let again = json(&again);
    assert_eq!((&again["shown"], &again["tried"]), (&2.into(), &2.into()));
    assert!(home.qemus().is_empty());

    // Listed as one bug; a mark stays with it.
    let state = || {
        let out = home.run(&["findings", "list", "--json"]);
        let text = String::from_utf8(out.stdout).unwrap();
        let bugs = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        bugs.into_iter().find(|bug| bug["signature"] == n03).unwrap()["state"].clone()
    };
    assert_eq!(state(), "known");
    assert!(home.run(&["findings", "mark", id, "--embargo"]).status.success());
    assert_eq!(state(), "embargo");
    assert!(home.run(&["findings", "mark", id, "--no-embargo"]).status.success());
    assert_eq!(state(), "known");
}

#[test]
fn a_campaign_for_one_finding_ends_with_it() {
    let home = Home::new();
    let (corpus, one) = (home.0.path().join("mine"), the_kernel("6.1"));
    std::fs::create_dir(&corpus).unwrap();
    std::fs::write(corpus.join("deviates.hgm"), DEVIATES).unwrap();
    // The deviation of this kernel is listed for nobody: it counts as a finding.
    let nobody = "[[deviation]]\nid = \"N03\"\nfamilies = []\nsignatures = [\"none\"]\n\
        title = \"none\"\nwhy = \"none\"\n";
    home.own_known_list(&one, nobody);
    let fixed = ["--kernel", &one, "--corpus", "mine", "--jobs", "1", "--seed", "7", "--json"];
    let more = ["--no-canaries", "--set", "look=each", "--set", "confirm_times=1"];
    let mut args = vec!["fuzz", "--until-finding", "--programs", "400"];
    args.extend(fixed.iter().chain(&more));
    let out = home.run(&args);
    assert_eq!(out.status.code(), Some(100), "{}", String::from_utf8_lossy(&out.stderr));
    let summary = json(&out);
    let (first, n03) = (&summary["first_finding"], "X-02/madvise/rsvd:low");
    assert_eq!(first["signature"], n03, "{summary}");
    assert_eq!(summary["findings"][n03]["state"], "confirmed", "{summary}");
    assert!(first["programs"].as_u64() <= summary["programs"].as_u64(), "{summary}");
    assert!(first["seconds"].as_f64() < summary["seconds"].as_f64(), "{summary}");
    assert!(summary["programs"].as_u64().unwrap() < 400, "it went on: {summary}");
    let id = first["id"].as_str().unwrap();
    assert!(home.the_run().join("findings").join(id).is_dir(), "{id}");
}

#[test]
fn a_known_list_that_blinds_the_detector_voids_the_run() {
    let home = Home::new();
    // A list that takes every bad read for known.
    let wide = "[[deviation]]\nid = \"WIDE\"\nfamilies = [\"U61\"]\n\
        signatures = [\"*/read/*\"]\ntitle = \"too wide\"\nwhy = \"swallows canaries\"\n";
    let one = the_kernel("6.1");
    home.own_known_list(&one, wide);
    let start = Instant::now();
    let out = home.run(&[
        "fuzz",
        "--programs",
        "12",
        "--jobs",
        "1",
        "--seed",
        "7",
        "--json",
        "--kernel",
        &one,
    ]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(102), "{said}");
    assert!(said.contains("wrong-content") && said.contains("was not found"), "{said}");
    let planted = &json(&out)["canaries"];
    assert!(planted["found"].as_u64() < planted["planted"].as_u64(), "{planted}");
    trials::fault("F26", "a detector that is blind ends with 102", 1, 0, start);
}

/// N03 is known of 6.1 and fixed in 6.12: here a list beside 6.1's image takes it out, so that a
/// campaign finds it, and 6.12 disagrees.
#[test]
fn two_tiers_check_each_other_and_a_resumed_run_checks_what_waits() {
    let home = Home::new();
    let [fast, checking] = ["6.1", "6.12"].map(the_kernel);
    let none = "[[deviation]]\nid = \"N03\"\nfamilies = []\nsignatures = []\n\
        title = \"taken out\"\nwhy = \"to be found\"\n";
    home.own_known_list(&fast, none);
    let corpus = home.0.path().join("mine");
    std::fs::create_dir(&corpus).unwrap();
    std::fs::write(corpus.join("deviates.hgm"), DEVIATES).unwrap();
    // No kernel of Debian has gup_test: neither can be blamed for it.
    let lacking = "hgm 1\nmmap at=r0 len=16K\nwrite at=r0 len=8K\ngup_test at=r0 len=4K\n";
    std::fs::write(corpus.join("lacking.hgm"), lacking).unwrap();
    let args = ["fuzz", "--kernel", &fast, "--verify", &checking, "--jobs", "2", "--json"];
    let more = ["--seed", "7", "--corpus", "mine", "--set", "confirm_times=1"];
    let out = home.run(&[&args[..], &more[..], &["--programs", "12"]].concat());
    assert_eq!(out.status.code(), Some(100), "{}", String::from_utf8_lossy(&out.stderr));
    let summary = json(&out);
    let verify = &summary["verify"];
    assert_eq!((&verify["kernel"], &verify["profile"]), (&checking.clone().into(), &"U612".into()));
    assert!(verify["verified"].as_u64().unwrap() > 0, "{verify}");
    assert_eq!((&verify["waiting"], &verify["skipped"]), (&0.into(), &1.into()), "{verify}");
    assert_eq!(verify["canaries"], serde_json::json!({ "planted": 5, "found": 5 }));
    assert_eq!(summary["canaries"], serde_json::json!({ "planted": 10, "found": 10 }));
    // The fast kernel's finding, confirmed there and not shown by the other.
    let n03 = "X-02/madvise/rsvd:low";
    assert_eq!(summary["findings"][n03]["state"], "confirmed", "{summary}");
    assert!(verify["only_fast"].as_array().unwrap().contains(&n03.into()), "{verify}");
    let findings = home.the_run().join("findings");
    let folder = names(&findings).into_iter().find(|n| n.starts_with("x-02-madvise-rsvd-low"));
    let file = findings.join(folder.unwrap()).join("finding.json");
    let finding = std::fs::read_to_string(file).unwrap();
    let finding: Value = serde_json::from_str(&finding).unwrap();
    assert!(finding["kernel"].as_str().unwrap().starts_with("debian-6.1."), "{finding}");
    assert_eq!(finding["elsewhere"]["reproduced"], serde_json::json!([0, 1]), "{finding}");

    // As after a kill: the journal has a program that nobody has checked.
    let mut journal = store::Journal::open(&home.the_run()).unwrap();
    let id = case::wire::program_id(&case::text::parse(PASSES).unwrap());
    assert!(journal.want_check(&id, PASSES).unwrap());
    drop(journal);
    let more = ["fuzz", "--resume", "--jobs", "2", "--json", "--no-canaries", "--programs", "1"];
    let again = json(&home.run(&more));
    assert_eq!(again["verify"]["waiting"], 0, "{again}");
    let count = |summary: &Value| summary["verify"]["verified"].as_u64().unwrap();
    assert!(count(&again) > count(&summary), "{again}");
}

#[test]
fn a_checking_kernel_that_does_not_boot_ends_the_campaign() {
    let home = Home::new();
    let one = the_kernel("6.1");
    home.own_known_list(&one, "");
    let kernels = home.0.path().join("kernels");
    let broken = kernels.join("broken-6.1");
    std::fs::create_dir(&broken).unwrap();
    let manifest = std::fs::read(kernels.join(&one).join("kernel.json")).unwrap();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["id"] = "broken-6.1".into();
    manifest["modules"] = serde_json::json!([]);
    std::fs::write(broken.join("kernel.json"), manifest.to_string()).unwrap();
    std::fs::write(broken.join("vmlinuz"), "not a kernel").unwrap();
    let start = Instant::now();
    let out = home.run(&[
        "fuzz",
        "--kernel",
        &one,
        "--verify",
        "broken",
        "--jobs",
        "2",
        "--for",
        "1h",
        "--no-snapshot",
    ]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(75), "{said}");
    assert!(said.contains("error: no VM ever answered with kernel broken-6.1"), "{said}");
    assert!(said.contains("vm1/console.log"), "{said}");
    trials::fault("F15", "a kernel of which no VM ever boots", 1, 0, start);
    // The other kernel was booting: its wall falls with the campaign, and then what is behind it.
    wait_for("the end of QEMU", || home.qemus().is_empty());
}

#[test]
fn killed_mid_campaign_leaves_no_qemu_and_resumes_without_loss() {
    let home = Home::new();
    let args = ["fuzz", "--for", "1h", "--jobs", "2", "--seed", "11", "--no-canaries"];
    let again = ["fuzz", "--resume", "--for", "1h", "--jobs", "2", "--no-canaries"];
    let corpus = || names(&home.the_run().join("corpus"));
    let (start, kills) = (Instant::now(), trials::rounds(1));
    let mut kept = BTreeSet::new();
    for round in 0..kills {
        let mut first = home.start(if round == 0 { &args[..] } else { &again[..] });
        let enough = kept.len() + 4;
        let grown = || home.0.path().join("runs").is_dir() && corpus().len() >= enough;
        wait_for("corpus entries", grown);
        assert!(!home.qemus().is_empty());
        kill(Pid::from_raw(first.id() as i32), Signal::SIGKILL).unwrap();
        first.wait().unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while !home.qemus().is_empty() {
            assert!(Instant::now() < end, "QEMU outlived its campaign: {:?}", home.qemus());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(corpus().is_superset(&kept), "corpus entries were lost");
        kept = corpus();
    }
    trials::fault("F22", "the campaign is killed, its VMs run", u64::from(kills), 0, start);
    let found = names(&home.the_run().join("findings"));

    let out = home.run(&[
        "fuzz",
        "--resume",
        "--programs",
        "6",
        "--jobs",
        "1",
        "--no-canaries",
        "--json",
        "--set",
        "confirm_times=1",
    ]);
    assert!(went_through(out.status.code()), "{:?}", out.status);
    let summary = json(&out);
    assert_eq!(summary["run"], home.the_run().to_string_lossy().as_ref());
    assert!(corpus().is_superset(&kept), "corpus entries were lost");
    assert!(names(&home.the_run().join("findings")).is_superset(&found), "findings were lost");
    // Entries the last checkpoint did not know were run again, so their states are known.
    assert!(summary["states"].as_u64().unwrap() > 5);
}

#[test]
fn a_killed_qemu_costs_nothing_and_blames_nobody() {
    blames_nobody(Signal::SIGKILL, "F8", "QEMU is killed under a campaign");
}

#[test]
fn a_stopped_qemu_costs_nothing_and_blames_nobody() {
    blames_nobody(Signal::SIGSTOP, "F9", "QEMU is stopped under a campaign");
}

/// A campaign whose QEMU gets a signal goes on, and no kernel is blamed.
fn blames_nobody(signal: Signal, id: &str, what: &str) {
    let home = Home::new();
    let out_file = home.0.path().join("out.json");
    let args = ["fuzz", "--programs", "10", "--jobs", "1", "--seed", "3", "--no-canaries"];
    let mut campaign = home
        .command(&args)
        .args(["--json", "--set", "confirm_times=1"])
        .stdout(std::fs::File::create(&out_file).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ran =
        || home.0.path().join("runs").is_dir() && !names(&home.the_run().join("corpus")).is_empty();
    wait_for("a first program", ran);
    for pid in home.qemus() {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    let start = Instant::now();
    let status = campaign.wait().unwrap();
    assert!(went_through(status.code()), "{status:?}");
    let summary: Value = serde_json::from_slice(&std::fs::read(&out_file).unwrap()).unwrap();
    assert!(summary["programs"].as_u64().unwrap() >= 10, "{summary}");
    let findings = home.the_run().join("findings");
    for name in names(&findings) {
        let text = std::fs::read_to_string(findings.join(&name).join("finding.json")).unwrap();
        let finding: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(finding["source"], "oracle", "QEMU's end became a finding: {text}");
    }
    trials::fault(id, what, 1, 0, start);
}

/// Runs with a small disk of their own that is filled while the campaign runs, and emptied. What is
/// said on stderr ends up in the home's `log`.
const FULL: &str = r#"
mkdir -p "$1/runs" && mount -t tmpfs -o size=16m runs "$1/runs" || exit 99
home=$1; shift
"$@" 2>"$home/log" >"$home/out.json" &
pid=$!
until [ -n "$(ls "$home"/runs/*/corpus 2>/dev/null)" ]; do
  kill -0 $pid 2>/dev/null || exit 98
  sleep 0.1
done
while head -c 65536 /dev/zero >>"$home/runs/fill"; do :; done 2>/dev/null
while printf x >>"$home/runs/fill"; do :; done 2>/dev/null
until grep -q 'waits for room' "$home/log"; do
  kill -0 $pid 2>/dev/null || exit 97
  sleep 0.1
done
sleep 2
rm "$home/runs/fill"
wait $pid
"#;

#[test]
fn a_full_disk_is_waited_for() {
    let home = Home::new();
    let path = home.0.path();
    let root = nix::unistd::geteuid().is_root();
    let own: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let fuzz = home.command(&["fuzz", "--programs", "60", "--jobs", "1", "--seed", "5", "--json"]);
    let start = Instant::now();
    let status = Command::new("unshare")
        .arg("--mount")
        .args(own)
        .args(["sh", "-c", FULL, "sh"])
        .arg(path)
        .arg(fuzz.get_program())
        .args(fuzz.get_args())
        .current_dir(path)
        .status()
        .unwrap();
    let log = std::fs::read_to_string(path.join("log")).unwrap_or_default();
    let lost = u64::from(!went_through(status.code()) || !log.contains("there is room again"));
    trials::fault("F5", "the disk fills under a campaign", 1, lost, start);
    assert_eq!(lost, 0, "{status:?}\n{log}");
    assert_eq!(log.matches("waits for room").count(), 1, "{log}");
    let summary: Value =
        serde_json::from_slice(&std::fs::read(path.join("out.json")).unwrap()).unwrap();
    assert!(summary["programs"].as_u64().unwrap() >= 60, "{summary}");
}

#[test]
fn a_kill_while_the_golden_vm_is_written_leaves_nothing_half_used() {
    let home = Home::new();
    let dir = home.0.path().join("snapshots");
    std::fs::remove_file(&dir).unwrap();
    // Of a kernel this home does not have.
    std::fs::create_dir_all(dir.join("gone-6.1-94d1abe0-57803242")).unwrap();
    let program = home.file("a.hgm", PASSES);
    let has = |prefix: &str| {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with(prefix))
    };
    let mut first = home.start(&["run", &program]);
    let end = Instant::now() + PATIENCE;
    while !has(".build-") {
        assert!(Instant::now() < end, "no snapshot is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("the end of QEMU", || home.qemus().is_empty());

    let out = home.run(&["run", &program, "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(has("debian-6.1") && !has(".build-"), "half a snapshot stayed");
    assert!(!has("gone-"), "the snapshot of a kernel that is gone stayed");
    // From the snapshot, and without.
    let out = home.run(&["run", &program, "--json"]);
    assert!(!String::from_utf8_lossy(&out.stderr).contains("booting"), "{out:?}");
    assert_eq!(json(&out)["verdict"], "pass");
    let out = home.run(&["run", &program, "--json", "--no-snapshot"]);
    assert_eq!(json(&out)["verdict"], "pass");
    assert!(home.qemus().is_empty());
}

#[test]
fn the_first_interrupt_drains_and_closes_the_books() {
    let home = Home::new();
    let mut campaign = home.start(&["fuzz", "--for", "1h", "--jobs", "1", "--seed", "5", "--json"]);
    wait_for("a VM", || !home.qemus().is_empty());
    let start = Instant::now();
    kill(Pid::from_raw(campaign.id() as i32), Signal::SIGINT).unwrap();
    let status = campaign.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let out = campaign.wait_with_output().unwrap();
    let summary: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(summary["run"], home.the_run().to_string_lossy().as_ref());
    wait_for("the end of QEMU", || home.qemus().is_empty());
    trials::fault("F21", "a signal ends a campaign", 1, 0, start);
}

#[test]
fn a_campaign_counts_kernel_text_and_keeps_what_it_reached() {
    let home = Home::new();
    let corpus = home.0.path().join("mine");
    std::fs::create_dir(&corpus).unwrap();
    std::fs::write(corpus.join("a.hgm"), PASSES).unwrap();
    let mut args = vec!["fuzz", "--programs", "40", "--jobs", "1", "--seed", "7", "--json"];
    args.extend(["--no-canaries", "--coverage", "plugin", "--corpus", "mine"]);
    let plugin = plugin();
    let fuzz = |focus: &str| {
        let mut command = home.command(&args);
        command.args(["--focus", focus]).env("HGM_COVERAGE_PLUGIN", &plugin).output().unwrap()
    };
    let wrong = fuzz("mm/mremapp.c");
    assert_eq!(wrong.status.code(), Some(3));
    assert!(json(&wrong)["help"].as_str().unwrap().contains("`mm/mremap.c`"));
    std::fs::remove_dir_all(home.0.path().join("runs")).unwrap();
    let out = fuzz("mm/memory.c");
    assert!(went_through(out.status.code()), "{}", String::from_utf8_lossy(&out.stderr));
    let coverage = &json(&out)["coverage"];
    assert_eq!(coverage["source"], "plugin", "{coverage}");
    let number = |key: &str| coverage[key].as_u64().unwrap();
    assert!(number("blocks_of_programs") >= 50, "{coverage}");
    assert!(number("functions_reached") >= 10, "{coverage}");
    assert!(number("functions_reached") < number("functions_known"), "{coverage}");
    let report = json(&home.run(&["report", "--coverage", "--json"]));
    let file = |name: &str| {
        let rows = report["files"].as_array().unwrap();
        rows.iter().find(|row| row["file"] == name).unwrap().clone()
    };
    let reached = |name: &str| file(name)["reached"].as_array().unwrap().clone();
    assert!(reached("mm/memory.c").contains(&"handle_mm_fault".into()), "{report}");
    // Outside the focus too, or else nobody could see what a focus leaves out.
    assert!(reached("mm/mmap.c").len() > 10, "{report}");
    assert_eq!(report["least_reached"].as_array().unwrap().len(), 10);
}

#[test]
fn run_and_regress_say_what_was_expected() {
    let home = Home::new();
    let out = home.run(&["run", &home.file("a.hgm", PASSES), "--json"]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let result = json(&out);
    assert_eq!(result["verdict"], "pass");
    assert_eq!(result["lines"].as_array().unwrap().len(), 3);
    assert_eq!(result["lines"][1]["status"], "ok 0");

    for (name, text, expect) in [
        ("fixed", PASSES, "[expect]\n\"*\" = \"pass\"\n"),
        ("known", DEVIATES, "about = \"N03\"\n[expect]\nU61 = \"known:N03\"\nU612 = \"pass\"\n"),
        ("other", PASSES, "[expect]\nU612 = \"pass\"\n"),
    ] {
        let dir = home.0.path().join("cases").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("program.hgm"), text).unwrap();
        std::fs::write(dir.join("expect.toml"), expect).unwrap();
    }
    let args = ["regress", "cases", "--jobs", "1", "--json", "--set", "look=each"];
    let out = home.run(&args);
    let result = json(&out);
    assert_eq!(out.status.code(), Some(0), "{result}");
    let got = |at: usize| result["rows"][at]["got"].as_str().unwrap().to_owned();
    assert_eq!((got(0).as_str(), got(1).as_str()), ("pass", "known:N03"));

    // An expectation that does not hold must show.
    let wrong = home.0.path().join("cases/fixed/expect.toml");
    std::fs::write(wrong, "[expect]\nU61 = \"known:N03\"\n").unwrap();
    assert_eq!(home.run(&args).status.code(), Some(100));
}

/// C-30: COPY fills a private mapping beyond the end of its file.
const BEYOND: &str = "hgm 1\nf0 = memfd\nftruncate file=f0 len=4M\nmmap at=r0 len=4M from=f0\n\
    ftruncate file=f0 len=2M\nu0 = uffd features=missing_hugetlbfs\n\
    register uffd=u0 at=r0 len=4M modes=missing\ncopy uffd=u0 at=r0+2M len=2M\n";
/// N04: a child's entry has the write protection of its parent's registration.
const INHERITS: &str = "hgm 1\nmmap at=r0 len=2M page=2M\nwrite at=r0 len=4K\n\
    u0 = uffd features=pagefault_flag_wp,wp_hugetlbfs_shmem handler=copy\n\
    register uffd=u0 at=r0 len=2M modes=wp\nwriteprotect uffd=u0 at=r0 len=2M\n\
    p1 = fork\np1: read at=r0 len=4K\n";

#[test]
fn a_c_file_shows_what_the_program_shows_and_nothing_else() {
    let home = Home::new();
    for (name, text, signature, bug, fine) in [
        ("beyond", BEYOND, "U-036/copy/EFAULT->ok:beyond", "MAP_PRIVATE", "MAP_SHARED"),
        (
            "inherits",
            INHERITS,
            "O-006/read/private-2m-own:+wp",
            "M(2), UFFDIO_WRITEPROTECT_MODE_WP);",
            "M(2), 0);",
        ),
    ] {
        let program = home.file(&format!("{name}.hgm"), text);
        let file = format!("{name}.c");
        let args =
            ["repro", &program, "--c", &file, "--times", "2", "--set", "look=each", "--json"];
        let out = home.run(&args);
        let result = json(&out);
        assert_eq!(out.status.code(), Some(100), "{result}");
        assert_eq!(result["signature"], signature, "{result}");
        assert_eq!((&result["shown"], &result["tried"]), (&2.into(), &2.into()), "{result}");
        assert!(result["printed"].as_str().unwrap().contains("FAIL: it shows the bug"));

        // The same expectation where nothing is wrong.
        let path = home.0.path().join(&file);
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains(bug), "{written}");
        std::fs::write(&path, written.replace(bug, fine)).unwrap();
        let out = home.run(&["repro", &file, "--times", "1", "--json"]);
        let result = json(&out);
        assert_eq!(out.status.code(), Some(0), "{result}");
        assert_eq!((&result["shown"], &result["tried"]), (&0.into(), &1.into()), "{result}");
    }
}

/// N03 among lines that have nothing to do with it.
const NOISY: &str = "hgm 1\n\
    # Noise.\n\
    f0 = memfd page=4K\n\
    ftruncate file=f0 len=64K\n\
    mmap at=r3 len=64K share=shared from=f0\n\
    write at=r3 len=16K\n\
    mmap at=r1 len=8M page=2M\n\
    write at=r1 len=4M\n\
    p1 = fork\n\
    p1: read at=r3 len=8K\n\
    mprotect at=r3 len=8K prot=read\n\
    p1: exit\n\
    madvise at=r1+2M len=2M advice=dontneed\n\
    read at=r1+2M len=4K\n\
    observe at=r3 len=64K\n";

#[test]
fn a_program_is_shrunk_to_what_shows_it() {
    let home = Home::new();
    let one = the_kernel("6.1");
    let file = home.file("noisy.hgm", NOISY);
    let small = home.0.path().join("small.hgm").to_string_lossy().into_owned();
    let shrink = |file: &str, more: &[&str]| {
        let args = ["shrink", file, "--kernel", &one, "--times", "2", "--jobs", "2", "--json"];
        home.run(&[&args[..], &["--out", &small], more].concat())
    };
    let n03 = "X-02/madvise/rsvd:low";
    let nothing = shrink(&file, &["--signature", "X-03/read/content"]);
    assert_eq!(nothing.status.code(), Some(5), "{}", String::from_utf8_lossy(&nothing.stderr));
    assert_eq!(json(&nothing)["others"], serde_json::json!([n03]));
    assert!(!Path::new(&small).exists(), "nothing was shrunk");

    let out = shrink(&file, &["--signature", n03]);
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let said = json(&out);
    assert_eq!((&said["signature"], &said["complete"]), (&n03.into(), &true.into()), "{said}");
    assert_eq!(said["after"]["shown"], 2, "{said}");
    assert_eq!(said["before"]["size"]["lines"], 13, "{said}");
    let text = std::fs::read_to_string(&small).unwrap();
    let program = case::text::parse(&text).unwrap();
    assert_eq!(program.lines(), 3, "a mapping, a page, its end:\n{text}");
    assert!(text.contains("# Shows X-02/madvise/rsvd:low"), "{text}");
    let log = std::fs::read_to_string(small.replace(".hgm", ".log")).unwrap();
    assert!(log.lines().count() > 10 && log.contains("without steps"), "{log}");
    assert!(home.qemus().is_empty());
}

/// What stands in the environment of a campaign is nobody else's: not its QEMU's, not the guest's, and
/// in nothing it writes.
#[test]
fn no_secret_of_the_environment_goes_anywhere() {
    let home = Home::new();
    let token = "planted-4b1d-token";
    let start = Instant::now();
    let args = ["fuzz", "--for", "1h", "--jobs", "1", "--seed", "9", "--json"];
    let mut campaign = home.command(&args);
    campaign.env("AWS_SECRET_ACCESS_KEY", token).env("HGM_TEST_TOKEN", token);
    let mut campaign = campaign.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let corpus = || names(&home.the_run().join("corpus")).len();
    wait_for("programs", || home.0.path().join("runs").is_dir() && corpus() >= 3);
    let holds = |bytes: &[u8]| bytes.windows(token.len()).any(|w| w == token.as_bytes());
    let own = format!("/proc/{}/environ", campaign.id());
    assert!(holds(&std::fs::read(own).unwrap()), "it was planted");
    let (mut tried, mut hits) = (0, Vec::new());
    for pid in home.qemus() {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            tried += 1;
            let bytes = std::fs::read(&path).unwrap();
            hits.extend(holds(&bytes).then_some(path));
        }
    }
    assert!(tried > 0, "no QEMU");
    kill(Pid::from_raw(campaign.id() as i32), Signal::SIGINT).unwrap();
    campaign.wait().unwrap();
    let report = home.0.path().join("report.html").to_string_lossy().into_owned();
    assert!(home.run(&["report", "--export", &format!("html={report}")]).status.success());
    let mut folders = vec![home.0.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                tried += 1;
                let bytes = std::fs::read(entry.path()).unwrap();
                hits.extend(holds(&bytes).then(|| entry.path().display().to_string()));
            }
        }
    }
    trials::fault("J6", "places a secret could have got to", tried, hits.len() as u64, start);
    assert!(hits.is_empty(), "{hits:?}");
}

#[test]
fn a_campaign_takes_as_long_as_it_should_whatever_the_clock_says() {
    let home = Home::new();
    let (start, clock) = (Instant::now(), home.0.path().join("clock"));
    let args = ["fuzz", "--for", "12s", "--jobs", "1", "--seed", "7", "--no-canaries", "--json"];
    let mut command = home.command(&args);
    trials::clock::faked(&mut command, &clock);
    let mut campaign = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut jumps, mut order) = (0, trials::clock::JUMPS.into_iter().cycle());
    while campaign.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            campaign.kill().unwrap();
        }
        trials::clock::jump(&clock, order.next().unwrap());
        jumps += 1;
        std::thread::sleep(Duration::from_millis(700));
    }
    let out = campaign.wait_with_output().unwrap();
    let took = start.elapsed().as_secs_f64();
    assert!(went_through(out.status.code()), "{:?} after {took} s", out.status);
    let summary = json(&out);
    let journal = store::Journal::view(&home.the_run()).unwrap();
    let elapsed = |(_, counters): &(String, store::Counters)| counters.elapsed_ms;
    let elapsed: Vec<u64> = journal.counters().unwrap().iter().map(elapsed).collect();
    let last = elapsed.last().copied().unwrap_or(0) as f64 / 1e3;
    let figures = [summary["seconds"].as_f64().unwrap_or(0.0), last];
    let sane = figures.iter().all(|seconds| (12.0..took).contains(seconds));
    let report = home.run(&["report", "latest"]);
    let lost = [!sane, !elapsed.is_sorted(), summary["programs"] == 0, !report.status.success()];
    println!("{figures:?} s of {took} s, {jumps} jumps, {} programs", summary["programs"]);
    let lost = lost.iter().filter(|wrong| **wrong).count() as u64;
    trials::fault("F18", "the clock jumps in a campaign", jumps, lost, start);
    assert!(lost == 0 && jumps > 10, "{figures:?} of {took} s: {elapsed:?}");
}
