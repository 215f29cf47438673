//! What the generations of high-granularity mapping do differently: each way is consulted where the
//! model would otherwise take that of another generation. The whole table is oracles/HGM.md.

use case::HgmGeneration;

/// The ways of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// CONTINUE goes by the feature of the userfaultfd that is asked, not by the mapping (HG-02).
    pub by_context: bool,
    /// A marker over the whole node goes down into the table of a piece (HG-02).
    pub markers_go_down: bool,
    /// Events carry the address of the base page (HG-04).
    pub base_addresses: bool,
    /// COLLAPSE ends with EHWPOISON where it passed poison over (HG-05).
    pub poison_told: bool,
    /// Every leaf counts as a mapping of the whole huge page (HG-07).
    pub leaves_count_whole: bool,
    /// VmFlags says `hm` (O-040).
    pub flag_shown: bool,
}

/// Also those of a kernel without HGM, where nothing asks.
pub const fn ways(generation: Option<HgmGeneration>) -> Ways {
    match generation {
        Some(HgmGeneration::Rfc2) => Ways {
            by_context: true,
            markers_go_down: false,
            base_addresses: false,
            poison_told: true,
            leaves_count_whole: true,
            flag_shown: false,
        },
        Some(HgmGeneration::V1) => Ways {
            by_context: false,
            markers_go_down: false,
            base_addresses: true,
            poison_told: true,
            leaves_count_whole: true,
            flag_shown: true,
        },
        Some(HgmGeneration::V2) | None => Ways {
            by_context: false,
            markers_go_down: true,
            base_addresses: true,
            poison_told: false,
            leaves_count_whole: false,
            flag_shown: true,
        },
    }
}
