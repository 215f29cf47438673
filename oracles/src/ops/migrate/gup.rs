//! Reading and pinning through get_user_pages: process_vm_readv, vmsplice, O_DIRECT, long pins.

use crate::errno::{EFAULT, EINVAL};
use crate::ops::access::{Expect, body_at, content, expect_at, words_in};
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::touch::{Access, SEGV_ACCERR, Touch, touch};
use crate::world::{Backing, Entry, Slot, Vma, World};
use case::limits::PAGE;
use case::observation::{Status, Word};
use case::{Direction, Family, Op, Place, ProcId, Prot, Tag};
use std::collections::BTreeSet;

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::VmRead { target, at, len } => {
            if w.proc(*target).is_none() {
                return Ok(());
            }
            read(w, cx, *target, *at, len.0, true)
        }
        Op::Vmsplice { at, .. } | Op::DirectIo { at, dir: Direction::Out, .. }
            if fast_path_differs(w, cx, *at) =>
        {
            w.blur("fast GUP looks at entries, not at permissions");
            Ok(())
        }
        Op::Vmsplice { at, len } => read(w, cx, cx.proc, *at, len.0, false),
        Op::DirectIo { at, len, dir: Direction::Out } => direct_out(w, cx, *at, len.0),
        Op::DirectIo { at, len, dir: Direction::In } => direct_in(w, cx, *at, len.0),
        Op::Pin { pin, at, len, .. } => {
            if len.0 == 0 {
                return cx.errno(G_PIN, EFAULT);
            }
            // 6.1 registers buffers without leave to wait for a userfault (U-067).
            w.no_wait = w.family == Family::U61;
            let reached = reach(w, cx, cx.proc, *at, len.0, Access::Write);
            w.no_wait = false;
            let bodies = match reached? {
                (_, Some(Touch::Blocks)) => return waited(w, cx, G_PIN),
                (_, Some(_)) => return cx.errno(G_PIN, EFAULT),
                (pages, None) => pages,
            };
            if w.family == Family::U61 && files(w, cx.proc, *at, len.0) > 1 {
                // io_pin_pages of 6.1 registers memory of one file, or of none.
                return cx.errno(G_PIN, EINVAL);
            }
            cx.only(G_PIN, Want::OkAny)?;
            let held = bodies.iter().filter_map(|page| body_at(w, cx.proc, *page)).collect();
            w.pin_owner.insert(*pin, cx.proc);
            w.pins.insert(*pin, held);
            Ok(())
        }
        Op::Unpin { pin } => {
            w.pins.remove(pin);
            cx.only(G_PIN, Want::OkAny)
        }
        Op::GupTest { at, len, .. } => {
            reach(w, cx, cx.proc, *at, len.0, Access::Read)?;
            w.blur("gup_test ran");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// How many files the mappings of a range are of; to have none counts as one.
fn files(w: &World, proc: ProcId, at: Place, len: u64) -> usize {
    let key = |vma: &Vma| match vma.backing {
        Backing::Anon => None,
        Backing::File { key, .. } => Some(key),
    };
    let vmas = w.vmas_in(proc, at.addr(), at.addr() + len);
    vmas.iter().map(key).collect::<BTreeSet<_>>().len()
}

/// True if a range may be read by loads but not by name: GUP's fast path takes present pages of
/// it, its slow path none.
fn fast_path_differs(w: &World, cx: &Cx<'_>, at: Place) -> bool {
    let len = match cx.op {
        Op::Vmsplice { len, .. } | Op::DirectIo { len, .. } => len.0,
        _ => 0,
    };
    let vmas = w.vmas_in(cx.proc, at.addr(), at.addr() + len.max(1));
    vmas.iter().any(|v| !v.prot.is_none() && !v.prot.has(Prot::READ))
}

/// The kernel waited for a userfault. The time-out may have closed the userfaultfd to end it.
fn waited(w: &mut World, cx: &Cx<'_>, rule: RuleRef) -> Out {
    w.blur("a kernel access waited for a userfault");
    cx.only(rule, Want::Blocks)
}

/// Touches every page of a range for the kernel; page addresses reached, and what stopped it.
fn reach(
    w: &mut World,
    cx: &Cx<'_>,
    proc: ProcId,
    at: Place,
    len: u64,
    access: Access,
) -> Out<(Vec<u64>, Option<Touch>)> {
    let (start, end) = (at.addr(), at.addr() + len);
    let mut page = start - start % PAGE;
    let mut reached = Vec::new();
    while page < end {
        // The kernel wants the permission by name, where hardware lets stores imply loads (G-001).
        let needs = if access == Access::Read { Prot::READ } else { Prot::WRITE };
        if w.vma_at(proc, page).is_some_and(|v| !v.prot.has(needs)) {
            return Ok((reached, Some(SEGV_ACCERR)));
        }
        match touch(w, cx, proc, page, access)? {
            Touch::Done => reached.push(page),
            stop => return Ok((reached, Some(stop))),
        }
        page += PAGE;
    }
    Ok((reached, None))
}

/// A read pin of an anonymous page that others map too takes a copy first (G-009); the bit that
/// protects it stays.
fn unshare(w: &mut World, proc: ProcId, page: u64) -> bool {
    let Some(vma) = w.vma_at(proc, page).cloned() else { return true };
    let (unit, entry) = w.slot(proc, &vma, page);
    let Some(entry) = entry else { return true };
    let Slot::Page(body) = entry.slot else { return true };
    if w.bodies[body].file.is_some() || w.mapcount(body) < 2 {
        return true;
    }
    if vma.is_hugetlb() && w.pool_spare(vma.unit) <= 0 {
        w.blur("an unshare without a free huge page");
        return false;
    }
    let copy = w.copy_body(body);
    w.bodies[copy].unshared = true;
    w.set_entry(proc, unit, Some(Entry { slot: Slot::Page(copy), wp: entry.wp }));
    true
}

fn expects(w: &World, proc: ProcId, pages: &[u64], start: u64, end: u64) -> Vec<Expect> {
    pages.iter().map(|page| expect_at(w, proc, *page, words_in(*page, start, end))).collect()
}

/// Bytes of [start, end) that lie before the end of the last reached page.
fn bytes_done(pages: &[u64], start: u64, end: u64) -> u64 {
    pages.last().map_or(0, |last| (last + PAGE).min(end) - start)
}

fn read(w: &mut World, cx: &Cx<'_>, proc: ProcId, at: Place, len: u64, pins: bool) -> Out {
    let (start, end) = (at.addr(), at.addr() + len);
    if len == 0 {
        return cx.only(G_READ, Want::Ok(0));
    }
    let (pages, stop) = reach(w, cx, proc, at, len, Access::Read)?;
    if w.blurred.is_some() {
        // The model lost its way under this very call.
        return Ok(());
    }
    if pins && !pages.iter().all(|page| unshare(w, proc, *page)) {
        // Which page the last huge page went to decides how far the call came.
        return Ok(());
    }
    if stop == Some(Touch::Blocks) {
        return waited(w, cx, G_READ);
    }
    let done = bytes_done(&pages, start, end);
    if done == 0 {
        return cx.errno(G_READ, EFAULT);
    }
    cx.only(G_READ, Want::Ok(done as i64))?;
    content(cx, &expects(w, proc, &pages, start, end))
}

/// Sectors of the RAM disk: transfers are refused or cut at this grain.
const SECTOR: u64 = 512;

fn direct_out(w: &mut World, cx: &Cx<'_>, at: Place, len: u64) -> Out {
    let (start, end) = (at.addr(), at.addr() + len);
    if !start.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        return cx.errno(G_READ, EINVAL);
    }
    if len == 0 {
        return cx.only(G_READ, Want::Ok(0));
    }
    let (pages, stop) = reach(w, cx, cx.proc, at, len, Access::Read)?;
    if w.blurred.is_some() {
        // The model lost its way under this very call.
        return Ok(());
    }
    if w.family == Family::U612 {
        // 6.12 pins for O_DIRECT, 6.1 takes plain references (G-014).
        if !pages.iter().all(|page| unshare(w, cx.proc, *page)) {
            return Ok(());
        }
    }
    if stop == Some(Touch::Blocks) {
        return waited(w, cx, G_READ);
    }
    let done = bytes_done(&pages, start, end);
    if done == 0 {
        return cx.errno(G_READ, EFAULT);
    }
    let wants = [Want::Ok(done as i64), Want::Err(EFAULT)];
    let allowed = if stop.is_some() { &wants[..] } else { &wants[..1] };
    if cx.pick(G_READ, allowed)? == 1 {
        return Ok(());
    }
    content(cx, &expects(w, cx.proc, &pages, start, end))
}

