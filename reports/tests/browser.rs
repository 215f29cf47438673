//! The HTML report in a real browser: no error on the console, nothing is requested, nothing
//! scrolls sideways, light and dark, sorting and filtering, hostile text stays text.
//!
//! `HGM_SCREENSHOTS=DIR` keeps a picture of each page for people to look at.

#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/browser.rs"]
mod webdriver;

use reports::{Kept, Run, Trend, TrendRow};
use std::path::{Path, PathBuf};
use support::{full, old};
use webdriver::Browser;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn page(&self, name: &str, html: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        std::fs::write(&file, html).unwrap();
        file
    }
}

/// Whether the page is as wide as the window, in its own words.
const SIDEWAYS: &str = "const w = document.documentElement.clientWidth; \
    return [...document.querySelectorAll('body, body *')].filter(e => { \
      const r = e.getBoundingClientRect(); \
      return r.right > w + 1 && !e.closest('pre') && !e.classList.contains('skip'); \
    }).slice(0, 5).map(e => e.tagName + '.' + (e.getAttribute('class') || '') + ' ' + \
      Math.round(e.getBoundingClientRect().right) + ' of ' + w) \
    .concat(document.documentElement.scrollWidth > w ? ['page'] : [])";

fn looks_well(browser: &Browser, name: &str, file: &Path) {
    for width in [1280, 390] {
        for (scheme, dark) in [("light", false), ("dark", true)] {
            // One page has everything; of the others each width and each scheme is seen once.
            if name != "full" && dark != (width == 390) {
                continue;
            }
            let at = format!("{name} {width} {scheme}");
            browser.look(width, scheme);
            browser.open(file, "");
            assert_eq!(browser.console(), Vec::<String>::new(), "{at}");
            let wide = browser.eval(SIDEWAYS);
            assert_eq!(wide, serde_json::json!([]), "{at}: something is too wide");
            let back = browser.eval(
                "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)",
            );
            let sum: u64 = back.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
            assert_eq!(sum < 200, dark, "{at}: background {back}");
            let loaded = browser.eval("return performance.getEntriesByType('resource').length");
            assert_eq!(loaded, 0, "{at}: something was requested");
            if let Some(dir) = std::env::var_os("HGM_SCREENSHOTS") {
                let file = format!("{name}-{width}-{scheme}.png");
                browser.picture(&Path::new(&dir).join(file));
            }
        }
    }
}

#[test]
fn pages_look_well_wide_and_narrow_light_and_dark() {
    let (browser, place) = (Browser::start(), Place::new());
    let all = |kept: Kept| reports::html(&Run::of(kept)).unwrap();
    let pages = [
        ("full", place.page("full.html", &all(full()))),
        ("old", place.page("old.html", &all(old()))),
        ("empty", place.page("empty.html", &all(Kept::default()))),
        ("trend", place.page("trend.html", &trend())),
    ];
    for (name, file) in &pages {
        looks_well(&browser, name, file);
    }
    // The check itself: something too wide is seen.
    browser.look(390, "light");
    browser.open(&pages[2].1, "");
    browser.eval("document.querySelector('main').style.width = '900px'");
    assert_ne!(browser.eval(SIDEWAYS), serde_json::json!([]));
}

fn trend() -> String {
    let nights = (0..12u32).map(|night| {
        let mut row = TrendRow::of(&Run::of(full()));
        row.started = format!("2026-11-{:02}T02:00:00Z", 10 + night);
        row.states += u64::from(night * 31);
        row.programs_per_s += f64::from(night % 5);
        row.confirmed = night / 9;
        row
    });
    reports::trend_html(&Trend::new("debian-6.1.192-2", "nightly", nights.collect())).unwrap()
}

fn shown(browser: &Browser) -> Vec<String> {
    let rows = browser.eval(
        "return [...document.querySelectorAll('#list tbody tr')]\
         .filter(r => r.getClientRects().length).map(r => r.cells[3].dataset.v)",
    );
    rows.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_table_sorts_and_filters_and_hostile_text_stays_text() {
    let (browser, place) = (Browser::start(), Place::new());
    let file = place.page("full.html", &reports::html(&Run::of(full())).unwrap());
    browser.look(1280, "light");
    browser.open(&file, "");
    let numbers = |browser: &Browser| -> Vec<u32> {
        shown(browser).iter().map(|n| n.parse().unwrap()).collect()
    };
    assert_eq!(numbers(&browser).len(), 12);
    browser.click("#list th:nth-child(4) button");
    assert!(numbers(&browser).is_sorted(), "{:?}", numbers(&browser));
    browser.click("#list th:nth-child(4) button");
    assert!(numbers(&browser).iter().rev().is_sorted());
    assert_eq!(numbers(&browser)[0], 67);
    let sorted = "return document.querySelector('#list th:nth-child(4)').ariaSort";
    assert_eq!(browser.eval(sorted), "descending");

    browser.type_into("#filter", "u-065 MADVISE");
    assert_eq!(shown(&browser).len(), 1);
    let told = "return document.getElementById('shown').textContent";
    assert_eq!(browser.eval(told), "1 of 12 shown");
    browser.type_into("#filter", "no such thing");
    assert_eq!(shown(&browser).len(), 0);
    browser.type_into("#filter", "x-0");
    assert_eq!(shown(&browser).len(), 9);
    browser.click("#state option:nth-child(2)");
    assert_eq!(shown(&browser).len(), 0);

    // A link opens its finding.
    browser.open(&file, "#f-x-08-madvise-rsvd-low");
    let open = "return document.getElementById('f-x-08-madvise-rsvd-low').open";
    assert_eq!(browser.eval(open), true);

    // Hostile text is there, as text.
    assert_ne!(browser.eval("return document.title"), "pwned");
    assert_eq!(browser.eval("return document.scripts.length"), 1);
    assert_eq!(browser.eval("return document.images.length"), 0);
    let text = browser.eval("return document.body.textContent");
    let text = text.as_str().unwrap();
    for words in
        ["<script>document.title='pwned'</script>", "\u{2400}", "\u{241b}[31m", "::error::"]
    {
        assert!(text.contains(words), "{words} is not shown");
    }
    // Were something injected, the policy would not run it, and the console would say so.
    browser.console();
    browser.eval(
        "const s = document.createElement('script'); s.textContent = \"document.title='pwned'\"; \
         document.body.append(s); \
         document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')",
    );
    assert_ne!(browser.eval("return document.title"), "pwned");
    assert!(browser.console().iter().any(|line| line.contains("Content Security Policy")));
}
