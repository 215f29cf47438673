//! Page tables below the huge page size: high-granularity mapping (HGM) maps a huge page by leaves
//! of 1 GiB, 2 MiB and 4 KiB. A *node* is what a walk finds at an address: an entry of any size, or
//! none of it. Only the tables are kept here; entries stand at the start of their node.

use super::{BodyId, Entry, Proc, Slot, Vma, World};
use case::limits::PAGE;
use case::{PageSize, ProcId};

/// Where a walk ends for an address, whether or not anything is mapped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Node {
    pub fn end(self) -> u64 {
        self.start + self.size
    }
}

/// Size of the entries of a table that stands in the place of one of `size`.
fn below(size: u64) -> u64 {
    let pmd = PageSize::Huge2M.bytes();
    if size > pmd { pmd } else { PAGE }
}

/// The largest leaf that may begin at `at` and does not go beyond `end`.
pub fn fitting(vma: &Vma, at: u64, end: u64) -> u64 {
    let mut size = vma.unit_bytes();
    while size > PAGE && (!at.is_multiple_of(size) || end - at < size) {
        size = below(size);
    }
    size
}

impl Proc {
    fn is_table(&self, start: u64, size: u64) -> bool {
        self.tables.contains(&(start, size))
    }
}

impl World {
    /// The node of an address inside the VMA.
    pub fn node(&self, proc: ProcId, vma: &Vma, addr: u64) -> Node {
        let mut node = Node { start: vma.unit_addr(addr), size: vma.unit_bytes() };
        let Some(p) = self.proc(proc).filter(|p| !p.tables.is_empty()) else { return node };
        while node.size > PAGE && p.is_table(node.start, node.size) {
            let size = below(node.size);
            node = Node { start: addr - addr % size, size };
        }
        node
    }
    /// What stands at an address: the start of its node and the entry there.
    pub fn slot(&self, proc: ProcId, vma: &Vma, addr: u64) -> (u64, Option<Entry>) {
        let start = self.node(proc, vma, addr).start;
        (start, self.entry(proc, start))
    }
    /// Is the huge page around an address mapped in pieces, or was it?
    pub fn in_pieces(&self, proc: ProcId, vma: &Vma, addr: u64) -> bool {
        self.node(proc, vma, addr).size != vma.unit_bytes()
    }
    /// The nodes of a part of a VMA, in order.
    pub fn nodes(&self, proc: ProcId, vma: &Vma, start: u64, end: u64) -> Vec<Node> {
        let mut found = Vec::new();
        let mut at = start;
        while at < end {
            let node = self.node(proc, vma, at);
            found.push(node);
            at = node.end();
        }
        found
    }
    /// Makes the tables that are missing for a leaf of `size` at `addr`. A marker goes down into
    /// all entries of a table that takes its place; anything else there is forgotten.
    pub fn make_tables(&mut self, proc: ProcId, vma: &Vma, addr: u64, size: u64) {
        loop {
            let node = self.node(proc, vma, addr);
            if node.size <= size {
                return;
            }
            let old = self.entry(proc, node.start);
            self.set_entry(proc, node.start, None);
            let Some(p) = self.proc_mut(proc) else { return };
            p.tables.insert((node.start, node.size));
            if let Some(marker) = old.filter(|e| e.slot == Slot::Marker) {
                let step = below(node.size) as usize;
                let each = (node.start..node.end()).step_by(step);
                p.entries.extend(each.map(|at| (at, marker)));
            }
        }
    }
    /// Gives the tables of a range back that lie wholly in it.
    pub fn drop_tables(&mut self, proc: ProcId, start: u64, end: u64) {
        let Some(p) = self.proc_mut(proc) else { return };
        p.tables.retain(|(at, size)| *at < start || at + size > end);
    }
    /// How many leaves of all processes map a base page of a page (HG-07).
    pub fn leaves_over(&self, body: BodyId, sub: u32) -> u32 {
        let mut count = 0;
        for (id, p) in &self.procs {
            for (at, _) in p.entries.iter().filter(|(_, e)| e.slot == Slot::Page(body)) {
                let Some(vma) = self.vma_at(*id, *at) else { continue };
                let first = World::sub_page(vma, *at);
                let pages = (self.node(*id, vma, *at).size / PAGE) as u32;
                let over = (first..first + pages).contains(&sub);
                count += u32::from(over || self.ways.leaves_count_whole);
            }
        }
        count
    }
}
