//! Patches over a tree: which files they touch, what comes out, and which hunk did not fit. Only
//! the touched files are copied; the tree itself is never written.

use super::error::BuildError;
use super::fragment::{self, Wish};
use super::mail;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Bytes of one patch file that are read.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How `patch` says that a patch is in the tree.
const APPLIED: &str = "previously applied) patch detected";

/// One patch, ready to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// File name, with the mail's subject where the file holds several.
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Patch {
    /// blake3 of what is applied, hex.
    pub fn hash(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }
}

/// Patches of files, folders (by `series`, else by name) and mailboxes, in the order given.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Patch>, BuildError> {
    let mut all = Vec::new();
    for path in paths {
        let bad = |why: String| BuildError::BadPatch { path: path.clone(), why };
        if path.is_dir() {
            let files = listed(path)?;
            let before = all.len();
            for file in files {
                // A series folder may hold its cover letter; it changes nothing.
                let cover = file.file_name().is_some_and(|n| {
                    n.as_encoded_bytes().starts_with(b"0000-") && !is_patch(&file)
                });
                if !cover {
                    all.extend(load_file(&file)?);
                }
            }
            if all.len() == before {
                return Err(bad("the folder holds no *.patch and no *.diff".into()));
            }
        } else {
            all.extend(load_file(path)?);
        }
    }
    Ok(all)
}

/// What the folders among `paths` ask of the configuration: their `*.config` fragments, by name. A
/// series says so itself which options its code lies behind.
pub fn wishes(paths: &[PathBuf]) -> Result<Vec<Wish>, BuildError> {
    let mut all = Vec::new();
    for dir in paths.iter().filter(|path| path.is_dir()) {
        for path in files_of(dir, |ext| ext == "config")? {
            let text =
                std::fs::read_to_string(&path).map_err(BuildError::io("cannot read", &path))?;
            let parsed = fragment::parse(&text);
            all.push(parsed.map_err(|why| BuildError::BadPatch { path, why })?);
        }
    }
    Ok(fragment::merge(&all))
}

fn is_patch(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| mail::has_diff(&bytes))
}

/// The patch files of a folder, in order.
fn listed(dir: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let series = dir.join("series");
    if series.is_file() {
        let text =
            std::fs::read_to_string(&series).map_err(BuildError::io("cannot read", &series))?;
        return text.lines().filter_map(|line| in_series(dir, &series, line).transpose()).collect();
    }
    files_of(dir, |ext| ext == "patch" || ext == "diff")
}

/// The files of a folder whose extension is wanted, by name.
fn files_of(dir: &Path, wanted: fn(&std::ffi::OsStr) -> bool) -> Result<Vec<PathBuf>, BuildError> {
    let entries = std::fs::read_dir(dir).map_err(BuildError::io("cannot read", dir))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(wanted))
        .collect();
    files.sort();
    Ok(files)
}

/// One line of a quilt series file: a name, options, a comment.
fn in_series(dir: &Path, series: &Path, line: &str) -> Result<Option<PathBuf>, BuildError> {
    let line = line.split(" #").next().unwrap_or_default().trim();
    let mut words = line.split_whitespace();
    let Some(name) = words.next().filter(|name| !name.starts_with('#')) else { return Ok(None) };
    if let Some(option) = words.find(|word| *word != "-p1") {
        let why = format!("{name} has the option {option}; only -p1 is known");
        return Err(BuildError::BadPatch { path: series.to_path_buf(), why });
    }
    Ok(Some(dir.join(name)))
}

fn load_file(path: &Path) -> Result<Vec<Patch>, BuildError> {
    let bad = |why: String| BuildError::BadPatch { path: path.to_path_buf(), why };
    let len = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if len > FILE_BYTES_MAX {
        return Err(bad("it is larger than 64 MiB".into()));
    }
    let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let pieces = mail::pieces(&bytes).map_err(bad)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let one = pieces.len() == 1;
    Ok(pieces
        .into_iter()
        .map(|piece| Patch {
            name: if one { file.clone() } else { format!("{file}: {}", piece.subject) },
            bytes: piece.bytes,
        })
        .collect())
}

/// Files whose content a set of patches changed, copied out of a tree.
#[derive(Debug)]
pub struct Staged {
    dir: tempfile::TempDir,
    /// Every file a patch named, whether it is there now or not.
    touched: BTreeSet<PathBuf>,
}

