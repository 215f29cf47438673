//! From an address in a kernel's report to its line of source: the vmlinux beside a registered
//! kernel (`vmlinux`), asked when first needed, and what a report looks like then (`told`). What
//! cannot be known stays `function+offset`, with one line that says why.

#[cfg(test)]
mod tests;
mod told;
mod vmlinux;

pub use told::{Told, release, tell};
pub use vmlinux::{Found, Vmlinux};

use oracles::console::{Frame, Place};
use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmimages::Kernel;

/// Symbols of one kernel. Opens nothing until the first address is asked for.
#[derive(Debug)]
pub struct Symbols {
    kernel: String,
    path: Option<PathBuf>,
    opened: OnceCell<Result<Vmlinux, String>>,
    /// Addresses asked for, those in functions it does not have, and those in functions that are
    /// not as long in it as the console says.
    asked: Cell<u32>,
    missing: Cell<u32>,
    other: Cell<u32>,
}

impl Symbols {
    pub fn of(kernel: &Kernel) -> Symbols {
        Symbols::at(&kernel.id, kernel.vmlinux.clone())
    }

    /// Of nothing: what there is to say where no kernel is known.
    pub fn none() -> Symbols {
        Symbols::at("", None)
    }

    fn at(kernel: &str, path: Option<PathBuf>) -> Symbols {
        Symbols {
            kernel: kernel.to_owned(),
            path,
            opened: OnceCell::new(),
            asked: Cell::new(0),
            missing: Cell::new(0),
            other: Cell::new(0),
        }
    }

    /// Whether there is a file to look in; opens nothing.
    pub fn there(&self) -> bool {
        self.path.is_some()
    }

    fn opened(&self) -> Result<&Vmlinux, &str> {
        let open = || {
            let Some(path) = &self.path else {
                return Err(match self.kernel.as_str() {
                    "" => "no kernel is named, so addresses stay as they are".into(),
                    kernel => {
                        format!("kernel {kernel} has no vmlinux, so addresses stay as they are")
                    }
                });
            };
            Vmlinux::open(path)
                .map_err(|why| format!("vmlinux of kernel {} is of no use: {why}", self.kernel))
        };
        self.opened.get_or_init(open).as_ref().map_err(String::as_str)
    }

    /// GNU build id of the vmlinux, hex, if there is one.
    pub fn build_id(&self) -> Option<&str> {
        self.path.as_ref()?;
        self.opened().ok()?.build_id()
    }

    /// Lines of source at an address, what was inlined there first; empty if they are not known.
    pub fn places(&self, frame: &Frame) -> Vec<Place> {
        if frame.module.is_some() {
            return Vec::new();
        }
        let Ok(vmlinux) = self.opened() else { return Vec::new() };
        let count = |counter: &Cell<u32>| counter.set(counter.get().saturating_add(1));
        count(&self.asked);
        match vmlinux.find(frame) {
            Found::At(address) => return vmlinux.places(address),
            Found::Other => count(&self.other),
            Found::Missing => count(&self.missing),
            Found::Several => {}
        }
        Vec::new()
    }

    /// A console's text with the lines of source behind its addresses.
    pub fn decode(&self, console: &[u8]) -> String {
        oracles::console::decode(console, &mut |frame| self.places(frame))
    }

    /// Source files of functions at these addresses, where they are known: what the compiler was
    /// given. `None` if this vmlinux has no line tables, or is not of the kernel that told these
    /// symbols.
    pub fn files(&self, symbols: &[case::cover::Symbol]) -> Option<BTreeMap<u64, String>> {
        self.path.as_ref()?;
        self.opened().ok()?.files(symbols)
    }

    /// Why addresses stay as they are, if they do; asked after looking some up.
    pub fn note(&self) -> Option<String> {
        let vmlinux = match self.opened() {
            Ok(vmlinux) => vmlinux,
            Err(why) => return Some(why.to_owned()),
        };
        let (asked, other) = (self.asked.get(), self.other.get());
        let missing = self.missing.get();
        if other > 0 || missing * 2 > asked {
            return Some(format!(
                "vmlinux of kernel {} is of another build, so lines may be off: of {asked} \
                 addresses, {other} lie in functions of another length and {missing} in none of it",
                self.kernel
            ));
        }
        let lines = "has no line tables, so addresses stay as they are; the kasan preset has them";
        (!vmlinux.has_lines()).then(|| format!("vmlinux of kernel {} {lines}", self.kernel))
    }
}
