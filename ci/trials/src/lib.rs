//! What tests of hostile bytes and of faults share: [`Trial`] feeds a reader of foreign bytes with
//! mutants of good inputs, under limits of memory and time; [`fault`] tells `ci/faults` what a test
//! tried and lost; [`pids`] makes process numbers come again, [`clock`] has clocks jump. Only tests import this. Never here: what any format means.
//!
//! Saved inputs are the files of `cases/NAME`, replayed by every run. With the counters of the
//! compiler (`ci/fuzz` turns them on) a mutant that reaches new code is mutated further; without
//! them every mutant is one of a seed.

mod cells;
pub mod clock;
pub mod pids;
mod row;
mod trial;

pub use row::{fault, rounds};
pub use trial::Trial;

/// Bytes `work` had allocated at most, above what was there before.
pub fn memory_of(work: impl FnOnce()) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    work();
    MEMORY.peak_usage().saturating_sub(before)
}

/// Counts what every test that links this crate has allocated.
#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
