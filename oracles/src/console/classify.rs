//! Which line opens a report, and of what class. One table; harmless lines fall through it.

use super::Class;
use super::Class::*;
use regex::bytes::Regex;
use std::sync::LazyLock;

/// A line without any of these opens nothing: the fast pass over ordinary text.
pub static TRIGGER: LazyLock<Regex> = LazyLock::new(|| {
    let words = [
        "BUG",
        "WARNING: ",
        "INFO: ",
        "general protection fault",
        "stack segment: ",
        "Kernel panic",
        "double fault",
        "divide error",
        "invalid opcode",
        "int3: ",
        "UBSAN: ",
        "list_add ",
        "list_del ",
        "refcount_t: ",
        "hard LOCKUP",
        "oom-killer",
        "kmemleak: ",
        "Oops",
        "unreferenced object",
        "Unable to handle kernel",
        ": bad p",
        "Bad swap ",
        "Unused swap ",
        "kernel stack overflow",
    ];
    match Regex::new(&words.join("|")) {
        Ok(regex) => regex,
        Err(e) => unreachable!("constant pattern: {e}"),
    }
});

/// Subsystem prefixes that may stand before the words a row looks for.
const SUBSYSTEMS: &[&str] =
    &["watchdog: ", "NMI watchdog: ", "rcu: ", "traps: ", "Oops: ", "[ ", "kfence: "];

/// Rows tried in order: how the message starts, what it must also hold, its class.
const ROWS: &[(&str, &str, Class)] = &[
    ("BUG: KASAN: ", "", Kasan),
    ("BUG: KFENCE: ", "", Kfence),
    ("BUG: KCSAN: ", "", Kcsan),
    ("BUG: KMSAN: ", "", Kmsan),
    ("BUG: ", "stack guard page was hit", StackOverflow),
    ("BUG: unable to handle ", "", PageFault),
    ("BUG: kernel NULL pointer dereference", "", PageFault),
    ("BUG: soft lockup", "", SoftLockup),
    ("BUG: workqueue lockup", "", WorkqueueLockup),
    ("BUG: sleeping function called", "", SleepInAtomic),
    ("BUG: scheduling while atomic", "", SleepInAtomic),
    ("BUG: using ", "in preemptible", SleepInAtomic),
    ("BUG: Bad rss-counter state", "", BadRss),
    ("BUG: Bad page state", "", BadPage),
    ("BUG: Bad page cache", "", BadPage),
    ("BUG: Bad page map", "", BadPageMap),
    ("BUG: non-zero pgtables_bytes", "", NonZeroPgtables),
    ("BUG: non-zero nr_p", "", NonZeroPgtables),
    ("BUG: Invalid wait context", "", LockdepWaitContext),
    ("BUG: MAX_", "too low", LockdepOther),
    ("BUG: key ", "", LockdepOther),
    ("BUG: looking up invalid subclass", "", LockdepOther),
    ("BUG: spinlock ", "", SpinlockDebug),
    ("BUG: rwlock ", "", SpinlockDebug),
    ("BUG: memory leak", "", MemLeak),
    ("BUG: ", "", Bug),
    ("BUG ", "ainted", SlabCorruption),
    ("kernel BUG at ", "page_table_check.c", PageTableCheck),
    ("kernel BUG at ", "list_debug.c", ListCorruption),
    ("kernel BUG at ", "", Bug),
    ("WARNING: CPU: ", "page_table_check.c", PageTableCheck),
    ("WARNING: CPU: ", " at ", Warn),
    ("WARNING: possible circular locking", "", LockdepCircular),
    ("WARNING: possible recursive locking", "", LockdepRecursive),
    ("WARNING: inconsistent lock state", "", LockdepInconsistent),
    ("WARNING: possible irq lock inversion", "", LockdepInversion),
    ("WARNING: ", "-unsafe lock order detected", LockdepInversion),
    ("WARNING: bad unlock balance", "", LockdepUnlockBalance),
    ("WARNING: bad contention detected", "", LockdepUnlockBalance),
    ("WARNING: held lock freed", "", LockdepHeldFreed),
    ("WARNING: lock held when returning", "", LockdepHeldUser),
    ("WARNING: ", "still has locks held!", LockdepHeldUser),
    ("WARNING: suspicious RCU usage", "", LockdepRcu),
    ("WARNING: Nested lock was not taken", "", LockdepOther),
    ("WARNING: possible bad ", "", LockdepOther),
    ("WARNING: ", ", CPU#", Warn),
    ("INFO: trying to register non-static key", "", LockdepOther),
    ("INFO: task ", "blocked for more than", HungTask),
    ("INFO: task ", "can't die for more than", HungTask),
    ("INFO: rcu_", "detected stall", RcuStall),
    ("INFO: rcu_", "detected expedited stall", RcuStall),
    ("INFO: rcu_", "self-detected stall", RcuStall),
    ("Watchdog detected hard LOCKUP", "", HardLockup),
    ("general protection fault, ", "", Gpf),
    ("general protection fault: ", "", Gpf),
    ("stack segment: ", "", Gpf),
    ("PANIC: double fault", "", DoubleFault),
    ("double fault: ", "", DoubleFault),
    ("kernel stack overflow", "", StackOverflow),
    ("divide error: ", "", Oops),
    ("invalid opcode: ", "", Oops),
    ("int3: ", "", Oops),
    ("Unable to handle kernel ", "", PageFault),
    ("UBSAN: ", " in ", Ubsan),
    ("list_add corruption", "", ListCorruption),
    ("list_add double add", "", ListCorruption),
    ("list_del corruption", "", ListCorruption),
    ("refcount_t: ", "", Refcount),
    ("kmemleak: ", "new suspected memory leaks", MemLeak),
    ("unreferenced object 0x", "", MemLeak),
    ("Kernel panic - not syncing", "", Panic),
];

