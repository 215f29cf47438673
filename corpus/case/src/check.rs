//! Static sense of a program: what must hold before it may be sent to a guest. It says nothing
//! about what the kernel will answer, and objects need not exist: the agent skips those ops.

use crate::limits::*;
use crate::op::Op;
use crate::program::{Act, Program};
use crate::value::*;

/// Why a program may not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} ({op}): {why}")]
pub struct CheckError {
    /// Line number, from 0.
    pub line: u16,
    /// Name of the op, or `program` when it is about the whole.
    pub op: &'static str,
    pub why: String,
}

/// Largest value a knob may be set to: more would only starve the guest.
pub const KNOB_MAX: u32 = 512;
/// Largest n of `fail_nth`.
pub const FAIL_NTH_MAX: u32 = 1000;

/// Everything an op names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refs {
    /// Address ranges; those of length 0 included.
    pub at: Vec<(Place, u64)>,
    /// File ranges, offset and length; an op on the whole file has (0, 0).
    pub files: Vec<(FileId, u64, u64)>,
    pub uffds: Vec<UffdId>,
    pub procs: Vec<ProcId>,
    pub pins: Vec<PinId>,
}

/// What an op names; see [`Refs`].
pub fn refs(op: &Op) -> Refs {
    let mut refs = Refs::default();
    match op {
        Op::Memfd { file, .. }
        | Op::Hugetlbfs { file, .. }
        | Op::Fstat { file }
        | Op::Seal { file, .. }
        | Op::CloseFile { file } => refs.files.push((*file, 0, 0)),
        Op::Ftruncate { file, len } => refs.files.push((*file, 0, len.0)),
        Op::Fallocate { file, off, len, .. }
        | Op::Punch { file, off, len }
        | Op::Pread { file, off, len }
        | Op::Pwrite { file, off, len } => refs.files.push((*file, off.0, len.0)),
        Op::Mmap { at, len, from, .. } => {
            refs.at.push((*at, len.0));
            refs.files.extend(from.map(|f| (f.file, f.off, len.0)));
        }
        Op::Mremap { at, len, new, to, .. } => {
            refs.at.push((*at, len.0));
            refs.at.push((to.unwrap_or(*at), new.0));
        }
        Op::Munmap { at, len }
        | Op::Mprotect { at, len, .. }
        | Op::Mlock { at, len, .. }
        | Op::Munlock { at, len }
        | Op::Madvise { at, len, .. }
        | Op::Read { at, len }
        | Op::Write { at, len }
        | Op::MovePages { at, len, .. }
        | Op::Mbind { at, len, .. }
        | Op::Vmsplice { at, len }
        | Op::DirectIo { at, len, .. }
        | Op::GupTest { at, len, .. }
        | Op::Observe { at, len, .. } => refs.at.push((*at, len.0)),
        Op::Register { uffd, at, len, .. }
        | Op::Unregister { uffd, at, len }
        | Op::Continue { uffd, at, len, .. }
        | Op::Copy { uffd, at, len, .. }
        | Op::Zeropage { uffd, at, len, .. }
        | Op::WriteProtect { uffd, at, len, .. }
        | Op::UffdPoison { uffd, at, len, .. }
        | Op::Wake { uffd, at, len } => {
            refs.uffds.push(*uffd);
            refs.at.push((*at, len.0));
        }
        Op::Uffd { uffd, .. } | Op::CloseUffd { uffd } => refs.uffds.push(*uffd),
        Op::Fork { child } => refs.procs.push(*child),
        Op::VmRead { target, at, len } => {
            refs.procs.push(*target);
            refs.at.push((*at, len.0));
        }
        Op::Pin { pin, at, len, .. } => {
            refs.pins.push(*pin);
            refs.at.push((*at, len.0));
        }
        Op::Unpin { pin } => refs.pins.push(*pin),
        Op::Unpoison { at } => refs.at.push((*at, 0)),
        Op::Exit {}
        | Op::MigratePages { .. }
        | Op::SetMempolicy { .. }
        | Op::SetKnob { .. }
        | Op::FailNth { .. } => {}
    }
    refs
}

