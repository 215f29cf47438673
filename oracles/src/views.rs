//! Looks at memory, held against the world: page tables, VMAs, status, mincore. What the kernel
//! may choose is read here and taken over (witness), never predicted.

mod counts;
mod sort;
mod sums;
mod tables;
mod wanted;

pub use sort::{entry_class, node_class};

use self::counts::Frames;
use self::sums::{field, numbers, rollup, status, sums};
use self::wanted::{Sight, expecting, expecting_entry, expecting_frames, expecting_kb};
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out};
use crate::touch::prepared;
use crate::world::{Backing, BodyId, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{PageRun, View, VmaObs, pm};
use case::{Expectation, Family, PageSize, Place, ProcId, Share, UffdModes, Violation};

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
            View::Status { proc, kb } => {
                status(w, cx, *proc, kb, &frames)?;
                tables::judge(w, cx, *proc, kb)?;
            }
            View::Rollup { proc, kb } => rollup(w, cx, *proc, kb, &frames)?,
            View::Mincore { proc, at, result: Ok(runs) } => mincore(w, cx, *proc, *at, runs)?,
            View::Counters(_) | View::Mincore { .. } | View::Failed { .. } => {}
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
            let broken = cx.broken(O_HOLE, "unmapped->entry", at_text(addr, "nothing"), text);
            return Err(expecting_entry(broken, proc, addr, !pm::SOFT_DIRTY, 0));
        }
        return Ok(());
    };
    let (unit, entry) = w.slot(proc, vma, addr);
    let (want, mask) = bits_of(w, vma, entry);
    if bits & mask != want & mask {
        let lost = w.unregister_failed && want & !bits & mask & pm::UFFD_WP != 0;
        let small = vma.flags.hgm && w.pieces_tried && want & !bits & pm::PRESENT != 0;
        let left = w.wp_forked && proc != ProcId(0) && vma.is_hugetlb() && entry.is_none();
        let class = format!(
            "{}:{}{}{}{}",
            node_class(w, proc, vma, unit, entry),
            diff_class(want, bits, mask),
            if lost { ":refused" } else { "" },
            if small { ":tried" } else { "" },
            if left { ":wp-forked" } else { "" }
        );
        let sort = node_class(w, proc, vma, unit, entry);
        // Pieces, or something whole where pieces should be; the rest is as without HGM.
        let pieces = (bits ^ want) & pm::PRESENT != 0 || w.in_pieces(proc, vma, addr);
        let broken = cx.broken(
            if vma.flags.hgm && pieces { HG_NODE } else { O_PAGEMAP },
            &class,
            at_text(addr, &format!("{} ({sort})", bits_text(want))),
            bits_text(bits),
        );
        return Err(expecting_entry(broken, proc, addr, mask, want & mask));
    }
    let Some(Slot::Page(body)) = entry.map(|e| e.slot) else { return Ok(()) };
    let broken = exclusive(w, cx, vma, (addr, bits), (body, World::sub_page(vma, unit)), frames);
    broken.map_err(|broken| {
        let other = !bits & pm::EXCLUSIVE;
        expecting_entry(broken, proc, addr, pm::EXCLUSIVE, other)
    })?;
    alias(w, cx, vma, (proc, addr), body, seen.frame, frames)?;
    kpage(w, cx, vma, (proc, addr, seen), body, frames)
}

