//! What ops of a `par` block leave unknown: they are not atomic, and which came first nobody saw.
//! Only marks what later looks decide; it judges nothing.

use crate::ops::access::body_at;
use crate::ops::file::zap;
use crate::touch::haze;
use crate::world::{BodyId, Entry, FileKey, Slot, Vma, World};
use case::limits::PAGE;
use case::{Advice, Op, Policy, ProcId, UffdModes};
use std::collections::{BTreeMap, BTreeSet};

/// Ops that put pages where none are, or look, and change nothing else.
pub fn fills(op: &Op) -> bool {
    match op {
        Op::Read { .. }
        | Op::Write { .. }
        | Op::Continue { .. }
        | Op::Copy { .. }
        | Op::Zeropage { .. }
        | Op::Wake { .. }
        | Op::VmRead { .. }
        | Op::Pread { .. }
        | Op::Fstat { .. } => true,
        Op::Madvise { advice, .. } => matches!(
            advice,
            Advice::PopulateRead | Advice::PopulateWrite | Advice::WillNeed | Advice::Normal
        ),
        _ => false,
    }
}

/// What is left unknown by an op that raced with others.
pub fn raced(w: &mut World, op: &Op, explained: bool) {
    let (at, len, stores) = match op {
        Op::Write { at, len } | Op::Copy { at, len, .. } => (*at, len.0, true),
        Op::Read { at, len }
        | Op::Continue { at, len, .. }
        | Op::Zeropage { at, len, .. }
        | Op::Madvise { at, len, .. }
        | Op::VmRead { at, len, .. } => (*at, len.0, false),
        _ => return,
    };
    let mut page = at.addr() - at.addr() % PAGE;
    while page < at.addr() + len {
        if stores {
            stored_amid(w, page);
        }
        if !explained && !unsettle(w, page) {
            w.blur("racing ops on huge pages did not end as in reading order");
            return;
        }
        page += PAGE;
    }
}

/// What a store that raced left in its page is open, also where the page is not known to be there.
fn stored_amid(w: &mut World, page: u64) {
    let Some(vma) = w.vma_at(ProcId(0), page) else { return };
    let (sub, behind) = (World::sub_page(vma, page), vma.file_unit(page));
    match body_at(w, ProcId(0), page) {
        Some(body) => {
            w.bodies[body].vague.insert(sub);
        }
        None => {
            if let Some((key, idx)) =
                behind.filter(|(key, idx)| !w.files[*key].cache.contains_key(idx))
            {
                w.files[key].perhaps_copied.insert(idx);
            }
        }
    }
}

/// Pages that no file has yet and that two threads of a block reach, where a handler answers with
/// copies: one thread is answered, another finds a hole that nobody waits for and fills it with
/// zeros, and who is first decides what the page has.
pub fn contested(w: &World, threads: &[Vec<Op>]) -> BTreeSet<(FileKey, u64)> {
    let mut reached: BTreeMap<(FileKey, u64), Reached> = BTreeMap::new();
    for (thread, op) in
        threads.iter().enumerate().flat_map(|(n, ops)| ops.iter().map(move |o| (n, o)))
    {
        let Some((at, len)) = range(op) else { continue };
        for (page, waits) in file_pages(w, at, at + len) {
            let reached = reached.entry(page).or_default();
            reached.threads.insert(thread);
            reached.filled |= !waits || matches!(op, Op::Zeropage { .. });
        }
    }
    let both = reached.into_iter().filter(|(_, r)| r.filled && r.threads.len() > 1);
    both.map(|(page, _)| page).filter(|page| copied_into(w, *page)).collect()
}

/// Who comes to a page that is not there.
#[derive(Default)]
struct Reached {
    threads: BTreeSet<usize>,
    /// One of them fills it without asking.
    filled: bool,
}

/// The range of memory an op touches, start and length in bytes.
fn range(op: &Op) -> Option<(u64, u64)> {
    match op {
        Op::Read { at, len }
        | Op::Write { at, len }
        | Op::Continue { at, len, .. }
        | Op::Copy { at, len, .. }
        | Op::Zeropage { at, len, .. }
        | Op::Madvise { at, len, .. }
        | Op::VmRead { at, len, .. } => Some((at.addr(), len.0)),
        _ => None,
    }
}

/// Pages of files, not cached, that are mapped in [start, end); and does somebody wait for them there?
fn file_pages(w: &World, start: u64, end: u64) -> Vec<((FileKey, u64), bool)> {
    let mut found = Vec::new();
    for vma in w.vmas_in(ProcId(0), start, end) {
        let mut at = vma.unit_addr(start.max(vma.start));
        while at < end.min(vma.end) {
            let page = vma.file_unit(at).filter(|(key, idx)| !is_cached(w, *key, *idx));
            found.extend(page.map(|page| (page, vma.armed(UffdModes::MISSING))));
            at += vma.unit_bytes();
        }
    }
    found
}

fn is_cached(w: &World, key: FileKey, idx: u64) -> bool {
    w.files[key].cache.contains_key(&idx)
}

/// Does a handler fill this page with a copy where somebody misses it?
fn copied_into(w: &World, (key, idx): (FileKey, u64)) -> bool {
    let unit = w.files[key].page.bytes();
    let copies = |vma: &Vma| {
        let uffd = vma.uffd.and_then(|(id, _)| w.uffds.get(&id));
        vma.armed(UffdModes::MISSING) && uffd.is_some_and(|u| u.policy == Policy::Copy)
    };
    zap::mappings(w, key, idx * unit, (idx + 1) * unit).iter().any(|m| copies(&m.vma))
}

