//! Which neighbours the kernel may keep as one mapping (V-030), and what they share if it does. It
//! need not have merged: nothing here joins VMAs of the model.

use crate::world::{AnonVma, Backing, Vma, World};
use std::collections::BTreeMap;

/// True if the kernel may keep two neighbours as one mapping.
pub fn may_merge(a: &Vma, b: &Vma) -> bool {
    let joined = match (a.backing, b.backing) {
        (Backing::Anon, Backing::Anon) => true,
        (Backing::File { key, off }, Backing::File { key: k, off: o }) => {
            key == k && off + (a.end - a.start) == o
        }
        _ => false,
    };
    joined
        && a.end == b.start
        && a.resv == b.resv
        && a.policy == b.policy
        && (a.prot, a.share, a.flags, a.uffd) == (b.prot, b.share, b.flags, b.uffd)
}

/// What neighbours that may be one mapping have in common: the anon_vma, and with it whether fork
/// copies their tables. It stays with the parts when they are told apart later.
pub fn share_anon_vmas(w: &mut World) {
    for p in w.procs.values_mut().filter(|p| p.vmas.values().any(|v| v.anon_vma != AnonVma::No)) {
        let mut starts: Vec<u64> = p.vmas.keys().copied().collect();
        for _ in 0..2 {
            for pair in starts.windows(2) {
                share_anon_vma(&mut p.vmas, pair[0], pair[1]);
            }
            starts.reverse();
        }
    }
}

fn share_anon_vma(vmas: &mut BTreeMap<u64, Vma>, one: u64, other: u64) {
    let (Some(a), Some(b)) = (vmas.get(&one.min(other)), vmas.get(&one.max(other))) else { return };
    if a.anon_vma.max(b.anon_vma) == AnonVma::No || a.is_hugetlb() || !may_merge(a, b) {
        return;
    }
    for at in [one, other] {
        if let Some(vma) = vmas.get_mut(&at) {
            vma.anon_vma = vma.anon_vma.max(AnonVma::Perhaps);
        }
    }
}
