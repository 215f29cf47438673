//! Something bootable: kernels under test and the initramfs that carries the guest agent.
//!
//! A kernel lives in `HOME/kernels/ID/{vmlinuz, config, modules/*.ko, modules/order, kernel.json}`
//! and never changes once it is registered. An initramfs is keyed by the hash of what went into
//! it. Nothing here starts a VM or knows what a program is.

#![forbid(unsafe_code)]

mod add;
mod bzimage;
mod cpio;
mod debian;
mod error;
mod initramfs;
mod modules;

pub use add::add;
pub use error::ImageError;
pub use initramfs::initramfs;

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
    })
}
