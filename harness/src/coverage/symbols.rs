//! A kernel's text, from its own mouth: booted once, asked for its symbols, and remembered in the
//! home. Addresses are the same in every boot, as every guest runs with `nokaslr`.

use super::Text;
use crate::exit::ExpectedError;
use crate::pool::Cradle;
use crate::symbols::Symbols;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vm::VmSpec;

/// Folder of the home.
const FOLDER: &str = "text";
/// Raised when what is kept, or how it is found, changes.
const FORMAT: u32 = 2;
/// Bytes of a kept text that are read at most.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Time the guest has to send its symbols.
const PATIENCE: Duration = Duration::from_secs(60);
/// Boots until it is given up: under emulation one in some tens dies by itself.
const BOOTS: u32 = 3;

/// What coverage needs to know of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelText {
    /// Has KCOV.
    pub kcov: bool,
    pub text: Text,
}

/// The kernel's text: as kept in the home, else from a guest booted for it. `say` is told before
/// that takes time.
pub fn read(
    home: &Path,
    spec: &VmSpec,
    cradle: &Cradle,
    vmlinux: &Symbols,
    say: &dyn Fn(&str),
) -> Result<KernelText, ExpectedError> {
    let path = place(home, spec, vmlinux)?;
    if let Some(kept) = kept(&path) {
        return Ok(kept);
    }
    say("reading the kernel's symbols from a guest (once per kernel)");
    let spec = VmSpec { cover: None, dir: spec.dir.join("symbols"), ..spec.clone() };
    let read = ask(&spec, cradle, vmlinux, say)?;
    keep(&path, &read).map_err(|error| {
        let what = format!("cannot write {}", path.display());
        ExpectedError::infrastructure(what, "make the home writable, or free space").cause(error)
    })?;
    Ok(read)
}

/// Named by what the answer depends on: image, command line, and how files are found.
fn place(home: &Path, spec: &VmSpec, vmlinux: &Symbols) -> Result<PathBuf, ExpectedError> {
    let image = std::fs::read(&spec.kernel).map_err(|error| {
        let what = format!("cannot read {}", spec.kernel.display());
        ExpectedError::infrastructure(what, "register the kernel again").cause(error)
    })?;
    let mut hash = blake3::Hasher::new();
    hash.update(&FORMAT.to_le_bytes()).update(&image).update(b"\0");
    hash.update(&[u8::from(vmlinux.there())]);
    hash.update(spec.extra_cmdline.as_bytes()).update(b"\0").update(super::text::table_bytes());
    Ok(home.join(FOLDER).join(format!("{}.json", &hash.finalize().to_hex()[..16])))
}

fn kept(path: &Path) -> Option<KernelText> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let kept: KernelText = serde_json::from_slice(&bytes).ok()?;
    kept.text.ranges.check().is_ok().then_some(kept)
}

fn keep(path: &Path, text: &KernelText) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(text)?)?;
    file.persist(path)?;
    Ok(())
}

fn ask(
    spec: &VmSpec,
    cradle: &Cradle,
    vmlinux: &Symbols,
    say: &dyn Fn(&str),
) -> Result<KernelText, ExpectedError> {
    let mut last = String::new();
    for _ in 0..BOOTS {
        let mut vm = match cradle.start(spec, &mut |line| say(line)) {
            Ok((vm, _)) => vm,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let kcov = vm.profile().kcov;
        match vm.symbols(PATIENCE) {
            Ok(symbols) => {
                let text = Text::of(&symbols, vmlinux.files(&symbols).as_ref());
                return text.map(|text| KernelText { kcov, text }).map_err(|why| {
                    ExpectedError::infrastructure(
                        "this kernel's text cannot be told apart for coverage",
                        "it needs CONFIG_KALLSYMS; --coverage off runs without",
                    )
                    .cause(why)
                });
            }
            Err(death) => last = format!("{:?}", death.kind),
        }
    }
    Err(ExpectedError::infrastructure(
        "no guest told the kernel's symbols",
        "hgm doctor; --coverage off runs without",
    )
    .cause(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_per_image_and_rubbish_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let image = home.path().join("vmlinuz");
        std::fs::write(&image, "one").unwrap();
        let spec = VmSpec {
            qemu: "/nonexistent".into(),
            kernel: image.clone(),
            initrd: "/i".into(),
            memory_mib: 1,
            cpus: 1,
            accel: vm::Accel::Tcg,
            jail: vm::Jail::Open,
            dir: home.path().join("vm"),
            boot_timeout: Duration::from_secs(1),
            extra_cmdline: String::new(),
            serial_link: false,
            cover: None,
        };
        let no = Symbols::none();
        let path = place(home.path(), &spec, &no).unwrap();
        let text = KernelText { kcov: true, text: Text::default() };
        keep(&path, &text).unwrap();
        assert_eq!(read(home.path(), &spec, &Cradle::cold(), &no, &|_| ()).unwrap(), text);
        // Another image has another text; there is no QEMU to ask here.
        std::fs::write(&image, "two").unwrap();
        assert!(read(home.path(), &spec, &Cradle::cold(), &no, &|_| ()).is_err());
        std::fs::write(&image, "one").unwrap();
        std::fs::write(&path, b"{\"kcov\":true,\"text\":{\"ranges\":[[16,8]],\"functions\":[]}}")
            .unwrap();
        assert!(read(home.path(), &spec, &Cradle::cold(), &no, &|_| ()).is_err());
    }
}
