//! Where the guest agent is found.
//!
//! `$HGM_AGENT`, else beside the `hgm` binary, else in the build folder of the workspace.

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

fn own_dir() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}
