//! Where sources come from: Debian's package, unpacked once, or the user's own tree. Which files
//! belong to it, and one hash for all of them. A user's tree is only read.

use super::error::BuildError;
use super::mirror::{self, How};
use crate::add::{make_dir, temp_dir};
use crate::{ImageError, debian};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How deep a source tree may be.
const DEPTH_MAX: u32 = 32;
/// What make leaves in a tree it was run in, and refuses to see from outside.
const RESIDUE: [&str; 4] =
    [".config", "include/config", "include/generated", "arch/x86/include/generated"];

/// A source tree, named and listed.
#[derive(Debug)]
pub struct Source {
    /// Short and fit for a file name: `6.1.192-2`, or the folder's name.
    pub label: String,
    /// For people.
    pub about: String,
    pub root: PathBuf,
    /// Paths below `root`.
    pub files: BTreeSet<PathBuf>,
    /// blake3, hex.
    pub hash: String,
    /// Whether the tree is ours, so that files may be linked.
    pub how: How,
    /// `6.1`: the number of the tree's Makefile, two parts.
    pub series: String,
}

/// Fetches or reads what `spec` names.
pub fn open(home: &Path, spec: &str, log: &mut dyn FnMut(&str)) -> Result<Source, BuildError> {
    match spec.strip_prefix("debian:") {
        Some(what) => open_debian(home, what, log),
        None => open_dir(Path::new(spec), log),
    }
}

fn open_debian(home: &Path, what: &str, log: &mut dyn FnMut(&str)) -> Result<Source, BuildError> {
    let package = debian::resolve_source(what)?;
    let label = package.version.replace(':', "-");
    let sources = make_dir(&home.join("sources"))?;
    let root = sources.join(format!("{}_{label}", package.name));
    if !root.is_dir() {
        log(&format!("downloading {} {}", package.name, package.version));
        let temp = temp_dir(&sources)?;
        let unpacked = debian::fetch(&package, temp.path(), &["./usr/src/*.tar.xz"])?;
        let tarball = unpacked.join("usr/src").join(format!("{}.tar.xz", package.name));
        if !tarball.is_file() {
            let what = "source archive";
            return Err(ImageError::BadPackage { package: package.name, what }.into());
        }
        log("unpacking the sources");
        let tree = make_dir(&temp.path().join("tree"))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-same-owner", "--strip-components=1", "--directory"]);
        tar.arg(&tree).arg("--file").arg(&tarball).env("LC_ALL", "C");
        debian::output(tar, "tar").map_err(|error| match error {
            ImageError::Command { stderr, .. } if stderr.contains("No space left") => {
                BuildError::NoSpace { path: sources.clone() }
            }
            other => other.into(),
        })?;
        let renamed = std::fs::rename(&tree, &root);
        // Another process may have unpacked the same package first.
        if let Err(error) = renamed
            && !root.is_dir()
        {
            return Err(BuildError::io("cannot rename to", &root)(error));
        }
    }
    let mut files = BTreeSet::new();
    walk(&root, &root, DEPTH_MAX, &mut files)?;
    // The package's version stands for its content, which apt has checked.
    let hash = format!("{} {}", package.name, package.version);
    let hash = blake3::hash(hash.as_bytes()).to_hex().to_string();
    let about = format!("Debian package {} {}", package.name, package.version);
    let series = series(&root)?;
    Ok(Source { label, about, root, files, hash, how: How::Link, series })
}

fn open_dir(dir: &Path, log: &mut dyn FnMut(&str)) -> Result<Source, BuildError> {
    let bad = |why: &str| BuildError::BadSource { path: dir.to_path_buf(), why: why.into() };
    if !dir.is_dir() {
        return Err(bad("there is no such folder"));
    }
    for needed in ["Kconfig", "Makefile", "arch/x86", "scripts/kconfig"] {
        if !dir.join(needed).exists() {
            return Err(bad(&format!("it has no {needed}")));
        }
    }
    let root = dir.canonicalize().map_err(BuildError::io("cannot resolve", dir))?;
    let series = series(&root)?;
    let files = match tracked(&root)? {
        Some(files) => files,
        None if RESIDUE.iter().any(|name| root.join(name).exists()) => {
            return Err(BuildError::InPlace { path: root });
        }
        None => {
            let mut files = BTreeSet::new();
            walk(&root, &root, DEPTH_MAX, &mut files)?;
            files
        }
    };
    log(&format!("reading {} files of {}", files.len(), root.display()));
    let hash = mirror::hash(&root, &files)?;
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let label: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' })
        .take(40)
        .collect();
    let about = format!("tree {}", root.display());
    Ok(Source { label, about, root, files, hash, how: How::Copy, series })
}

