//! Which files of the checkout are ours to check. Reads folders, never files.

use std::path::{Path, PathBuf};

/// Folders that hold no source of ours.
const SKIPPED: &[&str] = &["target", ".git"];

/// Rust files below `root`, sorted, relative to it. Links are not followed.
pub fn rust_files(root: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        let entries = std::fs::read_dir(&full).map_err(|e| format!("{}: {e}", full.display()))?;
        for entry in entries {
            let entry = entry.map_err(|e| format!("{}: {e}", full.display()))?;
            let kind = entry.file_type().map_err(|e| format!("{}: {e}", full.display()))?;
            let name = entry.file_name();
            let path = folder.join(&name);
            if kind.is_dir() && !SKIPPED.iter().any(|s| name == *s) {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
