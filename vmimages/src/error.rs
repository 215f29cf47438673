//! What can go wrong between a kernel's name and something bootable, each with what to do.

use std::path::{Path, PathBuf};

/// Why there is no kernel or no initramfs. `Display` is the error line, [`ImageError::help`] the
/// help line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("`{spec}` names no kernel: {why}")]
    UnknownSpec { spec: String, why: String },
    #[error("{path} is not a bootable x86 kernel image: {why}")]
    NotAKernel { path: PathBuf, why: &'static str },
    #[error("{tree} holds no arch/x86/boot/bzImage")]
    NoImage { tree: PathBuf },
    #[error("apt knows no Debian kernel for `{spec}`: its package lists are empty")]
    NoLists { spec: String },
    #[error("apt offers no kernel package for `{spec}`")]
    NoPackage { spec: String, offered: Vec<String> },
    #[error("the command `{command}` is not installed")]
    NoCommand { command: String, package: &'static str },
    #[error("`{command}` failed: {stderr}")]
    Command { command: String, stderr: String },
    #[error("the package {package} holds no {what}")]
    BadPackage { package: String, what: &'static str },
    #[error("the module {module} needs {needs}, which is not among the modules given")]
    MissingModule { module: String, needs: String },
    #[error("{path} cannot be the guest's init: {why}")]
    BadAgent { path: PathBuf, why: &'static str },
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
}

impl ImageError {
    pub(crate) fn io(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> ImageError + use<> {
        let path = path.to_path_buf();
        move |source| ImageError::Io { what, path, source }
    }

    /// One line: what to do about it.
    pub fn help(&self) -> String {
        match self {
            ImageError::UnknownSpec { .. } => {
                "name a Debian series (debian:6.1, debian:6.12), an exact Debian kernel \
                 (debian:6.1.0-50), or the path of a bzImage"
                    .into()
            }
            ImageError::NotAKernel { .. } => {
                "give the bzImage (arch/x86/boot/bzImage of a built tree), not vmlinux".into()
            }
            ImageError::NoImage { tree } => format!(
                "build it there (make bzImage), or here: hgm kernel build --source {}",
                tree.display()
            ),
            ImageError::NoLists { .. } => "run `apt-get update` as root, then try again".into(),
            ImageError::NoPackage { offered, .. } if offered.is_empty() => {
                "run `apt-get update` as root, or name another series".into()
            }
            ImageError::NoPackage { offered, .. } => {
                format!("apt offers: {}", offered.join(" "))
            }
            ImageError::NoCommand { package, .. } => {
                format!("install it: apt-get install {package}")
            }
            ImageError::Command { .. } => {
                "check the network and the package sources, then try again".into()
            }
            ImageError::BadPackage { .. } => {
                "it may be an unsigned or dummy package; name another kernel".into()
            }
            ImageError::MissingModule { .. } => {
                "give the whole modules directory (make modules_install INSTALL_MOD_PATH=DIR)"
                    .into()
            }
            ImageError::BadAgent { .. } => {
                "build the agent statically: cargo build --profile agent -p agent".into()
            }
            ImageError::Io { .. } => {
                "check permissions and free space; HGM_HOME chooses another place".into()
            }
        }
    }
}
