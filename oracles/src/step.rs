//! One line against the model: what a rule allows ([`Want`]), what was seen, and the violation
//! when nothing fits. Ops yield the set of allowed outcomes; the observed one picks.

use crate::rules::{
    F_CONTENT, F_EOF, F_WAIT, H007, H010, H020, H040, RuleRef, U_CONTINUE, U_COPY, U_ZERO,
};
use crate::world::{Vma, World};
use case::expect::Wanted;
use case::limits::PAGE;
use case::observation::{LineObs, SignalSeen, Spot, Status, View, Word};
use case::program::HANDLER_SERIAL;
use case::{Expectation, Op, OpKind, PageSize, Place, ProcId, UffdModes, Violation};
use std::cell::RefCell;

/// `Err` is boxed: it is large and rare.
pub type Out<T = ()> = Result<T, Box<Violation>>;

/// One outcome a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Ok(i64),
    /// Success with any value.
    OkAny,
    /// Success with a value in the closed range.
    OkIn(i64, i64),
    Err(i32),
    /// Never returns by itself; the op timeout breaks it off.
    Blocks,
    /// SIGBUS or SIGSEGV with this si_code at exactly this address; `lsb` only for MCEERR codes.
    Signal {
        signo: u8,
        code: i32,
        at: Option<Place>,
        lsb: u8,
    },
}

/// What the judge notes of a line for people: rules consulted and the allowed set.
#[derive(Clone, Debug, Default)]
pub struct LineNote {
    pub rules: Vec<&'static str>,
    pub expected: String,
}

/// One line under judgement.
#[derive(Debug)]
pub struct Cx<'a> {
    pub line: u16,
    pub proc: ProcId,
    pub op: &'a Op,
    pub obs: &'a LineObs,
    /// Inside a `par` block: events belong to no line, transient errnos are legal.
    pub racing: bool,
    pub note: RefCell<LineNote>,
}

/// Name of an errno, for messages and signature classes.
pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        1 => "EPERM",
        2 => "ENOENT",
        3 => "ESRCH",
        4 => "EINTR",
        5 => "EIO",
        6 => "ENXIO",
        7 => "E2BIG",
        9 => "EBADF",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        14 => "EFAULT",
        16 => "EBUSY",
        17 => "EEXIST",
        19 => "ENODEV",
        22 => "EINVAL",
        24 => "EMFILE",
        25 => "ENOTTY",
        26 => "ETXTBSY",
        27 => "EFBIG",
        28 => "ENOSPC",
        38 => "ENOSYS",
        75 => "EOVERFLOW",
        95 => "EOPNOTSUPP",
        133 => "EHWPOISON",
        n => return format!("errno {n}"),
    };
    name.to_owned()
}

fn signal_name(signo: u8, code: i32) -> String {
    let code = match (signo, code) {
        (7, 2) => "BUS_ADRERR".into(),
        (7, 4) => "BUS_MCEERR_AR".into(),
        (7, 5) => "BUS_MCEERR_AO".into(),
        (11, 1) => "SEGV_MAPERR".into(),
        (11, 2) => "SEGV_ACCERR".into(),
        (_, n) => format!("code {n}"),
    };
    match signo {
        7 => format!("SIGBUS {code}"),
        11 => format!("SIGSEGV {code}"),
        n => format!("signal {n} {code}"),
    }
}

/// "SIGBUS BUS_ADRERR at r0+2M".
pub fn signal_text(s: &SignalSeen) -> String {
    let at = match s.at {
        Spot::In(place) => place.to_string(),
        Spot::Outside(low) => format!("outside the arena (..{low:03x})"),
    };
    let lsb = if s.lsb == 0 { String::new() } else { format!(" lsb {}", s.lsb) };
    format!("{} at {at}{lsb}", signal_name(s.signo, s.code))
}

/// A status for people.
pub fn status_text(status: &Status) -> String {
    match status {
        Status::Ok(n) => format!("ok {n}"),
        Status::Err(e) => errno_name(i32::from(*e)),
        Status::Signal(s) => signal_text(s),
        Status::Timeout => "did not return".into(),
        Status::Skipped(why) => format!("skipped ({why:?})"),
    }
}

/// A status without numbers, for signatures.
pub fn status_class(status: &Status) -> String {
    match status {
        Status::Ok(_) => "ok".into(),
        Status::Err(e) => errno_name(i32::from(*e)),
        Status::Signal(s) => signal_name(s.signo, s.code),
        Status::Timeout => "hang".into(),
        Status::Skipped(_) => "skipped".into(),
    }
}

