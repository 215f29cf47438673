//! Looks at memory, held against the world: page tables, VMAs, status, mincore. What the kernel
//! may choose is read here and taken over (witness), never predicted.

use crate::mutants::Mutant;
use crate::ops::file::zap;
use crate::rules::*;
use crate::step::{Cx, Out};
use crate::world::{Backing, BodyId, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{PageRun, View, VmaObs, Word, pm};
use case::{Family, PageSize, Place, ProcId, Share, UffdModes};
use std::collections::BTreeMap;

/// Frames seen in one moment: page to frame and back. A frame id names a 4 KiB frame; a huge page
/// is known by the frame of its first.
#[derive(Debug, Default)]
pub struct Frames {
    /// First frame seen of each page; 0 is none.
    by_body: Vec<u32>,
    /// Every (frame, page, address) seen, checked for doubles when all looks are in.
    seen: Vec<(u32, BodyId, u64)>,
    /// How many entries map each page whole, counted once for all looks of the moment.
    maps: Vec<u32>,
    /// How many leaves map each base page of huge pages that are mapped in pieces.
    pieces: BTreeMap<BodyId, Vec<u32>>,
}

impl Frames {
    fn of(w: &World) -> Self {
        let mut maps = vec![0; w.bodies.len()];
        let mut pieces = BTreeMap::new();
        for (id, p) in &w.procs {
            for (at, entry) in &p.entries {
                let Slot::Page(body) = entry.slot else { continue };
                match w.vma_at(*id, *at).filter(|_| !p.tables.is_empty()) {
                    Some(vma) if w.in_pieces(*id, vma, *at) => {
                        let base = (w.bodies[body].size.bytes() / PAGE) as usize;
                        let counts = pieces.entry(body).or_insert_with(|| vec![0; base]);
                        let first = World::sub_page(vma, *at) as usize;
                        let size = (w.node(*id, vma, *at).size / PAGE) as usize;
                        counts[first..first + size].iter_mut().for_each(|n| *n += 1);
                    }
                    _ => maps[body] += 1,
                }
            }
        }
        Frames { by_body: vec![0; maps.len()], maps, pieces, seen: Vec::new() }
    }
    /// Leaves over a base page of the page; one for a page a look has just settled.
    fn mapcount(&self, body: BodyId, sub: u32) -> u32 {
        let pieces = self.pieces.get(&body).and_then(|counts| counts.get(sub as usize));
        self.maps.get(body).copied().unwrap_or(1) + pieces.copied().unwrap_or(0)
    }
    /// Is any of it mapped in pieces? Then the rules of HGM say how often.
    fn in_pieces(&self, body: BodyId) -> bool {
        self.pieces.contains_key(&body)
    }
}

/// Frame id the agent gives every shared zero page.
const ZERO_FRAME: u32 = 1;
/// kpageflags bits.
const KPF_HUGE: u64 = 1 << 17;

/// Judges all looks of one moment.
pub fn judge(w: &mut World, cx: &Cx<'_>, views: &[View]) -> Out {
    for view in views {
        if let View::Pages { proc, at, runs } = view {
            settle_all(w, *proc, *at, runs);
        }
    }
    let mut frames = Frames::of(w);
    for view in views {
        match view {
            View::Pages { proc, at, runs } => pages(w, cx, *proc, *at, runs, &mut frames)?,
            View::Vmas { proc, at, len, vmas } => {
                vma_list(w, cx, *proc, (*at, *len), vmas, &frames)?;
            }
            View::Status { proc, kb } => status(w, cx, *proc, kb, &frames)?,
            View::Mincore { proc, at, result: Ok(runs) } => mincore(w, cx, *proc, *at, runs)?,
            View::Rollup { .. }
            | View::Counters(_)
            | View::Mincore { .. }
            | View::Failed { .. } => {}
        }
    }
    doubles(w, cx, &mut frames)
}

fn pages(
    w: &World,
    cx: &Cx<'_>,
    proc: ProcId,
    at: Place,
    runs: &[PageRun],
    frames: &mut Frames,
) -> Out {
    if w.proc(proc).is_none() {
        return Ok(());
    }
    let mut addr = at.addr();
    let mut vma: Option<Vma> = None;
    for run in runs {
        let end = addr + u64::from(run.pages) * PAGE;
        if run.bits & !pm::SOFT_DIRTY == 0 && nothing_in(w, proc, addr, end) {
            addr = end;
            continue;
        }
        for n in 0..run.pages {
            let one = PageRun { pages: 1, frame: frame_of(run, n), ..*run };
            if !vma.as_ref().is_some_and(|v| v.start <= addr && addr < v.end) {
                vma = w.vma_at(proc, addr).cloned();
            }
            page(w, cx, (proc, addr), vma.as_ref(), &one, frames)?;
            addr += PAGE;
        }
    }
    Ok(())
}

/// True if no entry covers any page of the range: the common case, told without a walk.
fn nothing_in(w: &World, proc: ProcId, start: u64, end: u64) -> bool {
    let Some(p) = w.proc(proc) else { return true };
    // An entry of a huge page may begin before the range.
    let from = start - start % PageSize::Huge1G.bytes();
    let covers = |(at, _): (&u64, &Entry)| {
        w.vma_at(proc, *at).map_or(at + PAGE, |vma| w.node(proc, vma, *at).end()) > start
    };
    !p.entries.range(from..end).rev().take(1).any(covers)
}

fn frame_of(run: &PageRun, n: u32) -> u32 {
    if run.bits & pm::PRESENT == 0 || run.frame <= ZERO_FRAME { run.frame } else { run.frame + n }
}

/// One page-table entry as shown.
fn page(
    w: &World,
    cx: &Cx<'_>,
    (proc, addr): (ProcId, u64),
    vma: Option<&Vma>,
    seen: &PageRun,
    frames: &mut Frames,
) -> Out {
    let bits = seen.bits & !pm::SOFT_DIRTY;
    let Some(vma) = vma else {
        if bits != 0 {
            let text = bits_text(seen.bits);
            return Err(cx.broken(O_HOLE, "unmapped->entry", at_text(addr, "nothing"), text));
        }
        return Ok(());
    };
    let (unit, entry) = w.slot(proc, vma, addr);
    let (want, mask) = bits_of(w, vma, entry);
    if bits & mask != want & mask {
        let lost = w.unregister_failed && want & !bits & mask & pm::UFFD_WP != 0;
        let small = vma.flags.hgm && w.pieces_tried && want & !bits & pm::PRESENT != 0;
        let class = format!(
            "{}:{}{}{}",
            node_class(w, proc, vma, unit, entry),
            diff_class(want, bits, mask),
            if lost { ":refused" } else { "" },
            if small { ":tried" } else { "" }
        );
        let sort = node_class(w, proc, vma, unit, entry);
        // Pieces, or something whole where pieces should be; the rest is as without HGM.
        let pieces = (bits ^ want) & pm::PRESENT != 0 || w.in_pieces(proc, vma, addr);
        return Err(cx.broken(
            if vma.flags.hgm && pieces { HG_NODE } else { O_PAGEMAP },
            &class,
            at_text(addr, &format!("{} ({sort})", bits_text(want))),
            bits_text(bits),
        ));
    }
    let Some(Slot::Page(body)) = entry.map(|e| e.slot) else { return Ok(()) };
    exclusive(w, cx, vma, (addr, bits), (body, World::sub_page(vma, unit)), frames)?;
    alias(w, cx, vma, addr, body, seen.frame, frames)?;
    kpage(w, cx, vma, (addr, seen), body, frames)
}

/// Unsure entries become what was seen, before anything is judged: what one look settles, the
/// others count.
fn settle_all(w: &mut World, proc: ProcId, at: Place, runs: &[PageRun]) {
    let mut addr = at.addr();
    for run in runs {
        let end = addr + u64::from(run.pages) * PAGE;
        let Some(p) = w.proc(proc) else { return };
        let zeroed = run.frame == ZERO_FRAME && w.family == Family::U612 && w.profile.thp;
        let open = |e: &Entry| e.slot == Slot::Unsure || zeroed && holds_zeroes(w, e);
        let unsure: Vec<u64> =
            p.entries.range(addr..end).filter(|(_, e)| open(e)).map(|(at, _)| *at).collect();
        for unit in unsure {
            let n = ((unit - addr) / PAGE) as u32;
            let one = PageRun { pages: 1, frame: frame_of(run, n), ..*run };
            if let Some(vma) = w.vma_at(proc, unit).cloned() {
                settle(w, proc, &vma, unit, &one);
            }
        }
        addr = end;
    }
}

/// A private page without content: 6.12 puts the zero page in its place when it splits a huge page
/// (split_huge_page_to_list_to_order, RMP_USE_SHARED_ZEROPAGE).
fn holds_zeroes(w: &World, entry: &Entry) -> bool {
    let Slot::Page(body) = entry.slot else { return false };
    let body = &w.bodies[body];
    let zero = |words: &[Word; 2]| *words == [Word::Zero; 2];
    let quiet = body.vague.is_empty() && !body.size.is_huge() && body.file.is_none();
    quiet && body.words.values().all(zero)
}

/// An unsure entry becomes what was seen.
fn settle(w: &mut World, proc: ProcId, vma: &Vma, unit: u64, seen: &PageRun) {
    if seen.bits & pm::PRESENT == 0 {
        let poisoned = w.cached(vma, unit).is_some_and(|body| w.bodies[body].poisoned);
        if poisoned && seen.bits & (pm::SWAP | pm::UFFD_WP) == pm::SWAP {
            // It was mapped when memory failure came.
            w.set_entry(proc, unit, Some(Entry { slot: Slot::HwPoison, wp: false }));
            return;
        }
        let marked = seen.bits & pm::UFFD_WP != 0 && vma.armed(UffdModes::WP);
        let marker = Entry { slot: Slot::Marker, wp: false };
        w.set_entry(proc, unit, marked.then_some(marker));
        return;
    }
    let slot = match w.cached(vma, unit) {
        Some(body) if seen.bits & pm::FILE != 0 => Slot::Page(body),
        _ if seen.frame == ZERO_FRAME => Slot::Zero,
        _ if vma.backing == Backing::Anon => Slot::Page(w.new_body(vma.unit, None)),
        _ => match vma.file_unit(unit) {
            // A huge shmem page brought its neighbours into the cache.
            Some((key, idx)) => {
                let body = w.new_body(vma.unit, Some((key, idx)));
                w.files[key].cache.insert(idx, body);
                Slot::Page(body)
            }
            None => return,
        },
    };
    let wp = seen.bits & pm::UFFD_WP != 0 && vma.armed(UffdModes::WP);
    w.set_entry(proc, unit, Some(Entry { slot, wp }));
}

/// Bits an entry must show, and the mask of those that are judged here (exclusive is not).
fn bits_of(w: &World, vma: &Vma, entry: Option<Entry>) -> (u8, u8) {
    let all = pm::PRESENT | pm::SWAP | pm::FILE | pm::UFFD_WP;
    let Some(entry) = entry else { return (0, all) };
    let base = !vma.is_hugetlb();
    let swap_if_base = if base { pm::SWAP } else { 0 };
    let wp = if entry.wp { pm::UFFD_WP } else { 0 };
    match entry.slot {
        Slot::Marker if w.mutated(Mutant::MarkerInvisible) => (0, all),
        Slot::Marker => (swap_if_base | pm::UFFD_WP, all),
        Slot::UffdPoison => (swap_if_base, all),
        // Splitting a huge file page drops its mapping before poison can replace it: "file pages
        // can simply be left unmapped" (unmap_folio).
        Slot::HwPoison if maybe_huge(w, vma) => (0, 0),
        // FILE of a poison entry follows the page it stood for: both spellings are accepted.
        Slot::HwPoison => (swap_if_base, all & !pm::FILE),
        // The huge zero page shows FILE, the 4 KiB one does not.
        Slot::Zero => (pm::PRESENT | wp, all & !pm::FILE),
        Slot::Page(body) => {
            let file = if w.bodies[body].file.is_some() { pm::FILE } else { 0 };
            (pm::PRESENT | file | wp, all)
        }
        Slot::Unsure => (0, 0),
    }
}

fn maybe_huge(w: &World, vma: &Vma) -> bool {
    matches!(vma.backing, Backing::File { key, .. } if w.files[key].maybe_huge)
}

/// Bit 56 against the number of entries that map the page (O-008); `first` is the base page that
/// the entry begins with.
fn exclusive(
    w: &World,
    cx: &Cx<'_>,
    vma: &Vma,
    (addr, bits): (u64, u8),
    (body, first): (BodyId, u32),
    frames: &Frames,
) -> Out {
    // An unsure entry elsewhere may map a file page too.
    let known = w.bodies[body].file.is_none() || vma.is_hugetlb();
    if w.bodies[body].loose || !known {
        return Ok(());
    }
    let sub = World::sub_page(vma, addr);
    let count = frames.mapcount(body, sub);
    let single = count == 1 || w.mutated(Mutant::ExclusiveAlways);
    let bit = bits & pm::EXCLUSIVE != 0;
    if single == bit || single && table_may_be_shared(vma, addr) {
        return Ok(());
    }
    if frames.in_pieces(body) && bit == (frames.mapcount(body, first) == 1) {
        // One bit for a leaf: that of its first base page (pagemap_hugetlb_range).
        return Ok(());
    }
    let class = if single { "single->shared" } else { "shared->exclusive" };
    let what = if vma.is_hugetlb() { "hugetlb" } else { "base" };
    let want = format!("{count} mappings of the page");
    Err(cx.broken(
        if frames.in_pieces(body) { HG_COUNT } else { O_EXCLUSIVE },
        &format!("{what}:{class}"),
        at_text(addr, &want),
        if single { "not exclusive" } else { "exclusive" },
    ))
}

/// One page, one frame.
fn alias(
    w: &World,
    cx: &Cx<'_>,
    vma: &Vma,
    addr: u64,
    body: BodyId,
    frame: u32,
    frames: &mut Frames,
) -> Out {
    if w.bodies[body].loose {
        return Ok(());
    }
    let first = frame.wrapping_sub(World::sub_page(vma, addr));
    let Some(known) = frames.by_body.get_mut(body) else { return Ok(()) };
    if *known == 0 {
        *known = first;
        frames.seen.push((first, body, addr));
    }
    if *known != first && vma.unit != PageSize::Huge1G {
        let want = at_text(addr, "the frame its other mapping shows");
        return Err(cx.broken(
            O_ALIAS,
            &alias_class("one-page-two-frames", vma.is_hugetlb()),
            want,
            "another frame",
        ));
    }
    Ok(())
}

fn alias_class(what: &str, hugetlb: bool) -> String {
    format!("{what}:{}", if hugetlb { "hugetlb" } else { "base" })
}

/// No frame belongs to two pages.
fn doubles(w: &World, cx: &Cx<'_>, frames: &mut Frames) -> Out {
    frames.seen.sort_unstable();
    for pair in frames.seen.windows(2) {
        let [(frame, one, _), (next, other, addr)] = *pair else { continue };
        if frame == next && one != other && w.bodies[one].size == w.bodies[other].size {
            return Err(cx.broken(
                O_ALIAS,
                &alias_class("two-pages-one-frame", w.bodies[one].size.is_huge()),
                at_text(addr, "a frame of its own"),
                "the frame of another page",
            ));
        }
    }
    Ok(())
}

fn kpage(
    w: &World,
    cx: &Cx<'_>,
    vma: &Vma,
    (addr, seen): (u64, &PageRun),
    body: BodyId,
    frames: &Frames,
) -> Out {
    let Some(kpage) = seen.kpage else { return Ok(()) };
    let huge = kpage.flags & KPF_HUGE != 0;
    if huge != vma.is_hugetlb() {
        let (want, got) = (format!("HUGE {}", vma.is_hugetlb()), format!("HUGE {huge}"));
        return Err(cx.broken(O_KHUGE, "huge-flag", at_text(addr, &want), got));
    }
    let file_base = w.bodies[body].file.is_some() && !vma.is_hugetlb();
    let maps = frames.mapcount(body, World::sub_page(vma, addr));
    // A page table shared by several mappings maps the page once for all of them.
    let least = if table_may_be_shared(vma, addr) { 1.min(maps) } else { maps };
    let counted = (least..=maps).contains(&kpage.count);
    if !file_base && !w.bodies[body].loose && !counted {
        let want = format!("{maps} mappings");
        let got = format!("kpagecount {}", kpage.count);
        let rule = if frames.in_pieces(body) { HG_COUNT } else { O_KCOUNT };
        return Err(cx.broken(rule, "count", at_text(addr, &want), got));
    }
    Ok(())
}

/// H-086: the whole aligned GiB of a shared mapping of 2 MiB pages.
fn table_may_be_shared(vma: &Vma, addr: u64) -> bool {
    let gib = addr - addr % PageSize::Huge1G.bytes();
    vma.unit == PageSize::Huge2M
        && vma.share == Share::Shared
        && !vma.flags.hgm
        && gib >= vma.start
        && gib + PageSize::Huge1G.bytes() <= vma.end
}

fn at_text(addr: u64, what: &str) -> String {
    match Place::of_addr(addr) {
        Some(place) => format!("at {place}: {what}"),
        None => what.to_owned(),
    }
}

fn bits_text(bits: u8) -> String {
    let names = [
        (pm::PRESENT, "present"),
        (pm::SWAP, "swap"),
        (pm::FILE, "file"),
        (pm::EXCLUSIVE, "exclusive"),
        (pm::UFFD_WP, "uffd-wp"),
    ];
    let words: Vec<&str> = names.iter().filter(|(b, _)| bits & b != 0).map(|(_, n)| *n).collect();
    if words.is_empty() { "none".into() } else { words.join("+") }
}

fn diff_class(want: u8, got: u8, mask: u8) -> String {
    let names =
        [(pm::PRESENT, "present"), (pm::SWAP, "swap"), (pm::FILE, "file"), (pm::UFFD_WP, "wp")];
    let diff = (want ^ got) & mask;
    let sign = |bit: u8| if got & bit != 0 { '+' } else { '-' };
    names.iter().filter(|(b, _)| diff & b != 0).map(|(b, n)| format!("{}{n}", sign(*b))).collect()
}

/// The sort of an entry with the size of its node, if that is not the mapping's page size.
pub fn node_class(w: &World, proc: ProcId, vma: &Vma, unit: u64, entry: Option<Entry>) -> String {
    let class = entry_class(w, vma, unit, entry);
    match w.node(proc, vma, unit).size {
        size if size == vma.unit_bytes() => class,
        PAGE => class + "/4k",
        _ => class + "/2m",
    }
}

/// The sort of an entry, for signatures and feedback.
pub fn entry_class(w: &World, vma: &Vma, unit: u64, entry: Option<Entry>) -> String {
    let size = match vma.unit {
        PageSize::Base => "base",
        PageSize::Huge2M => "2m",
        PageSize::Huge1G => "1g",
    };
    let kind = match vma.backing {
        Backing::Anon => "anon",
        Backing::File { .. } => match vma.share {
            Share::Shared => "shared",
            Share::Private => "private",
        },
    };
    let slot =
        match entry.map(|e| e.slot) {
            // Somebody waits for a page that appears here without an event.
            None if vma.armed(UffdModes::MISSING) || awaited(w, vma, unit) => {
                if w.collapse_refused { "none-armed:collapsed" } else { "none-armed" }
            }
            None => "none",
            Some(Slot::Marker) => "marker",
            Some(Slot::UffdPoison) => "uffd-poison",
            Some(Slot::HwPoison) => "hwpoison",
            Some(Slot::Zero) => "zero",
            Some(Slot::Unsure) => "unsure",
            Some(Slot::Page(b)) => match w.bodies[b].file {
                Some((key, _)) if w.files[key].head_punched => "cached:head-punched",
                Some(_) => "cached",
                None if w.bodies[b].unshared => "unshared",
                None => "own",
            },
        };
    let wp = if entry.is_some_and(|e| e.wp) { "-wp" } else { "" };
    format!("{kind}-{size}-{slot}{wp}")
}

/// Does another mapping of the same shmem page wait for it? Filling the file fills it there too.
fn awaited(w: &World, vma: &Vma, unit: u64) -> bool {
    if vma.is_hugetlb() {
        return false;
    }
    let Some((key, idx)) = vma.file_unit(unit) else { return false };
    let found = zap::mappings(w, key, idx * PAGE, (idx + 1) * PAGE);
    found.iter().any(|m| m.vma.armed(UffdModes::MISSING))
}

/// What smaps and status must add up to over a range.
#[derive(Debug, Default)]
struct Sums {
    rss_min: u64,
    rss_max: u64,
    hugetlb_shared: u64,
    hugetlb_private: u64,
    hugetlb_poisoned: u64,
    /// All three by the level of the leaf: 1 GiB, 2 MiB, 4 KiB.
    levels: [u64; 3],
    hgm: bool,
}

fn sums(w: &World, proc: ProcId, start: u64, end: u64, frames: &Frames) -> Sums {
    let mut sums = Sums::default();
    let Some(p) = w.proc(proc) else { return sums };
    for (at, entry) in p.entries.range(start..end) {
        let Some(vma) = w.vma_at(proc, *at) else { continue };
        let kb = w.node(proc, vma, *at).size >> 10;
        sums.hgm |= vma.flags.hgm;
        let mapped = matches!(entry.slot, Slot::Page(_) | Slot::HwPoison);
        if mapped && vma.is_hugetlb() {
            let level = [1 << 20, 2 << 10, 4].iter().position(|n| *n == kb);
            sums.levels[level.unwrap_or(0)] += kb;
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
            (Slot::HwPoison, true) => sums.hugetlb_poisoned += kb,
            // The mapping of a huge file page goes when it is split for the poison.
            (Slot::HwPoison, false) if maybe_huge(w, vma) => sums.rss_max += kb,
            (Slot::Page(_) | Slot::HwPoison, false) => {
                sums.rss_min += kb;
                sums.rss_max += kb;
            }
            (Slot::Unsure, _) => sums.rss_max += kb,
            _ => {}
        }
    }
    sums
}

fn field(kb: &[(String, u64)], label: &str) -> Option<u64> {
    kb.iter().find(|(l, _)| l == label).map(|(_, n)| *n)
}

fn vma_list(
    w: &World,
    cx: &Cx<'_>,
    proc: ProcId,
    (at, len): (Place, u64),
    seen: &[VmaObs],
    frames: &Frames,
) -> Out {
    if w.proc(proc).is_none() {
        return Ok(());
    }
    let (start, end) = (at.addr(), at.addr().saturating_add(len));
    let mut mapped = start;
    for obs in seen {
        let (from, to) = (obs.at.addr(), obs.at.addr().saturating_add(obs.len));
        let hidden = if mapped < from { w.vmas_in(proc, mapped, from) } else { Vec::new() };
        if let Some(vma) = hidden.first() {
            let what = at_text(vma.start.max(mapped), "a mapping");
            return Err(cx.broken(O_VMAS, "mapping-missing", what, "no mapping"));
        }
        if w.has_hole(proc, from.max(start), to.min(end)) {
            let what = at_text(from, "no mapping over all of it");
            return Err(cx.broken(O_VMAS, "mapping-extra", what, format!("{} KiB", obs.len >> 10)));
        }
        for vma in w.vmas_in(proc, from, to) {
            attributes(w, cx, &vma, obs)?;
        }
        let sums = sums(w, proc, from, to, frames);
        numbers(w, cx, obs, &sums)?;
        mapped = to;
    }
    let rest = if mapped < end { w.vmas_in(proc, mapped, end) } else { Vec::new() };
    if let Some(vma) = rest.first() {
        let what = at_text(vma.start.max(mapped), "a mapping");
        return Err(cx.broken(O_VMAS, "mapping-missing", what, "no mapping"));
    }
    Ok(())
}

fn attributes(w: &World, cx: &Cx<'_>, vma: &Vma, obs: &VmaObs) -> Out {
    let shared = if vma.share == Share::Shared { 8 } else { 0 };
    let want = (vma.prot.0 & 7) as u8 | shared;
    // Bit order of Prot and of VmaObs::perms is the same: r 1, w 2, x 4.
    if want != obs.perms {
        let (want, got) = (format!("perms {want:#x}"), format!("perms {:#x}", obs.perms));
        return Err(cx.broken(O_VMAS, "perms", at_text(vma.start, &want), got));
    }
    let modes = vma.uffd.map(|(_, m)| m).unwrap_or_default();
    let f = &vma.flags;
    let flags: [(&[u8; 2], bool); 12] = [
        (b"um", modes.has(UffdModes::MISSING)),
        (b"uw", modes.has(UffdModes::WP)),
        (b"ui", modes.has(UffdModes::MINOR)),
        (b"ht", vma.is_hugetlb()),
        (b"lo", f.locked && !vma.is_hugetlb() && !w.mutated(Mutant::LockInvisible)),
        (b"hg", f.hugepage),
        (b"nh", f.nohugepage),
        (b"dc", f.dontfork),
        (b"wf", f.wipeonfork),
        (b"dd", f.dontdump),
        (b"mg", f.mergeable),
        (b"hm", f.hgm),
    ];
    for (letters, want) in flags {
        let got = obs.flags.contains(letters);
        if got != want {
            let name = String::from_utf8_lossy(letters).into_owned();
            let gone = match want && letters[0] == b'u' {
                true if w.unregister_refused => ":refused",
                true if w.moved_beside => ":moved",
                _ => "",
            };
            let sort = if want { "missing" } else { "extra" };
            let class = format!("{name}:{sort}{gone}");
            let text = |on: bool| format!("VmFlags {}{name}", if on { "" } else { "without " });
            return Err(cx.broken(O_VMFLAGS, &class, at_text(vma.start, &text(want)), text(got)));
        }
    }
    let kb = vma.unit_bytes() >> 10;
    if field(&obs.kb, "KernelPageSize").is_some_and(|n| n != kb) {
        let want = at_text(vma.start, &format!("KernelPageSize {kb} kB"));
        return Err(cx.broken(O_PAGESIZE, "size", want, "another"));
    }
    Ok(())
}

fn numbers(w: &World, cx: &Cx<'_>, obs: &VmaObs, sums: &Sums) -> Out {
    let rss = field(&obs.kb, "Rss").unwrap_or(0);
    if rss < sums.rss_min || rss > sums.rss_max {
        let class = match (rss < sums.rss_min, obs.perms & 7 == 0) {
            (true, true) => "less:prot-none",
            (true, false) => "less",
            (false, _) => "more",
        };
        let want = format!("Rss {}..={} kB", sums.rss_min, sums.rss_max);
        let want = at_text(obs.at.addr(), &want);
        return Err(cx.broken(O_RSS, class, want, format!("Rss {rss} kB")));
    }
    let shared = field(&obs.kb, "Shared_Hugetlb").unwrap_or(0);
    let private = field(&obs.kb, "Private_Hugetlb").unwrap_or(0);
    // Poison entries: private in 6.1, shared in 6.12 (O-038).
    let (want_shared, want_private) = match w.family {
        Family::U61 => (sums.hugetlb_shared, sums.hugetlb_private + sums.hugetlb_poisoned),
        Family::U612 => (sums.hugetlb_shared + sums.hugetlb_poisoned, sums.hugetlb_private),
    };
    if (shared, private) != (want_shared, want_private) {
        let same_sum = shared + private == want_shared + want_private;
        // 6.1 counts by the mappings of the frame a poison entry names, and that frame is a stranger's
        // once the huge page was dissolved (smaps_hugetlb_range, dissolve_free_huge_page).
        let strangers = sums.hugetlb_shared..=sums.hugetlb_shared + sums.hugetlb_poisoned;
        if same_sum && w.family == Family::U61 && strangers.contains(&shared) {
            return Ok(());
        }
        let vma = w.vma_at(cx.proc, obs.at.addr());
        if same_sum && vma.is_some_and(|v| table_may_be_shared(v, v.start)) {
            return Ok(());
        }
        let class = if same_sum { "split" } else { "sum" };
        let want = format!("Shared_Hugetlb {want_shared} Private_Hugetlb {want_private} kB");
        let want = at_text(obs.at.addr(), &want);
        let got = format!("Shared_Hugetlb {shared} Private_Hugetlb {private} kB");
        let rule = if sums.hgm { HG_COUNT } else { O_HUGETLB };
        return Err(cx.broken(rule, class, want, got));
    }
    levels(cx, obs, sums)
}

/// The fields of kernels with HGM (HG-06).
fn levels(cx: &Cx<'_>, obs: &VmaObs, sums: &Sums) -> Out {
    let labels = ["HugetlbPudMapped", "HugetlbPmdMapped", "HugetlbPteMapped"];
    for (label, want) in labels.into_iter().zip(sums.levels) {
        let got = field(&obs.kb, label).unwrap_or(want);
        if got != want {
            let class = format!("{label}:{}", if got < want { "less" } else { "more" });
            let want = at_text(obs.at.addr(), &format!("{label} {want} kB"));
            return Err(cx.broken(HG_LEVELS, &class, want, format!("{got} kB")));
        }
    }
    Ok(())
}

fn status(w: &World, cx: &Cx<'_>, proc: ProcId, kb: &[(String, u64)], frames: &Frames) -> Out {
    let Some(p) = w.proc(proc) else { return Ok(()) };
    let all = sums(w, proc, 0, u64::MAX, frames);
    let want = all.hugetlb_shared + all.hugetlb_private;
    let got = field(kb, "HugetlbPages").unwrap_or(want);
    // Who maps through a table that was filled by another counts nothing (H-086).
    let in_table = |(at, e): (&u64, &Entry)| {
        let vma = w.vma_at(proc, *at).filter(|v| table_may_be_shared(v, *at))?;
        matches!(e.slot, Slot::Page(_)).then(|| vma.unit_bytes() >> 10)
    };
    let uncounted: u64 = p.entries.iter().filter_map(in_table).sum();
    if got > want || got < want - uncounted {
        let (want, got) = (format!("HugetlbPages {want} kB"), format!("{got} kB"));
        let rule = if all.hgm { HG_BYTES } else { O_STATUS_HUGETLB };
        return Err(cx.broken(rule, "sum", want, got));
    }
    let locked = p.vmas.values().filter(|v| v.flags.locked && !v.is_hugetlb());
    let want: u64 = locked.map(|v| (v.end - v.start) >> 10).sum();
    let got = field(kb, "VmLck").unwrap_or(want);
    if got != want {
        let (want, got) = (format!("VmLck {want} kB"), format!("{got} kB"));
        return Err(cx.broken(O_VMLCK, "sum", want, got));
    }
    Ok(())
}

fn mincore(w: &World, cx: &Cx<'_>, proc: ProcId, at: Place, runs: &[(u32, bool)]) -> Out {
    let mut addr = at.addr() - at.addr() % PAGE;
    for (pages, resident) in runs {
        for _ in 0..*pages {
            if let Some(vma) = w.vma_at(proc, addr) {
                let want = resident_of(w, proc, vma, addr);
                if want.is_some_and(|want| want != *resident) {
                    let (unit, entry) = w.slot(proc, vma, addr);
                    let class = node_class(w, proc, vma, unit, entry);
                    let text = |on: bool| if on { "resident" } else { "not resident" };
                    return Err(cx.broken(
                        O_MINCORE,
                        &class,
                        at_text(addr, text(!resident)),
                        text(*resident),
                    ));
                }
            }
            addr += PAGE;
        }
    }
    Ok(())
}

/// What mincore must say of a page; `None` when the kernel may say either.
fn resident_of(w: &World, proc: ProcId, vma: &Vma, addr: u64) -> Option<bool> {
    let cached = w.cached(vma, addr).is_some();
    let (_, entry) = w.slot(proc, vma, addr);
    if entry.is_none() && w.in_pieces(proc, vma, addr) {
        // There is a page table, and nothing in it.
        return Some(false);
    }
    if entry.is_none() && w.mutated(Mutant::MincoreIgnoresCache) {
        return Some(false);
    }
    match entry.map(|e| e.slot) {
        Some(Slot::Page(_) | Slot::Zero | Slot::HwPoison) => Some(true),
        Some(Slot::Unsure) => None,
        // hugetlb: page-table state, or page-cache state where no table exists (O-073, O-074).
        None | Some(Slot::Marker | Slot::UffdPoison) if vma.is_hugetlb() => {
            if cached {
                None
            } else {
                Some(false)
            }
        }
        // A page that was only allocated (fallocate) is not resident before it is touched.
        None | Some(Slot::Marker | Slot::UffdPoison) => match w.cached(vma, addr) {
            Some(body) if w.bodies[body].words.is_empty() => None,
            found => Some(found.is_some()),
        },
    }
}
