//! fork and exit: what the child inherits and what goes away with it.

use crate::errno::ENOMEM;
use crate::mutants::Mutant;
use crate::rules::*;
use crate::step::{Cx, Out, Want};
use crate::world::{AnonVma, Backing, Entry, ExpectedEvent, Proc, Slot, Vma, World};
use case::observation::{Spot, event};
use case::{Op, Place, Policy, ProcId, UffdFeatures, UffdId, UffdModes};
use std::collections::BTreeSet;

pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    match cx.op {
        Op::Fork { child } => fork(w, cx, *child),
        Op::Exit {} => exit(w, cx),
        _ => Ok(()),
    }
}

/// Userfaultfds whose EVENT_FORK covers a mapping of the process.
fn announced(w: &World, proc: ProcId) -> BTreeSet<UffdId> {
    let Some(p) = w.proc(proc) else { return BTreeSet::new() };
    let registered = p.vmas.values().filter(|v| !v.flags.dontfork).filter_map(|v| v.uffd);
    registered.map(|(id, _)| id).filter(|id| keeps_registration(w, proc, *id)).collect()
}

fn keeps_registration(w: &World, proc: ProcId, uffd: UffdId) -> bool {
    let event = |u: &crate::world::Uffd| u.features.has(UffdFeatures::EVENT_FORK);
    proc == ProcId(0) && w.uffds.get(&uffd).is_some_and(event)
}

fn fork(w: &mut World, cx: &Cx<'_>, child: ProcId) -> Out {
    let told = announced(w, cx.proc);
    let childs_own = cx.proc != ProcId(0)
        && w.proc(cx.proc).is_some_and(|p| p.vmas.values().any(|v| v.uffd.is_some()));
    let unheard = childs_own
        || told.iter().any(|id| w.uffds.get(id).is_some_and(|u| u.policy == Policy::None));
    if unheard {
        // The child waits unseen for a reader that never comes.
        w.blur("fork waits for a reader of its event");
        return cx.only(P_FORK_EVENT, Want::Blocks);
    }
    let mut wants = vec![Want::OkAny];
    if !w.pins.is_empty() {
        // A pinned private huge page is copied at once, with a page nobody reserved (F-010).
        wants.push(Want::Err(ENOMEM));
    }
    if cx.pick(P_FORK, &wants)? == 1 {
        return Ok(());
    }
    let at = Place::new(0, 0);
    for uffd in told {
        let expected =
            ExpectedEvent { uffd, event: event::FORK, flags: 0, at, to: Spot::In(at), len: 0 };
        w.expected_events.push(expected);
    }
    let Some(parent) = w.proc(cx.proc).cloned() else { return Ok(()) };
    w.forked = true;
    w.procs.insert(child, Proc::default());
    w.own_tables.remove(&child);
    for vma in parent.vmas.values() {
        copy_vma(w, cx.proc, child, &parent, vma);
    }
    Ok(())
}

fn copy_vma(w: &mut World, from: ProcId, child: ProcId, parent: &Proc, vma: &Vma) {
    if vma.flags.dontfork && !w.mutated(Mutant::DontforkIgnored) {
        return;
    }
    let mut copy = vma.clone();
    copy.flags.locked = false;
    copy.flags.onfault = false;
    copy.resv = None;
    copy.starved = false;
    copy.uffd = vma.uffd.filter(|(id, _)| keeps_registration(w, from, *id));
    let keeps_wp = copy.armed(UffdModes::WP) || w.mutated(Mutant::ForkKeepsWp);
    let wiped = vma.flags.wipeonfork && !w.mutated(Mutant::WipeIgnored);
    let copied = !wiped && (vma.anon_vma == AnonVma::Yes || copy.armed(UffdModes::WP));
    let perhaps = !copied && !wiped && vma.anon_vma == AnonVma::Perhaps;
    if wiped {
        copy.anon_vma = AnonVma::No;
    }
    if let Some(p) = w.proc_mut(child) {
        p.vmas.insert(copy.start, copy.clone());
    }
    if perhaps || !copied && !wiped && vma.backing == Backing::Anon {
        // A huge zero page makes the kernel prepare for anonymous pages, so fork copies the
        // tables; 4 KiB zero pages do not. Which it was is the kernel's choice, and so is whether
        // a neighbour with anonymous pages is part of the same mapping (V-030).
        let there =
            parent.entries.range(vma.start..vma.end).filter(|(_, e)| e.slot != Slot::Marker);
        for at in there.map(|(at, _)| *at) {
            w.set_entry(child, at, Some(Entry { slot: Slot::Unsure, wp: false }));
        }
    }
    if !copied {
        return;
    }
    for (at, entry) in parent.entries.range(vma.start..vma.end) {
        w.wp_forked |= vma.is_hugetlb() && vma.is_private() && entry.wp && !keeps_wp;
        // What is mapped in pieces is copied in the same pieces; an empty table is not.
        let size = w.node(from, vma, *at).size;
        w.make_tables(child, &copy, *at, size);
        let Some(entry) = copy_entry(w, *entry, keeps_wp) else { continue };
        w.set_entry(child, *at, Some(entry));
        if let Slot::Page(body) = entry.slot
            && w.bodies[body].lazy.contains(&from)
        {
            w.bodies[body].lazy.insert(child);
        }
    }
}

/// What the child gets for an entry of the parent (F-002); a pinned page is copied at once.
fn copy_entry(w: &mut World, entry: Entry, keeps_wp: bool) -> Option<Entry> {
    let wp = entry.wp && keeps_wp;
    let slot = match entry.slot {
        Slot::Marker if !keeps_wp => return None,
        Slot::Page(body) if w.bodies[body].file.is_none() && pinned(w, body) => {
            Slot::Page(w.copy_body(body))
        }
        Slot::Page(body) if near_a_pin(w, body) => {
            // A pin of any part of a THP may have all of it copied (F-007).
            let copy = w.copy_body(body);
            w.bodies[body].loose = true;
            w.bodies[copy].loose = true;
            Slot::Page(copy)
        }
        slot => slot,
    };
    Some(Entry { slot, wp })
}

fn pinned(w: &World, body: usize) -> bool {
    w.pins.values().any(|bodies| bodies.contains(&body))
}

/// An anonymous base page that may lie in the THP of a pinned one.
fn near_a_pin(w: &World, body: usize) -> bool {
    let page = &w.bodies[body];
    page.file.is_none() && !page.size.is_huge() && !w.pins.is_empty()
}

fn exit(w: &mut World, cx: &Cx<'_>) -> Out {
    cx.only(P_EXIT, Want::OkAny)?;
    w.procs.remove(&cx.proc);
    // The next process of that name freed nothing yet.
    for body in &mut w.bodies {
        body.lazy.remove(&cx.proc);
    }
    let (pins, owner) = (&mut w.pins, &w.pin_owner);
    pins.retain(|id, _| owner.get(id) != Some(&cx.proc));
    Ok(())
}
