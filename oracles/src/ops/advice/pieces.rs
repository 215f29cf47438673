//! MADV_COLLAPSE of hugetlb on kernels with high-granularity mapping: page tables below the huge
//! page size become leaves again. No page is made, copied or freed.

use super::{EEXIST, EHWPOISON, EINVAL, Part};
use crate::mutants::Mutant;
use crate::world::{Entry, Node, Slot, Vma, World, fitting};
use case::ProcId;

/// What COLLAPSE makes of one mapping: the errno it ends with, if any. What was done before stays.
pub(super) fn collapse(w: &mut World, proc: ProcId, part: &Part) -> Result<(), i32> {
    if part.vma.is_private() && !w.mutated(Mutant::HgmCollapsePrivateOk) {
        return Err(EINVAL);
    }
    if !part.vma.flags.hgm {
        return Ok(());
    }
    let mut at = part.start;
    let mut poison = false;
    while at < part.end {
        let next = (part.vma.unit_addr(at) + part.vma.unit_bytes()).min(part.end);
        let body = w.cached(&part.vma, at);
        if body.is_some_and(|body| w.bodies[body].poisoned) {
            // It is left alone.
            poison = true;
        } else {
            page(w, proc, &part.vma, at, next)?;
        }
        at = next;
    }
    if poison && w.ways.poison_told { Err(EHWPOISON) } else { Ok(()) }
}

/// The part of one huge page.
fn page(w: &mut World, proc: ProcId, vma: &Vma, start: u64, end: u64) -> Result<(), i32> {
    let body = w.cached(vma, start);
    let mut at = start;
    while at < end {
        let leaf = Node { start: at, size: fitting(vma, at, end) };
        let there = w.node(proc, vma, at);
        let slot = w.entry(proc, there.start).map(|e| e.slot);
        let larger = there.size > leaf.size && matches!(slot, Some(Slot::Page(_)));
        if larger && !w.mutated(Mutant::HgmCollapsePassesLarger) {
            return Err(EEXIST);
        }
        w.pieces_tried |= there.size > leaf.size && slot.is_none();
        if there.size < leaf.size && !kept(w, proc, vma, leaf) {
            let wp = w.mutated(Mutant::HgmCollapseKeepsWp) && any_wp(w, proc, leaf);
            w.zap(proc, leaf.start, leaf.end());
            w.drop_tables(proc, leaf.start, leaf.end());
            let whole = body.map(|body| Entry { slot: Slot::Page(body), wp });
            w.set_entry(proc, leaf.start, whole);
        }
        at = leaf.end();
    }
    Ok(())
}

/// Does the model under test leave pieces with holes between them?
fn kept(w: &World, proc: ProcId, vma: &Vma, leaf: Node) -> bool {
    w.mutated(Mutant::HgmCollapseKeepsHoles)
        && w.nodes(proc, vma, leaf.start, leaf.end())
            .iter()
            .any(|node| w.entry(proc, node.start).is_none())
}

fn any_wp(w: &World, proc: ProcId, leaf: Node) -> bool {
    let wp = |(_, e): (&u64, &Entry)| e.wp || e.slot == Slot::Marker;
    w.proc(proc).is_some_and(|p| p.entries.range(leaf.start..leaf.end()).any(wp))
}
