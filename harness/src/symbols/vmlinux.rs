//! One vmlinux: its symbol table, as kallsyms sees it, and its line tables. The file is mapped, the
//! line tables of a source file are read when an address lies in it. What the file says is not
//! believed: a broken one is an error or an unknown place.

use addr2line::gimli::{Dwarf, DwarfFileType, EndianSlice, LittleEndian, Reader, SectionId};
use addr2line::{Context, Location};
use case::cover::Symbol;
use object::elf::FileHeader64;
use object::read::elf::{ElfFile, ElfFile64};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use oracles::console::{Frame, FrameKind, Place};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Inlined calls one address may have; deeper is rubbish.
const INLINED_MAX: usize = 32;
/// A function every kernel has, and its file: what stands before that path is the build's folder.
const LANDMARKS: &[(&str, &str)] = &[("start_kernel", "init/main.c"), ("do_exit", "kernel/exit.c")];
/// Symbols of a guest that must lie where they lie here, in percent, to be of this build.
const AGREE_PERCENT: usize = 95;

type Bytes = EndianSlice<'static, LittleEndian>;

/// A function's symbol.
#[derive(Clone, Copy, Debug)]
struct Named {
    name: &'static str,
    address: u64,
    /// As the assembler says; 0 if it does not.
    size: u64,
    /// Bytes to the next symbol, which is what the kernel prints.
    extent: u64,
}

/// What is known of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The address to look up.
    At(u64),
    /// No function of this name has this length: another build.
    Other,
    /// No function has this name.
    Missing,
    /// Several functions are alike in name and length.
    Several,
}

/// See the module's head.
pub struct Vmlinux {
    /// By name, then address.
    symbols: Vec<Named>,
    lines: Option<Context<Bytes>>,
    dwarf: Option<Arc<Dwarf<Bytes>>>,
    build_id: Option<String>,
    /// What paths begin with that are no part of the kernel's tree.
    roots: Vec<String>,
}

impl fmt::Debug for Vmlinux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmlinux").field("build_id", &self.build_id).finish_non_exhaustive()
    }
}

impl Vmlinux {
    /// Opens a vmlinux, or says in a few words why it is of no use.
    pub fn open(path: &Path) -> Result<Vmlinux, String> {
        let bytes = vm::map_file(path).map_err(|e| format!("cannot read it: {e}"))?;
        let elf = ElfFile64::<LittleOf>::parse(bytes).map_err(|e| format!("no ELF file: {e}"))?;
        let symbols = symbols(&elf);
        if symbols.is_empty() {
            return Err("it has no symbols, or is cut short".into());
        }
        let build_id = elf.build_id().ok().flatten().map(hex);
        let dwarf = dwarf(&elf)?.map(Arc::new);
        let lines = dwarf.clone().map(Context::from_arc_dwarf).transpose();
        let lines = lines.map_err(|e| format!("its line tables are broken: {e}"))?;
        let mut vmlinux = Vmlinux { symbols, lines, dwarf, build_id, roots: Vec::new() };
        vmlinux.roots = vmlinux.find_roots();
        Ok(vmlinux)
    }

    /// Whether there are line tables.
    pub fn has_lines(&self) -> bool {
        self.lines.is_some()
    }

    /// GNU build id, hex.
    pub fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    fn named(&self, name: &str) -> &[Named] {
        let first = self.symbols.partition_point(|s| s.name < name);
        let after = self.symbols[first..].partition_point(|s| s.name == name);
        &self.symbols[first..first + after]
    }

