//! `read` and `write`: loads and stores of the tag words, page by page.

use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::touch::{Access, Touch, touch};
use crate::world::{Entry, Slot, World};
use case::limits::{PAGE, WORD_OFFSETS};
use case::observation::{ContentRun, Output, Status, Word};
use case::{Expectation, Op, Place, ProcId, Tag};

/// Faults answered one by one that may outlast the op timeout on a slow machine.
const ANSWERS_MANY: usize = 64;

/// One page of a predicted content list: its words, and whether each may also read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    pub words: [Word; 2],
    /// MADV_FREE'd: zero is as good.
    pub or_zero: bool,
    /// Not known to the model.
    pub any: bool,
}

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::Read { at, len } => read(w, cx, *at, len.0),
        Op::Write { at, len } => write(w, cx, *at, len.0),
        _ => Ok(()),
    }
}

/// Addresses of the tag words of one page that lie wholly inside [start, end).
pub fn words_in(page: u64, start: u64, end: u64) -> [Option<u64>; 2] {
    WORD_OFFSETS.map(|off| Some(page + off).filter(|at| *at >= start && *at + 8 <= end))
}

/// The outcome of a run of touches as a user thread sees it.
fn outcome(w: &mut World, cx: &Cx<'_>, stop: Option<(Touch, u64)>) -> Out {
    let slow = w.expected_events.len() > ANSWERS_MANY;
    if slow && cx.obs.status == Status::Timeout {
        w.blur("an op ran out of time while its faults were answered");
        return Ok(());
    }
    let Some((touch, addr)) = stop else { return cx.only(F_COMPLETES, Want::OkAny) };
    match touch {
        Touch::Done => cx.only(F_COMPLETES, Want::OkAny),
        Touch::Blocks => cx.only(F_WAIT, Want::Blocks),
        Touch::Fault { signo, code, lsb } => {
            let rule = match (signo, code) {
                (11, _) => F_SEGV,
                (_, 4) => F_POISON,
                _ => F_EOF,
            };
            let at = Place::of_addr(addr);
            cx.only(rule, Want::Signal { signo, code, at, lsb })
        }
    }
}

fn read(w: &mut World, cx: &Cx<'_>, at: Place, len: u64) -> Out {
    let (start, end) = (at.addr(), at.addr() + len);
    let mut expected = Vec::new();
    let mut stop = None;
    let mut page = start - start % PAGE;
    while page < end {
        let words = words_in(page, start, end);
        match words.iter().flatten().next().copied() {
            // A page whose words lie outside the range is listed, but not touched.
            None => expected.push(Expect { words: [Word::Unread; 2], or_zero: false, any: false }),
            Some(first) => match touch(w, cx, cx.proc, first, Access::Read)? {
                Touch::Done => expected.push(expect_at(w, cx.proc, page, words)),
                other => {
                    stop = Some((other, first));
                    break;
                }
            },
        }
        page += PAGE;
    }
    outcome(w, cx, stop)?;
    if w.blurred.is_some() {
        return Ok(());
    }
    content(cx, &expected)?;
    settle_lazy(w, cx, start, end);
    Ok(())
}

/// What a mapped page must read as; words outside the range are `Unread`.
pub fn expect_at(w: &World, proc: ProcId, page: u64, words: [Option<u64>; 2]) -> Expect {
    let mut expect = Expect { words: [Word::Unread; 2], or_zero: false, any: false };
    let Some(vma) = w.vma_at(proc, page) else { return expect };
    let (_, entry) = w.slot(proc, vma, page);
    let full = match entry.map(|e| e.slot) {
        Some(Slot::Page(body)) => {
            let body = &w.bodies[body];
            expect.or_zero = body.lazy.contains(&proc);
            let sub = World::sub_page(vma, page);
            expect.any = body.vague.contains(&sub);
            body.words(sub)
        }
        _ => [Word::Zero; 2],
    };
    for (i, word) in words.iter().enumerate() {
        if word.is_some() {
            expect.words[i] = full[i];
        }
    }
    expect
}

/// Runs as they were read, page by page.
pub fn expand(runs: &[ContentRun]) -> impl Iterator<Item = [Word; 2]> + '_ {
    runs.iter().flat_map(|run| {
        (0..run.pages).map(move |n| {
            [run.head, run.tail].map(|word| match word {
                Word::Tag(t) => Word::Tag(Tag { page: t.page.wrapping_add(n), ..t }),
                other => other,
            })
        })
    })
}