impl Staged {
    /// Nothing changed yet; copies go below `within`.
    pub fn new(within: &Path) -> Result<Staged, BuildError> {
        let dir = tempfile::Builder::new()
            .prefix(".patched-")
            .tempdir_in(within)
            .map_err(BuildError::io("cannot create a directory in", within))?;
        Ok(Staged { dir, touched: BTreeSet::new() })
    }

    /// Files that differ or may differ from the tree's.
    pub fn touched(&self) -> &BTreeSet<PathBuf> {
        &self.touched
    }

    /// Where a touched file lies now; it is not there if a patch removed it.
    pub fn path(&self, file: &Path) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Applies one patch on top of the earlier ones, whole or not at all.
    pub fn apply(&mut self, tree: &Path, patch: &Patch) -> Result<(), BuildError> {
        let fails = |faults| BuildError::PatchFails { patch: patch.name.clone(), faults };
        for file in touched(&patch.bytes).map_err(|why| fails(vec![why]))? {
            if self.touched.insert(file.clone()) {
                self.copy(tree, &file)?;
            }
        }
        for dry_run in [true, false] {
            let faults = self.run(patch, dry_run)?;
            if !faults.is_empty() {
                return Err(fails(faults));
            }
        }
        Ok(())
    }

    fn copy(&self, tree: &Path, file: &Path) -> Result<(), BuildError> {
        let (from, to) = (tree.join(file), self.path(file));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(BuildError::io("cannot create", parent))?;
        }
        if !from.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            return Ok(());
        }
        std::fs::copy(&from, &to).map_err(BuildError::io("cannot write", &to))?;
        Ok(())
    }

    /// What `patch` complained of; empty if all of it applied.
    fn run(&self, patch: &Patch, dry_run: bool) -> Result<Vec<String>, BuildError> {
        let file = self.dir.path().with_extension("patch");
        std::fs::write(&file, &patch.bytes).map_err(BuildError::io("cannot write", &file))?;
        let mut command = Command::new("patch");
        // No fuzz: a hunk whose context has changed belongs to a person. No questions.
        command
            .args(["-p1", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"])
            // Only a batch run looks whether a patch is in the tree already; it would take it out.
            .args(if dry_run { ["--batch", "--dry-run"] } else { ["--force", "--forward"] })
            .arg("--input")
            .arg(&file)
            .current_dir(self.dir.path())
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null());
        let done = command.output().map_err(|error| {
            let missing = vec!["patch".into()];
            match error.kind() {
                std::io::ErrorKind::NotFound => {
                    BuildError::NoTools { packages: missing.clone(), missing }
                }
                _ => BuildError::io("cannot run patch in", self.dir.path())(error),
            }
        });
        let _ = std::fs::remove_file(&file);
        let done = done?;
        let text = [done.stdout, done.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        if done.status.success() && !text.contains(APPLIED) {
            return Ok(Vec::new());
        }
        Ok(complaints(&text))
    }
}

/// Files a patch names, as paths below the tree.
fn touched(bytes: &[u8]) -> Result<BTreeSet<PathBuf>, String> {
    let mut files = BTreeSet::new();
    let lines: Vec<_> = bytes.split(|&b| b == b'\n').map(String::from_utf8_lossy).collect();
    for (at, line) in lines.iter().enumerate() {
        let next = lines.get(at + 1);
        if let Some(old) = line.strip_prefix("--- ")
            && let Some(new) = next.and_then(|next| next.strip_prefix("+++ "))
        {
            files.extend(below_tree(old, true)?);
            files.extend(below_tree(new, true)?);
        } else if let Some(names) = line.strip_prefix("diff --git ") {
            // `a/X b/X` holds one name twice where nothing is renamed.
            if let Some((old, new)) = names.split_at_checked(names.len() / 2)
                && old.get(2..) == new.get(3..)
            {
                files.extend(below_tree(old, true)?);
            }
        } else if let Some(name) = ["rename from ", "rename to ", "copy from ", "copy to "]
            .iter()
            .find_map(|word| line.strip_prefix(word))
        {
            files.extend(below_tree(name, false)?);
        } else if line.starts_with("GIT binary patch") {
            return Err("it holds a binary diff, which patch cannot apply".into());
        }
    }
    Ok(files)
}

/// A name of a diff header as a path in the tree; none for /dev/null.
fn below_tree(name: &str, strip: bool) -> Result<Option<PathBuf>, String> {
    let name = name.split('\t').next().unwrap_or_default().trim_end();
    if name == "/dev/null" {
        return Ok(None);
    }
    let path = Path::new(name);
    let mut parts = path.components();
    if strip {
        parts.next();
    }
    let rest = parts.as_path();
    let inside = !name.starts_with(['/', '"'])
        && rest.components().all(|part| matches!(part, Component::Normal(_)))
        && rest.components().next().is_some();
    if inside { Ok(Some(rest.to_path_buf())) } else { Err(format!("it names the file {name}")) }
}

/// What patch's output says went wrong: one line a hunk or file, with the file's name.
fn complaints(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut file = "";
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let named = line.strip_prefix("checking file ").or(line.strip_prefix("patching file "));
        if let Some(name) = named {
            file = name.trim_matches('\'');
        } else if line.starts_with("Hunk #") && line.contains(" FAILED at ") {
            let (hunk, place) = line.split_once(" FAILED at ").unwrap_or((line, "?"));
            let hunk = hunk.trim_start_matches("Hunk #");
            let place = place.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("?");
            let why =
                if line.contains("different line endings") { ", line ends differ" } else { "" };
            faults.push(format!("{file}: hunk {hunk} does not fit at line {place}{why}"));
        } else if line.contains(APPLIED) {
            faults.push(format!("{file}: it looks applied already"));
        } else if line.starts_with("can't find file to patch") {
            let name = lines[at..]
                .iter()
                .find_map(|l| l.strip_prefix("|--- ").filter(|n| !n.starts_with("/dev/null")));
            let name = name.unwrap_or("a file").split('\t').next().unwrap_or_default();
            let name = name.split_once('/').map_or(name, |(_, rest)| rest);
            faults.push(format!("{name}: the tree has no such file"));
        } else if line.contains("which already exists!") {
            let name = at.checked_sub(1).map_or("", |before| lines[before]);
            let name = name.trim_start_matches("The next patch would create the file ");
            faults.push(format!("{}: the tree has this file already", name.trim_end_matches(',')));
        } else if line.contains("malformed patch") || line.contains("unexpectedly ends") {
            faults.push(line.trim_start_matches("patch: **** ").to_string());
        }
    }
    if faults.is_empty() {
        let said = lines.iter().rev().find(|l| !l.trim().is_empty()).unwrap_or(&"no reason given");
        faults.push((*said).to_string());
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mm")).unwrap();
        let text: String = (1..=40).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.path().join("mm/a.c"), text).unwrap();
        std::fs::write(dir.path().join("mm/b.c"), "b\n").unwrap();
        dir
    }

    fn patch(text: &str) -> Patch {
        Patch { name: "p.patch".into(), bytes: text.as_bytes().to_vec() }
    }

    fn hunk(at: u32, from: &str, to: &str) -> String {
        let (before, after) = (at - 1, at + 1);
        format!("@@ -{before},3 +{before},3 @@\n line {before}\n-{from}\n+{to}\n line {after}\n")
    }

    fn diff(hunks: &[String]) -> Patch {
        patch(&format!("--- a/mm/a.c\n+++ b/mm/a.c\n{}", hunks.concat()))
    }

    fn faults(result: Result<(), BuildError>) -> Vec<String> {
        match result {
            Err(BuildError::PatchFails { faults, .. }) => faults,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn patches_apply_in_order_beside_the_tree() {
        let (tree, work) = (tree(), tempfile::tempdir().unwrap());
        let mut staged = Staged::new(work.path()).unwrap();
        staged.apply(tree.path(), &diff(&[hunk(5, "line 5", "five")])).unwrap();
        staged.apply(tree.path(), &diff(&[hunk(5, "five", "FIVE")])).unwrap();
        let new = patch("--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+new\n");
        staged.apply(tree.path(), &new).unwrap();
        let gone = patch("--- a/mm/b.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-b\n");
        staged.apply(tree.path(), &gone).unwrap();

        let read = |name: &str| std::fs::read_to_string(staged.path(Path::new(name)));
        assert!(read("mm/a.c").unwrap().contains("\nFIVE\n"));
        assert_eq!(read("mm/new.c").unwrap(), "new\n");
        assert!(read("mm/b.c").is_err());
        assert_eq!(staged.touched().len(), 3);
        assert!(!std::fs::read_to_string(tree.path().join("mm/a.c")).unwrap().contains("FIVE"));
        assert!(!tree.path().join("mm/new.c").exists());
    }

    #[test]
    fn the_hunk_that_does_not_fit_is_named() {
        let (tree, work) = (tree(), tempfile::tempdir().unwrap());
        let mut staged = Staged::new(work.path()).unwrap();
        let two = diff(&[hunk(5, "line 5", "five"), hunk(20, "other", "x")]);
        let seen = faults(staged.apply(tree.path(), &two));
        assert_eq!(seen, ["mm/a.c: hunk 2 does not fit at line 19"]);
        // All or nothing: the hunk that fitted is not there.
        let text = std::fs::read_to_string(staged.path(Path::new("mm/a.c"))).unwrap();
        assert!(!text.contains("five"));

        let lost = patch("--- a/mm/no.c\n+++ b/mm/no.c\n@@ -1 +1 @@\n-a\n+b\n");
        let seen = faults(staged.apply(tree.path(), &lost));
        assert_eq!(seen, ["mm/no.c: the tree has no such file"]);

        staged.apply(tree.path(), &diff(&[hunk(5, "line 5", "five")])).unwrap();
        let seen = faults(staged.apply(tree.path(), &diff(&[hunk(5, "line 5", "five")])));
        assert!(seen[0].contains("applied already"), "{seen:?}");

        let cut = patch("--- a/mm/b.c\n+++ b/mm/b.c\n@@ -1,9 +1,9 @@\n-b\n");
        assert!(!faults(staged.apply(tree.path(), &cut)).is_empty());
    }

    #[test]
    fn a_patch_cannot_leave_the_tree() {
        for name in ["a/../../x", "/etc/passwd", "a", "\"a/x\\303\""] {
            assert!(below_tree(name, true).is_err(), "{name}");
        }
        assert_eq!(below_tree("/dev/null", true), Ok(None));
        assert_eq!(below_tree("a/mm/x.c\t2020-01-01", true), Ok(Some("mm/x.c".into())));
        let renamed = "diff --git a/m/x b/m/y\nrename from m/x\nrename to m/y\n";
        assert_eq!(touched(renamed.as_bytes()).unwrap().len(), 2);
        let mode = "diff --git a/m/x.sh b/m/x.sh\nold mode 100644\nnew mode 100755\n";
        assert_eq!(touched(mode.as_bytes()).unwrap(), BTreeSet::from(["m/x.sh".into()]));
        assert!(touched(b"GIT binary patch\n").is_err());
    }

    #[test]
    fn folders_are_read_by_series_or_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let diff = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";
        let names = |dir: &Path| -> Vec<String> {
            load(&[dir.to_path_buf()]).unwrap().into_iter().map(|p| p.name).collect()
        };
        assert!(load(&[dir.path().to_path_buf()]).is_err());
        write("0002-b.patch", diff);
        write("0001-a.patch", diff);
        write("0000-cover-letter.patch", "From: a\nSubject: all\n\nwhy\n");
        write("notes.txt", "x");
        assert_eq!(names(dir.path()), ["0001-a.patch", "0002-b.patch"]);
        write("series", "# top\n0002-b.patch -p1\n\n0001-a.patch # last\n");
        assert_eq!(names(dir.path()), ["0002-b.patch", "0001-a.patch"]);
        write("series", "0002-b.patch -p0\n");
        assert!(matches!(load(&[dir.path().into()]), Err(BuildError::BadPatch { .. })));
    }

    #[test]
    fn a_folder_brings_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let lines = |path: &Path| -> Vec<String> {
            wishes(&[path.into()]).unwrap().iter().map(Wish::line).collect()
        };
        write("0001-a.patch", "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n");
        assert!(lines(dir.path()).is_empty());
        write("b.config", "# CONFIG_OLD is not set\n");
        write("a.config", "CONFIG_NEW=y\nCONFIG_OLD=y\n");
        assert_eq!(lines(dir.path()), ["CONFIG_NEW=y", "# CONFIG_OLD is not set"]);
        // A patch file by itself says nothing of what lies beside it.
        assert!(lines(&dir.path().join("0001-a.patch")).is_empty());
        write("a.config", "NEW=y\n");
        let path = dir.path().to_path_buf();
        assert!(matches!(wishes(&[path]), Err(BuildError::BadPatch { .. })));
    }
}
