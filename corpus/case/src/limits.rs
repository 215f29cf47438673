//! Every cap of the contract, named and with its unit. Nothing here depends on a kernel.

/// Steps in one program, `par` blocks counted as one step.
pub const STEPS_MAX: usize = 128;
/// Lines (ops) in one program, those inside `par` blocks included.
pub const LINES_MAX: usize = 192;
/// Threads in one `par` block.
pub const PAR_THREADS_MAX: usize = 3;
/// Ops in one thread of a `par` block.
pub const PAR_OPS_MAX: usize = 32;
/// Objects of one sort (files, regions, uffds, processes, pins) a program may name.
pub const OBJECTS_MAX: u8 = 8;
/// Bytes of address space set aside for one region: its slot in the arena.
pub const REGION_BYTES_MAX: u64 = 4 << 30;
/// Where region 0 starts in every process of every program. Aligned to 1 GiB.
pub const ARENA_BASE: u64 = 0x1000_0000_0000;
/// Distance between two slots: the slot plus a guard that is never mapped.
pub const ARENA_STRIDE: u64 = 8 << 30;
/// Largest file size or offset a program may name, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 30;
/// Bytes one read or write op may touch.
pub const ACCESS_BYTES_MAX: u64 = 32 << 20;
/// Bytes of program text a parser accepts.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Payload bytes of one wire frame.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Runs in one run-length list that comes from a guest.
pub const RUNS_MAX: usize = 1 << 16;
/// Fault events kept per line.
pub const EVENTS_MAX: usize = 256;
/// Pages one page-table view may cover.
pub const VIEW_PAGES_MAX: u32 = 64 << 10;
/// Bytes in the name of an LKDTM crash type.
pub const CRASH_TYPE_BYTES_MAX: usize = 64;
/// Bytes of an executable a host may send to a guest.
pub const BINARY_BYTES_MAX: usize = 3 << 20;
/// Bytes of what such an executable prints that come back.
pub const PRINTED_BYTES_MAX: usize = 64 << 10;
/// Bytes told of the threads of a program that hangs.
pub const STUCK_BYTES_MAX: usize = 16 << 10;
/// Base page, in bytes.
pub const PAGE: u64 = 4096;
/// Offsets inside a page of the two words that carry content tags.
pub const WORD_OFFSETS: [u64; 2] = [0, 4088];

const _: () = assert!(ARENA_STRIDE > REGION_BYTES_MAX);
const _: () = assert!(ARENA_BASE.is_multiple_of(1 << 30));
const _: () = assert!(STEPS_MAX <= LINES_MAX);
const _: () = assert!(BINARY_BYTES_MAX + PAGE as usize <= FRAME_BYTES_MAX);