/// Observed content must be what the model predicts, page by page.
pub fn content(cx: &Cx<'_>, expected: &[Expect]) -> Out {
    let Output::Content(runs) = &cx.obs.out else {
        if expected.is_empty() || !cx.ok() {
            return Ok(());
        }
        return Err(cx.broken(F_CONTENT, "no-content", "content of each page", "none"));
    };
    let pages: u64 = runs.iter().map(|r| u64::from(r.pages)).sum();
    if pages != expected.len() as u64 {
        let (want, got) = (expected.len(), pages);
        return Err(cx.broken(
            F_CONTENT,
            "length",
            format!("{want} pages"),
            format!("{got} pages"),
        ));
    }
    for (n, (got, want)) in expand(runs).zip(expected).enumerate() {
        for (i, which) in ["first", "last"].iter().enumerate() {
            let fits =
                want.any || got[i] == want.words[i] || (want.or_zero && got[i] == Word::Zero);
            if !fits {
                let class = format!("{}->{}", word_class(want.words[i]), word_class(got[i]));
                let text = word_text(want.words[i]);
                let text = format!("page {n} of the range, {which} word: {text}");
                let mut wanted = vec![want.words[i]];
                wanted.extend(want.or_zero.then_some(Word::Zero));
                let (page, word) = (n as u32, i as u8);
                let broken = cx.broken(F_CONTENT, &class, text, word_text(got[i]));
                return Err(broken.expecting(Expectation::Content { page, word, wanted }));
            }
        }
    }
    Ok(())
}

fn word_class(word: Word) -> &'static str {
    match word {
        Word::Unread => "unread",
        Word::Zero => "zero",
        Word::Tag(_) => "tag",
    }
}

fn word_text(word: Word) -> String {
    match word {
        Word::Unread => "not read".into(),
        Word::Zero => "zero".into(),
        Word::Tag(t) => format!("tag of serial {:#x} page {}", t.serial, t.page),
    }
}

/// A page MADV_FREE gave up that read as zero stays zero.
fn settle_lazy(w: &mut World, cx: &Cx<'_>, start: u64, end: u64) {
    let Output::Content(runs) = &cx.obs.out else { return };
    let mut page = start - start % PAGE;
    for got in expand(runs) {
        if page >= end {
            break;
        }
        if let Some(body) = body_at(w, cx.proc, page) {
            let vma = w.vma_at(cx.proc, page);
            let sub = vma.map_or(0, |v| World::sub_page(v, page));
            let had = w.bodies[body].words(sub);
            let gone = |i: usize| got[i] == Word::Zero && had[i] != Word::Zero;
            let lost = w.bodies[body].lazy.contains(&cx.proc) && (gone(0) || gone(1));
            if lost && w.mapcount(body) > 1 {
                // Whoever else maps it has it still.
                let unsure = Entry { slot: Slot::Unsure, wp: false };
                w.set_entry(cx.proc, page, Some(unsure));
            } else if lost {
                w.bodies[body].words.clear();
            }
        }
        page += PAGE;
    }
}

/// The page mapped at an address.
pub fn body_at(w: &World, proc: ProcId, addr: u64) -> Option<usize> {
    let vma = w.vma_at(proc, addr)?;
    match w.slot(proc, vma, addr).1?.slot {
        Slot::Page(body) => Some(body),
        _ => None,
    }
}

fn write(w: &mut World, cx: &Cx<'_>, at: Place, len: u64) -> Out {
    let (start, end) = (at.addr(), at.addr() + len);
    let mut stop = None;
    let mut page = start - start % PAGE;
    while page < end {
        let words = words_in(page, start, end);
        if let Some(first) = words.iter().flatten().next().copied() {
            match touch(w, cx, cx.proc, first, Access::Write)? {
                Touch::Done => store(w, cx, page, words),
                other => {
                    stop = Some((other, first));
                    break;
                }
            }
        }
        page += PAGE;
    }
    outcome(w, cx, stop)
}

/// Puts the line's tag into the words of a page.
fn store(w: &mut World, cx: &Cx<'_>, page: u64, words: [Option<u64>; 2]) {
    let Some(body) = body_at(w, cx.proc, page) else { return };
    let Some(vma) = w.vma_at(cx.proc, page) else { return };
    let sub = World::sub_page(vma, page);
    let Some(place) = World::place(page) else { return };
    let tag = Word::Tag(Tag { serial: u32::from(cx.line) + 1, page: place.page() as u32 });
    let body = &mut w.bodies[body];
    let mut now = body.words(sub);
    for (i, word) in words.iter().enumerate() {
        if word.is_some() {
            now[i] = tag;
        }
    }
    body.lazy.clear();
    body.set(sub, now);
    if words.iter().all(Option::is_some) {
        body.vague.remove(&sub);
    }
}
