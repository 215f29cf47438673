//! What a guest reports of one program: plain data, no judgement. Everything here came from a
//! hostile guest until `wire` has checked it.

use crate::capped;
use crate::program::Tag;
use crate::value::{Place, ProcId, UffdId};
use serde::{Deserialize, Serialize};

/// Where an address the kernel reported lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Spot {
    In(Place),
    /// Outside the arena; only the low 12 bits are kept.
    Outside(u16),
}

/// A signal the program's thread received while it ran the op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SignalSeen {
    /// SIGBUS 7 or SIGSEGV 11.
    pub signo: u8,
    /// si_code: BUS_ADRERR 2, BUS_MCEERR_AR 4, BUS_MCEERR_AO 5, SEGV_MAPERR 1, SEGV_ACCERR 2.
    pub code: i32,
    pub at: Spot,
    /// si_addr_lsb; 0 unless code is BUS_MCEERR_*.
    pub lsb: u8,
}

/// Why an op was not issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Skip {
    /// The object it names was never made (its op failed) or is gone.
    NoObject,
    /// The kernel does not offer what the op needs (gup_test, fail-nth, a RAM disk).
    Unavailable,
    /// The issuing process has ended.
    NoProcess,
    /// An earlier op of this thread never came back.
    Abandoned,
}

/// How an op ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// The return value. Addresses come back as byte offsets into the place asked for: 0 = exactly
    /// there.
    Ok(i64),
    Err(u16),
    /// A load or store of the op (or the call itself) raised a signal; see also `LineObs::also`.
    Signal(SignalSeen),
    /// Did not return within the op timeout and was broken off.
    Timeout,
    Skipped(Skip),
}

/// One tag word as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Word {
    /// Not inside the range read.
    Unread,
    Zero,
    Tag(Tag),
}

/// Pages with the same content: tags rise by one page index from page to page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContentRun {
    pub pages: u32,
    /// Word at offset 0 of the page.
    pub head: Word,
    /// Word at offset 4088.
    pub tail: Word,
}

/// Pages whose page-table entries look alike; frames rise by one from page to page if present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageRun {
    pub pages: u32,
    /// See [`pm`].
    pub bits: u8,
    /// Opaque frame id of the first page (2 MiB block in order of appearance << 9 | index), 0 if
    /// not present. Only equality means anything.
    pub frame: u32,
    /// kpageflags of the frames and their kpagecount, where asked for.
    pub kpage: Option<KPage>,
}

/// Bits of [`PageRun::bits`], from /proc/PID/pagemap.
pub mod pm {
    pub const PRESENT: u8 = 1;
    pub const SWAP: u8 = 2;
    pub const FILE: u8 = 4;
    pub const EXCLUSIVE: u8 = 8;
    pub const UFFD_WP: u8 = 16;
    pub const SOFT_DIRTY: u8 = 32;
}

/// From /proc/kpageflags and /proc/kpagecount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KPage {
    /// Raw kpageflags word.
    pub flags: u64,
    pub count: u32,
}

/// One VMA (or the part of it in the range) from /proc/PID/smaps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmaObs {
    pub at: Place,
    pub len: u64,
    /// r 1, w 2, x 4, shared 8.
    pub perms: u8,
    /// File offset in bytes, 0 for anonymous memory.
    pub off: u64,
    /// `(label, kB)` of every "Label: n kB" line, in file order; `THPeligible` too.
    #[serde(deserialize_with = "capped::labels")]
    pub kb: Vec<(String, u64)>,
    /// Two-letter VmFlags.
    #[serde(deserialize_with = "capped::labels")]
    pub flags: Vec<[u8; 2]>,
    /// The numa_maps line without its address, where asked for.
    pub numa: Option<String>,
}

/// One look at memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum View {
    /// Page-table entries from `at` on.
    Pages {
        proc: ProcId,
        at: Place,
        #[serde(deserialize_with = "capped::runs")]
        runs: Vec<PageRun>,
    },
    /// VMAs that overlap the range, complete.
    Vmas {
        proc: ProcId,
        at: Place,
        len: u64,
        #[serde(deserialize_with = "capped::vmas")]
        vmas: Vec<VmaObs>,
    },
    /// smaps_rollup of the whole process, `(label, kB)`.
    Rollup {
        proc: ProcId,
        #[serde(deserialize_with = "capped::labels")]
        kb: Vec<(String, u64)>,
    },
    /// /proc/PID/status memory lines, `(label, kB)`.
    Status {
        proc: ProcId,
        #[serde(deserialize_with = "capped::labels")]
        kb: Vec<(String, u64)>,
    },
    /// mincore(2): errno, or runs of (pages, resident).
    Mincore {
        proc: ProcId,
        at: Place,
        result: Result<Vec<(u32, bool)>, u16>,
    },
    Counters(Counters),
    /// The look itself failed.
    Failed {
        what: String,
        errno: u16,
    },
}

