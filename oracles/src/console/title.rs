//! Title and signature of a closed report. Words only: no number of this run gets through.

use super::Class;
use super::Class::*;

/// First part of a signature, and the start of titles that need no other words.
pub fn slug(class: Class) -> &'static str {
    match class {
        Panic => "panic",
        Bug => "bug",
        Warn => "warn",
        Gpf => "gpf",
        PageFault => "page-fault",
        Oops => "oops",
        DoubleFault => "double-fault",
        StackOverflow => "stack-overflow",
        Kasan => "kasan",
        Kfence => "kfence",
        Kcsan => "kcsan",
        Kmsan => "kmsan",
        Ubsan => "ubsan",
        LockdepCircular => "lockdep-circular",
        LockdepRecursive => "lockdep-recursive",
        LockdepInconsistent => "lockdep-inconsistent",
        LockdepInversion => "lockdep-inversion",
        LockdepUnlockBalance => "lockdep-unlock-balance",
        LockdepHeldFreed => "lockdep-held-freed",
        LockdepHeldUser => "lockdep-held-user",
        LockdepWaitContext => "lockdep-wait-context",
        LockdepRcu => "lockdep-rcu",
        LockdepOther => "lockdep",
        SpinlockDebug => "spinlock",
        SleepInAtomic => "sleep-in-atomic",
        HungTask => "hung-task",
        SoftLockup => "soft-lockup",
        HardLockup => "hard-lockup",
        WorkqueueLockup => "workqueue-lockup",
        RcuStall => "rcu-stall",
        BadPage => "bad-page",
        BadRss => "bad-rss",
        BadPageMap => "bad-page-map",
        BadPageTable => "bad-page-table",
        BadSwap => "bad-swap",
        NonZeroPgtables => "non-zero-pgtables",
        ListCorruption => "list-corruption",
        SlabCorruption => "slab-corruption",
        Refcount => "refcount",
        PageTableCheck => "page-table-check",
        Oom => "oom",
        MemLeak => "mem-leak",
    }
}

/// Words for a class in a title.
fn words(class: Class) -> &'static str {
    match class {
        Panic => "kernel panic",
        Bug => "kernel BUG",
        Warn => "WARNING",
        Gpf => "general protection fault",
        PageFault => "bad kernel address",
        Oops => "oops",
        DoubleFault => "double fault",
        StackOverflow => "kernel stack overflow",
        Kasan => "KASAN",
        Kfence => "KFENCE",
        Kcsan => "KCSAN",
        Kmsan => "KMSAN",
        Ubsan => "UBSAN",
        LockdepCircular | LockdepRecursive => "possible deadlock",
        LockdepInconsistent => "inconsistent lock state",
        LockdepInversion => "irq lock inversion",
        LockdepUnlockBalance => "bad unlock balance",
        LockdepHeldFreed => "held lock freed",
        LockdepHeldUser => "lock held on return to user space",
        LockdepWaitContext => "invalid wait context",
        LockdepRcu => "suspicious RCU usage",
        LockdepOther => "lockdep",
        SpinlockDebug => "spinlock debug",
        SleepInAtomic => "sleeping in atomic context",
        HungTask => "task hung",
        SoftLockup => "soft lockup",
        HardLockup => "hard lockup",
        WorkqueueLockup => "workqueue lockup",
        RcuStall => "RCU stall",
        BadPage => "Bad page state",
        BadRss => "Bad rss-counter state",
        BadPageMap => "Bad page map",
        BadPageTable => "bad page table entry",
        BadSwap => "bad swap entry",
        NonZeroPgtables => "page tables left on freeing mm",
        ListCorruption => "list corruption",
        SlabCorruption => "slab corruption",
        Refcount => "refcount bug",
        PageTableCheck => "page table check",
        Oom => "out of memory",
        MemLeak => "memory leak",
    }
}

/// What the lines of a report said beyond its class.
#[derive(Debug, Default)]
pub struct Facts {
    /// `Read` or `Write` of a sanitizer report.
    pub access: Option<&'static str>,
    /// `page dumped because: ...`.
    pub cause: Option<String>,
}

