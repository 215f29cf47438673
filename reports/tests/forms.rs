//! Every form of a report: hostile text stays text, embargo holds, sizes are bounded, old and empty
//! runs render.

#![allow(clippy::unwrap_used)]

mod support;

use case::FindingState;
use reports::{Diff, Kept, Run, Trend, TrendRow};
use serde_json::Value;
use support::{HOSTILE, SECRET, finding, full, old};

/// Every form, by name.
fn forms(run: &Run) -> Vec<(&'static str, String)> {
    vec![
        ("html", reports::html(run).unwrap()),
        ("json", reports::json(run).unwrap()),
        ("junit", reports::junit(run)),
        ("sarif", reports::sarif(run).unwrap()),
        ("md", reports::markdown(run)),
        ("github", reports::github(run)),
        ("gitlab", reports::gitlab(run).unwrap()),
        ("terminal", reports::terminal(run)),
        ("diff", Diff::of(run, &Run::of(old())).text()),
    ]
}

#[test]
fn no_form_has_control_characters_or_turns_the_reading_direction() {
    for (form, text) in forms(&Run::of(full())) {
        let bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        // JSON spells them out in ASCII, so a reader has them back.
        assert!(!text.chars().any(bad), "{form}: {:?}", text.chars().find(|c| bad(*c)));
    }
}

#[test]
fn an_embargo_holds_in_every_form() {
    let run = Run::of(full());
    assert_eq!(run.withheld, 1);
    for (form, text) in forms(&run) {
        assert!(!text.contains(SECRET), "{form} tells it");
    }
    // Marked in another run only.
    let mut kept = full();
    kept.findings[0].finding.embargo = false;
    kept.embargoed.insert(kept.findings[0].finding.signature.clone());
    for (form, text) in forms(&Run::of(kept)) {
        assert!(!text.contains(SECRET), "{form} tells it");
    }
    assert!(reports::terminal(&run).contains("1 finding withheld"));
    assert!(reports::markdown(&run).contains("1 finding withheld"));
    let json: Value = serde_json::from_str(&reports::json(&run).unwrap()).unwrap();
    assert_eq!(json["withheld"], 1);
    let mut titles =
        json["findings"].as_array().unwrap().iter().map(|f| f["title"].as_str().unwrap());
    assert!(titles.any(|title| title.contains("\u{9b}2J\u{202e}")));
}

#[test]
fn html_has_only_our_markup() {
    let html = reports::html(&Run::of(full())).unwrap();
    assert_eq!(html.matches("<script").count(), 1);
    assert!(!html.contains("<img") && !html.contains("onerror=\""));
    assert!(!html.contains(" style=\"") && !html.contains("onclick"));
    for outside in ["http://", "https://", "url(", "@import", "src="] {
        let found: Vec<&str> = html
            .match_indices(outside)
            .map(|(at, _)| &html[at.saturating_sub(40)..(at + 30).min(html.len())])
            .filter(|around| !around.contains("b.exampl") && !around.contains("img src"))
            .collect();
        assert!(found.is_empty(), "{outside}: {found:?}");
    }
}

#[test]
fn github_gets_one_command_a_line_and_few_of_them() {
    let mut kept = full();
    for at in 0..40 {
        kept.findings.push(finding(&format!("Z-{at}/x/{HOSTILE}"), FindingState::Confirmed));
    }
    let run = Run::of(kept);
    let text = reports::github(&run);
    assert!(text.lines().filter(|l| l.starts_with("::error")).count() <= 10, "{text}");
    assert!(text.contains("and 33 more errors"));
    for line in text.lines() {
        let rest = line.strip_prefix("::").unwrap();
        let (head, _) = rest.split_once("::").unwrap();
        let word = head.split(' ').next().unwrap();
        assert!(["error", "warning", "notice"].contains(&word), "{line}");
        assert!(!head.contains("pwned::"));
    }
    assert!(text.contains("file=mm/hugetlb.c,line=4908,"));
    for line in reports::terminal(&run).lines() {
        assert!(!line.trim_start().starts_with("::"), "{line}");
    }
}

