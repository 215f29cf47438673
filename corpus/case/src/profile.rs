//! What a kernel can do, as probed in the guest at first boot. Never derived from the version
//! string, which is carried for people to read.

use crate::value::{PageSize, UffdFeatures};
use serde::{Deserialize, Serialize};

/// Result of the probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Profile {
    /// uname -r and -v, for people.
    pub release: String,
    pub version: String,
    /// UFFDIO_API's answer.
    pub uffd_features: u64,
    pub huge_2m: bool,
    pub huge_1g: bool,
    /// MADV_SPLIT is known (HGM generations V1, V2).
    pub madv_split: bool,
    /// Bit 13 of the userfaultfd features is that of HGM (generation RFC2): what is registered with
    /// it takes a CONTINUE of base pages. Other kernels gave the bit to WP_UNPOPULATED.
    pub hgm_feature: bool,
    /// Two pieces of a huge page in one mapping look mapped twice each (RFC2, V1).
    pub hgm_leaves_count_whole: bool,
    /// PAGEMAP_SCAN ioctl exists.
    pub pagemap_scan: bool,
    pub thp: bool,
    pub collapse: bool,
    pub soft_dirty: bool,
    pub gup_test: bool,
    pub fail_nth: bool,
    pub unpoison: bool,
    pub ram_disk: bool,
    pub io_uring: bool,
    pub kcov: bool,
    pub swap: bool,
    pub cpus: u8,
    pub nodes: u8,
    /// THP settings found: enabled always/madvise/never, shmem_enabled, use_zero_page.
    pub thp_enabled: String,
    pub thp_shmem: String,
    pub thp_zero_page: bool,
}

/// Which set of rules judges this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// Upstream 6.1 hugetlb, no HGM.
    U61,
    /// Upstream 6.12, no HGM.
    U612,
}

/// Name of the kernels that deviations of posted HGM are listed for.
pub const HGM_POSTED: &str = "HGM-posted";

/// Which rules of HugeTLB high-granularity mapping a kernel has, named after the generation that
/// was posted with them. What they do differently is the oracle's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HgmGeneration {
    /// October 2022: a userfaultfd feature; every leaf counts for the whole page.
    Rfc2,
    /// January 2023: MADV_SPLIT; every leaf counts for the whole page.
    V1,
    /// February 2023: MADV_SPLIT; a mapcount for each base page of a huge one.
    V2,
}

impl HgmGeneration {
    pub const ALL: [HgmGeneration; 3] = [Self::Rfc2, Self::V1, Self::V2];
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rfc2 => "RFC2",
            Self::V1 => "V1",
            Self::V2 => "V2",
        }
    }
}

impl Profile {
    /// The generation of HGM, if the kernel has any, told by what it does: how HGM is asked for, and
    /// how leaves are counted.
    pub fn hgm(&self) -> Option<HgmGeneration> {
        match (self.madv_split, self.hgm_feature, self.hgm_leaves_count_whole) {
            (false, false, _) => None,
            (false, true, _) => Some(HgmGeneration::Rfc2),
            (true, _, true) => Some(HgmGeneration::V1),
            (true, _, false) => Some(HgmGeneration::V2),
        }
    }
    /// HGM as it was posted to the lists, of any generation. The series of this project has both
    /// ways to ask for it, and none of the posted defects.
    pub fn posted_hgm(&self) -> bool {
        self.madv_split != self.hgm_feature
    }
    /// The names under which deviations of this kernel are listed.
    pub fn kinds(&self) -> Vec<&'static str> {
        let posted = self.posted_hgm().then_some(HGM_POSTED);
        std::iter::once(self.family().name()).chain(posted).collect()
    }
    /// Chosen by features: UFFDIO_POISON and UFFDIO_MOVE came together with the 6.12 rules.
    pub fn family(&self) -> Family {
        let new = UffdFeatures::POISON.0 | UffdFeatures::MOVE.0;
        if self.uffd_features & new as u64 == new as u64 { Family::U612 } else { Family::U61 }
    }
    pub fn has_uffd(&self, feature: UffdFeatures) -> bool {
        self.uffd_features & feature.0 as u64 == feature.0 as u64
    }
    pub fn has_pool(&self, page: PageSize) -> bool {
        match page {
            PageSize::Base => true,
            PageSize::Huge2M => self.huge_2m,
            PageSize::Huge1G => self.huge_1g,
        }
    }
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Family::U61 => "U61",
            Family::U612 => "U612",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_told_by_what_kernels_do() {
        let profile = |madv_split, hgm_feature, hgm_leaves_count_whole| Profile {
            madv_split,
            hgm_feature,
            hgm_leaves_count_whole,
            // Of 6.12: the bit of the feature stands for WP_UNPOPULATED and tells nothing.
            uffd_features: 0x1ffff,
            ..Profile::default()
        };
        let told = |p: Profile| (p.hgm(), p.posted_hgm());
        assert_eq!(told(profile(false, false, false)), (None, false));
        assert_eq!(told(profile(false, true, true)), (Some(HgmGeneration::Rfc2), true));
        assert_eq!(told(profile(true, false, true)), (Some(HgmGeneration::V1), true));
        assert_eq!(told(profile(true, false, false)), (Some(HgmGeneration::V2), true));
        assert_eq!(told(profile(true, true, false)), (Some(HgmGeneration::V2), false));
    }
}
