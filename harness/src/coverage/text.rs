//! From a kernel's symbols to its memory-management functions and their files. Stock kernels carry
//! no line tables, but kallsyms is in link order: an object's functions lie side by side. A table
//! of names per source file gives most functions their file, and neighbours confirm it: a name
//! alone is never believed, and a function between two files of which neither claims it is of an
//! unknown file. Pure.

use case::cover::{Ranges, Symbol};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Written by `ci/functions`: a line with a file's path, then indented lines with its functions.
const TABLE: &str = include_str!("functions.txt");
/// Stands for a file that is not known.
pub const UNKNOWN: &str = "unknown";
/// Symbols looked at on either side of one for neighbours that have a file.
const NEAR: usize = 64;
/// Files of one folder side by side that are no coincidence; for a file alone, the part of its
/// names (one in so many) that is none.
const FILES_SURE: usize = 4;
const NAMES_SURE: usize = 5;
/// Clusters that can still grow when the next spot is looked at.
const OPEN: usize = 8;
/// Code the kernel generates for each tracepoint: no program reaches it with tracing off.
const TRACING: &[&str] = &[
    "__traceiter_",
    "__bpf_trace_",
    "__probestub_",
    "perf_trace_",
    "trace_event_raw_event_",
    "trace_raw_output_",
];
/// Longest a function may be for which no next symbol tells.
const LAST_BYTES: u64 = 4096;

/// A function as people name it: compiler suffixes (`.isra.0`, `.cold`) are parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    pub name: String,
    /// Path in the kernel's tree, or [`UNKNOWN`].
    pub file: String,
    /// (start, end) addresses, ascending.
    pub parts: Vec<(u64, u64)>,
}

/// The text that counts as coverage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub ranges: Ranges,
    /// By file, then name.
    pub functions: Vec<Function>,
}

/// Symbols at one address, and where the next begins.
struct Spot {
    start: u64,
    end: u64,
    /// Without compiler suffix.
    name: String,
    /// Numbers of the files that define such a function.
    claims: Vec<usize>,
    file: Label,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    /// Not of our text.
    Out,
    Unknown,
    File(usize),
}

struct Table {
    files: Vec<&'static str>,
    /// Functions of each file.
    sizes: Vec<usize>,
    /// Function name to numbers of files.
    names: BTreeMap<&'static str, Vec<usize>>,
}

/// The table as written, for naming what was found by it.
pub fn table_bytes() -> &'static [u8] {
    TABLE.as_bytes()
}

fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut table = Table { files: Vec::new(), sizes: Vec::new(), names: BTreeMap::new() };
        for line in TABLE.lines() {
            if !line.starts_with(' ') {
                table.files.push(line);
                table.sizes.push(0);
                continue;
            }
            let file = table.files.len() - 1;
            for name in line.split_whitespace() {
                table.names.entry(name).or_default().push(file);
                table.sizes[file] += 1;
            }
        }
        table
    })
}

/// Whether code of this file counts, if the kernel has any.
pub(super) fn counts(file: &str) -> bool {
    let own = |name: &str| !name.contains('/') && name.ends_with(".c");
    table().files.contains(&file) || file.strip_prefix("mm/").is_some_and(own)
}

impl Text {
    /// Finds the functions of our files among all text symbols of a kernel. `files` says which
    /// file the compiler made the code at an address from, where line tables tell; else names and
    /// neighbours do.
    pub fn of(symbols: &[Symbol], files: Option<&BTreeMap<u64, String>>) -> Result<Text, String> {
        let mut spots = spots(symbols);
        let inside: Vec<(&Spot, &str)> = match files {
            Some(files) => spots.iter().filter_map(|s| Some((s, compiled(s, files)?))).collect(),
            None => {
                confirm(&mut spots);
                decide(&mut spots);
                spots.iter().filter_map(|spot| Some((spot, spot.path()?))).collect()
            }
        };
        let mut functions: BTreeMap<(String, String), Vec<(u64, u64)>> = BTreeMap::new();
        for (spot, file) in &inside {
            if TRACING.iter().any(|start| spot.name.starts_with(start)) {
                continue;
            }
            let key = ((*file).to_owned(), spot.name.clone());
            functions.entry(key).or_default().push((spot.start, spot.end));
        }
        if functions.is_empty() {
            return Err("none of its symbols is a known mm function".into());
        }
        let ranges = inside.iter().map(|(spot, _)| (spot.start, spot.end)).collect();
        let ranges = Ranges::of(ranges)?;
        let function = |((file, name), parts)| Function { name, file, parts };
        Ok(Text { ranges, functions: functions.into_iter().map(function).collect() })
    }

