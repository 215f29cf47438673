//! Registering a kernel: from a name or a file to a directory that appears whole or not at all.

use crate::modules::{self, Module};
use crate::{Build, ImageError, Kernel, Manifest, bzimage, debian, kernels_dir, load};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Largest image read, in bytes; a debug kernel's bzImage has some 20 MB.
const IMAGE_BYTES_MAX: u64 = 256 << 20;
/// The kernel's ELF file with its symbols, beside the image.
const VMLINUX: &str = "vmlinux";

/// Registers the kernel `spec` names and returns it; one that is there already is returned as it
/// is. `modules` is a directory searched for the modules of a kernel given as a file. `log` hears
/// one line per step.
///
/// `spec`: `debian:6.1`, `debian:6.12` (newest of the series), `debian:6.1.0-50` or
/// `debian:6.1.192-2` (exact ABI or version), or the path of a bzImage.
pub fn add(
    home: &Path,
    spec: &str,
    modules: Option<&Path>,
    log: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    match spec.strip_prefix("debian:") {
        Some(what) => add_debian(home, what, log),
        None => add_file(home, spec, modules, log),
    }
}

fn add_debian(home: &Path, what: &str, log: &mut dyn FnMut(&str)) -> Result<Kernel, ImageError> {
    let package = debian::resolve(what)?;
    let id = format!("debian-{}", package.version.replace(':', "-"));
    if let Some(kernel) = load(&kernels_dir(home).join(&id)) {
        log(&format!("{id}: already there"));
        return Ok(kernel);
    }
    let dir = make_dir(&kernels_dir(home))?;
    let temp = temp_dir(&dir)?;
    log(&format!("downloading {} {}", package.name, package.version));
    let root = debian::fetch(&package, temp.path(), debian::IMAGE_PARTS)?;
    let lacks = |what| ImageError::BadPackage { package: package.name.clone(), what };
    let boot = root.join("boot");
    let image = find(&boot, "vmlinuz-").ok_or_else(|| lacks("kernel image"))?;
    let bytes = read_image(&image)?;
    let parts = Parts {
        release: bzimage::release(&image, &bytes)?,
        source: format!("Debian package {} {}", package.name, package.version),
        config: find(&boot, "config-"),
        modules: modules::collect(&root, log)?,
        image: bytes,
        vmlinux: None,
        build: None,
    };
    register(&dir, id, parts, log)
}

fn add_file(
    home: &Path,
    spec: &str,
    modules: Option<&Path>,
    log: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    let path = PathBuf::from(spec);
    if !path.is_file() {
        let why = if path.is_dir() { "it is a directory" } else { "there is no such file" };
        return Err(ImageError::UnknownSpec { spec: spec.into(), why: why.into() });
    }
    let full = path.canonicalize().map_err(ImageError::io("cannot resolve", &path))?;
    let files = Files { source: format!("file {}", full.display()), config: None, vmlinux: None };
    add_image(home, &path, modules, files, log)
}

/// Registers the kernel that was built in `tree`, a kernel source tree or the folder of an
/// out-of-tree build. Nothing is built.
pub fn add_tree(home: &Path, tree: &Path, log: &mut dyn FnMut(&str)) -> Result<Kernel, ImageError> {
    let image = tree.join("arch/x86/boot/bzImage");
    if !image.is_file() {
        return Err(ImageError::NoImage { tree: tree.to_path_buf() });
    }
    let full = tree.canonicalize().map_err(ImageError::io("cannot resolve", tree))?;
    let there = |name: &str| Some(tree.join(name)).filter(|path| path.is_file());
    let files = Files {
        source: format!("tree {}", full.display()),
        config: there(".config"),
        vmlinux: there("vmlinux"),
    };
    let has_modules = files.config.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
    let has_modules = has_modules.is_none_or(|text| text.contains("\nCONFIG_MODULES=y\n"));
    add_image(home, &image, has_modules.then_some(tree), files, log)
}

/// What lies beside an image.
struct Files {
    source: String,
    config: Option<PathBuf>,
    vmlinux: Option<PathBuf>,
}