/// Whether `[at, at+len)` holds at least one whole tag word.
pub fn holds_tag_word(at: Place, len: u64) -> bool {
    let inside = at.off % PAGE;
    let ahead = match inside {
        0 => 0,
        n if n <= WORD_OFFSETS[1] => WORD_OFFSETS[1] - n,
        n => PAGE - n,
    };
    len >= ahead + 8
}

/// May the program be sent to a guest?
pub fn check(program: &Program) -> Result<(), CheckError> {
    check_size(program)?;
    let mut state = State::default();
    let mut line = 0u16;
    for step in &program.steps {
        match &step.act {
            Act::One(one) => {
                state.line(one.proc, &one.op).map_err(|why| wrong(line, &one.op, why))?;
                line += 1;
            }
            Act::Par(threads) => {
                for op in threads.iter().flatten() {
                    fits_par(op)
                        .and_then(|()| state.line(ProcId(0), op))
                        .map_err(|why| wrong(line, op, why))?;
                    line += 1;
                }
            }
        }
    }
    Ok(())
}

fn wrong(line: u16, op: &Op, why: String) -> CheckError {
    CheckError { line, op: op.kind().spec().name, why }
}

fn check_size(program: &Program) -> Result<(), CheckError> {
    let whole = |why: String| Err(CheckError { line: 0, op: "program", why });
    if program.steps.is_empty() {
        return whole("has no steps".into());
    }
    if program.steps.len() > STEPS_MAX {
        return whole(format!("{} steps, the cap is {STEPS_MAX}", program.steps.len()));
    }
    if program.lines() > LINES_MAX {
        return whole(format!("{} lines, the cap is {LINES_MAX}", program.lines()));
    }
    for step in &program.steps {
        let Act::Par(threads) = &step.act else { continue };
        if !(2..=PAR_THREADS_MAX).contains(&threads.len()) {
            return whole(format!("a par block of {} threads", threads.len()));
        }
        if threads.iter().any(|t| t.is_empty() || t.len() > PAR_OPS_MAX) {
            return whole(format!("a par thread without ops or with over {PAR_OPS_MAX}"));
        }
    }
    Ok(())
}

/// Ops that change who runs, what may block whom, or the whole machine stay out of `par`.
fn fits_par(op: &Op) -> Result<(), String> {
    match op {
        Op::Fork { .. }
        | Op::Exit {}
        | Op::Uffd { .. }
        | Op::CloseUffd { .. }
        | Op::Pin { .. }
        | Op::Unpin { .. }
        | Op::SetKnob { .. }
        | Op::FailNth { .. }
        | Op::Observe { .. } => Err("not allowed inside par".into()),
        _ => Ok(()),
    }
}

/// What is known of earlier lines.
#[derive(Default)]
struct State {
    /// Bit n: pN was forked (and, for `exited`, has ended).
    forked: u8,
    exited: u8,
    files: u8,
    uffds: u8,
    pins: u8,
}

fn bit(id: u8) -> u8 {
    1u8.checked_shl(id.into()).unwrap_or(0)
}

fn make_once(made: &mut u8, id: u8, name: &str) -> Result<(), String> {
    if *made & bit(id) != 0 {
        return Err(format!("{name}{id} is made twice"));
    }
    *made |= bit(id);
    Ok(())
}

