//! The guest's first file system: the agent as /init, the kernel's modules, nothing secret.
//! Cached under `HOME/initramfs/HASH.cpio`, the hash taken over everything inside.

use crate::add::write_atomically;
use crate::cpio::Archive;
use crate::{ImageError, Kernel};
use std::path::{Path, PathBuf};

/// Raised when the layout inside changes, so that old cached archives are not used.
const LAYOUT: u32 = 2;
/// Directories the agent mounts on.
const DIRS: [&str; 7] = ["dev", "proc", "sys", "tmp", "run", "mnt", "modules"];

/// The archive for `kernel` with `agent` as its init; made if it is not in the cache.
/// /modules/order names the modules, one file name a line, in load order.
pub fn initramfs(home: &Path, kernel: &Kernel, agent: &Path) -> Result<PathBuf, ImageError> {
    let init = std::fs::read(agent).map_err(ImageError::io("cannot read", agent))?;
    check_static(agent, &init)?;
    let mut modules = Vec::new();
    for path in &kernel.modules {
        let bytes = std::fs::read(path).map_err(ImageError::io("cannot read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        modules.push((name, bytes));
    }
    let dir = home.join("initramfs");
    let path = dir.join(format!("{}.cpio", key(&init, &modules)));
    if path.is_file() {
        return Ok(path);
    }
    std::fs::create_dir_all(&dir).map_err(ImageError::io("cannot create", &dir))?;
    write_atomically(&path, &archive(&init, &modules))?;
    Ok(path)
}

fn key(init: &[u8], modules: &[(String, Vec<u8>)]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&LAYOUT.to_le_bytes());
    for (name, bytes) in std::iter::once(("init", init))
        .chain(modules.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
    {
        // Lengths first, so that no two lists of parts hash alike.
        hash.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hash.finalize().to_hex()[..32].to_string()
}

fn archive(init: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in DIRS {
        archive.dir(dir, 0o755);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.char_device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, init);
    let mut order = String::new();
    for (name, bytes) in modules {
        archive.file(&format!("modules/{name}"), 0o644, bytes);
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.finish()
}

/// An x86-64 ELF without an interpreter: the initramfs has no loader and no libraries.
fn check_static(path: &Path, elf: &[u8]) -> Result<(), ImageError> {
    const PT_INTERP: u32 = 3;
    let bad = |why| Err(ImageError::BadAgent { path: path.to_path_buf(), why });
    let u16_at = |at: usize| elf.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if !elf.starts_with(b"\x7fELF\x02\x01") || u16_at(18) != Some(62) {
        return bad("it is not an x86-64 ELF program");
    }
    let table = elf.get(32..40).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    let (Some(table), Some(size), Some(count)) = (table, u16_at(54), u16_at(56)) else {
        return bad("its ELF header is cut off");
    };
    for n in 0..u64::from(count) {
        let at = table.saturating_add(n * u64::from(size));
        let Some(kind) = usize::try_from(at).ok().and_then(|a| elf.get(a..a.checked_add(4)?))
        else {
            return bad("its program headers are cut off");
        };
        if kind == PT_INTERP.to_le_bytes() {
            return bad("it is dynamically linked");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::read::entries;

    /// An ELF header with one program header of `kind`.
    fn elf(kind: u32) -> Vec<u8> {
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf
    }

    fn kernel(dir: &Path) -> Kernel {
        let modules = vec![dir.join("b.ko"), dir.join("a.ko")];
        for module in &modules {
            std::fs::write(module, b"module").unwrap();
        }
        Kernel {
            id: "k".into(),
            image: dir.join("vmlinuz"),
            modules,
            dir: dir.into(),
            source: "test".into(),
            release: "6.1.0".into(),
            vmlinux: None,
            build: None,
        }
    }

    #[test]
    fn the_archive_holds_init_modules_and_order_and_is_cached_by_content() {
        let home = tempfile::tempdir().unwrap();
        let kernel = kernel(home.path());
        let agent = home.path().join("agent");
        std::fs::write(&agent, elf(1)).unwrap();
        let first = initramfs(home.path(), &kernel, &agent).unwrap();
        let all = entries(&std::fs::read(&first).unwrap());
        let get = |name: &str| all.iter().find(|e| e.name == name).unwrap();
        assert_eq!(get("init").data, elf(1));
        assert_eq!(get("init").mode, 0o100_755);
        assert_eq!(get("dev/console").rdev, (5, 1));
        assert_eq!(get("modules/order").data, b"b.ko\na.ko\n");
        assert_eq!(get("modules/a.ko").data, b"module");

        let made = std::fs::metadata(&first).unwrap().modified().unwrap();
        assert_eq!(initramfs(home.path(), &kernel, &agent).unwrap(), first);
        assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), made);
        std::fs::write(&agent, elf(2)).unwrap();
        assert_ne!(initramfs(home.path(), &kernel, &agent).unwrap(), first);
    }

    #[test]
    fn an_agent_that_cannot_start_alone_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let kernel = kernel(home.path());
        let agent = home.path().join("agent");
        for (bytes, why) in [
            (elf(3), "dynamically"),
            (b"#!/bin/sh".to_vec(), "not an x86-64"),
            (elf(1)[..80].to_vec(), ""),
            (elf(1)[..50].to_vec(), "cut off"),
        ] {
            std::fs::write(&agent, &bytes).unwrap();
            let result = initramfs(home.path(), &kernel, &agent);
            if why.is_empty() {
                assert!(result.is_ok());
            } else {
                let err = result.unwrap_err();
                assert!(err.to_string().contains(why), "{err}");
                assert!(err.help().contains("--profile agent"));
            }
        }
    }
}
