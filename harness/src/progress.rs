//! What a campaign shows while it runs: redrawn lines on a terminal, plain lines elsewhere. All of
//! it is talk and goes to stderr. Never here: counting, results, guest text that is not cleaned.

use crate::cli::Progress as Choice;
use crate::term::{Term, clean_str};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Time between plain status lines when nothing else is said.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Figures of the status line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub elapsed: Duration,
    /// Of a campaign with an end.
    pub total: Option<Duration>,
    pub programs: u64,
    pub ops: u64,
    pub states: usize,
    /// Blocks of kernel text, where they are counted.
    pub blocks: Option<usize>,
    pub corpus: usize,
    pub findings: usize,
    pub known: usize,
    pub inconclusive: u64,
    pub canaries: (u32, u32),
    /// Of a two-tier campaign.
    pub checked: Option<Checked>,
}

/// The second tier in the status line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    pub verified: u64,
    pub waiting: u64,
    /// Findings only one kernel shows.
    pub disagree: usize,
}

impl Figures {
    /// The figures in 80 columns.
    fn short(&self) -> String {
        let secs = self.elapsed.as_secs_f64().max(0.001);
        // There is not room for both.
        let last = match self.checked {
            None => format!("void {}", self.inconclusive),
            Some(c) => format!("chk {}+{}", c.verified, c.waiting),
        };
        format!(
            "{}  {} programs {:.1}/s  {} states  new {} known {}  canaries {}/{}  {last}",
            clock(self.elapsed),
            self.programs,
            self.programs as f64 / secs,
            self.states,
            self.findings,
            self.known,
            self.canaries.0,
            self.canaries.1,
        )
    }

    fn line(&self) -> String {
        let secs = self.elapsed.as_secs_f64().max(0.001);
        let blocks = self.blocks.map(|n| format!(", {n} blocks")).unwrap_or_default();
        let checked = self.checked.map(|c| {
            format!("; checked {}, {} waiting, {} disagree", c.verified, c.waiting, c.disagree)
        });
        let left = match self.total {
            Some(total) => format!("/{}", clock(total)),
            None => String::new(),
        };
        format!(
            "{}{left}  {} programs ({:.1}/s), {} ops, {} states{blocks}, corpus {}, findings {}+{} known, \
             inconclusive {}, canaries {}/{}{}",
            clock(self.elapsed),
            self.programs,
            self.programs as f64 / secs,
            self.ops,
            self.states,
            self.corpus,
            self.findings,
            self.known,
            self.inconclusive,
            self.canaries.0,
            self.canaries.1,
            checked.unwrap_or_default(),
        )
    }
}

fn clock(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0..3600 => format!("{}:{:02}", secs / 60, secs % 60),
        _ => format!("{}:{:02}:{:02}", secs / 3600, secs / 60 % 60, secs % 60),
    }
}

enum Mode {
    Bars { all: MultiProgress, status: ProgressBar, vms: Vec<ProgressBar> },
    Lines { last: Instant },
    Quiet,
}

/// The display of one campaign.
pub struct Progress<'a> {
    term: &'a Term,
    mode: Mode,
}

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

impl<'a> Progress<'a> {
    pub fn new(term: &'a Term, choice: Choice, slots: usize) -> Self {
        let bars = match choice {
            Choice::Auto => term.live,
            Choice::Bar => true,
            Choice::Lines | Choice::None => false,
        };
        let mode = match choice {
            Choice::None => Mode::Quiet,
            _ if bars => bars_mode(slots, term.unicode),
            _ => Mode::Lines { last: Instant::now() },
        };
        Progress { term, mode }
    }

    /// Something happened that a reader of the log wants to know.
    pub fn event(&mut self, text: &str) {
        let text = clean_str(text).replace('\n', " ");
        match &mut self.mode {
            Mode::Bars { all, .. } => {
                // A terminal that went away is no reason to stop a campaign.
                let _ = all.println(text);
            }
            Mode::Lines { .. } => self.term.note(&text),
            Mode::Quiet => {}
        }
    }

    /// What a VM is doing.
    pub fn vm(&mut self, slot: usize, text: &str) {
        if let Mode::Bars { vms, .. } = &self.mode
            && let Some(bar) = vms.get(slot)
        {
            bar.set_message(clean_str(text).replace('\n', " "));
            bar.tick();
        }
    }

    /// Redraws the figures, or prints them when it is time.
    pub fn status(&mut self, figures: &Figures) {
        match &mut self.mode {
            Mode::Bars { status, .. } => status.set_message(figures.short()),
            Mode::Lines { last } if last.elapsed() >= HEARTBEAT => {
                *last = Instant::now();
                self.term.note(&figures.line());
            }
            Mode::Lines { .. } | Mode::Quiet => {}
        }
    }

    /// Takes the redrawn lines off the terminal.
    pub fn close(&mut self) {
        if let Mode::Bars { all, status, vms } = &self.mode {
            for bar in vms.iter().chain([status]) {
                bar.finish_and_clear();
            }
            let _ = all.clear();
        }
    }
}

fn bars_mode(slots: usize, unicode: bool) -> Mode {
    let all = MultiProgress::new();
    let spinner = if unicode { "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ " } else { "|/-\\ " };
    let style = |template: &str| {
        ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_spinner())
            .tick_chars(spinner)
    };
    let vms = (0..slots)
        .map(|slot| {
            let bar = all.add(ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {prefix} {wide_msg}"));
            bar.set_prefix(format!("vm{slot}"));
            bar.set_message("booting");
            bar
        })
        .collect();
    let status = all.add(ProgressBar::new_spinner());
    status.set_style(style("{wide_msg}"));
    Mode::Bars { all, status, vms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_says_how_much_was_tested() {
        let figures = Figures {
            elapsed: Duration::from_secs(3661),
            total: Some(Duration::from_secs(7200)),
            programs: 7322,
            canaries: (4, 5),
            ..Figures::default()
        };
        let line = figures.line();
        assert!(line.starts_with("1:01:01/2:00:00  7322 programs (2.0/s)"), "{line}");
        assert!(line.ends_with("canaries 4/5"), "{line}");
        assert!(figures.short().len() <= 80, "{}", figures.short());

        let checked = Some(Checked { verified: 34, waiting: 12, disagree: 1 });
        let two = Figures { checked, ..figures };
        assert!(two.line().ends_with("canaries 4/5; checked 34, 12 waiting, 1 disagree"));
        assert!(two.short().ends_with("  chk 34+12"), "{}", two.short());
        assert!(two.short().len() <= 80, "{}", two.short());
    }
}
