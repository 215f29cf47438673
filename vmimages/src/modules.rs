//! Which modules a guest gets, and in which order they load. The order comes from the `depends=`
//! text inside each module, so that no depmod and no modules.dep is needed.

use crate::ImageError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a guest loads where the kernel has it as a module: the link, then what ops need.
pub const WANTED: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_console",
    "hwpoison_inject",
    "brd",
    "msr",
];

/// How deep a modules directory may be.
const DEPTH_MAX: u32 = 16;

/// A module ready to be written: file name without compression suffix, and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub file: String,
    pub bytes: Vec<u8>,
}

/// The wanted modules found under `dir` with all they depend on, in load order. `log` hears of
/// wanted ones that are not there (built in, or not configured).
pub fn collect(dir: &Path, log: &mut dyn FnMut(&str)) -> Result<Vec<Module>, ImageError> {
    let mut files = BTreeMap::new();
    walk(dir, DEPTH_MAX, &mut files)?;
    let mut chosen = Vec::new();
    let mut done = BTreeSet::new();
    for name in WANTED {
        if files.contains_key(name) {
            visit(name, &files, &mut done, &mut chosen)?;
        } else {
            log(&format!("module {name}: not there as a module"));
        }
    }
    Ok(chosen)
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    done: &mut BTreeSet<String>,
    chosen: &mut Vec<Module>,
) -> Result<(), ImageError> {
    // Marked before its dependencies, so that a (broken) cycle ends.
    if !done.insert(name.to_string()) {
        return Ok(());
    }
    let path = &files[name];
    let bytes = content(path)?;
    for needs in depends(&bytes) {
        if !files.contains_key(&needs) {
            return Err(ImageError::MissingModule { module: name.into(), needs });
        }
        visit(&needs, files, done, chosen)?;
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = file.split(".ko").next().unwrap_or_default();
    chosen.push(Module { file: format!("{stem}.ko"), bytes });
    Ok(())
}

/// Every `*.ko[.xz|.zst|.gz]` under `dir` by module name (dashes become underscores).
fn walk(dir: &Path, depth: u32, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let entries = std::fs::read_dir(dir).map_err(ImageError::io("cannot read", dir))?;
    for entry in entries {
        let entry = entry.map_err(ImageError::io("cannot read", dir))?;
        let kind = entry.file_type().map_err(ImageError::io("cannot read", dir))?;
        if kind.is_dir() && depth > 0 {
            walk(&entry.path(), depth - 1, files)?;
        } else if kind.is_file()
            && let Some(name) = entry.file_name().to_str()
            && let Some((stem, "" | ".xz" | ".zst" | ".gz")) = name.split_once(".ko")
        {
            files.insert(stem.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn content(path: &Path) -> Result<Vec<u8>, ImageError> {
    let (tool, package) = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return std::fs::read(path).map_err(ImageError::io("cannot read", path)),
    };
    let mut command = Command::new(tool);
    command.arg("-dc").arg("--").arg(path).stdin(Stdio::null());
    crate::debian::output(command, package)
}

/// The names in `depends=` of the module's .modinfo, whose entries are NUL-terminated texts.
fn depends(bytes: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = bytes.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = &bytes[at + KEY.len()..];
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF junk\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn dependencies_load_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("kernel/drivers");
        std::fs::create_dir_all(&deep).unwrap();
        for (file, needs) in [
            ("virtio_console.ko", "virtio,virtio-ring"),
            ("virtio.ko", ""),
            ("virtio_ring.ko", "virtio"),
            ("hwpoison-inject.ko", "helper"),
            ("helper.ko", ""),
            ("unwanted.ko", ""),
            ("brd.ko.sig", ""),
        ] {
            std::fs::write(deep.join(file), module(needs)).unwrap();
        }
        let mut missing = Vec::new();
        let chosen = collect(dir.path(), &mut |line| missing.push(line.to_string())).unwrap();
        let names: Vec<&str> = chosen.iter().map(|m| m.file.as_str()).collect();
        let expect =
            ["virtio.ko", "virtio_ring.ko", "virtio_console.ko", "helper.ko", "hwpoison-inject.ko"];
        assert_eq!(names, expect);
        assert_eq!(missing.len(), WANTED.len() - 4);
    }

    #[test]
    fn an_absent_dependency_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("brd.ko"), module("lost")).unwrap();
        let err = collect(dir.path(), &mut |_| ()).unwrap_err().to_string();
        assert!(err.contains("brd") && err.contains("lost"), "{err}");
    }
}