/// In a git checkout: what git tracks, and new files it does not ignore. So a tree that was built
/// in place can be used as it is. None where there is no checkout or no git.
fn tracked(root: &Path) -> Result<Option<BTreeSet<PathBuf>>, BuildError> {
    if !root.join(".git").exists() {
        return Ok(None);
    }
    let mut git = Command::new("git");
    // Somebody else's checkout is read too, and none of its hooks run.
    git.args(["-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C"]).arg(root);
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let Ok(done) = git.stdin(Stdio::null()).output() else { return Ok(None) };
    if !done.status.success() {
        return Ok(None);
    }
    use std::os::unix::ffi::OsStrExt;
    let files = done
        .stdout
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
        .filter(|file| root.join(file).symlink_metadata().is_ok_and(|meta| !meta.is_dir()))
        .collect();
    Ok(Some(files))
}

/// Files and links below `dir`, but for git's own.
fn walk(
    top: &Path,
    dir: &Path,
    depth: u32,
    files: &mut BTreeSet<PathBuf>,
) -> Result<(), BuildError> {
    for entry in std::fs::read_dir(dir).map_err(BuildError::io("cannot read", dir))? {
        let entry = entry.map_err(BuildError::io("cannot read", dir))?;
        let kind = entry.file_type().map_err(BuildError::io("cannot read", dir))?;
        let path = entry.path();
        if kind.is_dir() {
            if depth > 0 && entry.file_name() != ".git" {
                walk(top, &path, depth - 1, files)?;
            }
        } else if (kind.is_file() || kind.is_symlink())
            && let Ok(file) = path.strip_prefix(top)
        {
            files.insert(file.to_path_buf());
        }
    }
    Ok(())
}

/// VERSION.PATCHLEVEL of the top Makefile.
fn series(root: &Path) -> Result<String, BuildError> {
    let path = root.join("Makefile");
    let text = std::fs::read(&path).map_err(BuildError::io("cannot read", &path))?;
    let text = String::from_utf8_lossy(&text);
    let number = |key: &str| {
        text.lines().take(20).find_map(|line| {
            let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
            value.parse::<u32>().ok()
        })
    };
    match (number("VERSION"), number("PATCHLEVEL")) {
        (Some(version), Some(level)) => Ok(format!("{version}.{level}")),
        _ => Err(BuildError::BadSource {
            path: root.to_path_buf(),
            why: "its Makefile names no kernel version".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("linux x").tempdir().unwrap();
        for folder in ["arch/x86", "scripts/kconfig", ".git-not", "mm"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let makefile = "# SPDX\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 7\n";
        std::fs::write(dir.path().join("Makefile"), makefile).unwrap();
        std::fs::write(dir.path().join("Kconfig"), "").unwrap();
        std::fs::write(dir.path().join("mm/a.c"), "a").unwrap();
        dir
    }

    fn open(dir: &Path) -> Result<Source, BuildError> {
        open_dir(dir, &mut |_| ())
    }

    #[test]
    fn a_users_tree_is_listed_named_and_hashed() {
        let dir = tree();
        let source = open(dir.path()).unwrap();
        assert_eq!(source.series, "6.1");
        assert_eq!(source.files.len(), 3);
        assert!(source.label.starts_with("linux-x"), "{}", source.label);
        std::fs::write(dir.path().join("mm/a.c"), "b").unwrap();
        assert_ne!(open(dir.path()).unwrap().hash, source.hash);
    }

    #[test]
    fn a_tree_built_in_place_is_refused_with_the_cure() {
        let dir = tree();
        std::fs::write(dir.path().join(".config"), "").unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, BuildError::InPlace { .. }), "{error}");
        assert!(error.help().contains("mrproper"));
    }

    #[test]
    fn in_a_git_checkout_what_git_ignores_is_left_out() {
        let dir = tree();
        let git = |args: &[&str]| {
            Command::new("git").arg("-C").arg(dir.path()).args(args).output().unwrap()
        };
        assert!(git(&["init", "-q"]).status.success());
        std::fs::write(dir.path().join(".gitignore"), "*.o\n.config\n").unwrap();
        for name in [".config", "mm/a.o", "mm/new.c"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert!(git(&["add", "mm/a.c", "Makefile"]).status.success());
        let files = open(dir.path()).unwrap().files;
        let has = |name: &str| files.contains(Path::new(name));
        assert!(has("mm/a.c") && has("mm/new.c") && has("Kconfig"), "{files:?}");
        assert!(!has(".config") && !has("mm/a.o"), "{files:?}");
    }

    #[test]
    fn what_is_no_kernel_tree_says_what_it_lacks() {
        let dir = tree();
        std::fs::remove_dir_all(dir.path().join("arch")).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("arch/x86"));
        assert!(open(Path::new("/no/such")).unwrap_err().to_string().contains("no such folder"));
        let dir = tree();
        std::fs::write(dir.path().join("Makefile"), "all:\n").unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("version"));
    }
}