    /// Where a frame is. Of several functions of one name it is in the one with the length the
    /// kernel printed.
    pub fn find(&self, frame: &Frame) -> Found {
        let named = self.named(&frame.function);
        if named.is_empty() {
            return Found::Missing;
        }
        if frame.offset > frame.length {
            return Found::Other;
        }
        let only = |fits: &dyn Fn(&Named) -> bool| {
            let mut found = named.iter().filter(|s| fits(s));
            found.next().filter(|_| found.next().is_none())
        };
        let found = only(&|s| s.extent == frame.length).or_else(|| {
            // The kernel may know a symbol behind it that is not in the file, or the other way.
            only(&|s| s.size > 0 && s.size == frame.length)
        });
        let Some(found) = found else {
            let alike = named.iter().any(|s| s.extent == frame.length);
            return if alike { Found::Several } else { Found::Other };
        };
        // A return address belongs to the call before it, which may end the line or the function.
        let back = u64::from(frame.kind != FrameKind::Exact && frame.offset > 0);
        Found::At(found.address.saturating_add(frame.offset).saturating_sub(back))
    }

    /// Lines of source at an address, innermost inlined function first.
    pub fn places(&self, address: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let Some(lines) = &self.lines else { return places };
        let Ok(mut frames) = lines.find_frames(address).skip_all_loads() else { return places };
        while let Ok(Some(frame)) = frames.next() {
            let function = frame.function.as_ref().and_then(|f| f.raw_name().ok());
            let Some(at) = frame.location.as_ref().and_then(|l| self.at(l)) else { continue };
            let function = function.map_or("?".into(), |name| name.into_owned());
            places.push(Place { function, at });
            if places.len() >= INLINED_MAX {
                break;
            }
        }
        places
    }

    fn at(&self, location: &Location<'_>) -> Option<String> {
        let file = self.short(location.file?);
        Some(match location.line {
            Some(line) if line > 0 => format!("{file}:{line}"),
            _ => file,
        })
    }

