//! What can go wrong between a source tree and a registered kernel, each with what to do.

use crate::ImageError;
use std::path::{Path, PathBuf};

/// Why there is no kernel. `Display` is the error line, [`BuildError::cause`] what was seen,
/// [`BuildError::help`] the help line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("`{path}` is no kernel source to build: {why}")]
    BadSource { path: PathBuf, why: String },
    #[error("{path} has been built in place, which its own objects would get in the way of")]
    InPlace { path: PathBuf },
    #[error("a kernel name may hold letters, digits and . _ + ~ -, and `{name}` does not fit")]
    BadName { name: String },
    #[error("a kernel `{name}` is registered, and it was not built here")]
    NameTaken { name: String },
    #[error("building a kernel needs tools that are not installed: {}", missing.join(", "))]
    NoTools { missing: Vec<String>, packages: Vec<String> },
    #[error("cannot use the patch {path}: {why}")]
    BadPatch { path: PathBuf, why: String },
    #[error("the patch {patch} does not apply: {}", faults.first().map_or("", String::as_str))]
    PatchFails { patch: String, faults: Vec<String> },
    #[error("{} line(s) of the preset {preset} did not take effect", lines.len())]
    Config { preset: &'static str, lines: Vec<String> },
    #[error("the kernel does not build: make {target} failed")]
    Compile { target: String, excerpt: Vec<String>, log: PathBuf },
    #[error("no space left on the disk that holds {path}")]
    NoSpace { path: PathBuf },
    #[error("another build is running in {path}")]
    Busy { path: PathBuf },
    #[error("the build was stopped")]
    Stopped { path: PathBuf },
}

impl BuildError {
    /// For `map_err` on file operations; a full disk is told apart.
    pub(crate) fn io(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> BuildError + use<> {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull => BuildError::NoSpace { path },
            _ => BuildError::Image(ImageError::Io { what, path, source }),
        }
    }

    /// Whether the user's own input is at fault: a name, a path, a file.
    pub fn is_users_mistake(&self) -> bool {
        matches!(
            self,
            BuildError::BadSource { .. }
                | BuildError::InPlace { .. }
                | BuildError::BadName { .. }
                | BuildError::NameTaken { .. }
                | BuildError::BadPatch { .. }
        )
    }

    /// Whether the tree with its patches is at fault: it does not become a kernel.
    pub fn is_trees_fault(&self) -> bool {
        matches!(
            self,
            BuildError::PatchFails { .. } | BuildError::Config { .. } | BuildError::Compile { .. }
        )
    }

    /// What was seen, a few lines at most; empty where the error line says it all.
    pub fn cause(&self) -> Vec<String> {
        match self {
            BuildError::PatchFails { faults, .. } => faults.iter().skip(1).cloned().collect(),
            BuildError::Config { lines, .. } => lines.clone(),
            BuildError::Compile { excerpt, .. } => excerpt.clone(),
            _ => Vec::new(),
        }
    }

    /// One line: what to do about it.
    pub fn help(&self) -> String {
        match self {
            BuildError::Image(error) => error.help(),
            BuildError::BadSource { .. } => {
                "give debian:6.1, debian:6.12, or the top folder of a kernel tree".into()
            }
            BuildError::InPlace { path } => format!(
                "clean it: make -C {} mrproper (it keeps your sources, and removes .config)",
                path.display()
            ),
            BuildError::BadName { .. } => "pass --name with a short word".into(),
            BuildError::NameTaken { .. } => "pass another --name".into(),
            BuildError::NoTools { packages, .. } => format!(
                "install them: apt-get install {} (or ci/install --kernel-build)",
                packages.join(" ")
            ),
            BuildError::BadPatch { .. } => {
                "give a diff for patch -p1, a mailbox of a series, or a folder of patches".into()
            }
            BuildError::PatchFails { .. } => {
                "rebase it on this tree, or name the tree it is for with --source".into()
            }
            BuildError::Config { .. } => {
                "this tree cannot give them; build another preset, or a tree that has them".into()
            }
            BuildError::Compile { log, .. } => format!("the whole log: {}", log.display()),
            BuildError::NoSpace { .. } => {
                "free some GiB (sources and a debug kernel take 3), or choose another HGM_HOME; the same \
                 command then goes on where it stopped"
                    .into()
            }
            BuildError::Busy { .. } => "wait for it, or pass another --name".into(),
            BuildError::Stopped { .. } => "the same command goes on where it stopped".into(),
        }
    }
}
