//! Where the guest agent, the coverage plugin and the patches for kernels are found.
//!
//! `$HGM_AGENT`, `$HGM_COVERAGE_PLUGIN`, `$HGM_FIXES` and `$HGM_SERIES`, else beside the `hgm`
//! binary, else in the workspace.

use crate::exit::ExpectedError;
use std::path::{Path, PathBuf};

/// Where the agent's own profile builds it, below the target folder.
const AGENT_BUILT: &str = "x86_64-unknown-linux-gnu/agent/agent";
/// Where cargo puts the coverage plugin, which is built once, in release.
const PLUGIN_BUILT: &str = "release/libhgm_coverage.so";

/// One thing that ships beside `hgm`.
struct Asset {
    what: &'static str,
    help: &'static str,
    /// Environment variable with its path; if set, nowhere else is looked.
    env: &'static str,
    /// Name beside the `hgm` binary.
    beside: &'static str,
    /// Path below the target folder, for what cargo builds.
    built: Option<&'static str>,
    /// Path below the workspace.
    workspace: &'static str,
}

/// The agent binary that goes into initramfs images.
pub fn agent() -> Result<PathBuf, ExpectedError> {
    let asset = Asset {
        what: "no guest agent found",
        help: "build it with `cargo build --profile agent -p agent --target \
               x86_64-unknown-linux-gnu`, or set HGM_AGENT to its path",
        env: "HGM_AGENT",
        beside: "hgm-agent",
        built: Some(AGENT_BUILT),
        workspace: "target/x86_64-unknown-linux-gnu/agent/agent",
    };
    asset.find(Path::is_file)
}

/// The folder of base fixes, one folder a kernel series in it.
pub fn fixes() -> Result<PathBuf, ExpectedError> {
    let asset = Asset {
        what: "no folder of base fixes found",
        help: "set HGM_FIXES to vmimages/fixes of a checkout, or pass --no-base-fixes",
        env: "HGM_FIXES",
        beside: "hgm-fixes",
        built: None,
        workspace: "vmimages/fixes",
    };
    asset.find(Path::is_dir)
}

/// The folder of our patch series for HugeTLB high-granularity mapping.
pub fn hgm_series() -> Result<PathBuf, ExpectedError> {
    let asset = Asset {
        what: "no folder of the high-granularity mapping series found",
        help: "set HGM_SERIES to vmimages/hgm of a checkout",
        env: "HGM_SERIES",
        beside: "hgm-series",
        built: None,
        workspace: "vmimages/hgm",
    };
    asset.find(Path::is_dir)
}

/// The plugin QEMU loads to count executed kernel text, as an absolute path.
pub fn plugin() -> Result<PathBuf, ExpectedError> {
    let asset = Asset {
        what: "no coverage plugin found",
        help: "build it with ci/coverage, or set HGM_COVERAGE_PLUGIN to its path",
        env: "HGM_COVERAGE_PLUGIN",
        beside: "libhgm_coverage.so",
        built: Some(PLUGIN_BUILT),
        workspace: "target/release/libhgm_coverage.so",
    };
    let found = asset.find(Path::is_file)?;
    std::path::absolute(&found).map_err(|error| asset.missing(&[found]).cause(error))
}

impl Asset {
    /// The first place that `is` what it should be.
    fn find(&self, is: fn(&Path) -> bool) -> Result<PathBuf, ExpectedError> {
        let places = self.places();
        let found = places.iter().find(|path| is(path)).cloned();
        found.ok_or_else(|| self.missing(&places))
    }

    /// Places in the order they are tried.
    fn places(&self) -> Vec<PathBuf> {
        if let Some(path) = std::env::var_os(self.env).filter(|value| !value.is_empty()) {
            return vec![PathBuf::from(path)];
        }
        let mut places = Vec::new();
        if let Some(dir) = own_dir() {
            places.push(dir.join(self.beside));
            // target/debug/hgm and target/release/hgm.
            let target = dir.parent().zip(self.built);
            places.extend(target.map(|(target, built)| target.join(built)));
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        places.extend(workspace.map(|dir| dir.join(self.workspace)));
        places.dedup();
        places
    }

    fn missing(&self, places: &[PathBuf]) -> ExpectedError {
        let looked: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        ExpectedError::infrastructure(self.what, self.help)
            .cause(format!("looked at {}", looked.join(", ")))
    }
}

fn own_dir() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}