    /// The file each stretch of code was compiled from: (start, end, path), ascending. Only the
    /// heads of the units are read.
    fn compiled(&self) -> Vec<(u64, u64, String)> {
        let mut all = Vec::new();
        let Some(dwarf) = &self.dwarf else { return all };
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            let Ok(unit) = dwarf.unit(header) else { continue };
            let (Some(name), Ok(mut ranges)) = (unit.name, dwarf.unit_ranges(&unit)) else {
                continue;
            };
            let file = self.short(&name.to_string_lossy());
            while let Ok(Some(range)) = ranges.next() {
                all.push((range.begin, range.end, file.clone()));
            }
        }
        all.sort();
        all
    }

    /// Files of a guest's symbols, by address. `None` without line tables, or if the guest's
    /// symbols do not lie where they lie here.
    pub fn files(&self, symbols: &[Symbol]) -> Option<BTreeMap<u64, String>> {
        self.lines.as_ref()?;
        let text = |s: &&Symbol| self.named(&String::from_utf8_lossy(&s.name)).len() == 1;
        let (mut known, mut same) = (0usize, 0usize);
        for symbol in symbols.iter().filter(text) {
            known += 1;
            let here = self.named(&String::from_utf8_lossy(&symbol.name));
            same += usize::from(here[0].address == symbol.addr);
        }
        if known == 0 || same * 100 < known * AGREE_PERCENT {
            return None;
        }
        let compiled = self.compiled();
        let file = |s: &Symbol| {
            let after = compiled.partition_point(|(start, ..)| *start <= s.addr);
            let (_, end, file) = compiled[..after].last()?;
            (s.addr < *end).then(|| (s.addr, file.clone()))
        };
        Some(symbols.iter().filter_map(file).collect())
    }

    /// A path as kernel developers write it: below the tree, without `.` and `..`.
    fn short(&self, path: &str) -> String {
        let rest = self.roots.iter().find_map(|root| path.strip_prefix(root.as_str()));
        let rest = rest.map_or(path, |rest| rest.trim_start_matches('/'));
        let mut parts: Vec<&str> = Vec::new();
        for part in rest.split('/') {
            match part {
                "." => {}
                "" if !parts.is_empty() => {}
                ".." if parts.last().is_some_and(|p| !p.is_empty() && *p != "..") => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    /// Folders of the tree and of its build, told by files whose place in a tree is known.
    fn find_roots(&self) -> Vec<String> {
        let mut roots = Vec::new();
        let Some(lines) = &self.lines else { return roots };
        for (function, file) in LANDMARKS {
            for symbol in self.named(function) {
                let Ok(Some(at)) = lines.find_location(symbol.address) else { continue };
                let path = at.file.unwrap_or_default();
                let root = path.strip_suffix(file).filter(|root| root.ends_with('/'));
                roots.extend(root.map(str::to_owned));
                let unit = lines.find_dwarf_and_unit(symbol.address).skip_all_loads();
                let folder = unit.and_then(|unit| unit.comp_dir);
                let folder = folder.map(|dir| format!("{}/", dir.to_string_lossy()));
                roots.extend(folder.filter(|dir| dir.len() > 1));
            }
            if !roots.is_empty() {
                break;
            }
        }
        roots
    }
}

type LittleOf = object::LittleEndian;
type Elf = ElfFile<'static, FileHeader64<LittleOf>>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Names the kernel leaves out of its own table (scripts/kallsyms.c).
fn untold(name: &str) -> bool {
    const STARTS: &[&str] = &["$", ".L", "L0", "__crc_", "__efistub_", "__kstrtab", "__ksymtab"];
    name.is_empty() || STARTS.iter().any(|start| name.starts_with(start))
}

/// Symbols of code, each with the bytes to the next one.
fn symbols(elf: &Elf) -> Vec<Named> {
    let code = code_sections(elf);
    let mut all = Vec::new();
    for symbol in elf.symbols() {
        let Ok(name) = symbol.name() else { continue };
        let index = symbol.section_index().map_or(0, |index| index.0);
        let inside = code.get(index).is_some_and(|code| *code);
        let no_place = matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File);
        if !inside || no_place || untold(name) {
            continue;
        }
        let (address, size) = (symbol.address(), symbol.size());
        all.push(Named { name, address, size, extent: 0 });
    }
    all.sort_by_key(|s| s.address);
    let mut next = None;
    for at in (0..all.len()).rev() {
        let after = all.get(at + 1).map(|s| s.address);
        if after.is_some_and(|after| after > all[at].address) {
            next = after;
        }
        all[at].extent = next.map_or(all[at].size, |next| next - all[at].address);
    }
    all.sort_by(|a, b| (a.name, a.address).cmp(&(b.name, b.address)));
    all
}

/// Whether each section holds code, by its index.
fn code_sections(elf: &Elf) -> Vec<bool> {
    let mut code = Vec::new();
    for section in elf.sections() {
        let index = section.index().0;
        code.resize(code.len().max(index + 1), false);
        code[index] = section.kind() == SectionKind::Text;
    }
    code
}

/// The sections of the line tables; `None` where the kernel was built without.
fn dwarf(elf: &Elf) -> Result<Option<Dwarf<Bytes>>, String> {
    let broken = |e: &dyn fmt::Display| format!("its line tables are broken: {e}");
    let section = |id: SectionId| -> Result<Bytes, String> {
        let Some(section) = elf.section_by_name(id.name()) else {
            return Ok(EndianSlice::new(&[], LittleEndian));
        };
        let range = section.compressed_file_range().map_err(|e| broken(&e))?;
        if range.format != object::CompressionFormat::None {
            return Err("its line tables are compressed: build without \
                        CONFIG_DEBUG_INFO_COMPRESSED"
                .into());
        }
        let data = section.data().map_err(|e| broken(&e))?;
        Ok(EndianSlice::new(data, LittleEndian))
    };
    if section(SectionId::DebugLine)?.is_empty() || section(SectionId::DebugInfo)?.is_empty() {
        return Ok(None);
    }
    let mut dwarf: Dwarf<Bytes> = Dwarf::load(section)?;
    dwarf.file_type = DwarfFileType::Main;
    Ok(Some(dwarf))
}