/// Counters of one huge-page pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pool {
    pub total: i64,
    pub free: i64,
    pub rsvd: i64,
    pub surp: i64,
}

/// Counters of the whole machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counters {
    pub pool_2m: Pool,
    pub pool_1g: Pool,
    /// Per node: 2 MiB pool without `rsvd` (always 0 there).
    #[serde(deserialize_with = "capped::nodes")]
    pub nodes_2m: Vec<Pool>,
    /// /proc/meminfo HardwareCorrupted, kB.
    pub hwcorrupted_kb: i64,
}

/// Event codes of [`FaultSeen::event`], the kernel's.
pub mod event {
    pub const PAGEFAULT: u8 = 0x12;
    pub const FORK: u8 = 0x13;
    pub const REMAP: u8 = 0x14;
    pub const REMOVE: u8 = 0x15;
    pub const UNMAP: u8 = 0x16;
    /// Flags of a page fault.
    pub const FLAG_WRITE: u8 = 1;
    pub const FLAG_WP: u8 = 2;
    pub const FLAG_MINOR: u8 = 4;
}

/// One message a handler thread read, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FaultSeen {
    pub uffd: UffdId,
    pub event: u8,
    /// Page fault: flags. Others 0.
    pub flags: u8,
    /// Page fault: address. REMAP: from. REMOVE/UNMAP: start.
    pub at: Spot,
    /// REMAP: new place. Others: `at`.
    pub to: Spot,
    /// REMAP: length. REMOVE/UNMAP: end - start. Others 0.
    pub len: u64,
    /// errno of the handler's ioctl, 0 for success or no answer.
    pub answer: u16,
}

/// What an op gave back beside its status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Output {
    Nothing,
    /// read, pread, vm_read, vmsplice, direct_io: content of the pages touched before any failure.
    Content(#[serde(deserialize_with = "capped::runs")] Vec<ContentRun>),
    /// Output field of a uffd ioctl; [`FIELD_UNTOUCHED`] when the kernel did not write it.
    Field(i64),
    /// move_pages status per entry; [`NODE_UNTOUCHED`] where the kernel wrote nothing.
    Nodes(#[serde(deserialize_with = "capped::runs")] Vec<i32>),
    Stat {
        size: u64,
        blocks: u64,
    },
}

/// Sentinel the agent puts into a uffd output field before the call.
pub const FIELD_UNTOUCHED: i64 = 0x5e5e_5e5e_5e5e;
/// Sentinel the agent puts into each move_pages status slot before the call.
pub const NODE_UNTOUCHED: i32 = 0x5e5e_5e5e;

/// What one line gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LineObs {
    pub status: Status,
    pub out: Output,
    /// A signal that arrived beside a normal return (injection-time SIGBUS).
    pub also: Option<SignalSeen>,
    /// Messages the handler threads read while the op ran.
    #[serde(deserialize_with = "capped::events")]
    pub events: Vec<FaultSeen>,
    /// Looks taken after the op: those of an `observe`, and those the run asked for.
    #[serde(deserialize_with = "capped::views")]
    pub views: Vec<View>,
    /// Pools after the op, if the run asked for looks. `None` inside a `par` block.
    pub pools: Option<[Pool; 2]>,
}

/// What one program gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Observation {
    /// Before the first op.
    pub before: Counters,
    /// One per line, in line order.
    #[serde(deserialize_with = "capped::lines")]
    pub lines: Vec<LineObs>,
    /// Looks at everything still mapped, before the teardown.
    #[serde(deserialize_with = "capped::views")]
    pub end: Vec<View>,
    /// After the teardown: everything the program made is gone.
    pub after: Counters,
    /// True if a fresh child ran it.
    pub fresh: bool,
    /// Guest nanoseconds from first op to end of teardown.
    pub nanos: u64,
}