impl Want {
    pub fn fits(&self, status: &Status) -> bool {
        match (self, status) {
            (Want::Ok(want), Status::Ok(got)) => want == got,
            (Want::OkAny, Status::Ok(_)) => true,
            (Want::OkIn(low, high), Status::Ok(got)) => (low..=high).contains(&got),
            (Want::Err(want), Status::Err(got)) => *want == i32::from(*got),
            (Want::Blocks, Status::Timeout) => true,
            (Want::Signal { signo, code, at, lsb }, Status::Signal(s)) => {
                let place_ok = match (at, s.at) {
                    (None, _) => true,
                    (Some(want), Spot::In(got)) => *want == got,
                    (Some(_), Spot::Outside(_)) => false,
                };
                *signo == s.signo && *code == s.code && place_ok && *lsb == s.lsb
            }
            _ => false,
        }
    }
    fn text(&self) -> String {
        match self {
            Want::Ok(n) => format!("ok {n}"),
            Want::OkAny => "ok".into(),
            Want::OkIn(low, high) => format!("ok {low}..={high}"),
            Want::Err(e) => errno_name(*e),
            Want::Blocks => "waits for ever".into(),
            Want::Signal { signo, code, at, lsb } => {
                let at = at.map(|p| format!(" at {p}")).unwrap_or_default();
                let lsb = if *lsb == 0 { String::new() } else { format!(" lsb {lsb}") };
                format!("{}{at}{lsb}", signal_name(*signo, *code))
            }
        }
    }
    /// The same as data for a violation.
    fn data(&self) -> Wanted {
        match *self {
            Want::Ok(n) => Wanted::Ok(n, n),
            Want::OkAny => Expectation::ANY_OK,
            Want::OkIn(low, high) => Wanted::Ok(low, high),
            Want::Err(errno) => Wanted::Err(errno),
            Want::Blocks => Wanted::Blocks,
            Want::Signal { signo, code, at, lsb } => Wanted::Signal { signo, code, at, lsb },
        }
    }
    fn class(&self) -> String {
        match self {
            Want::Ok(_) | Want::OkAny | Want::OkIn(..) => "ok".into(),
            Want::Err(e) => errno_name(*e),
            Want::Blocks => "wait".into(),
            Want::Signal { signo, code, .. } => signal_name(*signo, *code),
        }
    }
}

impl Cx<'_> {
    /// The status must be one of `wants`; returns the index of the first that fits.
    pub fn pick(&self, rule: RuleRef, wants: &[Want]) -> Out<usize> {
        let expected = wants.iter().map(Want::text).collect::<Vec<_>>().join(" or ");
        {
            let mut note = self.note.borrow_mut();
            note.rules.push(rule.id);
            note.expected.clone_from(&expected);
        }
        if let Some(index) = wants.iter().position(|w| w.fits(&self.obs.status)) {
            return Ok(index);
        }
        let classes = wants.iter().map(Want::class).collect::<Vec<_>>().join("|");
        let class = format!("{classes}->{}", status_class(&self.obs.status));
        let broken = self.broken(rule, &class, expected, status_text(&self.obs.status));
        Err(broken.expecting(Expectation::Outcome(wants.iter().map(Want::data).collect())))
    }
    /// The status must be exactly this.
    pub fn only(&self, rule: RuleRef, want: Want) -> Out {
        self.pick(rule, &[want]).map(|_| ())
    }
    /// The status must be this errno.
    pub fn errno(&self, rule: RuleRef, errno: i32) -> Out {
        self.only(rule, Want::Err(errno))
    }
    /// True if the op succeeded.
    pub fn ok(&self) -> bool {
        matches!(self.obs.status, Status::Ok(_))
    }
    /// True if the op was never issued: nothing to judge, nothing changed.
    pub fn skipped(&self) -> bool {
        matches!(self.obs.status, Status::Skipped(_))
    }
    pub fn kind(&self) -> OpKind {
        self.op.kind()
    }
    /// A violation of `rule` at this line. `class` names the sort of state and outcome and must
    /// hold no numbers: with rule and op it is the signature.
    pub fn broken(
        &self,
        rule: RuleRef,
        class: &str,
        expected: impl Into<String>,
        observed: impl Into<String>,
    ) -> Box<Violation> {
        Box::new(Violation {
            rule: rule.id.to_owned(),
            line: self.line,
            op: self.op.kind().spec().name.to_owned(),
            class: class.to_owned(),
            expected: format!("{} [{}: {}]", expected.into(), rule.id, rule.text),
            observed: observed.into(),
            expectation: None,
        })
    }
}

/// Judges one line and moves the world on. Ops live in `ops`, one file per family.
pub fn step(w: &mut World, cx: &Cx<'_>) -> Out {
    if cx.skipped() {
        return Ok(());
    }
    if w.kept_whole && !collapses(cx.op) {
        w.blur("a hole in a huge page that a pin keeps whole");
    }
    by_family(w, cx).or_else(|mut broken| {
        if cx.obs.status == Status::Timeout && maps_giants(w, cx.proc) {
            // Clearing 1 GiB takes an emulated machine seconds, a busy one more than any time-out.
            // A hang that no signal ends is seen by the agent.
            w.blur("an op of a process with pages of 1 GiB took longer than its time");
            return Ok(());
        }
        if w.sealed_file && SIZE_RULES.contains(&broken.rule.as_str()) {
            broken.class.push_str(":sealed-file");
        }
        if w.collapse_refused && finds_filled(&broken) {
            broken.class.push_str(":collapsed");
        }
        if finds_unmapped(w, cx, &broken) {
            broken.class.push_str(":head-punched");
        }
        if w.wp_forked && cx.proc != ProcId(0) && broken.class.ends_with("->hang") {
            broken.class.push_str(":wp-forked");
        }
        Err(broken)
    })
}

