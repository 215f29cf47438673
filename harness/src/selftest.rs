//! What a debug kernel must be seen to report: faults that LKDTM makes for real, and what the
//! console reader must say of each. Pure; `commands::selftest` boots the guests.

use oracles::console::{Class, Report};

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name for people, and of the saved console.
    pub name: &'static str,
    /// LKDTM crash type; those of `vmimages/selftest` among them.
    pub crash_type: &'static str,
    pub class: Class,
    /// Words the title must hold, where one class has several.
    pub title: &'static str,
    /// Function the report must blame; `None` where the report names none.
    pub guilty: Option<&'static str>,
}

const fn fault(
    name: &'static str,
    crash_type: &'static str,
    class: Class,
    title: &'static str,
    guilty: &'static str,
) -> Fault {
    Fault { name, crash_type, class, title, guilty: Some(guilty) }
}

impl Fault {
    /// The report is of this fault: of its class, and with its words in the title.
    pub fn fits(&self, report: &Report) -> bool {
        report.class == self.class && report.title.contains(self.title)
    }

    /// The report to look at: one that fits, else the first. Its checker may have spoken twice.
    pub fn pick<'a>(&self, reports: &'a [Report]) -> Option<&'a Report> {
        reports.iter().find(|report| self.fits(report)).or(reports.first())
    }
}

/// Every fault, the quick ones first.
pub const FAULTS: &[Fault] = &[
    fault(
        "use-after-free",
        "READ_AFTER_FREE",
        Class::Kasan,
        "use-after-free",
        "lkdtm_READ_AFTER_FREE",
    ),
    fault(
        "out-of-bounds",
        "SLAB_LINEAR_OVERFLOW",
        Class::Kasan,
        "out-of-bounds",
        "lkdtm_SLAB_LINEAR_OVERFLOW",
    ),
    fault(
        "vmalloc-out-of-bounds",
        "VMALLOC_LINEAR_OVERFLOW",
        Class::Kasan,
        "out-of-bounds",
        "lkdtm_VMALLOC_LINEAR_OVERFLOW",
    ),
    fault("double-free", "SLAB_FREE_DOUBLE", Class::Kasan, "free", "lkdtm_SLAB_FREE_DOUBLE"),
    fault(
        "array-bounds",
        "ARRAY_BOUNDS",
        Class::Ubsan,
        "array-index-out-of-bounds",
        "lkdtm_ARRAY_BOUNDS",
    ),
    fault("lockdep-circular", "LOCK_ORDER", Class::LockdepCircular, "", "lkdtm_LOCK_ORDER"),
    fault("sleep-in-atomic", "SLEEP_IN_ATOMIC", Class::SleepInAtomic, "", "lkdtm_SLEEP_IN_ATOMIC"),
    fault(
        "list-corruption",
        "CORRUPT_LIST_ADD",
        Class::ListCorruption,
        "",
        "lkdtm_CORRUPT_LIST_ADD",
    ),
    fault("refcount", "REFCOUNT_INC_OVERFLOW", Class::Refcount, "", "lkdtm_REFCOUNT_INC_OVERFLOW"),
    fault("warning", "WARNING", Class::Warn, "", "lkdtm_WARNING"),
    fault("bug", "BUG", Class::Bug, "", "lkdtm_BUG"),
    fault("null-pointer", "EXCEPTION", Class::PageFault, "", "lkdtm_EXCEPTION"),
    fault("general-protection", "WILD_POINTER", Class::Gpf, "", "lkdtm_WILD_POINTER"),
    fault("stack-overflow", "EXHAUST_STACK", Class::StackOverflow, "", "recursive_loop"),
    fault("page-table-check", "MAPPED_TWICE", Class::PageTableCheck, "", "lkdtm_MAPPED_TWICE"),
    Fault {
        name: "rss-counter",
        crash_type: "RSS_COUNTER",
        class: Class::BadRss,
        title: "",
        guilty: None,
    },
    fault("soft-lockup", "SOFTLOCKUP", Class::SoftLockup, "", "lkdtm_SOFTLOCKUP"),
    // Its crash type ends in a tail call, so its own frame is gone by then.
    fault("hung-task", "HUNG_TASK", Class::HungTask, "", "lkdtm_do_action"),
    fault("rcu-stall", "RCU_STALL", Class::RcuStall, "", "lkdtm_RCU_STALL"),
];

/// How often a fault was provoked and what was seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    pub fault: String,
    pub crash_type: String,
    pub provoked: u32,
    pub detected: u32,
    pub class_right: u32,
    pub guilty_right: u32,
    /// Distinct signatures, each once.
    pub signatures: Vec<String>,
    /// Title of the last report.
    pub title: String,
    /// Line of source the function it blames was at, where the kernel's vmlinux tells.
    pub at: Option<String>,
    /// Why it could not be provoked: the kernel lacks the crash type.
    pub skipped: Option<String>,
}

impl Row {
    pub fn of(fault: &Fault) -> Row {
        Row { fault: fault.name.into(), crash_type: fault.crash_type.into(), ..Row::default() }
    }

    /// Counts what one provocation printed.
    pub fn count(&mut self, fault: &Fault, reports: &[Report]) {
        self.provoked += 1;
        let Some(report) = fault.pick(reports) else { return };
        self.detected += 1;
        self.class_right += u32::from(fault.fits(report));
        self.guilty_right += u32::from(report.guilty.as_deref() == fault.guilty);
        self.title = report.title.clone();
        if !self.signatures.contains(&report.signature) {
            self.signatures.push(report.signature.clone());
        }
    }

    /// Seen every time, right, and under one signature.
    pub fn ok(&self) -> bool {
        let all = |n: u32| n == self.provoked;
        self.provoked > 0
            && all(self.detected)
            && all(self.class_right)
            && all(self.guilty_right)
            && self.signatures.len() == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(class: Class, guilty: &str, signature: &str) -> Report {
        Report {
            class,
            title: "a use-after-free in f".into(),
            guilty: Some(guilty.into()),
            signature: signature.into(),
            start: 0,
            end: 1,
            stacks: Vec::new(),
        }
    }

    #[test]
    fn names_and_crash_types_are_unique() {
        for (at, one) in FAULTS.iter().enumerate() {
            let rest = &FAULTS[at + 1..];
            assert!(rest.iter().all(|o| o.name != one.name && o.crash_type != one.crash_type));
            assert!(one.crash_type.len() <= case::limits::CRASH_TYPE_BYTES_MAX);
        }
    }

    #[test]
    fn right_means_class_function_and_one_signature() {
        let fault = &FAULTS[0];
        let guilty = fault.guilty.unwrap_or_default();
        let mut row = Row::of(fault);
        assert!(!row.ok(), "nothing was provoked");
        row.count(fault, &[report(Class::Warn, "x", "w"), report(fault.class, guilty, "a")]);
        assert!(row.ok(), "{row:?}");
        let mut other = row.clone();
        other.count(fault, &[report(fault.class, guilty, "b")]);
        assert!(!other.ok(), "two signatures");
        let mut blind = row.clone();
        blind.count(fault, &[]);
        assert!(!blind.ok(), "not detected");
        row.count(fault, &[report(Class::Warn, guilty, "a")]);
        assert!(!row.ok(), "wrong class");
    }
}