fn add_image(
    home: &Path,
    path: &Path,
    modules: Option<&Path>,
    files: Files,
    log: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    let bytes = read_image(path)?;
    let release = bzimage::release(path, &bytes)?;
    let modules = match modules {
        Some(dir) => modules::collect(dir, log)?,
        None => Vec::new(),
    };
    // The id covers the modules too: the same image with other modules is another kernel.
    let mut hash = blake3::Hasher::new();
    hash.update(&bytes);
    for module in &modules {
        hash.update(module.file.as_bytes()).update(blake3::hash(&module.bytes).as_bytes());
    }
    let id = format!("{release}-{}", &hash.finalize().to_hex()[..8]);
    if let Some(kernel) = load(&kernels_dir(home).join(&id)) {
        log(&format!("{id}: already there"));
        return Ok(kernel);
    }
    let parts = Parts {
        release,
        source: files.source,
        config: files.config,
        modules,
        image: bytes,
        vmlinux: files.vmlinux,
        build: None,
    };
    register(&make_dir(&kernels_dir(home))?, id, parts, log)
}

/// What a kernel's directory is made of.
pub(crate) struct Parts {
    pub release: String,
    pub source: String,
    pub config: Option<PathBuf>,
    pub modules: Vec<Module>,
    pub image: Vec<u8>,
    pub vmlinux: Option<PathBuf>,
    /// Of a kernel built here. Another build of the same id takes its place.
    pub build: Option<Build>,
}

/// Writes everything into a hidden directory beside the others, then renames it.
pub(crate) fn register(
    kernels: &Path,
    id: String,
    parts: Parts,
    log: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    let temp = temp_dir(kernels)?;
    let stage = temp.path().join("kernel");
    make_dir(&stage.join("modules"))?;
    write_synced(&stage.join("vmlinuz"), &parts.image)?;
    for (from, name) in [(&parts.config, "config"), (&parts.vmlinux, VMLINUX)] {
        let Some(from) = from else { continue };
        let to = stage.join(name);
        std::fs::copy(from, &to).map_err(ImageError::io("cannot write", &to))?;
        let synced = std::fs::File::open(&to).and_then(|file| file.sync_all());
        synced.map_err(ImageError::io("cannot write", &to))?;
    }
    let mut order = String::new();
    for module in &parts.modules {
        write_synced(&stage.join("modules").join(&module.file), &module.bytes)?;
        order.push_str(&module.file);
        order.push('\n');
    }
    write_synced(&stage.join("modules/order"), order.as_bytes())?;
    let manifest = Manifest {
        id: id.clone(),
        source: parts.source,
        release: parts.release,
        image_blake3: blake3::hash(&parts.image).to_hex().to_string(),
        modules: parts.modules.into_iter().map(|m| m.file).collect(),
        build: parts.build,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
    write_synced(&stage.join("kernel.json"), text.as_bytes())?;

    let target = kernels.join(&id);
    if load(&target).is_none_or(|there| manifest.build.is_some() && there.build != manifest.build) {
        // A broken leftover of the same id, or an earlier build, would make the rename fail.
        let _ = std::fs::rename(&target, temp.path().join("leftover"));
        let renamed = std::fs::rename(&stage, &target);
        // Another process may have registered the same kernel first: theirs is as good.
        if let Err(error) = renamed
            && load(&target).is_none()
        {
            return Err(ImageError::io("cannot rename to", &target)(error));
        }
    }
    log(&format!("{id}: registered"));
    load(&target).ok_or_else(|| {
        let lost = std::io::Error::other("it does not read back");
        ImageError::io("cannot register", &target)(lost)
    })
}

pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>, ImageError> {
    let len = std::fs::metadata(path).map_err(ImageError::io("cannot read", path))?.len();
    if len > IMAGE_BYTES_MAX {
        let why = "it is larger than 256 MiB";
        return Err(ImageError::NotAKernel { path: path.to_path_buf(), why });
    }
    std::fs::read(path).map_err(ImageError::io("cannot read", path))
}

/// The first file in `dir`, by name, that starts with `prefix`.
fn find(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|e| e.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()))
        .map(|e| e.path())
        .collect();
    all.sort();
    all.into_iter().next()
}

pub(crate) fn make_dir(dir: &Path) -> Result<PathBuf, ImageError> {
    std::fs::create_dir_all(dir).map_err(ImageError::io("cannot create", dir))?;
    Ok(dir.to_path_buf())
}

pub(crate) fn temp_dir(within: &Path) -> Result<tempfile::TempDir, ImageError> {
    tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(within)
        .map_err(ImageError::io("cannot create a directory in", within))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    std::fs::File::create(path)
        .and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()))
        .map_err(ImageError::io("cannot write", path))
}

/// Writes beside `path`, then renames: a reader sees all of it or nothing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(dir)
        .map_err(ImageError::io("cannot create a file in", dir))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(ImageError::io("cannot write", path))?;
    file.persist(path).map_err(|e| ImageError::io("cannot write", path)(e.error))?;
    Ok(())
}
