//! How often pages are mapped, and which frames they showed in one moment.

use super::wanted::Sight;
use crate::mutants::Mutant;
use crate::world::{BodyId, Slot, World};
use case::limits::PAGE;
use std::collections::BTreeMap;

/// Frames seen in one moment: page to frame and back. A frame id names a 4 KiB frame; a huge page
/// is known by the frame of its first.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// First frame seen of each page; 0 is none.
    pub(super) by_body: Vec<u32>,
    /// Checked for doubles when all looks are in.
    pub(super) seen: Vec<Sight>,
    /// How many entries map each page whole, counted once for all looks of the moment.
    maps: Vec<u32>,
    /// How many leaves count for each base page of huge pages that are mapped in pieces (HG-07).
    pieces: BTreeMap<BodyId, Vec<u32>>,
}

impl Frames {
    pub(super) fn of(w: &World) -> Self {
        let mut maps = vec![0; w.bodies.len()];
        let mut pieces = BTreeMap::new();
        let whole = w.ways.leaves_count_whole || w.mutated(Mutant::HgmLeavesCountWhole);
        for (id, p) in &w.procs {
            for (at, entry) in &p.entries {
                let Slot::Page(body) = entry.slot else { continue };
                match w.vma_at(*id, *at).filter(|_| !p.tables.is_empty()) {
                    Some(vma) if w.in_pieces(*id, vma, *at) => {
                        let base = (w.bodies[body].size.bytes() / PAGE) as usize;
                        let counts = pieces.entry(body).or_insert_with(|| vec![0; base]);
                        let first = World::sub_page(vma, *at) as usize;
                        let size = (w.node(*id, vma, *at).size / PAGE) as usize;
                        let over = if whole { 0..base } else { first..first + size };
                        counts[over].iter_mut().for_each(|n| *n += 1);
                    }
                    _ => maps[body] += 1,
                }
            }
        }
        Frames { by_body: vec![0; maps.len()], maps, pieces, seen: Vec::new() }
    }
    /// Leaves over a base page of the page; one for a page a look has just settled.
    pub(super) fn mapcount(&self, body: BodyId, sub: u32) -> u32 {
        let pieces = self.pieces.get(&body).and_then(|counts| counts.get(sub as usize));
        self.maps.get(body).copied().unwrap_or(1) + pieces.copied().unwrap_or(0)
    }
    /// Leaves over the base page that has most of them.
    pub(super) fn most(&self, body: BodyId) -> u32 {
        let pieces = self.pieces.get(&body).and_then(|counts| counts.iter().max());
        self.maps.get(body).copied().unwrap_or(1) + pieces.copied().unwrap_or(0)
    }
    /// Is any of it mapped in pieces? Then the rules of HGM say how often.
    pub(super) fn in_pieces(&self, body: BodyId) -> bool {
        self.pieces.contains_key(&body)
    }
}
