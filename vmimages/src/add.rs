//! Registering a kernel: from a name or a file to a directory that appears whole or not at all.

use crate::modules::{self, Module};
use crate::{ImageError, Kernel, Manifest, bzimage, debian, kernels_dir, load};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Largest image read, in bytes; a debug kernel's bzImage has some 20 MB.
const IMAGE_BYTES_MAX: u64 = 256 << 20;

/// Registers the kernel `spec` names and returns it; one that is there already is returned as it
/// is. `modules` is a directory searched for the modules of a kernel given as a file. `log` hears
/// one line per step.
///
/// `spec`: `debian:6.1`, `debian:6.12` (newest of the series), `debian:6.1.0-50` (exact), or the
/// path of a bzImage.
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
    let root = debian::fetch(&package, temp.path())?;
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
    let bytes = read_image(&path)?;
    let release = bzimage::release(&path, &bytes)?;
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
    let full = path.canonicalize().map_err(ImageError::io("cannot resolve", &path))?;
    let parts = Parts {
        release,
        source: format!("file {}", full.display()),
        config: None,
        modules,
        image: bytes,
    };
    register(&make_dir(&kernels_dir(home))?, id, parts, log)
}

/// What a kernel's directory is made of.
struct Parts {
    release: String,
    source: String,
    config: Option<PathBuf>,
    modules: Vec<Module>,
    image: Vec<u8>,
}

/// Writes everything into a hidden directory beside the others, then renames it.
fn register(
    kernels: &Path,
    id: String,
    parts: Parts,
    log: &mut dyn FnMut(&str),
) -> Result<Kernel, ImageError> {
    let temp = temp_dir(kernels)?;
    let stage = temp.path().join("kernel");
    make_dir(&stage.join("modules"))?;
    write_synced(&stage.join("vmlinuz"), &parts.image)?;
    if let Some(config) = &parts.config {
        let to = stage.join("config");
        std::fs::copy(config, &to).map_err(ImageError::io("cannot write", &to))?;
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
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default();
    write_synced(&stage.join("kernel.json"), text.as_bytes())?;

    let target = kernels.join(&id);
    if load(&target).is_none() {
        // A broken leftover of the same id (no kernel.json) would make the rename fail.
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

fn read_image(path: &Path) -> Result<Vec<u8>, ImageError> {
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

fn make_dir(dir: &Path) -> Result<PathBuf, ImageError> {
    std::fs::create_dir_all(dir).map_err(ImageError::io("cannot create", dir))?;
    Ok(dir.to_path_buf())
}

fn temp_dir(within: &Path) -> Result<tempfile::TempDir, ImageError> {
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
