//! Findings: one folder per bug, complete or not there at all.
//!
//! A folder is filled beside its place and renamed into it. The signature decides which bug it
//! is; seeing it again raises a count. Console bytes are kept as they came.

use crate::{Result, StoreError, corpus, durable};
use case::{Finding, Program, text};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const PROGRAM: &str = "program.hgm";
const COMPARED: &str = "expected-vs-observed.txt";
const CONSOLE: &str = "console.txt";
const REPORT: &str = "report.txt";
const KERNEL: &str = "kernel.json";
const DATA: &str = "finding.json";
/// Letters of the readable part of a folder name.
const SLUG_MAX: usize = 72;
/// Bytes of a finding.json that are read.
const DATA_BYTES_MAX: u64 = 4 << 20;

/// What proves a finding, besides its data.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub program: &'a Program,
    /// Text for people: rule, allowed set, what was seen.
    pub compared: &'a str,
    /// Raw bytes around the report; may be empty.
    pub console: &'a [u8],
    /// The kernel's report for people, with lines of source where they are known; empty: none.
    pub report: &'a str,
    /// The kernel: id, source, probed profile.
    pub kernel: &'a serde_json::Value,
}

/// What stands beside a finding's data, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    pub compared: String,
    pub report: String,
    pub kernel: serde_json::Value,
}

/// What became of a finding handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub slug: String,
    pub folder: PathBuf,
    /// False: the bug was known in this run and its count has been raised.
    pub new: bool,
    pub count: u32,
}

/// The findings of a run.
#[derive(Debug)]
pub struct Findings {
    dir: PathBuf,
    /// Slug → data, as on disk.
    known: BTreeMap<String, Finding>,
    /// Folders whose data cannot be read: they stay, and are not counted.
    broken: Vec<PathBuf>,
}

impl Findings {
    /// Opens for writing; makes the folder.
    pub fn open(dir: &Path) -> Result<Findings> {
        durable::make_dir(dir)?;
        durable::sweep(dir);
        let findings = Findings::view(dir)?;
        // What is here is counted on from.
        durable::sync_dir(dir)?;
        Ok(findings)
    }