/// What goes by the size of a page and by who pins it, not by what is cached.
fn collapses(op: &Op) -> bool {
    matches!(op, Op::Madvise { advice: case::Advice::Collapse, .. })
}

/// Is this what one sees where a page is that nobody should have filled: nothing left to fill, no
/// wait, zeros where a handler's page should be?
fn finds_filled(broken: &Violation) -> bool {
    let answer = |word: &Word| matches!(word, Word::Tag(tag) if tag.serial >= HANDLER_SERIAL);
    match (broken.rule.as_str(), broken.class.as_str()) {
        (rule, "ok->EEXIST" | "EAGAIN->EEXIST") => [U_COPY.id, U_ZERO.id].contains(&rule),
        (rule, "wait->ok") => rule == F_WAIT.id,
        (rule, "tag->zero") => {
            let wanted = match &broken.expectation {
                Some(Expectation::Content { wanted, .. }) => wanted.as_slice(),
                _ => &[],
            };
            rule == F_CONTENT.id && wanted.iter().all(answer)
        }
        (rule, _) => rule == U_CONTINUE.id,
    }
}

/// Is this what one meets where a punch at the start of the file unmapped all of it (D-09): room for
/// CONTINUE, and minor faults that somebody may never answer?
fn finds_unmapped(w: &World, cx: &Cx<'_>, broken: &Violation) -> bool {
    let (Op::Continue { at, len, .. }
    | Op::Read { at, len }
    | Op::Write { at, len }
    | Op::Mlock { at, len, .. }
    | Op::Madvise { at, len, .. }
    | Op::Pin { at, len, .. }) = cx.op
    else {
        return false;
    };
    let vmas = w.vmas_in(cx.proc, at.addr(), at.addr() + len.0);
    let minor = |vma: &Vma| w.head_punched(vma) && vma.armed(UffdModes::MINOR);
    match broken.class.as_str() {
        "EEXIST->ok" => broken.rule == U_CONTINUE.id && vmas.iter().any(|vma| w.head_punched(vma)),
        "ok->hang" | "ok->EFAULT" => vmas.iter().any(minor),
        _ => false,
    }
}

fn maps_giants(w: &World, proc: ProcId) -> bool {
    w.proc(proc).is_some_and(|p| p.vmas.values().any(|vma| vma.unit == PageSize::Huge1G))
}

/// Rules whose outcome hangs on the size of a file.
const SIZE_RULES: [&str; 5] = [H007.id, H010.id, H020.id, H040.id, F_EOF.id];

fn by_family(w: &mut World, cx: &Cx<'_>) -> Out {
    use OpKind as K;
    match cx.kind() {
        K::Memfd
        | K::Hugetlbfs
        | K::Ftruncate
        | K::Fallocate
        | K::Punch
        | K::Pread
        | K::Pwrite
        | K::Fstat
        | K::Seal
        | K::CloseFile => crate::ops::file::step(w, cx),
        K::Mmap | K::Munmap | K::Mremap | K::Mprotect | K::Mlock | K::Munlock => {
            crate::ops::mapping::step(w, cx)
        }
        K::Madvise => crate::ops::advice::step(w, cx),
        K::Uffd
        | K::Register
        | K::Unregister
        | K::Continue
        | K::Copy
        | K::Zeropage
        | K::WriteProtect
        | K::UffdPoison
        | K::Wake
        | K::CloseUffd => crate::ops::uffd::step(w, cx),
        K::Read | K::Write => crate::ops::access::step(w, cx),
        K::Fork | K::Exit => crate::ops::process::step(w, cx),
        K::MovePages
        | K::Mbind
        | K::MigratePages
        | K::SetMempolicy
        | K::VmRead
        | K::Vmsplice
        | K::DirectIo
        | K::Pin
        | K::Unpin
        | K::GupTest => crate::ops::migrate::step(w, cx),
        K::Unpoison | K::SetKnob | K::FailNth | K::Observe => crate::ops::system::step(w, cx),
    }
}

/// pagemap bits of an address in a look taken after the op, if one covers it.
pub fn seen_bits(cx: &Cx<'_>, proc: ProcId, addr: u64) -> Option<u8> {
    cx.obs.views.iter().find_map(|view| {
        let View::Pages { proc: p, at, runs } = view else { return None };
        let mut index = addr.checked_sub(at.addr())? / PAGE;
        if *p != proc {
            return None;
        }
        for run in runs {
            if index < u64::from(run.pages) {
                return Some(run.bits);
            }
            index -= u64::from(run.pages);
        }
        None
    })
}
