//! What smaps and status add up to, held against the sums of the world.

use super::counts::Frames;
use super::wanted::expecting_kb;
use super::{at_text, maybe_huge, table_may_be_shared};
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out};
use crate::world::{Entry, Slot, World};
use case::limits::PAGE;
use case::observation::VmaObs;
use case::{Expectation, Family, ProcId, UffdModes, Violation};

/// What smaps and status must add up to over a range.
#[derive(Debug, Default)]
pub(super) struct Sums {
    rss_min: u64,
    rss_max: u64,
    hugetlb_shared: u64,
    hugetlb_private: u64,
    hugetlb_poisoned: u64,
    /// Present or not: a table that may have been shared was given up, or not (H-087).
    hugetlb_unsure: u64,
    /// All three by the level of the leaf: 1 GiB, 2 MiB, 4 KiB.
    levels: [u64; 3],
    hgm: bool,
    /// The huge page size times the leaves.
    hugetlb_units: u64,
    /// Present pages, each huge one once, for numa_maps.
    pages_min: u64,
    pages_max: u64,
    /// The most mappings of a huge page: of its first base page, and of any.
    mapmax: (u32, u32),
    /// Somebody may share a page table with the mapping.
    table_shared: bool,
}

pub(super) fn sums(w: &World, proc: ProcId, start: u64, end: u64, frames: &Frames) -> Sums {
    let mut sums = Sums::default();
    let Some(p) = w.proc(proc) else { return sums };
    let mut last_huge = None;
    for (at, entry) in p.entries.range(start..end) {
        let Some(vma) = w.vma_at(proc, *at) else { continue };
        let kb = w.node(proc, vma, *at).size >> 10;
        sums.hgm |= vma.flags.hgm;
        sums.table_shared |= table_may_be_shared(vma, *at);
        match entry.slot {
            Slot::Page(body) if vma.is_hugetlb() => {
                let unit = vma.unit_addr(*at);
                let pages = match w.mutated(Mutant::NumaCountsBasePages) {
                    true => vma.unit_bytes() / PAGE,
                    false => 1,
                };
                let once = pages * u64::from(last_huge.replace(unit) != Some(unit));
                sums.pages_min += once;
                sums.pages_max += once;
                let (first, any) = (frames.mapcount(body, 0), frames.most(body));
                sums.mapmax = (sums.mapmax.0.max(first), sums.mapmax.1.max(any));
            }
            Slot::Page(_) => {
                sums.pages_min += 1;
                sums.pages_max += 1;
            }
            Slot::HwPoison { .. } | Slot::Unsure => sums.pages_max += 1,
            _ => {}
        }
        let mapped = matches!(entry.slot, Slot::Page(_) | Slot::HwPoison { .. });
        if mapped && vma.is_hugetlb() {
            let leaf = match w.mutated(Mutant::HgmLevelsWhole) {
                true => vma.unit_bytes() >> 10,
                false => kb,
            };
            let level = [1 << 20, 2 << 10, 4].iter().position(|n| *n == leaf);
            sums.levels[level.unwrap_or(0)] += kb;
        }
        if matches!(entry.slot, Slot::Page(_)) && vma.is_hugetlb() {
            sums.hugetlb_units += vma.unit_bytes() >> 10;
        }
        if w.mutated(Mutant::HugetlbInRss) && vma.is_hugetlb() {
            sums.rss_min += kb;
            sums.rss_max += kb;
        }
        match (entry.slot, vma.is_hugetlb()) {
            (Slot::Page(b), true) if frames.mapcount(b, World::sub_page(vma, *at)) >= 2 => {
                sums.hugetlb_shared += kb;
            }
            (Slot::Page(_), true) => sums.hugetlb_private += kb,
            (Slot::HwPoison { .. }, true) => sums.hugetlb_poisoned += kb,
            // The mapping of a huge file page goes when it is split for the poison.
            (Slot::HwPoison { own: false }, false) if maybe_huge(w, vma) => sums.rss_max += kb,
            // A huge page was split, and the zero page may stand here instead.
            (Slot::Page(b), false)
                if w.bodies[b].loose && w.family == Family::U612 && w.holds_zeroes(entry) =>
            {
                sums.rss_max += kb;
            }
            (Slot::Page(_) | Slot::HwPoison { .. }, false) => {
                sums.rss_min += kb;
                sums.rss_max += kb;
            }
            (Slot::Unsure, true) => sums.hugetlb_unsure += kb,
            (Slot::Unsure, false) => sums.rss_max += kb,
            _ => {}
        }
    }
    sums
}

pub(super) fn field(kb: &[(String, u64)], label: &str) -> Option<u64> {
    kb.iter().find(|(l, _)| l == label).map(|(_, n)| *n)
}

