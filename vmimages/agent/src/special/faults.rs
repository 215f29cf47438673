//! Fault injection: the n-th allocation of the calling thread fails.

use super::{os_errno, unavailable};
use case::observation::{Output, Status};
use std::fs;
use std::sync::Once;

pub(crate) const FAIL_NTH: &str = "/proc/thread-self/fail-nth";

/// Settings without which most allocations cannot be made to fail.
const UNLOCK: &[(&str, &str)] = &[
    ("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"),
    ("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N"),
    ("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N"),
    ("/sys/kernel/debug/fail_page_alloc/min-order", "0"),
];

/// Arms the calling thread; the very next syscall counts, so nothing of the agent's own may come
/// between. `Skipped(Unavailable)` where the kernel has no fault injection.
pub fn fail_nth(nth: u32) -> (Status, Output) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (path, value) in UNLOCK {
            // A kernel has them or not; without them fewer allocations fail.
            let _ = fs::write(path, value);
        }
    });
    let status = match fs::write(FAIL_NTH, nth.to_string()) {
        Ok(()) => Status::Ok(0),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return unavailable(),
        Err(e) => Status::Err(os_errno(&e)),
    };
    (status, Output::Nothing)
}

/// Disarms the calling thread and returns how many allocations were still to go: 0 if the fault
/// was injected or none was armed.
pub fn fail_nth_end() -> u32 {
    let left = fs::read_to_string(FAIL_NTH).ok().and_then(|text| text.trim().parse().ok());
    let _ = fs::write(FAIL_NTH, "0");
    left.unwrap_or(0)
}
