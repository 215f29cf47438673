//! A corpus folder: one text file per program, named by the program's id.
//!
//! Hand-named files are read as well. What does not parse is moved to `quarantine/` by a writer
//! and left alone by a reader; nothing is deleted.

use crate::{Result, StoreError, durable};
use case::limits::TEXT_BYTES_MAX;
use case::{Program, text, wire};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Ending of program files.
const ENDING: &str = "hgm";
/// Where files go that do not parse.
const QUARANTINE: &str = "quarantine";
/// Hex characters of an id.
const ID_LEN: usize = 16;

/// A folder of programs, indexed by id.
#[derive(Debug)]
pub struct Corpus {
    dir: PathBuf,
    entries: BTreeMap<String, PathBuf>,
    unfit: Vec<Unfit>,
    /// Files that hold a program another file holds too.
    doubles: Vec<PathBuf>,
}

/// A file that is not a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Where it was found.
    pub path: PathBuf,
    pub why: String,
    /// Where it is now, if it could be moved.
    pub moved_to: Option<PathBuf>,
}

/// What became of an addition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub id: String,
    pub path: PathBuf,
    /// False: it was there already, and nothing was written.
    pub new: bool,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusReport {
    /// Programs that are as they should be.
    pub good: usize,
    pub unfit: Vec<Unfit>,
    /// Files named like an id that is not theirs, and the true id.
    pub misnamed: Vec<(PathBuf, String)>,
    pub doubles: Vec<PathBuf>,
    /// Programs that parse but break a static rule, and the rule.
    pub senseless: Vec<(String, String)>,
    /// Left by writers that were killed.
    pub leftovers: Vec<PathBuf>,
}

impl CorpusReport {
    /// Leftovers are no fault of the corpus, nor are doubles: one program, two names.
    pub fn is_clean(&self) -> bool {
        self.unfit.is_empty() && self.misnamed.is_empty() && self.senseless.is_empty()
    }
}

impl Corpus {
    /// Opens for writing: makes the folder, moves what does not parse to `quarantine/`, removes
    /// temporaries of writers long gone. Several processes may write to one folder.
    pub fn open(dir: &Path) -> Result<Corpus> {
        durable::make_dir(dir)?;
        durable::sweep(dir);
        let mut corpus = Corpus::view(dir)?;
        let mut unfit = std::mem::take(&mut corpus.unfit);
        for file in &mut unfit {
            // A folder that cannot be written is still good to read.
            file.moved_to = corpus.quarantine(&file.path).ok();
        }
        corpus.unfit = unfit;
        // What is here counts as added.
        durable::sync_dir(dir)?;
        Ok(corpus)
    }

    /// Opens for reading: changes nothing.
    pub fn view(dir: &Path) -> Result<Corpus> {
        let mut corpus = Corpus {
            dir: dir.to_owned(),
            entries: BTreeMap::new(),
            unfit: Vec::new(),
            doubles: Vec::new(),
        };
        for path in program_files(dir)? {
            match read_program(&path) {
                Ok(program) => {
                    let id = wire::program_id(&program);
                    corpus.index(id, path);
                }
                Err(StoreError::Unparseable { path, why }) => {
                    corpus.unfit.push(Unfit { path, why, moved_to: None });
                }
                Err(other) => return Err(other),
            }
        }
        Ok(corpus)
    }