impl State {
    fn line(&mut self, proc: ProcId, op: &Op) -> Result<(), String> {
        if proc.0 >= OBJECTS_MAX || (proc.0 != 0 && self.forked & bit(proc.0) == 0) {
            return Err(format!("{proc} was not forked before"));
        }
        if self.exited & bit(proc.0) != 0 {
            return Err(format!("{proc} has exited"));
        }
        let refs = refs(op);
        check_ids(&refs)?;
        check_ranges(&refs)?;
        check_sizes(op)?;
        match op {
            Op::Memfd { file, .. } | Op::Hugetlbfs { file, .. } => {
                make_once(&mut self.files, file.0, "f")
            }
            Op::Uffd { uffd, .. } => make_once(&mut self.uffds, uffd.0, "u"),
            Op::Pin { pin, .. } => make_once(&mut self.pins, pin.0, "g"),
            Op::Fork { child } if child.0 == 0 => Err("p0 is the first process".into()),
            Op::Fork { child } => make_once(&mut self.forked, child.0, "p"),
            Op::VmRead { target, .. } if target.0 != 0 && self.forked & bit(target.0) == 0 => {
                Err(format!("{target} was not forked before"))
            }
            Op::Exit {} if proc.0 == 0 => Err("p0 never exits".into()),
            Op::Exit {} => {
                self.exited |= bit(proc.0);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn check_ids(refs: &Refs) -> Result<(), String> {
    let ids = refs.at.iter().map(|(p, _)| p.region.0);
    let ids = ids.chain(refs.files.iter().map(|f| f.0.0));
    let ids = ids.chain(refs.uffds.iter().map(|u| u.0));
    let ids = ids.chain(refs.procs.iter().map(|p| p.0));
    let mut ids = ids.chain(refs.pins.iter().map(|p| p.0));
    match ids.find(|id| *id >= OBJECTS_MAX) {
        Some(id) => Err(format!("object number {id}, they end at {}", OBJECTS_MAX - 1)),
        None => Ok(()),
    }
}

fn check_ranges(refs: &Refs) -> Result<(), String> {
    for (at, len) in &refs.at {
        if at.off.checked_add(*len).is_none_or(|end| end > REGION_BYTES_MAX) {
            return Err(format!("{at} and {len} bytes leave the region"));
        }
    }
    for (file, off, len) in &refs.files {
        if off.checked_add(*len).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(format!("{file}: offset {off} and {len} bytes leave the largest file"));
        }
    }
    Ok(())
}

fn check_sizes(op: &Op) -> Result<(), String> {
    match op {
        Op::Read { at, len } | Op::Write { at, len } => {
            if !holds_tag_word(*at, len.0) {
                return Err("the range holds no tag word (8 bytes at 0 or 4088 of a page)".into());
            }
            access(len.0)
        }
        Op::Pread { len, .. }
        | Op::Pwrite { len, .. }
        | Op::Copy { len, .. }
        | Op::VmRead { len, .. }
        | Op::Vmsplice { len, .. }
        | Op::DirectIo { len, .. } => access(len.0),
        Op::MovePages { len, step, .. } => view(len.0.div_ceil(step.bytes())),
        Op::Observe { len, .. } => view(len.0.div_ceil(PAGE)),
        Op::Mremap { to: None, flags, .. } if flags.has(MremapFlags::FIXED) => {
            Err("fixed without to= would move the mapping to address 0".into())
        }
        Op::SetKnob { value, .. } if *value > KNOB_MAX => {
            Err(format!("value {value}, the cap is {KNOB_MAX}"))
        }
        Op::FailNth { nth } if !(1..=FAIL_NTH_MAX).contains(nth) => {
            Err(format!("nth={nth}, allowed are 1 to {FAIL_NTH_MAX}"))
        }
        _ => Ok(()),
    }
}

fn access(len: u64) -> Result<(), String> {
    if len > ACCESS_BYTES_MAX {
        return Err(format!("{len} bytes, the cap is {ACCESS_BYTES_MAX}"));
    }
    Ok(())
}

fn view(pages: u64) -> Result<(), String> {
    if pages > u64::from(VIEW_PAGES_MAX) {
        return Err(format!("{pages} pages, the cap is {VIEW_PAGES_MAX}"));
    }
    Ok(())
}