#[test]
fn gitlab_issues_have_what_it_asks_for() {
    let issues: Value = serde_json::from_str(&reports::gitlab(&Run::of(full())).unwrap()).unwrap();
    let issues = issues.as_array().unwrap();
    assert_eq!(issues.len(), 12);
    let severities = ["info", "minor", "major", "critical", "blocker"];
    let mut seen = std::collections::BTreeSet::new();
    for issue in issues {
        assert!(!issue["description"].as_str().unwrap().contains('\n'));
        assert!(severities.contains(&issue["severity"].as_str().unwrap()));
        assert!(issue["location"]["lines"]["begin"].as_u64().unwrap() > 0);
        assert!(!issue["location"]["path"].as_str().unwrap().starts_with(['/', '.']));
        assert!(seen.insert(issue["fingerprint"].as_str().unwrap().to_owned()));
    }
}

#[test]
fn markdown_is_bounded_and_has_no_markup_of_a_guest() {
    let mut kept = full();
    for at in 0..3000 {
        kept.findings.push(finding(&format!("Z-{at}/x/{HOSTILE}"), FindingState::Confirmed));
    }
    let text = reports::markdown(&Run::of(kept));
    assert!(text.len() <= 256 << 10);
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        // Code spans show what is in them as it is.
        let text: String = line.split('`').step_by(2).collect();
        assert!(fenced || !text.contains("<script") && !text.contains("@all"), "{line}");
    }
}

#[test]
fn ten_thousand_findings_stay_below_two_mebibytes() {
    let mut kept = full();
    for at in 0..10_000 {
        let mut one = finding(&format!("Z-{at}/x/y"), FindingState::Confirmed);
        one.console = vec![b'<'; 100 << 10];
        kept.findings.push(one);
    }
    let start = std::time::Instant::now();
    let html = reports::html(&Run::of(kept)).unwrap();
    assert!(html.len() < 2 << 20, "{} bytes", html.len());
    assert!(html.contains("more findings are not in this file"));
    assert!(start.elapsed().as_secs() < 30);
    trials::fault("F36", "a report of 10 000 findings", 1, 0, start);
}

#[test]
fn old_empty_and_broken_runs_render() {
    let start = std::time::Instant::now();
    let runs = [old(), Kept::default(), Kept { live: true, ..Kept::default() }];
    let tried = runs.len() as u64;
    for run in runs.map(Run::of) {
        for (form, text) in forms(&run) {
            assert!(!text.is_empty(), "{form}");
        }
    }
    trials::fault("F36", "runs that are old, empty or broken", tried, 0, start);
    let old = Run::of(old());
    assert_eq!((old.verdict.word.as_str(), old.series.len()), ("unfinished", 5));
    assert_eq!((old.figures.programs, old.vms.len()), (150, 1));
    assert!(reports::html(&old).unwrap().contains("did not count which op met which state"));
}

#[test]
fn two_runs_are_compared() {
    let mut later = full();
    later.id = "20261122-000000-bbbb".into();
    later.findings.retain(|f| f.finding.signature != "A-003/madvise/ok->EINVAL");
    later.findings.push(finding("B-001/read/new", FindingState::Confirmed));
    let diff = Diff::of(&Run::of(full()), &Run::of(later));
    assert_eq!(diff.only_a, [("A-003/madvise/ok->EINVAL".to_owned(), "confirmed".to_owned())]);
    assert_eq!(diff.only_b.len(), 1);
    assert_eq!(diff.both.len(), 11);
    let text = diff.text();
    assert!(text.contains("B-001/read/new") && text.contains("20261122-000000-bbbb"), "{text}");
}

#[test]
fn a_trend_has_a_line_for_each_run() {
    let rows: Vec<TrendRow> = [old(), full()].map(|kept| TrendRow::of(&Run::of(kept))).into();
    let trend = Trend::new("debian-6.1.192-2", "default", rows);
    let text = trend.text(false);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("unfinished") && text.contains("finding"), "{text}");
    assert!(text.is_ascii() || text.contains('\u{202f}'));
    let html = reports::trend_html(&trend).unwrap();
    assert!(html.contains("20261120-100000-aaaa") && !html.contains("<script"));
}
