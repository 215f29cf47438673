//! Kernel settings a program may change, each with the way back.

use super::{os_errno, unavailable};
use case::observation::{Output, Status};
use case::value::Knob;
use std::fs;

/// Puts a setting back when dropped. Of several for one setting the oldest must be dropped last.
#[derive(Debug)]
pub struct Restore {
    path: &'static str,
    before: String,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // A setting that does not go back shows in the accounting; there is nobody to tell here.
        let _ = fs::write(self.path, &self.before);
    }
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

const fn path(knob: Knob) -> &'static str {
    match knob {
        Knob::ThpEnabled => "/sys/kernel/mm/transparent_hugepage/enabled",
        Knob::ThpShmem => "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        Knob::ThpZeroPage => "/sys/kernel/mm/transparent_hugepage/use_zero_page",
        Knob::HugetlbNr2M => "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        Knob::HugetlbOvercommit2M => {
            "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"
        }
        Knob::NumaBalancing => "/proc/sys/kernel/numa_balancing",
        Knob::Khugepaged => "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    }
}

/// What is written for a value; numbers with no word of their own go to the kernel as they are.
fn spelling(knob: Knob, value: u32) -> String {
    let words: &[&str] = match knob {
        Knob::ThpEnabled => &["never", "madvise", "always"],
        Knob::ThpShmem => &["never", "advise", "within_size", "always", "deny", "force"],
        _ => &[],
    };
    words.get(value as usize).map_or_else(|| value.to_string(), ToString::to_string)
}

/// The chosen word of `always [madvise] never`, or the whole text if there is no choice in it.
pub(crate) fn chosen(text: &str) -> &str {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text.trim(), |(word, _)| word)
}

/// Setting of the transparent huge page folder, empty where the kernel has none.
pub(crate) fn thp_setting(name: &str) -> String {
    let text = fs::read_to_string(format!("{THP}/{name}")).unwrap_or_default();
    chosen(&text).to_string()
}

/// Writes a setting; the result is 0, or the errno of the write. The guard puts back what was
/// there and is given whenever the setting could be read. `Skipped(Unavailable)` without the
/// file.
pub fn set_knob(knob: Knob, value: u32) -> (Status, Output, Option<Restore>) {
    let path = path(knob);
    let Ok(before) = fs::read_to_string(path) else {
        let (status, out) = unavailable();
        return (status, out, None);
    };
    let restore = Restore { path, before: chosen(&before).to_string() };
    let status = match fs::write(path, spelling(knob, value)) {
        Ok(()) => Status::Ok(0),
        Err(e) => Status::Err(os_errno(&e)),
    };
    (status, Output::Nothing, Some(restore))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("64\n"), "64");
    }

    #[test]
    fn values_with_and_without_a_word() {
        assert_eq!(spelling(Knob::ThpShmem, 5), "force");
        assert_eq!(spelling(Knob::ThpEnabled, 9), "9");
        assert_eq!(spelling(Knob::HugetlbNr2M, 2), "2");
    }
}
