//! What goes wrong with kept files, said with the path and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {doing} journal {}: {source}", path.display())]
    Database { doing: &'static str, path: PathBuf, source: rusqlite::Error },
    /// The journal was written by another version of the store.
    #[error("journal {} has format {found}, this version reads {known}", path.display())]
    Format { path: PathBuf, found: i64, known: i64 },
    #[error("no {what} `{id}` in {}", path.display())]
    NotFound { what: &'static str, id: String, path: PathBuf },
    #[error("`{id}` fits {count} {what}s in {}", path.display())]
    Ambiguous { what: &'static str, id: String, count: usize, path: PathBuf },
    /// Another process owns the run.
    #[error("run {} is live: process {pid} holds it", path.display())]
    Live { path: PathBuf, pid: String },
    #[error("{} does not parse: {why}", path.display())]
    Unparseable { path: PathBuf, why: String },
}

impl StoreError {
    pub(crate) fn io(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Io { doing, path, source }
    }

    pub(crate) fn db(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Database { doing, path, source }
    }

    /// The user named something that is not there, or a file that is not what it should be.
    pub fn is_users_mistake(&self) -> bool {
        matches!(
            self,
            StoreError::NotFound { .. }
                | StoreError::Ambiguous { .. }
                | StoreError::Live { .. }
                | StoreError::Unparseable { .. }
                | StoreError::Format { .. }
        )
    }

    /// No space is left where the file should go: worth waiting for rather than giving up.
    pub fn is_full_disk(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            StoreError::Database { source: rusqlite::Error::SqliteFailure(error, _), .. } => {
                error.code == rusqlite::ErrorCode::DiskFull
            }
            _ => false,
        }
    }

    /// Message, cause, help: the three lines a person sees.
    pub fn parts(&self) -> (String, Option<String>, String) {
        match self {
            StoreError::Io { doing, path, source } => (
                format!("cannot {doing} {}", path.display()),
                Some(source.to_string()),
                io_help(self, source, path),
            ),
            StoreError::Database { doing, path, source } => (
                format!("cannot {doing} journal {}", path.display()),
                Some(source.to_string()),
                if self.is_full_disk() {
                    format!("free space on the file system of {}", path.display())
                } else {
                    "check that the folder is writable and the file is a journal of hgm".into()
                },
            ),
            StoreError::Format { .. } => {
                (self.to_string(), None, "read it with the version of hgm that wrote it".into())
            }
            StoreError::NotFound { what, .. } => {
                (self.to_string(), None, format!("list the {what}s there, and check the spelling"))
            }
            StoreError::Ambiguous { .. } => {
                (self.to_string(), None, "give more of its letters".into())
            }
            StoreError::Live { .. } => (
                self.to_string(),
                None,
                "wait for that process or stop it with Ctrl-C, then try again".into(),
            ),
            StoreError::Unparseable { path, why } => (
                format!("{} does not parse", path.display()),
                Some(why.clone()),
                "correct the file; hgm help ops shows every op".into(),
            ),
        }
    }
}

fn io_help(error: &StoreError, source: &io::Error, path: &Path) -> String {
    let path = path.display();
    if error.is_full_disk() {
        return format!("free space (or inodes) on the file system of {path}");
    }
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!(
                "{path} is on a read-only file system: choose another folder (--home, --corpus)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("make {path} writable for you, or choose another folder (--home, --corpus)")
        }
        io::ErrorKind::NotFound => format!("check that {path} exists"),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            format!(
                "something that is no folder stands at {path}: move it, or choose another folder"
            )
        }
        _ => format!("check the disk and the rights of {path}"),
    }
}