/// Unsure entries become what was seen, before anything is judged: what one look settles, the
/// others count.
fn settle_all(w: &mut World, proc: ProcId, at: Place, runs: &[PageRun]) {
    let mut addr = at.addr();
    for run in runs {
        let end = addr + u64::from(run.pages) * PAGE;
        let Some(p) = w.proc(proc) else { return };
        let zeroed = run.frame == ZERO_FRAME && w.family == Family::U612 && w.profile.thp;
        let open = |e: &Entry| e.slot == Slot::Unsure || zeroed && w.holds_zeroes(e);
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

/// An unsure entry becomes what was seen.
fn settle(w: &mut World, proc: ProcId, vma: &Vma, unit: u64, seen: &PageRun) {
    if seen.bits & pm::PRESENT == 0 {
        let poisoned = w.cached(vma, unit).is_some_and(|body| w.bodies[body].poisoned);
        if poisoned && seen.bits & pm::SWAP != 0 {
            // It was mapped when memory failure came; or a marker, if it is protected too.
            let poison = Entry { slot: Slot::HwPoison { own: false }, wp: false };
            if seen.bits & pm::UFFD_WP == 0 {
                w.set_entry(proc, unit, Some(poison));
            }
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
    if matches!(slot, Slot::Page(body) if w.bodies[body].file.is_none()) {
        // Whatever put an anonymous page there has prepared the mapping for it.
        prepared(w, proc, vma, unit);
    }
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
        Slot::HwPoison { own: false } if maybe_huge(w, vma) => (0, 0),
        // FILE of a poison entry follows the page it stood for: both spellings are accepted.
        Slot::HwPoison { .. } => (swap_if_base | wp, all & !pm::FILE),
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
    (proc, addr): (ProcId, u64),
    body: BodyId,
    frame: u32,
    frames: &mut Frames,
) -> Out {
    if w.bodies[body].loose {
        return Ok(());
    }
    let sub = World::sub_page(vma, addr);
    let first = frame.wrapping_sub(sub);
    let here = Sight { first, body, proc, addr, sub };
    let Some(known) = frames.by_body.get_mut(body) else { return Ok(()) };
    if *known == 0 {
        *known = first;
        frames.seen.push(here);
    }
    if *known != first && vma.unit != PageSize::Huge1G {
        let want = at_text(addr, "the frame its other mapping shows");
        let class = alias_class("one-page-two-frames", vma.is_hugetlb());
        let broken = cx.broken(O_ALIAS, &class, want, "another frame");
        let before = frames.seen.iter().find(|sight| sight.body == body);
        return Err(expecting_frames(broken, before, &here, true));
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
        let [here, next] = pair else { continue };
        let (one, other) = (here.body, next.body);
        let twice = here.first == next.first && one != other;
        if twice && w.bodies[one].size == w.bodies[other].size {
            let broken = cx.broken(
                O_ALIAS,
                &alias_class("two-pages-one-frame", w.bodies[one].size.is_huge()),
                at_text(next.addr, "a frame of its own"),
                "the frame of another page",
            );
            return Err(expecting_frames(broken, Some(here), next, false));
        }
    }
    Ok(())
}

fn kpage(
    w: &World,
    cx: &Cx<'_>,
    vma: &Vma,
    (proc, addr, seen): (ProcId, u64, &PageRun),
    body: BodyId,
    frames: &Frames,
) -> Out {
    let Some(kpage) = seen.kpage else { return Ok(()) };
    let huge = kpage.flags & KPF_HUGE != 0;
    if huge != vma.is_hugetlb() {
        let (want, got) = (format!("HUGE {}", vma.is_hugetlb()), format!("HUGE {huge}"));
        let broken = cx.broken(O_KHUGE, "huge-flag", at_text(addr, &want), got);
        let flag = |at| Expectation::PageFlag { proc, at, bit: 17, on: vma.is_hugetlb() };
        return Err(expecting(broken, addr, flag));
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
        let broken = cx.broken(rule, "count", at_text(addr, &want), got);
        let count = |at| Expectation::MapCount { proc, at, low: least, high: maps };
        return Err(expecting(broken, addr, count));
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
            return Err(missing(cx, proc, vma.start.max(mapped)));
        }
        if let Some(hole) = w.hole(proc, from.max(start), to.min(end)) {
            let what = at_text(from, "no mapping over all of it");
            let got = format!("{} KiB", obs.len >> 10);
            let broken = cx.broken(O_VMAS, "mapping-extra", what, got);
            let nothing = |at| Expectation::Mapped { proc, at, on: false };
            return Err(expecting(broken, hole, nothing));
        }
        for vma in w.vmas_in(proc, from, to) {
            attributes(w, cx, proc, &vma, obs)?;
        }
        let sums = sums(w, proc, from, to, frames);
        numbers(w, cx, proc, obs, &sums)?;
        mapped = to;
    }
    let rest = if mapped < end { w.vmas_in(proc, mapped, end) } else { Vec::new() };
    if let Some(vma) = rest.first() {
        return Err(missing(cx, proc, vma.start.max(mapped)));
    }
    Ok(())
}

fn missing(cx: &Cx<'_>, proc: ProcId, addr: u64) -> Box<Violation> {
    let broken = cx.broken(O_VMAS, "mapping-missing", at_text(addr, "a mapping"), "no mapping");
    expecting(broken, addr, |at| Expectation::Mapped { proc, at, on: true })
}

fn attributes(w: &World, cx: &Cx<'_>, proc: ProcId, vma: &Vma, obs: &VmaObs) -> Out {
    let shared = if vma.share == Share::Shared { 8 } else { 0 };
    let want = (vma.prot.0 & 7) as u8 | shared;
    // Bit order of Prot and of VmaObs::perms is the same: r 1, w 2, x 4.
    if want != obs.perms {
        let (text, got) = (format!("perms {want:#x}"), format!("perms {:#x}", obs.perms));
        let broken = cx.broken(O_VMAS, "perms", at_text(vma.start, &text), got);
        let perms = |at| Expectation::Perms { proc, at, perms: want };
        return Err(expecting(broken, vma.start, perms));
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
        (b"hm", f.hgm && w.ways.flag_shown),
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
            let what = at_text(vma.start, &text(want));
            let broken = cx.broken(O_VMFLAGS, &class, what, text(got));
            let flag = |at| Expectation::VmFlag { proc, at, letters: *letters, on: want };
            return Err(expecting(broken, vma.start, flag));
        }
    }
    let kb = vma.unit_bytes() >> 10;
    if field(&obs.kb, "KernelPageSize").is_some_and(|n| n != kb) {
        let want = at_text(vma.start, &format!("KernelPageSize {kb} kB"));
        let broken = cx.broken(O_PAGESIZE, "size", want, "another");
        return Err(expecting_kb(broken, proc, obs, "KernelPageSize", (kb, kb)));
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
                    let what = at_text(addr, text(!resident));
                    let broken = cx.broken(O_MINCORE, &class, what, text(*resident));
                    let other = |at| Expectation::Mincore { proc, at, resident: !resident };
                    return Err(expecting(broken, addr, other));
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
        Some(Slot::Page(_) | Slot::Zero | Slot::HwPoison { .. }) => Some(true),
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
