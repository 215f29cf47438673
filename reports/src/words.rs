//! Figures as people read them: grouped digits, durations, sizes.

/// 1234567 as "1 234 567", with narrow no-break spaces.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Seconds as "45 s", "9 min 30 s", "7 h 05 min".
pub fn duration(seconds: f64) -> String {
    let all = seconds.max(0.0).round() as u64;
    match all {
        0..=99 => format!("{all} s"),
        100..=5999 if all.is_multiple_of(60) => format!("{} min", all / 60),
        100..=5999 => format!("{} min {:02} s", all / 60, all % 60),
        _ => format!("{} h {:02} min", all / 3600, all / 60 % 60),
    }
}

/// Seconds on a time axis: "0", "30 s", "5 min", "2 h".
pub fn tick(seconds: f64) -> String {
    let all = seconds.max(0.0).round() as u64;
    match all {
        0 => "0".into(),
        s if s.is_multiple_of(3600) => format!("{} h", s / 3600),
        s if s.is_multiple_of(60) => format!("{} min", s / 60),
        s if s >= 120 => format!("{}:{:02}", s / 60, s % 60),
        s => format!("{s} s"),
    }
}

/// A rate: "0.37", "12.4", "1 204".
pub fn rate(value: f64) -> String {
    match value {
        v if !v.is_finite() => "-".into(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => grouped(v.round() as u64),
    }
}

/// A number on a value axis: "950", "1.2k", "3.4M".
pub fn short(value: f64) -> String {
    let trim = |text: String, unit: &str| {
        let text = text.strip_suffix(".0").map(str::to_owned).unwrap_or(text);
        format!("{text}{unit}")
    };
    match value {
        v if v >= 1e6 => trim(format!("{:.1}", v / 1e6), "M"),
        v if v >= 1e4 => trim(format!("{:.1}", v / 1e3), "k"),
        v if v >= 10.0 || v.fract() == 0.0 => format!("{v:.0}"),
        v => trim(format!("{v:.1}"), ""),
    }
}

/// "1 finding", "2 findings".
pub fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

/// A time of the journal as "2026-11-21 19:40:11 UTC"; as it is where it does not parse.
pub fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Seconds from one time of the journal to another; `None` where one does not parse.
pub fn seconds_between(from: &str, to: &str) -> Option<f64> {
    let (from, to): (jiff::Timestamp, jiff::Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    Some((to.as_millisecond() - from.as_millisecond()) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(999), "999");
        assert_eq!(
            [duration(45.4), duration(570.0), duration(600.2), duration(25_500.0)].join("|"),
            "45 s|9 min 30 s|10 min|7 h 05 min"
        );
        assert_eq!(
            [short(0.5), short(950.0), short(12_000.0), short(3.4e6)].join(" "),
            "0.5 950 12k 3.4M"
        );
        assert_eq!(
            [tick(0.0), tick(30.0), tick(300.0), tick(7200.0)].join(" "),
            "0 30 s 5 min 2 h"
        );
        assert_eq!(count(1, "finding"), "1 finding");
        let (a, b) = ("2026-11-21T19:40:11.25Z", "2026-11-21T19:40:12.75Z");
        assert_eq!(seconds_between(a, b), Some(1.5));
        assert_eq!(time(a), "2026-11-21 19:40:11 UTC");
        assert_eq!(time("<b>"), "<b>");
    }
}