/// Class of the report that this message opens, and the message from where its row matched.
pub fn classify(text: &str) -> Option<(Class, &str)> {
    let whole = text.trim();
    let mut text = whole;
    while let Some(rest) = SUBSYSTEMS.iter().find_map(|p| text.strip_prefix(p)) {
        text = rest.trim_start();
    }
    let row = ROWS.iter().find(|(start, with, _)| text.starts_with(start) && text.contains(with));
    if let Some((_, _, class)) = row {
        return (!denied(text)).then_some((*class, text));
    }
    if oops_tail(text) && whole.starts_with("Oops") {
        return Some((Oops, text));
    }
    if text.contains(" invoked oom-killer: ") {
        return Some((Oom, text));
    }
    if bad_entry(text) {
        return Some((BadPageTable, text));
    }
    bad_swap(text).then_some((BadSwap, text))
}

/// Lines that look like a row and are not a report.
fn denied(text: &str) -> bool {
    text.starts_with("BUG: Bad page map: ")
        || text.starts_with("BUG ") && !text.contains(" (")
        || text.starts_with("WARNING: ") && text.contains(" memory hole")
}

/// `0002 [#1] PREEMPT SMP`: an oops whose first line was lost.
fn oops_tail(text: &str) -> bool {
    let mut words = text.split(' ');
    let code = words.next().unwrap_or("");
    let hex = code.len() == 4 && code.bytes().all(|b| b.is_ascii_hexdigit());
    hex && words.next().is_some_and(|w| w.starts_with("[#"))
}

/// `mm/pgtable-generic.c:51: bad pmd ffff888000000000(8000000000000225)`.
fn bad_entry(text: &str) -> bool {
    let Some((place, rest)) = text.split_once(": bad p") else { return false };
    let table = ["gd ", "4d ", "ud ", "md ", "te "].iter().any(|t| rest.starts_with(t));
    table && place.contains(".c:") | place.contains(".h:") && !place.contains(' ')
}

fn bad_swap(text: &str) -> bool {
    let Some((who, what)) = text.split_once(": ") else { return false };
    let known = ["swap_dup", "swap_free", "get_swap_device", "_swap_info_get", "swap_info_get"];
    (known.contains(&who) || who.starts_with("__swap"))
        && (what.starts_with("Bad swap ") || what.starts_with("Unused swap "))
}

/// Whether a later opening line of class `next` belongs to an open report of class `open` that
/// has no stack yet: the first line named the cause, the second is the trap it ran into.
pub fn continues(open: Class, next: Class) -> bool {
    match next {
        Oops => !matches!(open, Warn | HungTask | RcuStall | Oom),
        Warn | Bug => matches!(open, ListCorruption | Refcount),
        ListCorruption => open == ListCorruption,
        DoubleFault => matches!(open, StackOverflow | DoubleFault),
        PageFault => open == StackOverflow,
        MemLeak => open == MemLeak,
        _ => false,
    }
}

/// A panic that only says the kernel stops because of the report before it.
pub fn consequence(text: &str) -> bool {
    const REASONS: &[&str] = &[
        "Fatal exception",
        "panic_on_warn",
        "panic_on_oops",
        "hung_task",
        "softlockup",
        "RCU Stall",
        "Hard LOCKUP",
        "hard LOCKUP",
        "Attempted to kill init",
        "Aiee, killing interrupt handler",
        "kasan.fault",
        "Attempted to kill the idle task",
        "kernel: panic_on",
        "corrupted stack end",
        "UBSAN:",
    ];
    REASONS.iter().any(|r| text.contains(r))
}

/// Classes whose report is this one line.
pub fn single_line(class: Class, text: &str) -> bool {
    matches!(class, BadRss | NonZeroPgtables | BadPageTable | BadSwap)
        || class == MemLeak && text.starts_with("kmemleak")
        || class == LockdepOther && text.starts_with("BUG: MAX_")
}

/// Classes that end with a line of their own, after their stack.
pub fn explicit_end(class: Class) -> bool {
    matches!(
        class,
        Kasan
            | Kfence
            | Kcsan
            | Kmsan
            | Ubsan
            | Warn
            | Bug
            | Gpf
            | PageFault
            | Oops
            | DoubleFault
            | StackOverflow
            | ListCorruption
            | Refcount
            | PageTableCheck
            | Panic
    )
}

/// Classes where frames of the interrupt that noticed are not the place that hangs.
pub fn skips_interrupt_frames(class: Class) -> bool {
    matches!(class, SoftLockup | HardLockup | RcuStall | WorkqueueLockup)
}

/// Classes whose lines come from other CPUs too.
pub fn any_caller(class: Class) -> bool {
    matches!(class, RcuStall | HardLockup)
}
