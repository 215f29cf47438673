//! What a look had to show, as data beside its violation. No rule is decided here.

use crate::world::BodyId;
use case::observation::VmaObs;
use case::{Expectation, Place, ProcId, Violation};

/// Where a page was first seen in a moment, by the frame of its first base page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sight {
    pub first: u32,
    pub body: BodyId,
    pub addr: u64,
    pub proc: ProcId,
    pub sub: u32,
}

/// The violation with what was expected at an address.
pub fn expecting(
    broken: Box<Violation>,
    addr: u64,
    expectation: impl FnOnce(Place) -> Expectation,
) -> Box<Violation> {
    match Place::of_addr(addr) {
        Some(at) => broken.expecting(expectation(at)),
        None => broken,
    }
}

pub fn expecting_entry(
    broken: Box<Violation>,
    proc: ProcId,
    addr: u64,
    mask: u8,
    bits: u8,
) -> Box<Violation> {
    expecting(broken, addr, |at| Expectation::Entry { proc, at, mask, bits })
}

/// Two entries of one page (or of two) and how far apart their frames are if it is one.
pub fn expecting_frames(
    broken: Box<Violation>,
    one: Option<&Sight>,
    other: &Sight,
    same: bool,
) -> Box<Violation> {
    let Some(one) = one else { return broken };
    let place = |sight: &Sight| Some((sight.proc, Place::of_addr(sight.addr)?));
    let apart = i64::from(other.sub) - i64::from(one.sub);
    match (place(one), place(other)) {
        (Some(one), Some(other)) => {
            broken.expecting(Expectation::Frames { one, other, apart, same })
        }
        _ => broken,
    }
}

/// The violation with what a number of smaps had to be over the mapping that was looked at.
pub fn expecting_kb(
    broken: Box<Violation>,
    proc: ProcId,
    obs: &VmaObs,
    label: &str,
    (low, high): (u64, u64),
) -> Box<Violation> {
    let (at, len, label) = (obs.at, obs.len, label.to_owned());
    broken.expecting(Expectation::Smaps { proc, at, len, label, low, high })
}
