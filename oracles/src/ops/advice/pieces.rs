//! MADV_COLLAPSE of hugetlb on kernels with high-granularity mapping: page tables below the huge
//! page size become leaves again. No page is made, copied or freed.

use super::{EEXIST, EINVAL, Part};
use crate::world::{Entry, Node, Slot, Vma, World, fitting};
use case::ProcId;

/// What COLLAPSE makes of one mapping: the errno it ends with, if any. What was done before stays.
pub(super) fn collapse(w: &mut World, proc: ProcId, part: &Part) -> Result<(), i32> {
    if part.vma.is_private() {
        return Err(EINVAL);
    }
    if !part.vma.flags.hgm {
        return Ok(());
    }
    let mut at = part.start;
    while at < part.end {
        let next = (part.vma.unit_addr(at) + part.vma.unit_bytes()).min(part.end);
        page(w, proc, &part.vma, at, next)?;
        at = next;
    }
    Ok(())
}

/// The part of one huge page; a poisoned one is left alone.
fn page(w: &mut World, proc: ProcId, vma: &Vma, start: u64, end: u64) -> Result<(), i32> {
    let body = w.cached(vma, start);
    if body.is_some_and(|body| w.bodies[body].poisoned) {
        return Ok(());
    }
    let mut at = start;
    while at < end {
        let leaf = Node { start: at, size: fitting(vma, at, end) };
        let there = w.node(proc, vma, at);
        let slot = w.entry(proc, there.start).map(|e| e.slot);
        if there.size > leaf.size && matches!(slot, Some(Slot::Page(_))) {
            return Err(EEXIST);
        }
        w.pieces_tried |= there.size > leaf.size && slot.is_none();
        if there.size < leaf.size {
            w.zap(proc, leaf.start, leaf.end());
            w.drop_tables(proc, leaf.start, leaf.end());
            let whole = body.map(|body| Entry { slot: Slot::Page(body), wp: false });
            w.set_entry(proc, leaf.start, whole);
        }
        at = leaf.end();
    }
    Ok(())
}
