//! What the machine must be like for the program to mean the same: pools, nodes, settings.

use crate::Request;
use crate::words::{knob, quoted};
use case::value::*;
use case::{Expectation, Op};
use std::collections::BTreeMap;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// A setting: what it must be, and whether the program means nothing without it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// `None`: the program changes it, so it is put back.
    pub wanted: Option<String>,
    pub needed: bool,
}

/// Everything a program asks of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub settings: BTreeMap<String, Setting>,
    /// Pages of the pools of 2 MiB and 1 GiB pages that must be there and free.
    pub pools: [Option<i64>; 2],
    pub nodes: u8,
}

/// What this program asks for.
pub fn needs(request: &Request) -> Needs {
    let mut needs = Needs { nodes: 1, ..Needs::default() };
    for (_, _, op) in request.program.each_line() {
        needs.take(op, request);
    }
    match request.expectation {
        Expectation::Pool { page, .. } | Expectation::NoLeak { page } => needs.pool(*page, request),
        _ => {}
    }
    needs
}

impl Needs {
    fn set(&mut self, path: &str, wanted: &str, needed: bool) {
        let setting = Setting { wanted: Some(wanted.to_owned()), needed };
        self.settings.insert(path.to_owned(), setting);
    }

    fn pool(&mut self, page: PageSize, request: &Request) {
        let (index, dir, pages) = match page {
            PageSize::Base => return,
            PageSize::Huge2M => (0, "hugepages-2048kB", request.pools.0),
            PageSize::Huge1G => (1, "hugepages-1048576kB", request.pools.1),
        };
        self.pools[index] = Some(pages);
        let path = |name: &str| format!("{POOLS}/{dir}/{name}");
        self.set(&path("nr_overcommit_hugepages"), "0", false);
        // A pool that stays too small is told by what is free in it.
        self.set(&path("nr_hugepages"), &pages.to_string(), false);
    }

    /// Memory of base pages may be huge pages as well.
    fn base_pages(&mut self, request: &Request) {
        let profile = request.profile;
        for (name, value) in
            [("enabled", &profile.thp_enabled), ("shmem_enabled", &profile.thp_shmem)]
        {
            if !value.is_empty() {
                self.set(&format!("{THP}/{name}"), value, true);
            }
        }
        if profile.thp {
            let zero = u8::from(profile.thp_zero_page).to_string();
            self.set(&format!("{THP}/use_zero_page"), &zero, false);
            self.set(&format!("{THP}/khugepaged/defrag"), "0", false);
        }
    }

    fn take(&mut self, op: &Op, request: &Request) {
        match op {
            Op::Memfd { page, .. } | Op::Hugetlbfs { page, .. } if page.is_huge() => {
                self.pool(*page, request);
            }
            Op::Memfd { .. } => self.base_pages(request),
            Op::Mmap { page, from: None, len, .. } if !page.is_huge() => {
                self.base_pages(request);
                if len.0 >= 1 << 28 {
                    self.set("/proc/sys/vm/overcommit_memory", "1", false);
                }
            }
            Op::Mmap { page, from: None, .. } => self.pool(*page, request),
            Op::Madvise { advice: Advice::HwPoison, .. } => {
                self.set("/proc/sys/vm/memory_failure_early_kill", "0", false);
            }
            Op::Madvise { advice: Advice::Mergeable, .. } => {
                self.set("/sys/kernel/mm/ksm/run", "0", false);
            }
            Op::MovePages { node: Some(node), .. } => self.on_node(*node, request),
            Op::Mbind { nodes, .. }
            | Op::SetMempolicy { nodes, .. }
            | Op::MigratePages { to: nodes, .. } => {
                self.on_node(u8::from(nodes.has(Nodes::N1)), request);
            }
            Op::SetKnob { knob: which, value } => {
                let (path, _) = knob(*which, *value);
                self.settings.entry(path.to_owned()).or_default();
            }
            _ => {}
        }
    }

    /// A node that the kernel had which showed it.
    fn on_node(&mut self, node: u8, request: &Request) {
        self.set("/proc/sys/kernel/numa_balancing", "0", false);
        if node < request.profile.nodes {
            self.nodes = self.nodes.max(request.profile.nodes);
        }
    }

    /// The table in C.
    pub fn table(&self) -> String {
        let rows: String = self
            .settings
            .iter()
            .map(|(path, Setting { wanted, needed })| {
                let wanted = wanted.as_deref().map_or("NULL".into(), quoted);
                format!("\t{{ {}, {wanted}, {}, \"\" }},\n", quoted(path), u8::from(*needed))
            })
            .collect();
        format!(
            "/* Settings as they were where the bug was seen (NULL: the program changes it). */\n\
             static struct {{\n\tconst char *path, *wanted;\n\tint needed;\n\tchar was[64];\n\
             }} settings[] = {{\n{rows}}};\n\
             #define SETTINGS (sizeof(settings) / sizeof(settings[0]))\n"
        )
    }
}
