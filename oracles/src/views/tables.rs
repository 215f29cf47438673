//! Page tables of a process as status counts them, held against those the world has use for.

use super::field;
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out};
use crate::world::{Backing, OwnTables, Slot, Vma, World};
use case::limits::PAGE;
use case::{PageSize, ProcId};
use std::collections::BTreeSet;

/// Page tables that may come and go beside the program's: the runner's own, and those of the stack,
/// the arena and the buffer of a userfaultfd's handler.
const OTHERS: i64 = 4;
const OTHERS_OF_A_UFFD: i64 = 5;
/// For the stack and the allocator's arena of a thread of a `par` block, which outlive it.
const OTHERS_OF_A_THREAD: i64 = 2;

/// VmPTE, less what the program's mappings need, is what the runner itself has: the same at all
/// looks at a process.
pub(super) fn judge(w: &mut World, cx: &Cx<'_>, proc: ProcId, kb: &[(String, u64)]) -> Out {
    let Some(seen) = field(kb, "VmPTE") else { return Ok(()) };
    if w.proc(proc).is_none() {
        return Ok(());
    }
    let seen = (seen >> 2) as i64;
    let (least, most) = needed(w, proc);
    let helpers = OTHERS_OF_A_UFFD * w.uffds.len() as i64 + OTHERS_OF_A_THREAD * w.threads as i64;
    let now = OwnTables { least: seen - most, most: seen - least, helpers: (helpers, helpers) };
    let before = w.own_tables.get(&proc).copied().unwrap_or(now);
    let slack = OTHERS + (helpers - before.helpers.0).max(before.helpers.1 - helpers);
    let rule = if w.proc(proc).is_some_and(|p| !p.tables.is_empty()) { HG_TABLES } else { O_VMPTE };
    if now.least > before.most + slack || now.most < before.least - slack {
        let class = if now.least > before.most { "more" } else { "less" };
        let (from, to) = (before.least + least - slack, before.most + most + slack);
        let want = format!("VmPTE {}..={} kB", from.max(0) * 4, to * 4);
        return Err(cx.broken(rule, class, want, format!("{} kB", seen * 4)));
    }
    let (low, high) = before.helpers;
    let both = OwnTables {
        least: before.least.max(now.least),
        most: before.most.min(now.most),
        helpers: (low.min(helpers), high.max(helpers)),
    };
    w.own_tables.insert(proc, both);
    Ok(())
}

/// The fewest and the most page tables that the mappings of a process have: those that hold an
/// entry, and those a mapping lies over.
fn needed(w: &World, proc: ProcId) -> (i64, i64) {
    let Some(p) = w.proc(proc).filter(|_| !w.mutated(Mutant::TablesUncounted)) else {
        return (0, 0);
    };
    // By level: the number of the area that one table of it covers.
    let (mut most, mut least) = (BTreeSet::new(), BTreeSet::new());
    for vma in p.vmas.values() {
        for shift in levels(vma) {
            most.extend((vma.start >> shift..=(vma.end - 1) >> shift).map(|area| (shift, area)));
        }
    }
    for (at, entry) in &p.entries {
        let Some(vma) = w.vma_at(proc, *at) else { continue };
        // A huge page of shmem has no table below it.
        let sure = vma.backing == Backing::Anon || vma.is_hugetlb();
        if sure && entry.slot != Slot::Unsure {
            least.extend(levels(vma).map(|shift| (shift, at >> shift)));
        }
    }
    let pieces = match w.mutated(Mutant::HgmTablesUncounted) {
        true => 0,
        false => p.tables.len() as i64,
    };
    (least.len() as i64 + pieces, most.len() as i64 + pieces)
}

/// log2 of what a table of each level covers, of the tables above entries of the mapping's size.
fn levels(vma: &Vma) -> impl Iterator<Item = u32> + use<> {
    let unit = vma.unit_bytes();
    [PageSize::Huge2M.bytes(), PageSize::Huge1G.bytes(), 512 << 30]
        .into_iter()
        .filter(move |area| *area > unit.max(PAGE))
        .map(u64::trailing_zeros)
}