/// The kind within a class, for people: `use-after-free`, `underflow; use-after-free`.
fn detail(class: Class, head: &str, facts: &Facts) -> Option<String> {
    let after = |p: &str| head.strip_prefix(p).map(|t| t.split(" in ").next().unwrap_or(t));
    let text = match class {
        Kasan => after("BUG: KASAN: ")?.to_string(),
        Kfence => after("BUG: KFENCE: ")?.to_string(),
        Kcsan => after("BUG: KCSAN: ")?.to_string(),
        Kmsan => after("BUG: KMSAN: ")?.to_string(),
        Ubsan => after("UBSAN: ")?.to_string(),
        Refcount => head.strip_prefix("refcount_t: ")?.to_string(),
        BadPage => facts.cause.clone()?,
        Bug => head.strip_prefix("BUG: ")?.to_string(),
        SpinlockDebug => head.strip_prefix("BUG: ")?.split(" on ").next()?.to_string(),
        Oops => head.split(": ").next().filter(|t| !t.contains('['))?.to_string(),
        PageFault if head.contains("NULL pointer") => "NULL pointer".into(),
        BadRss => head.split("type:").nth(1)?.split(' ').next()?.to_string(),
        BadPageTable => head.split(": bad ").nth(1)?.split(' ').next()?.to_string(),
        BadSwap => head.split(": ").nth(1)?.to_string(),
        Panic => head.split("not syncing").nth(1)?.trim_start_matches([':', ' ']).to_string(),
        ListCorruption if head.starts_with("list_") => head.split([' ', '.', ',']).next()?.into(),
        SlabCorruption => head.rsplit("): ").next()?.to_string(),
        LockdepOther => head.split_once(": ")?.1.to_string(),
        _ => return None,
    };
    let text = plain(&text);
    (!text.is_empty()).then_some(text)
}

/// Words without addresses and numbers, at most 100 bytes, single spaces. A word keeps digits
/// that stand inside a name (`kmalloc-64`, `nr_p4d`).
fn plain(text: &str) -> String {
    let mut out = String::new();
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let word: String = word.chars().filter(|c| c.is_ascii_graphic()).collect();
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let number = bare.bytes().next().is_some_and(|b| b.is_ascii_digit());
        let address = bare.len() >= 8 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let valued = word
            .split_once(['=', '/', '#'])
            .is_some_and(|(_, v)| v.bytes().next().is_some_and(|b| b.is_ascii_digit()));
        if number || address || valued || bare.is_empty() {
            continue;
        }
        if out.len() + word.len() + 1 > 100 {
            break;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&word);
    }
    out.trim_end_matches([':', ',', '.', '!', ' ']).to_string()
}

/// Title and signature.
pub fn name(class: Class, head: &str, facts: &Facts, guilty: Option<&str>) -> (String, String) {
    let kind = detail(class, head, facts);
    let mut title = words(class).to_string();
    if let Some(kind) = &kind {
        title.push_str(": ");
        title.push_str(kind);
    }
    if let Some(access) = facts.access.filter(|_| matches!(class, Kasan)) {
        title.push(' ');
        title.push_str(access);
    }
    if let Some(guilty) = guilty {
        title.push_str(" in ");
        title.push_str(guilty);
    }
    let part = match class {
        // 6.1 says use-after-free where later kernels say slab-use-after-free.
        Kasan | Kfence => kind.map(|k| k.trim_start_matches("slab-").to_string()),
        PageFault | Oops => None,
        _ => kind,
    };
    let part = part.map_or("-".into(), |p| p.replace([' ', '/'], "-").to_lowercase());
    let signature = format!("{}/{}/{}", slug(class), part, guilty.unwrap_or("-"));
    (title, signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_one_run_go() {
        assert_eq!(plain("Attempted to kill init! exitcode=0x00000009"), "Attempted to kill init");
        assert_eq!(plain("bad magic on CPU#0, x/12"), "bad magic on");
        assert_eq!(plain("at ffff888012345678 size 64"), "at size");
        assert_eq!(plain("underflow; use-after-free."), "underflow; use-after-free");
    }
}
