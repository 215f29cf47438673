//! Huge-page pools and machine-wide counters, from sysfs files that stay open.

use super::files::read_file;
use super::text::{decimal, labelled};
use case::observation::{Counters, Pool};
use std::cell::RefCell;
use std::fs::File;
use std::sync::OnceLock;

const HUGEPAGES: &str = "/sys/kernel/mm/hugepages";
const NODES: &str = "/sys/devices/system/node";
const DIR_2M: &str = "hugepages-2048kB";
const DIR_1G: &str = "hugepages-1048576kB";

/// The files of one pool; none of them where the kernel has no such pool.
#[derive(Debug)]
struct PoolFiles {
    total: Option<File>,
    free: Option<File>,
    rsvd: Option<File>,
    surp: Option<File>,
}

impl PoolFiles {
    fn open(dir: &str) -> PoolFiles {
        let file = |name: &str| File::open(format!("{dir}/{name}")).ok();
        PoolFiles {
            total: file("nr_hugepages"),
            free: file("free_hugepages"),
            rsvd: file("resv_hugepages"),
            surp: file("surplus_hugepages"),
        }
    }

    /// An empty pool has neither free nor surplus pages nor any to reserve: one read tells.
    fn read(&self) -> Pool {
        let total = number(&self.total);
        if total == 0 {
            return Pool::default();
        }
        Pool { total, free: number(&self.free), rsvd: number(&self.rsvd), surp: number(&self.surp) }
    }
}

/// A number in a file, 0 if there is no such file.
fn number(file: &Option<File>) -> i64 {
    let mut text = [0u8; 32];
    let Some(file) = file else { return 0 };
    let Ok(got) = read_file(file, &mut text, 0) else { return 0 };
    decimal(text[..got].trim_ascii_end()).and_then(|n| i64::try_from(n).ok()).unwrap_or(0)
}

#[derive(Debug)]
struct Files {
    pools: [PoolFiles; 2],
    nodes: Vec<PoolFiles>,
    meminfo: Option<File>,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| Files {
        pools: [DIR_2M, DIR_1G].map(|dir| PoolFiles::open(&format!("{HUGEPAGES}/{dir}"))),
        nodes: (0..)
            .map(|node| format!("{NODES}/node{node}/hugepages/{DIR_2M}"))
            .take_while(|dir| std::path::Path::new(dir).is_dir())
            .map(|dir| PoolFiles::open(&dir))
            .collect(),
        meminfo: File::open("/proc/meminfo").ok(),
    })
}

/// Opens the files.
pub(super) fn prepare() {
    files();
}

/// Counters of the 2 MiB and the 1 GiB pool. Each is exact; the set is one snapshot only when
/// nothing else runs.
pub fn pools() -> [Pool; 2] {
    files().pools.each_ref().map(PoolFiles::read)
}

/// Counters of the whole machine.
pub fn counters() -> Counters {
    let [pool_2m, pool_1g] = pools();
    Counters {
        pool_2m,
        pool_1g,
        nodes_2m: files().nodes.iter().map(PoolFiles::read).collect(),
        hwcorrupted_kb: files().meminfo.as_ref().map_or(0, hwcorrupted),
    }
}

fn hwcorrupted(meminfo: &File) -> i64 {
    thread_local! {
        static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    TEXT.with_borrow_mut(|text| {
        text.resize(4096, 0);
        let got = read_file(meminfo, text, 0).unwrap_or(0);
        corrupted_kb(&text[..got])
    })
}

fn corrupted_kb(text: &[u8]) -> i64 {
    let line = text.split(|b| *b == b'\n').find(|line| line.starts_with(b"HardwareCorrupted:"));
    line.and_then(labelled).map_or(0, |(_, kb)| i64::try_from(kb).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrupted_memory_by_its_label() {
        let text = b"MemTotal:  100 kB\nHardwareCorrupted:    12 kB\nAnonHugePages:  2 kB\n";
        assert_eq!(corrupted_kb(text), 12);
        assert_eq!(corrupted_kb(b"MemTotal: 100 kB\n"), 0);
    }
}