/// Entries are PROT_NONE where nothing is allowed, and where a mapping that may only be stored to is
/// write-protected.
fn entries_without_rights(w: &World, proc: ProcId, obs: &VmaObs) -> bool {
    let armed = || {
        let vma = w.vma_at(proc, obs.at.addr());
        vma.is_some_and(|vma| vma.armed(UffdModes::WP))
    };
    match obs.perms & 7 {
        0 => true,
        2 => armed(),
        _ => false,
    }
}

pub(super) fn numbers(w: &World, cx: &Cx<'_>, proc: ProcId, obs: &VmaObs, sums: &Sums) -> Out {
    let rss = field(&obs.kb, "Rss").unwrap_or(0);
    if rss < sums.rss_min || rss > sums.rss_max {
        let punched = w.vma_at(proc, obs.at.addr()).is_some_and(|vma| w.head_punched(vma));
        let class = match (rss < sums.rss_min, entries_without_rights(w, proc, obs)) {
            (true, _) if punched => "less:head-punched",
            (true, true) => "less:prot-none",
            (true, false) => "less",
            (false, _) => "more",
        };
        let want = format!("Rss {}..={} kB", sums.rss_min, sums.rss_max);
        let want = at_text(obs.at.addr(), &want);
        let broken = cx.broken(O_RSS, class, want, format!("Rss {rss} kB"));
        return Err(expecting_kb(broken, proc, obs, "Rss", (sums.rss_min, sums.rss_max)));
    }
    let rule = if sums.hgm { HG_COUNT } else { O_HUGETLB };
    let here = Of { proc, kb: &obs.kb, mapping: Some(obs), place: at_text(obs.at.addr(), "") };
    hugetlb(w, cx, rule, &here, sums)?;
    levels(cx, HG_LEVELS, &here, sums)?;
    match &obs.numa {
        Some(line) => numa(cx, obs, sums, line),
        None => Ok(()),
    }
}

/// Fields of one mapping, or of all mappings of a process.
struct Of<'a> {
    proc: ProcId,
    kb: &'a [(String, u64)],
    mapping: Option<&'a VmaObs>,
    /// In front of what was expected.
    place: String,
}

impl Of<'_> {
    /// The violation; of a single mapping with the number that was due.
    fn expecting(&self, broken: Box<Violation>, label: &str, kb: u64) -> Box<Violation> {
        match self.mapping {
            Some(obs) => expecting_kb(broken, self.proc, obs, label, (kb, kb)),
            None => broken,
        }
    }
}

/// Shared_Hugetlb and Private_Hugetlb.
fn hugetlb(w: &World, cx: &Cx<'_>, rule: RuleRef, of: &Of<'_>, sums: &Sums) -> Out {
    let shared = field(of.kb, "Shared_Hugetlb").unwrap_or(0);
    let private = field(of.kb, "Private_Hugetlb").unwrap_or(0);
    // Poison entries: private in 6.1, shared in 6.12 (O-038).
    let (want_shared, want_private) = match w.family {
        Family::U61 => (sums.hugetlb_shared, sums.hugetlb_private + sums.hugetlb_poisoned),
        Family::U612 => (sums.hugetlb_shared + sums.hugetlb_poisoned, sums.hugetlb_private),
    };
    if (shared, private) == (want_shared, want_private) {
        return Ok(());
    }
    let sum = shared.saturating_add(private);
    let least = want_shared + want_private;
    let same_sum = sum == least;
    // Nor is it known whose mappings those count with.
    if sums.hugetlb_unsure > 0 && (least..=least + sums.hugetlb_unsure).contains(&sum) {
        return Ok(());
    }
    // 6.1 counts by the mappings of the frame a poison entry names, and that frame is a stranger's
    // once the huge page was dissolved (smaps_hugetlb_range, dissolve_free_huge_page).
    let strangers = sums.hugetlb_shared..=sums.hugetlb_shared + sums.hugetlb_poisoned;
    let stranger = w.family == Family::U61 && strangers.contains(&shared);
    if same_sum && (stranger || sums.table_shared) {
        return Ok(());
    }
    let class = if same_sum { "split" } else { "sum" };
    let sizes = format!("Shared_Hugetlb {want_shared} Private_Hugetlb {want_private} kB");
    let got = format!("Shared_Hugetlb {shared} Private_Hugetlb {private} kB");
    let broken = cx.broken(rule, class, of.place.clone() + &sizes, got);
    Err(match shared == want_shared {
        true => of.expecting(broken, "Private_Hugetlb", want_private),
        false => of.expecting(broken, "Shared_Hugetlb", want_shared),
    })
}

