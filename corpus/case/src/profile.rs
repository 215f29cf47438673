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
/// was posted with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HgmGeneration {
    /// MADV_SPLIT; a mapcount for each base page of a huge one.
    V2,
}

impl Profile {
    /// The generation of HGM, if the kernel has any: `MADV_SPLIT` is its mark.
    pub fn hgm(&self) -> Option<HgmGeneration> {
        self.madv_split.then_some(HgmGeneration::V2)
    }
    /// HGM as it was posted to the lists, of either generation: `MADV_SPLIT` without the feature of
    /// the generation before. The series of this project has both, and none of the posted defects.
    pub fn posted_hgm(&self) -> bool {
        self.madv_split && !self.has_uffd(UffdFeatures::WP_UNPOPULATED)
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
