//! One row of the fault table: what a test tried, and what was lost.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

/// Says that fault `id` of the list was made `tried` times, `lost` of which did harm. Printed, and
/// appended to the file `$HGM_FAULTS` names, from which `ci/faults` makes its table.
///
/// Call it before the assertion that nothing was lost: a test that panics first has no row, which
/// `ci/faults` takes for a loss.
pub fn fault(id: &str, what: &str, tried: u64, lost: u64, since: Instant) {
    let survived = tried.saturating_sub(lost);
    let seconds = since.elapsed().as_secs_f64();
    let row = format!("{id}\t{what}\t{tried}\t{survived}\t{lost}\t{seconds:.1}\n");
    print!("fault {row}");
    let Some(path) = std::env::var_os("HGM_FAULTS") else { return };
    // One write: tests that run side by side do not mix their rows.
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(row.as_bytes()));
    assert!(written.is_ok(), "{}: {written:?}", path.display());
}

/// How often a fault is made: `usual` times, or `$HGM_ROUNDS` times as often.
pub fn rounds(usual: u32) -> u32 {
    let times = std::env::var("HGM_ROUNDS").ok().and_then(|text| text.parse().ok());
    usual.saturating_mul(times.unwrap_or(1))
}