    /// The function each cell lies in, as an index; `None` for a cell that two share.
    pub fn owners(&self) -> Vec<Option<u32>> {
        let mut owners = vec![None; self.ranges.cells() as usize];
        let mut shared = vec![false; owners.len()];
        for (index, function) in self.functions.iter().enumerate() {
            for (start, end) in &function.parts {
                let (Some(first), Some(last)) =
                    (self.ranges.cell(*start), self.ranges.cell(end.saturating_sub(1)))
                else {
                    continue;
                };
                for cell in first as usize..=last as usize {
                    shared[cell] |= owners[cell].is_some_and(|owner| owner != index as u32);
                    owners[cell] = Some(index as u32);
                }
            }
        }
        for (owner, shared) in owners.iter_mut().zip(shared) {
            *owner = owner.filter(|_| !shared);
        }
        owners
    }
}

impl Spot {
    fn path(&self) -> Option<&'static str> {
        match self.file {
            Label::Out => None,
            Label::Unknown => Some(UNKNOWN),
            Label::File(file) => Some(table().files[file]),
        }
    }
}

/// The file a spot was compiled from, if it counts: those of the table, and any other of mm/ that
/// a patched tree may have.
fn compiled<'a>(spot: &Spot, files: &'a BTreeMap<u64, String>) -> Option<&'a str> {
    let (_, file) = files.range(spot.start..spot.end).next()?;
    counts(file).then_some(file)
}

/// The name without what the compiler put behind it.
fn base(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn spots(symbols: &[Symbol]) -> Vec<Spot> {
    let etext = symbols.iter().find(|s| s.name == b"_etext").map_or(u64::MAX, |s| s.addr);
    let mut sorted: Vec<&Symbol> = symbols.iter().filter(|s| s.addr < etext).collect();
    sorted.sort_by_key(|symbol| symbol.addr);
    let mut spots: Vec<Spot> = Vec::new();
    // Padding before a function has a symbol of its own; it belongs to the function.
    let mut padding = None;
    for symbol in sorted {
        let text = String::from_utf8_lossy(&symbol.name);
        if text.starts_with("__pfx_") {
            padding.get_or_insert(symbol.addr);
            continue;
        }
        let name = base(&text);
        let claims = table().names.get(name).cloned().unwrap_or_default();
        match spots.last_mut() {
            Some(last) if padding.is_none() && last.start == symbol.addr => {
                // An alias: the name our files know is the better one.
                if last.claims.is_empty() && !claims.is_empty() {
                    (last.name, last.claims) = (name.to_owned(), claims);
                }
            }
            _ => {
                let start = padding.take().unwrap_or(symbol.addr);
                let (name, file) = (name.to_owned(), Label::Out);
                spots.push(Spot { start, end: 0, name, claims, file });
            }
        }
    }
    let starts: Vec<u64> = spots.iter().skip(1).map(|spot| spot.start).collect();
    for (index, spot) in spots.iter_mut().enumerate() {
        let far = spot.start.saturating_add(LAST_BYTES).min(etext);
        spot.end = starts.get(index).copied().unwrap_or(far);
    }
    spots
}

/// Labels of the nearest spots with a file, before and behind.
fn neighbours(spots: &[Spot], at: usize) -> (Option<usize>, Option<usize>) {
    let file = |spot: &Spot| match spot.file {
        Label::File(file) => Some(file),
        _ => None,
    };
    let before = spots[at.saturating_sub(NEAR)..at].iter().rev().find_map(file);
    let behind = spots[at + 1..].iter().take(NEAR).find_map(file);
    (before, behind)
}

fn folder(file: usize) -> &'static str {
    table().files[file].rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Names only one file claims, where what lies around is of the same file or folder. Another part
/// of the kernel may use the name.
fn confirm(spots: &mut [Spot]) {
    for spot in spots.iter_mut() {
        if let [only] = spot.claims[..] {
            spot.file = Label::File(only);
        }
    }
    for cluster in clusters(spots) {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, file) in &cluster {
            *counts.entry(*file).or_default() += 1;
        }
        let enough = |file: usize| {
            let needed = (table().sizes[file] / NAMES_SURE).max(2);
            counts.len() >= FILES_SURE || counts[&file] >= needed
        };
        for (at, file) in &cluster {
            if !enough(*file) {
                spots[*at].file = Label::Out;
            }
        }
    }
    let lonely = |at: &usize| {
        let Label::File(file) = spots[*at].file else { return false };
        let from = at.saturating_sub(NEAR);
        let to = (at + NEAR + 1).min(spots.len());
        let kin = (from..to).any(|other| other != *at && spots[other].file == Label::File(file));
        let (before, behind) = neighbours(spots, *at);
        let home = |label: Option<usize>| label.is_some_and(|l| folder(l) == folder(file));
        !(kin || home(before) && home(behind))
    };
    let lonely: Vec<usize> = (0..spots.len()).filter(lonely).collect();
    for at in lonely {
        spots[at].file = Label::Out;
    }
}

