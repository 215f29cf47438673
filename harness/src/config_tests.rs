//! Tests of the configuration reader.

use super::*;

#[test]
fn faults_name_line_key_and_cure() {
    let text = "[profile.ci]\nboot_timout_s = 3\njobs = \"two\"\nvcpus = 99\nlook = \"never\"\n\
                duration = \"10\"\n[prfile.x]\n";
    let faults = parse(text).unwrap_err();
    let lines: Vec<usize> = faults.iter().map(|f| f.line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
    assert_eq!(
        faults[0].message,
        "unknown key `boot_timout_s` in profile ci; did you mean `boot_timeout_s`?"
    );
    assert!(faults[1].message.contains("whole number from 1 to 256, found a string"));
    assert!(faults[2].message.contains("found `99`"));
    assert!(faults[3].message.contains("each, asked"));
}

#[test]
fn good_file_is_read_with_lines() {
    let profiles = parse("[profile.default]\njobs = 4\n\n[profile.ci]\njobs = 2\n").unwrap();
    assert_eq!(profiles["default"]["jobs"], (OsString::from("4"), 2));
    assert_eq!(profiles["ci"]["jobs"], (OsString::from("2"), 5));
}

#[test]
fn syntax_fault_has_its_line() {
    let faults = parse("[profile.default]\njobs = = 3\n").unwrap_err();
    assert_eq!(faults[0].line, 2);
}

#[test]
fn every_default_suits_its_key() {
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        assert_eq!(check(key, OsStr::new(key.default)), Ok(()), "{}", key.name);
    }
}

#[test]
fn durations() {
    assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
    for bad in ["", "10", "m", "0s", "-1s", "9999999999999999999d", "1y"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn broken_files_are_faults_with_lines_and_never_a_panic() {
    let start = std::time::Instant::now();
    let seed = include_bytes!("../hgm.example.toml").to_vec();
    let words =
        ["[profile.ci]\n", "kernel = ", "jobs = ", "\"\"\"", "0x", "'''", "[[", "{", "inf", "\n"];
    let figures = trials::Trial::new("config", vec![seed]).words(&words).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let lines = 1 + text.matches('\n').count();
        match parse(&text) {
            Ok(profiles) => {
                for (key, (value, line)) in profiles.values().flatten() {
                    let key = find_key(key).expect("only keys that are there");
                    assert!(check(key, value).is_ok() && (1..=lines).contains(line), "{value:?}");
                }
            }
            Err(faults) => {
                assert!(!faults.is_empty());
                for fault in faults {
                    assert!(fault.line <= lines && !fault.help.is_empty(), "{fault:?}");
                }
            }
        }
    });
    trials::fault("F6", "hgm.toml, mutated", figures.executions, 0, start);
}