    /// Opens for reading: changes nothing. No folder, no findings.
    pub fn view(dir: &Path) -> Result<Findings> {
        let mut findings =
            Findings { dir: dir.to_owned(), known: BTreeMap::new(), broken: Vec::new() };
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(findings),
            other => other.map_err(StoreError::io("read", dir))?,
        };
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", dir))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(slug) = name.filter(|n| !n.starts_with('.') && path.is_dir()) else {
                continue;
            };
            match Findings::read(&path) {
                Ok(finding) => {
                    findings.known.insert(slug, finding);
                }
                Err(_) => findings.broken.push(path),
            }
        }
        findings.broken.sort();
        Ok(findings)
    }

    /// The data of a finding folder anywhere.
    pub fn read(folder: &Path) -> Result<Finding> {
        let path = folder.join(DATA);
        let unfit = |why: String| StoreError::Unparseable { path: path.clone(), why };
        let size = fs::metadata(&path).map_err(StoreError::io("read", &path))?.len();
        if size > DATA_BYTES_MAX {
            return Err(unfit(format!("{size} bytes; at most {DATA_BYTES_MAX} are read")));
        }
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| unfit(error.to_string()))
    }

    /// The program of a finding folder anywhere.
    pub fn read_program(folder: &Path) -> Result<Program> {
        corpus::read_program(&folder.join(PROGRAM))
    }

    /// Records a sighting; durable when this returns. The first sighting makes the folder with
    /// `finding.count` as given; later ones add it to the count and keep the first evidence.
    pub fn record(&mut self, finding: &Finding, evidence: Evidence<'_>) -> Result<Recorded> {
        let slug = slug(&finding.signature);
        let folder = self.dir.join(&slug);
        if self.known.contains_key(&slug) {
            let sighted = finding.count.max(1);
            let count = self.update(&slug, |known| {
                known.count = known.count.saturating_add(sighted);
            })?;
            return Ok(Recorded { slug, folder, new: false, count });
        }
        if folder.symlink_metadata().is_ok() {
            // Unreadable data from earlier: keep it, under a name that cannot be mistaken.
            let aside = self.free_name(&format!("{slug}.broken"));
            fs::rename(&folder, &aside).map_err(StoreError::io("move aside", &folder))?;
        }
        let (temp, _lock) = durable::temporary_dir(&self.dir)
            .map_err(StoreError::io("make folder in", &self.dir))?;
        fill(temp.path(), finding, evidence)?;
        fs::rename(temp.path(), &folder).map_err(StoreError::io("make folder", &folder))?;
        // Renamed: the temporary name is gone and must not be cleaned up.
        let _ = temp.keep();
        durable::sync_dir(&self.dir)?;
        self.known.insert(slug.clone(), finding.clone());
        Ok(Recorded { slug, folder, new: true, count: finding.count })
    }

    /// Changes the data of a finding; old or new is on disk, never a mix. Gives the count.
    pub fn update(&mut self, slug: &str, change: impl FnOnce(&mut Finding)) -> Result<u32> {
        let Some(known) = self.known.get(slug) else { return Err(self.missing(slug)) };
        let mut next = known.clone();
        change(&mut next);
        durable::write(&self.dir.join(slug).join(DATA), &data_bytes(&next))?;
        let count = next.count;
        self.known.insert(slug.to_owned(), next);
        Ok(count)
    }

    /// Puts a smaller program, and what it showed, in place of the one found.
    pub fn replace_program(&mut self, slug: &str, program: &Program, compared: &str) -> Result<()> {
        if !self.known.contains_key(slug) {
            return Err(self.missing(slug));
        }
        let folder = self.dir.join(slug);
        durable::write(&folder.join(PROGRAM), text::print(program).as_bytes())?;
        durable::write(&folder.join(COMPARED), compared.as_bytes())
    }

    /// The console bytes of a finding folder anywhere; at most `limit` of them.
    pub fn read_console(folder: &Path, limit: u64) -> Result<Vec<u8>> {
        let path = folder.join(CONSOLE);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(StoreError::io("read", &path))?;
        Ok(bytes)
    }

    /// The texts of a finding folder anywhere, `limit` bytes of each; empty where there is none.
    pub fn read_texts(folder: &Path, limit: u64) -> Texts {
        let text = |name: &str| {
            let mut bytes = Vec::new();
            if let Ok(file) = File::open(folder.join(name)) {
                // What could be read of it is given.
                let _ = file.take(limit).read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let kernel = serde_json::from_str(&text(KERNEL)).unwrap_or_default();
        Texts { compared: text(COMPARED), report: text(REPORT), kernel }
    }

    /// The slug a shortest unique prefix stands for.
    pub fn find(&self, word: &str) -> Result<&str> {
        if let Some((slug, _)) = self.known.get_key_value(word) {
            return Ok(slug);
        }
        let fits: Vec<&str> =
            self.known.keys().filter(|slug| slug.starts_with(word)).map(String::as_str).collect();
        match fits.as_slice() {
            [one] if !word.is_empty() => Ok(one),
            [] => Err(self.missing(word)),
            more => Err(StoreError::Ambiguous {
                what: "finding",
                id: word.to_owned(),
                count: more.len(),
                path: self.dir.clone(),
            }),
        }
    }

    pub fn folder(&self, slug: &str) -> PathBuf {
        self.dir.join(slug)
    }
    pub fn get(&self, slug: &str) -> Option<&Finding> {
        self.known.get(slug)
    }
    /// By slug.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Finding)> {
        self.known.iter().map(|(slug, finding)| (slug.as_str(), finding))
    }
    pub fn len(&self) -> usize {
        self.known.len()
    }
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
    /// Folders whose data cannot be read.
    pub fn broken(&self) -> &[PathBuf] {
        &self.broken
    }

    fn missing(&self, slug: &str) -> StoreError {
        StoreError::NotFound { what: "finding", id: slug.to_owned(), path: self.dir.clone() }
    }

    fn free_name(&self, name: &str) -> PathBuf {
        let mut path = self.dir.join(format!(".{name}"));
        let mut number = 1;
        while path.symlink_metadata().is_ok() {
            path = self.dir.join(format!(".{name}.{number}"));
            number += 1;
        }
        path
    }
}

/// Writes and syncs every file of a finding, and the folder.
fn fill(dir: &Path, finding: &Finding, evidence: Evidence<'_>) -> Result<()> {
    let mut kernel = serde_json::to_vec_pretty(evidence.kernel).unwrap_or_default();
    kernel.push(b'\n');
    let program = text::print(evidence.program);
    let files: [(&str, &[u8]); 6] = [
        (PROGRAM, program.as_bytes()),
        (COMPARED, evidence.compared.as_bytes()),
        (CONSOLE, evidence.console),
        (REPORT, evidence.report.as_bytes()),
        (KERNEL, &kernel),
        (DATA, &data_bytes(finding)),
    ];
    let there = |(name, bytes): &(&str, &[u8])| *name != REPORT || !bytes.is_empty();
    for (name, bytes) in files.into_iter().filter(there) {
        let path = dir.join(name);
        File::create_new(&path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(StoreError::io("write", &path))?;
    }
    // Findings are for reading: not private like the temporary folder was.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir, open).map_err(StoreError::io("set rights of", dir))?;
    durable::sync_dir(dir)
}

/// A `Finding` has only strings and numbers, so it always prints.
fn data_bytes(finding: &Finding) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(finding).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Folder name of a signature: its letters and digits, then 8 hex of its hash, so that different
/// signatures never share a folder.
fn slug(signature: &str) -> String {
    let mut slug = String::new();
    for c in signature.chars() {
        if slug.len() >= SLUG_MAX {
            break;
        }
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
    }
    let hash = blake3::hash(signature.as_bytes()).to_hex();
    let words = slug.trim_end_matches('-');
    let words = if words.is_empty() { "finding" } else { words };
    format!("{words}-{}", &hash.as_str()[..8])
}
