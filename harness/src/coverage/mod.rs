//! Coverage of the kernel's memory-management text: which functions there are and in which file
//! (`text`), which of them a campaign is about (`focus`), where the kernel's symbols come from
//! (`symbols`), who counts (`setup`), and what a run has reached (`book`). Counting itself is the plugin's or KCOV's.

mod book;
mod focus;
mod setup;
mod symbols;
mod text;

pub use book::{Book, Figures, FileRow, Report};
pub use focus::{Focus, touches};
pub use setup::set_up;
pub use text::{Function, Text, UNKNOWN};

use std::io::Read;
use std::path::Path;

/// Name of a run's coverage in its folder.
pub const FILE: &str = "coverage.json";
/// Bytes of it that are read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The coverage a run has kept.
pub fn load(run: &Path) -> std::io::Result<Report> {
    let mut bytes = Vec::new();
    std::fs::File::open(run.join(FILE))?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}
