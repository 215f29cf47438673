//! Where the guest agent, the coverage plugin and the base fixes for kernels are found.
//!
//! `$HGM_AGENT`, `$HGM_COVERAGE_PLUGIN` and `$HGM_FIXES`, else beside the `hgm` binary, else in the
//! workspace.

use crate::exit::ExpectedError;
use std::path::{Path, PathBuf};

/// Name of the agent beside `hgm`.
const AGENT_NAME: &str = "hgm-agent";
/// Where the agent's own profile builds it, below the target folder.
const AGENT_BUILT: &str = "x86_64-unknown-linux-gnu/agent/agent";

/// The agent binary that goes into initramfs images.
pub fn agent() -> Result<PathBuf, ExpectedError> {
    let places = agent_places();
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            let looked: Vec<String> =
                places.iter().map(|path| path.display().to_string()).collect();
            Err(ExpectedError::infrastructure(
                "no guest agent found",
                "build it with `cargo build --profile agent -p agent --target \
                 x86_64-unknown-linux-gnu`, or set HGM_AGENT to its path",
            )
            .cause(format!("looked at {}", looked.join(", "))))
        }
    }
}

/// Places in the order they are tried. `$HGM_AGENT`, if set, is the only one.
fn agent_places() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("HGM_AGENT").filter(|value| !value.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let mut places = Vec::new();
    if let Some(dir) = own_dir() {
        places.push(dir.join(AGENT_NAME));
        // target/debug/hgm and target/release/hgm: the agent has a profile and a triple of its own.
        places.extend(dir.parent().map(|target| target.join(AGENT_BUILT)));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    places.extend(workspace.map(|dir| dir.join("target").join(AGENT_BUILT)));
    places.dedup();
    places
}

/// Folder of base fixes beside `hgm`.
const FIXES_NAME: &str = "hgm-fixes";

/// The folder of base fixes, one folder a kernel series in it.
pub fn fixes() -> Result<PathBuf, ExpectedError> {
    let set = std::env::var_os("HGM_FIXES").filter(|value| !value.is_empty()).map(PathBuf::from);
    let places = match set {
        Some(dir) => vec![dir],
        None => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
            let beside = own_dir().map(|dir| dir.join(FIXES_NAME));
            let there = workspace.map(|dir| dir.join("vmimages/fixes"));
            beside.into_iter().chain(there).collect()
        }
    };
    match places.iter().find(|dir| dir.is_dir()) {
        Some(dir) => Ok(dir.clone()),
        None => {
            let looked: Vec<String> = places.iter().map(|dir| dir.display().to_string()).collect();
            Err(ExpectedError::infrastructure(
                "no folder of base fixes found",
                "set HGM_FIXES to vmimages/fixes of a checkout, or pass --no-base-fixes",
            )
            .cause(format!("looked at {}", looked.join(", "))))
        }
    }
}

/// Name of the coverage plugin, beside `hgm` and where cargo puts it.
const PLUGIN_NAME: &str = "libhgm_coverage.so";

/// The plugin QEMU loads to count executed kernel text, as an absolute path.
pub fn plugin() -> Result<PathBuf, ExpectedError> {
    let places = plugin_places();
    let found = places.iter().find(|path| path.is_file());
    match found.and_then(|path| path.canonicalize().ok()) {
        Some(path) => Ok(path),
        None => {
            let looked: Vec<String> =
                places.iter().map(|path| path.display().to_string()).collect();
            Err(ExpectedError::infrastructure(
                "no coverage plugin found",
                "build it with ci/coverage, or set HGM_COVERAGE_PLUGIN to its path",
            )
            .cause(format!("looked at {}", looked.join(", "))))
        }
    }
}

fn plugin_places() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("HGM_COVERAGE_PLUGIN").filter(|value| !value.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let mut places = Vec::new();
    if let Some(dir) = own_dir() {
        places.push(dir.join(PLUGIN_NAME));
        // target/debug/hgm: the plugin is built once, in release.
        places.extend(dir.parent().map(|target| target.join("release").join(PLUGIN_NAME)));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    places.extend(workspace.map(|dir| dir.join("target/release").join(PLUGIN_NAME)));
    places.dedup();
    places
}

fn own_dir() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}