/// The fields of kernels with HGM (HG-06).
fn levels(cx: &Cx<'_>, rule: RuleRef, of: &Of<'_>, sums: &Sums) -> Out {
    let labels = ["HugetlbPudMapped", "HugetlbPmdMapped", "HugetlbPteMapped"];
    for (label, want) in labels.into_iter().zip(sums.levels) {
        let got = field(of.kb, label).unwrap_or(want);
        if !(want..=want + sums.hugetlb_unsure).contains(&got) {
            let class = format!("{label}:{}", if got < want { "less" } else { "more" });
            let text = format!("{}{label} {want} kB", of.place);
            let broken = cx.broken(rule, &class, text, format!("{got} kB"));
            return Err(of.expecting(broken, label, want));
        }
    }
    Ok(())
}

/// smaps_rollup: the process has huge pages nowhere but in the arena.
pub(super) fn rollup(
    w: &World,
    cx: &Cx<'_>,
    proc: ProcId,
    kb: &[(String, u64)],
    frames: &Frames,
) -> Out {
    if w.proc(proc).is_none() {
        return Ok(());
    }
    let all = match w.mutated(Mutant::RollupWithoutHugetlb) {
        true => Sums::default(),
        false => sums(w, proc, 0, u64::MAX, frames),
    };
    let of = Of { proc, kb, mapping: None, place: "in all mappings: ".to_owned() };
    hugetlb(w, cx, O_ROLLUP, &of, &all)?;
    levels(cx, O_ROLLUP, &of, &all)
}

/// One line of numa_maps.
fn numa(cx: &Cx<'_>, obs: &VmaObs, sums: &Sums, line: &str) -> Out {
    let words = || line.split(' ').filter_map(|word| word.split_once('='));
    let node = |name: &str| {
        name.strip_prefix('N')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let nodes = words().filter(|(name, _)| node(name));
    let pages: u64 = nodes.filter_map(|(_, n)| n.parse::<u64>().ok()).sum();
    let (least, most) = (sums.pages_min, sums.pages_max);
    if !(least..=most).contains(&pages) {
        let class = if pages < least { "pages:less" } else { "pages:more" };
        let want = at_text(obs.at.addr(), &format!("{least}..={most} pages by node"));
        return Err(cx.broken(O_NUMA, class, want, format!("{pages}")));
    }
    let mapmax = words().find(|(name, _)| *name == "mapmax").and_then(|(_, n)| n.parse().ok());
    let (mapmax, (first, any)) = (mapmax.unwrap_or(1), sums.mapmax);
    if any > 0 && !sums.table_shared && !(first.max(1)..=any.max(1)).contains(&mapmax) {
        let want = at_text(obs.at.addr(), &format!("mapmax {first}..={any}"));
        return Err(cx.broken(O_NUMA, "mapmax", want, format!("{mapmax}")));
    }
    Ok(())
}

pub(super) fn status(
    w: &World,
    cx: &Cx<'_>,
    proc: ProcId,
    kb: &[(String, u64)],
    frames: &Frames,
) -> Out {
    let Some(p) = w.proc(proc) else { return Ok(()) };
    let all = sums(w, proc, 0, u64::MAX, frames);
    let want = match w.mutated(Mutant::HgmBytesWhole) {
        true => all.hugetlb_units,
        false => all.hugetlb_shared + all.hugetlb_private,
    };
    let got = field(kb, "HugetlbPages").unwrap_or(want);
    // Who maps through a table that was filled by another counts nothing (H-086).
    let in_table = |(at, e): (&u64, &Entry)| {
        let vma = w.vma_at(proc, *at).filter(|v| table_may_be_shared(v, *at))?;
        matches!(e.slot, Slot::Page(_)).then(|| vma.unit_bytes() >> 10)
    };
    let uncounted: u64 = p.entries.iter().filter_map(in_table).sum();
    let (low, high) = (want - uncounted, want + all.hugetlb_unsure);
    if !(low..=high).contains(&got) {
        let (text, got) = (format!("HugetlbPages {want} kB"), format!("{got} kB"));
        let rule = if all.hgm { HG_BYTES } else { O_STATUS_HUGETLB };
        let label = "HugetlbPages".to_owned();
        let status = Expectation::Status { proc, label, low, high };
        return Err(cx.broken(rule, "sum", text, got).expecting(status));
    }
    let locked = p.vmas.values().filter(|v| v.flags.locked && !v.is_hugetlb());
    let want: u64 = locked.map(|v| (v.end - v.start) >> 10).sum();
    let got = field(kb, "VmLck").unwrap_or(want);
    if got != want {
        let (text, got) = (format!("VmLck {want} kB"), format!("{got} kB"));
        let label = "VmLck".to_owned();
        let status = Expectation::Status { proc, label, low: want, high: want };
        return Err(cx.broken(O_VMLCK, "sum", text, got).expecting(status));
    }
    Ok(())
}
