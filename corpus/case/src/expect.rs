//! What a broken rule asked for, as data: what a program outside of the house can check by itself.
//! The oracle gives it with a violation; nothing here knows a rule.

use crate::observation::Word;
use crate::value::{PageSize, Place, ProcId, UffdId};
use serde::{Deserialize, Serialize};

/// One outcome of an op that a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Wanted {
    /// Success with a value in the closed range; offsets for addresses, as in `Status::Ok`.
    Ok(i64, i64),
    Err(i32),
    /// Never returns by itself.
    Blocks,
    /// With exactly this si_code; at this place, if one is named; `lsb` only for MCEERR codes.
    Signal {
        signo: u8,
        code: i32,
        at: Option<Place>,
        lsb: u8,
    },
}

/// One status slot of move_pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SlotWanted {
    /// Any node there is.
    Node,
    /// Minus this errno.
    Err(i32),
}

/// A counter of a huge-page pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PoolCounter {
    Total,
    Free,
    Rsvd,
    Surp,
}

/// What had to hold after the line of the violation, or at the end of the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expectation {
    /// The op ends in one of these ways.
    Outcome(Vec<Wanted>),
    /// A tag word of what the op read is one of these: `page` counts the pages of the range, `word`
    /// the two words of a page.
    Content { page: u32, word: u8, wanted: Vec<Word> },
    /// Output field of a uffd ioctl.
    Field(i64),
    /// One status slot of move_pages.
    Slot { index: u32, wanted: Vec<SlotWanted> },
    /// fstat(2).
    Size(u64),
    /// fstat(2), closed range.
    Blocks { low: u64, high: u64 },
    /// Bits of `pm` that a page-table entry shows, of those in the mask.
    Entry { proc: ProcId, at: Place, mask: u8, bits: u8 },
    /// The frames of two entries are `apart` frames apart, if `same`; if not, anything but that.
    Frames { one: (ProcId, Place), other: (ProcId, Place), apart: i64, same: bool },
    /// kpagecount of the page at a place, closed range.
    MapCount { proc: ProcId, at: Place, low: u32, high: u32 },
    /// A bit of kpageflags of the page at a place.
    PageFlag { proc: ProcId, at: Place, bit: u8, on: bool },
    /// Whether there is a mapping.
    Mapped { proc: ProcId, at: Place, on: bool },
    /// r 1, w 2, x 4, shared 8.
    Perms { proc: ProcId, at: Place, perms: u8 },
    /// A word of VmFlags.
    VmFlag { proc: ProcId, at: Place, letters: [u8; 2], on: bool },
    /// A number of smaps in kB, summed over the mappings that begin in the range; closed range.
    Smaps { proc: ProcId, at: Place, len: u64, label: String, low: u64, high: u64 },
    /// A number of /proc/PID/status in kB, closed range.
    Status { proc: ProcId, label: String, low: u64, high: u64 },
    /// mincore(2) of one page, asked by the process itself.
    Mincore { proc: ProcId, at: Place, resident: bool },
    /// A counter of a pool against what it was before the program.
    Pool { page: PageSize, counter: PoolCounter, change: i64 },
    /// 0 <= Rsvd <= Free <= Total of every pool.
    PoolOrder,
    /// A message of a userfaultfd that must (or must not) come while the op runs. `at` is left out
    /// where it does not count.
    Event { uffd: UffdId, event: u8, flags: u8, at: Option<Place>, on: bool },
    /// SIGBUS with BUS_MCEERR_AR comes beside the return, or no signal does.
    Beside { on: bool },
    /// After the program, all counters of this pool are what they were before.
    NoLeak { page: PageSize },
    /// After the program, HardwareCorrupted has grown by so many pages, closed range.
    Corrupted { low: i64, high: i64 },
    /// The kernel log gets no report that opens with `head` (after its time stamp) and names
    /// `function`.
    NoReport { head: String, function: Option<String> },
    /// The program ends.
    Ends,
}

impl Expectation {
    /// Success with any value.
    pub const ANY_OK: Wanted = Wanted::Ok(i64::MIN, i64::MAX);
}