/// What such a page has is open, and whether it is there where the model has none.
pub fn filled_by_either(w: &mut World, pages: BTreeSet<(FileKey, u64)>) {
    for (key, idx) in pages {
        let Some(body) = w.files[key].cache.get(&idx).copied() else {
            w.files[key].perhaps_copied.insert(idx);
            continue;
        };
        let subs = w.files[key].page.bytes() / PAGE;
        w.bodies[body].vague.extend(0..subs as u32);
    }
}

/// A huge page that a private mapping shows neither of its own nor of the file.
pub struct PrivateHole {
    at: u64,
    key: FileKey,
    idx: u64,
}

impl PrivateHole {
    /// The file and the private mapping have a page there now: which came first says whether it is
    /// one page or two.
    pub fn filled_twice(&self, w: &World) -> bool {
        w.files[self.key].cache.contains_key(&self.idx) && w.entry(ProcId(0), self.at).is_some()
    }
}

/// The holes of private mappings of huge pages.
pub fn private_holes(w: &World) -> Vec<PrivateHole> {
    let Some(p) = w.proc(ProcId(0)) else { return Vec::new() };
    let mut found = Vec::new();
    for vma in p.vmas.values().filter(|v| v.is_hugetlb() && v.is_private()) {
        for at in (vma.start..vma.end).step_by(vma.unit_bytes() as usize) {
            let Some((key, idx)) = vma.file_unit(at) else { continue };
            if !p.entries.contains_key(&at) && !w.files[key].cache.contains_key(&idx) {
                found.push(PrivateHole { at, key, idx });
            }
        }
    }
    found
}

/// Pages that private mappings of files have of their own.
pub fn own_copies(w: &World) -> BTreeMap<u64, BodyId> {
    let Some(p) = w.proc(ProcId(0)) else { return BTreeMap::new() };
    let of_file = |v: &&Vma| v.is_private() && v.file_unit(v.start).is_some();
    let vmas: Vec<&Vma> = p.vmas.values().filter(of_file).collect();
    let entries = vmas.iter().flat_map(|v| p.entries.range(v.start..v.end));
    let own = |(at, entry): (&u64, &Entry)| match entry.slot {
        Slot::Page(body) if w.bodies[body].file.is_none() => Some((*at, body)),
        _ => None,
    };
    entries.filter_map(own).collect()
}

/// A copy made while others stored to the page of the file has their content or the old one.
pub fn copied_amid(w: &mut World, before: &BTreeMap<u64, BodyId>) {
    for (at, body) in own_copies(w) {
        if before.get(&at) == Some(&body) {
            continue;
        }
        let Some((key, idx)) = w.vma_at(ProcId(0), at).and_then(|v| v.file_unit(at)) else {
            continue;
        };
        let source = w.files[key].cache.get(&idx).copied();
        let vague = source.map(|source| w.bodies[source].vague.clone()).unwrap_or_default();
        w.bodies[body].vague.extend(vague);
    }
}

/// A read fault maps cached neighbours, and which were cached when it ran is not known.
pub fn brought_along(w: &mut World, op: &Op) {
    let (at, len) = match op {
        Op::Read { at, len }
        | Op::Write { at, len }
        | Op::Madvise { at, len, .. }
        | Op::VmRead { at, len, .. } => (at.addr(), len.0),
        _ => return,
    };
    for vma in w.vmas_in(ProcId(0), at, at + len) {
        if vma.is_hugetlb() {
            continue;
        }
        if vma.is_private() {
            // A zero page, or a page of the THP or of the file that another thread brought.
            zeros_unsure(w, &vma);
        }
        if vma.file_unit(vma.start).is_none() {
            continue;
        }
        let start = vma.start.max(vma.unit_addr(at).saturating_sub(AROUND));
        let end = vma.end.min((at + len).next_multiple_of(PAGE) + AROUND);
        haze(w, ProcId(0), start, end, |w, page| w.cached(&vma, page).is_some());
    }
}

fn zeros_unsure(w: &mut World, vma: &Vma) {
    let Some(p) = w.proc_mut(ProcId(0)) else { return };
    for (_, entry) in p.entries.range_mut(vma.start..vma.end) {
        if entry.slot == Slot::Zero {
            entry.slot = Slot::Unsure;
        }
    }
}

/// Reach of a read fault, bytes: the fault-around window of both kernels.
const AROUND: u64 = 64 << 10;

/// Leaves it to the next look what stands at a page; not possible for huge pages, whose pools
/// depend on it.
fn unsettle(w: &mut World, page: u64) -> bool {
    let Some(vma) = w.vma_at(ProcId(0), page) else { return true };
    if vma.is_hugetlb() || vma.is_private() {
        return false;
    }
    let entry = Entry { slot: Slot::Unsure, wp: false };
    let behind = vma.file_unit(page);
    w.set_entry(ProcId(0), page, Some(entry));
    // The file may have the page now or not, so what reads beside it in other mappings may too.
    if let Some((key, idx)) = behind {
        for m in zap::mappings(w, key, idx * PAGE, (idx + 1) * PAGE) {
            if w.entry(m.proc, m.start).is_none() {
                w.set_entry(m.proc, m.start, Some(entry));
            }
        }
    }
    true
}
