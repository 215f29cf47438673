//! move_pages, mbind, migrate_pages, set_mempolicy of the calling process.

use super::{status, unavailable};
use case::limits::RUNS_MAX;
use case::observation::{NODE_UNTOUCHED, Output, Status};
use case::value::{MoveFlags, Nodes, NumaMode, PageSize, Place};

/// Bits of the node masks passed, plus one: the kernel reads one less than it is told.
const MAX_NODE: u64 = 64 + 1;

const fn mode_number(mode: NumaMode) -> i64 {
    match mode {
        NumaMode::Default => 0,
        NumaMode::Preferred => 1,
        NumaMode::Bind => 2,
        NumaMode::Interleave => 3,
        NumaMode::Local => 4,
    }
}

/// move_pages(2) of every `step` of the range; `node` none asks where they are. Flag bits are the
/// kernel's. Each status slot holds [`NODE_UNTOUCHED`] before the call.
pub fn move_pages(
    at: Place,
    len: u64,
    step: PageSize,
    node: Option<u8>,
    flags: MoveFlags,
) -> (Status, Output) {
    let count = len.div_ceil(step.bytes());
    if count > RUNS_MAX as u64 {
        return unavailable();
    }
    let addresses: Vec<u64> = (0..count).map(|i| at.plus(i * step.bytes()).addr()).collect();
    let nodes = node.map(|node| vec![i32::from(node); addresses.len()]);
    let mut found = vec![NODE_UNTOUCHED; addresses.len()];
    // SAFETY: the three arrays have `count` entries each and outlive the call; the addresses are
    // only names of pages to the kernel.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            count,
            addresses.as_ptr(),
            nodes.as_ref().map_or(std::ptr::null(), |nodes| nodes.as_ptr()),
            found.as_mut_ptr(),
            flags.0,
        )
    };
    (status(ret), Output::Nodes(found))
}

/// mbind(2). The mask is passed even if it is empty.
pub fn mbind(
    at: Place,
    len: u64,
    mode: NumaMode,
    nodes: Nodes,
    flags: MoveFlags,
) -> (Status, Output) {
    let mask = u64::from(nodes.0);
    // SAFETY: `mask` has the 64 bits the kernel reads; the range is only named.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            at.addr(),
            len,
            mode_number(mode),
            &raw const mask,
            MAX_NODE,
            flags.0,
        )
    };
    (status(ret), Output::Nothing)
}

/// migrate_pages(2) of the calling process; the result is the number of pages not moved.
pub fn migrate_pages(from: Nodes, to: Nodes) -> (Status, Output) {
    let (from, to) = (u64::from(from.0), u64::from(to.0));
    // SAFETY: both masks have the 64 bits the kernel reads.
    let ret = unsafe {
        libc::syscall(libc::SYS_migrate_pages, 0, MAX_NODE, &raw const from, &raw const to)
    };
    (status(ret), Output::Nothing)
}

/// set_mempolicy(2) of the calling thread.
pub fn set_mempolicy(mode: NumaMode, nodes: Nodes) -> (Status, Output) {
    let mask = u64::from(nodes.0);
    // SAFETY: `mask` has the 64 bits the kernel reads.
    let ret = unsafe {
        libc::syscall(libc::SYS_set_mempolicy, mode_number(mode), &raw const mask, MAX_NODE)
    };
    (status(ret), Output::Nothing)
}

/// Takes back any policy of the calling thread.
pub fn restore_mempolicy() {
    // SAFETY: no mask is passed. Kernels without NUMA answer ENOSYS: nothing to take back.
    unsafe { libc::syscall(libc::SYS_set_mempolicy, 0, std::ptr::null::<u64>(), 0) };
}