    /// The file named by the id wins over a hand-named one.
    fn index(&mut self, id: String, path: PathBuf) {
        let canonical = path == self.dir.join(file_name(&id));
        match self.entries.get(&id) {
            Some(_) if !canonical => self.doubles.push(path),
            Some(other) => {
                self.doubles.push(other.clone());
                self.entries.insert(id, path);
            }
            None => {
                self.entries.insert(id, path);
            }
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    pub fn contains(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }
    /// Ids and their files, in id order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.entries.iter().map(|(id, path)| (id.as_str(), path.as_path()))
    }
    /// Files that did not parse when the corpus was opened.
    pub fn unfit(&self) -> &[Unfit] {
        &self.unfit
    }

    /// The id a shortest unique prefix, or a file name without ending, stands for.
    pub fn find(&self, word: &str) -> Result<&str> {
        let named = |path: &Path| path.file_stem().is_some_and(|stem| stem == word);
        if let Some((id, _)) = self.iter().find(|(id, path)| *id == word || named(path)) {
            return Ok(id);
        }
        let fits: Vec<&str> =
            self.entries.keys().filter(|id| id.starts_with(word)).map(String::as_str).collect();
        match fits.as_slice() {
            [one] if !word.is_empty() => Ok(one),
            [] => Err(StoreError::NotFound {
                what: "program",
                id: word.to_owned(),
                path: self.dir.clone(),
            }),
            more => Err(StoreError::Ambiguous {
                what: "program",
                id: word.to_owned(),
                count: more.len(),
                path: self.dir.clone(),
            }),
        }
    }

    /// The program with this id.
    pub fn get(&self, id: &str) -> Result<Program> {
        match self.entries.get(id) {
            Some(path) => read_program(path),
            None => Err(StoreError::NotFound {
                what: "program",
                id: id.to_owned(),
                path: self.dir.clone(),
            }),
        }
    }

    /// Every program, in id order. One that was changed behind our back and no longer parses is
    /// left out; `verify` finds it.
    pub fn programs(&self) -> impl Iterator<Item = (&str, Program)> {
        self.entries.iter().filter_map(|(id, path)| Some((id.as_str(), read_program(path).ok()?)))
    }

    /// Adds a program; durable when this returns. Adding one that is there changes nothing.
    pub fn add(&mut self, program: &Program) -> Result<Added> {
        let id = wire::program_id(program);
        if let Some(path) = self.entries.get(&id).filter(|path| path.is_file()) {
            return Ok(Added { path: path.clone(), id, new: false });
        }
        let path = self.dir.join(file_name(&id));
        durable::write(&path, text::print(program).as_bytes())?;
        self.entries.insert(id.clone(), path.clone());
        Ok(Added { id, path, new: true })
    }

    /// Reads everything again and reports; moves what does not parse to `quarantine/`.
    pub fn verify(dir: &Path) -> Result<CorpusReport> {
        if !dir.is_dir() {
            return Err(StoreError::io("read", dir)(std::io::ErrorKind::NotFound.into()));
        }
        let corpus = Corpus::open(dir)?;
        let mut report = CorpusReport {
            unfit: corpus.unfit.clone(),
            doubles: corpus.doubles.clone(),
            leftovers: durable::temporaries(dir),
            ..CorpusReport::default()
        };
        for (id, path) in corpus.iter() {
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
            let stem = stem.unwrap_or_default();
            let sense = corpus.get(id).map(|program| case::check::check(&program));
            if looks_like_id(&stem) && stem != id {
                report.misnamed.push((path.to_owned(), id.to_owned()));
            } else if let Ok(Err(why)) = sense {
                report.senseless.push((id.to_owned(), why.to_string()));
            } else {
                report.good += 1;
            }
        }
        Ok(report)
    }

    /// Moves a file aside under a name that is free.
    fn quarantine(&self, path: &Path) -> Result<PathBuf> {
        let dir = self.dir.join(QUARANTINE);
        durable::make_dir(&dir)?;
        let name = path.file_name().unwrap_or_default().to_owned();
        let mut to = dir.join(&name);
        let mut number = 1;
        while to.symlink_metadata().is_ok() {
            let mut numbered = name.clone();
            numbered.push(format!(".{number}"));
            to = dir.join(numbered);
            number += 1;
        }
        fs::rename(path, &to).map_err(StoreError::io("move to quarantine", path))?;
        durable::sync_dir(&dir)?;
        durable::sync_dir(&self.dir)?;
        Ok(to)
    }
}

fn file_name(id: &str) -> String {
    format!("{id}.{ENDING}")
}

fn looks_like_id(stem: &str) -> bool {
    stem.len() == ID_LEN && stem.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

/// Program files of a folder, by name. Sub-folders are not entered.
fn program_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let path = entry.map_err(StoreError::io("read", dir))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|ending| ending == ENDING) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one program; reads no more than a program may have.
pub(crate) fn read_program(path: &Path) -> Result<Program> {
    let unfit = |why: String| StoreError::Unparseable { path: path.to_owned(), why };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(StoreError::io("read", path))?;
    file.take(TEXT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(StoreError::io("read", path))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(unfit(format!("more than {TEXT_BYTES_MAX} bytes")));
    }
    let words = String::from_utf8(bytes).map_err(|error| unfit(error.to_string()))?;
    text::parse(&words).map_err(|error| unfit(error.to_string()))
}