/// Spots with a file, and it, in groups of one folder that lie near each other.
fn clusters(spots: &[Spot]) -> Vec<Vec<(usize, usize)>> {
    let mut clusters: Vec<Vec<(usize, usize)>> = Vec::new();
    for (at, spot) in spots.iter().enumerate() {
        let Label::File(file) = spot.file else { continue };
        let near =
            |(other, kin): &(usize, usize)| at - other <= NEAR && folder(*kin) == folder(file);
        match clusters.iter_mut().rev().take(OPEN).find(|c| c.last().is_some_and(near)) {
            Some(cluster) => cluster.push((at, file)),
            None => clusters.push(vec![(at, file)]),
        }
    }
    clusters
}

/// All of this folder counts, so what lies inside counts even if its file is not known.
fn is_mm(file: usize) -> bool {
    folder(file) == "mm"
}

/// Whether files lie close by on both sides, closer than `NEAR` asks for.
fn enclosed(spots: &[Spot], at: usize) -> bool {
    let close = |spot: &Spot| matches!(spot.file, Label::File(_));
    let before = &spots[at.saturating_sub(NEAR / 4)..at];
    before.iter().any(close) && spots[at + 1..].iter().take(NEAR / 4).any(close)
}

/// What is left, by its neighbours.
fn decide(spots: &mut [Spot]) {
    let mut decided = Vec::new();
    for at in 0..spots.len() {
        if spots[at].file != Label::Out {
            continue;
        }
        let (before, behind) = neighbours(spots, at);
        let claims = &spots[at].claims;
        let claimed = |label: Option<usize>| label.filter(|file| claims.contains(file));
        let label = match (claimed(before), claimed(behind), before, behind) {
            (Some(a), Some(b), ..) if a != b => Label::Unknown,
            (Some(file), ..) | (None, Some(file), ..) => Label::File(file),
            (None, None, Some(a), Some(b)) if a == b => Label::File(a),
            (None, None, Some(a), Some(b)) if is_mm(a) && is_mm(b) && enclosed(spots, at) => {
                Label::Unknown
            }
            _ => continue,
        };
        decided.push((at, label));
    }
    for (at, label) in decided {
        spots[at].file = label;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symbols 0x100 apart, in this order.
    fn symbols(names: &str) -> Vec<Symbol> {
        let names = names.split_whitespace().enumerate();
        names
            .map(|(n, name)| Symbol { addr: 0x10000 + 0x100 * n as u64, name: name.into() })
            .collect()
    }

    fn file_of(text: &Text, name: &str) -> Option<String> {
        text.functions.iter().find(|f| f.name == name).map(|f| f.file.clone())
    }

    /// What no table knows, far more of it than neighbours reach.
    fn others(count: usize) -> String {
        (0..count).map(|n| format!("other_{n} ")).collect()
    }

    #[test]
    fn neighbours_decide_what_a_name_alone_does_not() {
        let list = format!(
            "start {}vm_munmap do_munmap mprotect_fixup __x64_sys_msync mremap_helper move_page_tables __x64_sys_mremap odd mseal_fixup \
             do_mseal {}hugetlb_fault {}_etext init_thing",
            others(100),
            others(100),
            others(100),
        );
        let text = Text::of(&symbols(&list), None).unwrap();
        assert_eq!(file_of(&text, "move_page_tables").unwrap(), "mm/mremap.c");
        assert_eq!(file_of(&text, "do_mseal").unwrap(), "mm/mseal.c");
        // Between two files, claimed by neither.
        assert_eq!(file_of(&text, "odd").unwrap(), UNKNOWN);
        // A name of ours in the middle of something else is not ours.
        assert_eq!(file_of(&text, "hugetlb_fault"), None);
        for not_ours in ["start", "other_99", "init_thing", "_etext"] {
            assert_eq!(file_of(&text, not_ours), None, "{not_ours}");
        }
    }

    #[test]
    fn parts_aliases_and_padding_belong_to_their_function() {
        let mut list = symbols(
            "move_ptes.isra.0 move_page_tables __pfx_move_vma move_vma vma_to_resize mremap_to \
             get_old_pmd get_old_pud",
        );
        list.push(Symbol { addr: list[1].addr, name: b"odd_alias".to_vec() });
        list.push(Symbol { addr: 0x20000, name: b"move_ptes.cold".to_vec() });
        list.push(Symbol { addr: 0x20004, name: b"move_vma.cold".to_vec() });
        list.push(Symbol { addr: 0x20020, name: b"_etext".to_vec() });
        let text = Text::of(&list, None).unwrap();
        let of = |name: &str| text.functions.iter().find(|f| f.name == name).unwrap();
        assert_eq!(of("move_ptes").parts, [(0x10000, 0x10100), (0x20000, 0x20004)]);
        assert_eq!(of("move_vma").parts[0].0, 0x10200);
        assert!(text.functions.iter().all(|f| f.name != "odd_alias"));
        let owners = text.owners();
        let cell = |addr| text.ranges.cell(addr).unwrap() as usize;
        let owner = |addr| owners[cell(addr)].map(|at| text.functions[at as usize].name.as_str());
        assert_eq!(owner(0x10008), Some("move_ptes"));
        assert_eq!(owner(0x20008), Some("move_vma"));
        // Two functions share these 8 bytes.
        assert_eq!(owner(0x20000), None);
    }

    #[test]
    fn a_kernel_without_our_functions_is_an_error() {
        assert!(Text::of(&symbols("a b c"), None).is_err());
        assert!(Text::of(&[], None).is_err());
    }

    #[test]
    fn what_the_compiler_says_decides_alone() {
        let list = symbols("hugetlb_fault helper brand_new kasan_x other _etext");
        let files = ["mm/hugetlb.c", "fs/hugetlbfs/inode.c", "mm/hgm.c", "mm/kasan/x.c", "net/a.c"];
        let files = list.iter().zip(files).map(|(s, f)| (s.addr, f.to_owned())).collect();
        let text = Text::of(&list, Some(&files)).unwrap();
        assert_eq!(file_of(&text, "hugetlb_fault").unwrap(), "mm/hugetlb.c");
        assert_eq!(file_of(&text, "helper").unwrap(), "fs/hugetlbfs/inode.c");
        // A file no table has, because a patch made it.
        assert_eq!(file_of(&text, "brand_new").unwrap(), "mm/hgm.c");
        assert_eq!(text.functions.len(), 3, "{text:?}");
    }

    #[test]
    fn the_table_holds_files_and_functions() {
        assert!(table().files.contains(&"mm/hugetlb.c"));
        assert!(table().names.values().flatten().all(|file| *file < table().files.len()));
        assert!(table().names.len() > 5000);
    }
}