fn direct_in(w: &mut World, cx: &Cx<'_>, at: Place, len: u64) -> Out {
    let (start, end) = (at.addr(), at.addr() + len);
    if !start.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
        return cx.errno(G_READ, EINVAL);
    }
    if len == 0 {
        return cx.only(G_READ, Want::Ok(0));
    }
    let (pages, stop) = reach(w, cx, cx.proc, at, len, Access::Write)?;
    if w.blurred.is_some() {
        // The model lost its way under this very call.
        return Ok(());
    }
    if stop == Some(Touch::Blocks) {
        return waited(w, cx, G_READ);
    }
    let done = bytes_done(&pages, start, end);
    let mut wants = Vec::new();
    if done > 0 {
        wants.push(Want::Ok(done as i64));
    }
    if stop.is_some() {
        wants.push(Want::Err(EFAULT));
    }
    cx.pick(G_READ, &wants)?;
    if !matches!(cx.obs.status, Status::Ok(_)) {
        w.blur("an O_DIRECT read stopped in the middle");
        return Ok(());
    }
    for page in pages {
        arrive(w, cx, page, start, end);
    }
    Ok(())
}

/// The device's tags are in the page, its other bytes zero.
fn arrive(w: &mut World, cx: &Cx<'_>, page: u64, start: u64, end: u64) {
    let (Some(body), Some(place)) = (body_at(w, cx.proc, page), World::place(page)) else { return };
    let Some(vma) = w.vma_at(cx.proc, page) else { return };
    let sub = World::sub_page(vma, page);
    let tag = Word::Tag(Tag { serial: u32::from(cx.line) + 1, page: place.page() as u32 });
    let body = &mut w.bodies[body];
    let mut now = body.words(sub);
    for (i, word) in words_in(page, start, end).iter().enumerate() {
        if word.is_some() {
            now[i] = tag;
        }
    }
    body.lazy.clear();
    body.set(sub, now);
}
