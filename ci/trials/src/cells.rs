//! Which code an input reached: the 8-bit counters the compiler puts into every block of what is
//! built with `-C passes=sancov-module` (see `ci/fuzz`). Without it there are none.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

/// Sections of counters, one for each object that has some.
static SECTIONS: Mutex<Vec<&'static [AtomicU8]>> = Mutex::new(Vec::new());

/// Called before `main` by the constructors the compiler made, once for each section.
///
/// # Safety
/// `start..stop` is a section of counters that lives as long as the program.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *const AtomicU8, stop: *const u8) {
    let len = (stop as usize).saturating_sub(start as usize);
    if len == 0 {
        return;
    }
    // SAFETY: the caller vouches for the section. Instrumented code adds to it without locks and
    // only in the thread that reads here; bytes have no invalid values.
    let section = unsafe { std::slice::from_raw_parts(start, len) };
    if let Ok(mut sections) = SECTIONS.lock() {
        sections.push(section);
    }
}

/// What was reached so far.
#[derive(Debug)]
pub struct Cells {
    sections: Vec<&'static [AtomicU8]>,
    /// Per counter a bit for each class of how often it was passed in one run.
    seen: Vec<Vec<u8>>,
    pub reached: usize,
}

impl Cells {
    pub fn new() -> Cells {
        let sections = SECTIONS.lock().map(|sections| sections.clone()).unwrap_or_default();
        let seen = sections.iter().map(|section| vec![0; section.len()]).collect();
        Cells { sections, seen, reached: 0 }
    }

    pub fn are_counted(&self) -> bool {
        !self.sections.is_empty()
    }

    /// Before an input is run.
    pub fn clear(&self) {
        for cell in self.sections.iter().copied().flatten() {
            cell.store(0, Ordering::Relaxed);
        }
    }

    /// After it: whether it passed a block nobody passed before, or passed one more often than
    /// anybody did.
    pub fn news(&mut self) -> bool {
        let mut news = false;
        for (section, seen) in self.sections.iter().zip(&mut self.seen) {
            for (cell, seen) in section.iter().zip(seen) {
                let class = class(cell.load(Ordering::Relaxed));
                if class & !*seen != 0 {
                    self.reached += usize::from(*seen == 0);
                    *seen |= class;
                    news = true;
                }
            }
        }
        news
    }
}

/// Loops that run once, a few times, and often are told apart; 100 and 101 rounds are not.
fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        _ => 128,
    }
}
