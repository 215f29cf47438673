//! Reads a guest's kernel console and says which kernel reports stand in it.
//!
//! The console is hostile: any byte, any length, cut anywhere. Memory is bounded, nothing here
//! panics, and the answer does not depend on how the stream was split. The frame rules are our
//! own: frames of the memory management code are what we want to see, never noise.

mod classify;
mod decode;
mod frames;
mod line;
mod scanner;
mod title;

pub use decode::{Frame, FrameKind, Place, Stack, address, decode};
pub use scanner::Scanner;

use serde::{Deserialize, Serialize};

/// What sort of kernel report this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// `Kernel panic - not syncing`, when no earlier report explains it.
    Panic,
    /// `kernel BUG at`, or a `BUG:` line without a class of its own.
    Bug,
    /// `WARN_ON` and friends.
    Warn,
    /// General protection fault, stack segment fault.
    Gpf,
    /// A bad kernel address, or a NULL pointer.
    PageFault,
    /// Divide error, invalid opcode, int3, or an oops whose first line was lost.
    Oops,
    DoubleFault,
    StackOverflow,
    Kasan,
    Kfence,
    Kcsan,
    Kmsan,
    Ubsan,
    LockdepCircular,
    LockdepRecursive,
    LockdepInconsistent,
    /// Interrupt inversion and safe-to-unsafe orders.
    LockdepInversion,
    LockdepUnlockBalance,
    LockdepHeldFreed,
    /// A lock held on the way back to user space or at exit.
    LockdepHeldUser,
    LockdepWaitContext,
    LockdepRcu,
    /// Lockdep ran out of room or met a bad key: it is off from here on.
    LockdepOther,
    SpinlockDebug,
    SleepInAtomic,
    HungTask,
    SoftLockup,
    HardLockup,
    WorkqueueLockup,
    RcuStall,
    BadPage,
    BadRss,
    BadPageMap,
    /// `bad pmd`, `bad pud` and friends: a table entry that cannot be.
    BadPageTable,
    BadSwap,
    NonZeroPgtables,
    ListCorruption,
    SlabCorruption,
    Refcount,
    PageTableCheck,
    Oom,
    MemLeak,
}

impl Class {
    /// The first part of the signature.
    pub fn slug(self) -> &'static str {
        title::slug(self)
    }
}

/// One kernel report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub class: Class,
    /// One line for people. No addresses, pids, CPU numbers or offsets.
    pub title: String,
    /// The function to look at first, without compiler suffixes.
    pub guilty: Option<String>,
    /// Stable over runs, boots and kernels of one family: `class/detail/function`.
    pub signature: String,
    /// Byte offset in the stream of the line that opened the report.
    pub start: u64,
    /// Byte offset just after the last line that belongs to it.
    pub end: u64,
    /// Addresses of the kernel's text in it, in the order and under the headings of the report.
    #[serde(default)]
    pub stacks: Vec<Stack>,
}

impl Report {
    /// Its lines in the console it was read from. Other lines may stand between them.
    pub fn text<'a>(&self, console: &'a [u8]) -> &'a [u8] {
        let end = (self.end as usize).min(console.len());
        console.get(self.start as usize..end).unwrap_or_default()
    }
}

/// All reports in a whole console, in order of their start.
pub fn scan(console: &[u8]) -> Vec<Report> {
    let mut scanner = Scanner::new();
    let mut reports = scanner.push(console);
    reports.extend(scanner.finish());
    reports.sort_by_key(|r| r.start);
    reports
}
