//! Something bootable: kernels under test and the initramfs that carries the guest agent.
//!
//! A kernel lives in `HOME/kernels/ID/{vmlinuz, config, vmlinux, modules/*.ko, modules/order,
//! kernel.json}` and appears there whole. It never changes, but for a kernel built here, whose
//! place the next build of the same name takes. An initramfs is keyed by the hash of what went
//! into it. Nothing here starts a VM or knows what a program is.

#![forbid(unsafe_code)]

mod add;
mod build;
mod bzimage;
mod cpio;
mod debian;
mod error;
mod initramfs;
mod modules;
mod weight;

pub use add::{add, add_tree};
pub use build::{BuildError, BuildSpec, Built, Event, Preset, build, missing_tools};
pub use error::ImageError;
pub use initramfs::initramfs;
pub use weight::Weight;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A registered kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Directory name and what users type, e.g. `debian-6.1.192-2`.
    pub id: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Modules in load order.
    pub modules: Vec<PathBuf>,
    /// Everything of this kernel.
    pub dir: PathBuf,
    /// Where it came from, for people.
    pub source: String,
    /// What `uname -r` says in it.
    pub release: String,
    /// Its ELF file with symbols, where it is known.
    pub vmlinux: Option<PathBuf>,
    /// How it was built, if it was built here.
    pub build: Option<Build>,
}

/// What went into a kernel that was built here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Hash over everything below; the same key is the same kernel.
    pub key: String,
    pub preset: String,
    /// blake3 of the sources as they were before any patch, hex.
    pub source_blake3: String,
    /// In the order they were applied: the user's, then base fixes.
    pub patches: Vec<AppliedPatch>,
    /// First line of the compiler's `--version`.
    pub compiler: String,
    /// blake3 of the final `.config`, hex.
    pub config_blake3: String,
    /// Optional lines of the preset this tree or compiler could not give, with why.
    pub left_out: Vec<String>,
}

/// A patch in a built kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedPatch {
    pub name: String,
    /// blake3 of the patch, hex.
    pub blake3: String,
    /// One of ours for a fault of the base tree.
    pub base_fix: bool,
}

/// What `kernel.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    id: String,
    source: String,
    /// Version text inside the image's setup header.
    release: String,
    /// blake3 of the image, hex.
    image_blake3: String,
    /// File names under `modules/`, in load order.
    modules: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    build: Option<Build>,
}

/// Registered kernels, sorted by id. A directory whose `kernel.json` is absent, unreadable or of
/// another name is left out.
pub fn kernels(home: &Path) -> Vec<Kernel> {
    let Ok(entries) = std::fs::read_dir(kernels_dir(home)) else { return Vec::new() };
    let mut all: Vec<Kernel> = entries
        .flatten()
        .filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."))
        .filter_map(|e| load(&e.path()))
        .collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

fn kernels_dir(home: &Path) -> PathBuf {
    home.join("kernels")
}

/// The kernel registered in `dir`, if it is whole.
fn load(dir: &Path) -> Option<Kernel> {
    let text = std::fs::read_to_string(dir.join("kernel.json")).ok()?;
    let manifest: Manifest = serde_json::from_str(&text).ok()?;
    if dir.file_name()?.to_str()? != manifest.id {
        return None;
    }
    let image = dir.join("vmlinuz");
    if !image.is_file() {
        return None;
    }
    let modules = manifest.modules.iter().map(|m| dir.join("modules").join(m)).collect();
    Some(Kernel {
        id: manifest.id,
        image,
        modules,
        dir: dir.to_path_buf(),
        source: manifest.source,
        release: manifest.release,
        vmlinux: Some(dir.join("vmlinux")).filter(|path| path.is_file()),
        build: manifest.build,
    })
}
