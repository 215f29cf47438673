//! (being written)
use crate::step::{Cx, Out};
use crate::world::World;
use case::ProcId;

/// How a load, a store or a kernel access (GUP) reaches a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// How touching one page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The page is mapped and the access went through.
    Done,
    /// A user access gets this signal; a kernel access sees EFAULT (or EHWPOISON for poison).
    Fault { signo: u8, code: i32, lsb: u8 },
    /// Waits for a userfaultfd that nobody answers.
    Blocks,
}

/// Touches the page at `addr` (any address in it): runs the fault the kernel would run, with all
/// its effects on entries, cache, reservations and events, and says how it ended. Where the
/// kernel has a choice, the observation in `cx` decides.
pub fn touch(_w: &mut World, _cx: &Cx<'_>, _proc: ProcId, _addr: u64, _access: Access) -> Out<Touch> {
    Ok(Touch::Done)
}
