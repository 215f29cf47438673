//! The journal of a run: SQLite in WAL mode, one file, one writer, any number of readers.
//!
//! `synchronous=FULL`: a returned call is on disk even if the power goes. A campaign writes a few
//! rows a second, so the fsync each costs is cheap; NORMAL would lose the last commits on a power
//! cut, and with them findings somebody was told of. Programs are not rows: see `corpus`.

use crate::{Result, StoreError, durable};
use case::Finding;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the journal in a run folder.
const FILE: &str = "journal.sqlite";
/// `user_version` of the tables below.
const FORMAT: i64 = 1;
/// A reader may hold the file this long.
const BUSY_MAX: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE counters (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, elapsed_ms INTEGER NOT NULL,
  programs INTEGER NOT NULL, ops INTEGER NOT NULL, states INTEGER NOT NULL,
  corpus INTEGER NOT NULL, findings INTEGER NOT NULL, inconclusive INTEGER NOT NULL,
  vm_restarts INTEGER NOT NULL, canaries_planted INTEGER NOT NULL,
  canaries_found INTEGER NOT NULL) STRICT;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL,
  body TEXT NOT NULL) STRICT;
CREATE INDEX events_by_kind ON events (kind);
CREATE TABLE findings (
  slug TEXT PRIMARY KEY, signature TEXT NOT NULL UNIQUE, title TEXT NOT NULL, state TEXT NOT NULL,
  count INTEGER NOT NULL, reproduced INTEGER NOT NULL, replays INTEGER NOT NULL,
  first_at TEXT NOT NULL, last_at TEXT NOT NULL) STRICT;
CREATE TABLE checkpoint (
  only INTEGER PRIMARY KEY CHECK (only = 1), at TEXT NOT NULL, file TEXT NOT NULL,
  programs INTEGER NOT NULL, hash TEXT NOT NULL) STRICT;
";
/// Came after the tables above; a journal without it is whole, so `FORMAT` stays.
const CHECKS: &str = "
CREATE TABLE IF NOT EXISTS checks (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, program TEXT NOT NULL,
  ended TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS checks_by_end ON checks (ended, seq);
";

/// What a run is: written once, before its first program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMeta {
    /// Kernel id.
    pub kernel: String,
    /// Configuration profile.
    pub profile: String,
    pub seed: u64,
    /// Version of hgm.
    pub version: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub started: String,
}

/// Totals since the start of the run, those before a `--resume` included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Milliseconds of campaign, pauses between resumes left out.
    pub elapsed_ms: u64,
    pub programs: u64,
    pub ops: u64,
    /// Distinct mapping states seen.
    pub states: u64,
    /// Corpus entries.
    pub corpus: u64,
    pub findings: u64,
    pub inconclusive: u64,
    pub vm_restarts: u64,
    pub canaries_planted: u64,
    pub canaries_found: u64,
}

/// One event as kept.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Rises by one from event to event, over resumes too.
    pub seq: i64,
    /// RFC 3339, UTC; for people. Order is by `seq`: clocks jump.
    pub at: String,
    pub kind: String,
    pub body: serde_json::Value,
}

/// One line of the findings index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingRow {
    pub slug: String,
    pub signature: String,
    pub title: String,
    pub state: String,
    pub count: u32,
    pub reproduced: (u32, u32),
    pub first_at: String,
    pub last_at: String,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    path: PathBuf,
    db: Connection,
}

impl Journal {
    /// Opens the journal of a run folder for writing; makes it if missing.
    pub fn open(run_dir: &Path) -> Result<Journal> {
        let path = run_dir.join(FILE);
        durable::no_link(&path)?;
        let fresh = !path.exists();
        let db = Connection::open(&path).map_err(StoreError::db("open", &path))?;
        let mut journal = Journal { dir: run_dir.to_owned(), path, db };
        journal.set_up().map_err(|error| journal.fail("open")(error))?;
        journal.check_format()?;
        journal.db.execute_batch(CHECKS).map_err(|error| journal.fail("open")(error))?;
        if fresh {
            durable::sync_dir(run_dir)?;
        }
        Ok(journal)
    }

    /// Opens the journal of a run folder for reading; the run may be live.
    pub fn view(run_dir: &Path) -> Result<Journal> {
        let path = run_dir.join(FILE);
        if !path.is_file() {
            return Err(StoreError::NotFound {
                what: "journal",
                id: FILE.to_owned(),
                path: run_dir.to_owned(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db =
            Connection::open_with_flags(&path, flags).map_err(StoreError::db("open", &path))?;
        let journal = Journal { dir: run_dir.to_owned(), path, db };
        journal.db.busy_timeout(BUSY_MAX).map_err(|error| journal.fail("open")(error))?;
        journal.check_format()?;
        Ok(journal)
    }

    fn set_up(&mut self) -> rusqlite::Result<()> {
        self.db.busy_timeout(BUSY_MAX)?;
        self.db.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
        self.db.pragma_update(None, "synchronous", "FULL")?;
        let format: i64 = self.db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if format == 0 {
            // Tables and version in one transaction: killed in between, the next open starts over.
            let all = self.db.transaction()?;
            all.execute_batch(TABLES)?;
            all.pragma_update(None, "user_version", FORMAT)?;
            all.commit()?;
        }
        Ok(())
    }

    fn check_format(&self) -> Result<()> {
        let found: i64 = self
            .db
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(self.fail("read"))?;
        match found {
            FORMAT => Ok(()),
            _ => Err(StoreError::Format { path: self.path.clone(), found, known: FORMAT }),
        }
    }

    fn fail(&self, doing: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        StoreError::db(doing, &self.path)
    }

    /// Says what the run is. A second call changes nothing: a resumed run stays what it was.
    pub fn begin(&mut self, meta: &RunMeta) -> Result<()> {
        let text = serde_json::to_string(meta).unwrap_or_default();
        self.db
            .execute("INSERT OR IGNORE INTO meta VALUES ('run', ?1)", params![text])
            .map_err(self.fail("write"))?;
        Ok(())
    }

    /// What the run is; `None` if it never began.
    pub fn meta(&self) -> Result<Option<RunMeta>> {
        Ok(self.note("run")?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps a named text, such as the kernel's probed profile or the exit; replaces an older one.
    pub fn set_note(&mut self, key: &str, value: &str) -> Result<()> {
        self.db
            .execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![key, value])
            .map_err(self.fail("write"))?;
        Ok(())
    }

    /// A named text.
    pub fn note(&self, key: &str) -> Result<Option<String>> {
        self.db
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(self.fail("read"))
    }

    /// Adds a snapshot of the totals.
    pub fn count(&mut self, c: &Counters) -> Result<()> {
        self.db
            .prepare_cached(
                "INSERT INTO counters (at, elapsed_ms, programs, ops, states, corpus, findings,
                 inconclusive, vm_restarts, canaries_planted, canaries_found)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )
            .and_then(|mut row| {
                row.execute(params![
                    now(),
                    c.elapsed_ms as i64,
                    c.programs as i64,
                    c.ops as i64,
                    c.states as i64,
                    c.corpus as i64,
                    c.findings as i64,
                    c.inconclusive as i64,
                    c.vm_restarts as i64,
                    c.canaries_planted as i64,
                    c.canaries_found as i64
                ])
            })
            .map_err(self.fail("write"))?;
        Ok(())
    }

    /// All snapshots, oldest first, with their wall time.
    pub fn counters(&self) -> Result<Vec<(String, Counters)>> {
        self.counter_rows("ORDER BY seq")
    }

    /// The newest snapshot: where a resumed run goes on counting.
    pub fn last_counters(&self) -> Result<Option<Counters>> {
        Ok(self.counter_rows("ORDER BY seq DESC LIMIT 1")?.pop().map(|(_, counters)| counters))
    }

    fn counter_rows(&self, which: &str) -> Result<Vec<(String, Counters)>> {
        let query = format!(
            "SELECT at, elapsed_ms, programs, ops, states, corpus, findings, inconclusive,
             vm_restarts, canaries_planted, canaries_found FROM counters {which}"
        );
        self.rows(&query, |row| {
            let number = |at: usize| row.get::<_, i64>(at).map(|n| n.max(0) as u64);
            let counters = Counters {
                elapsed_ms: number(1)?,
                programs: number(2)?,
                ops: number(3)?,
                states: number(4)?,
                corpus: number(5)?,
                findings: number(6)?,
                inconclusive: number(7)?,
                vm_restarts: number(8)?,
                canaries_planted: number(9)?,
                canaries_found: number(10)?,
            };
            Ok((row.get(0)?, counters))
        })
    }

    /// Adds an event; gives its number.
    pub fn event(&mut self, kind: &str, body: &serde_json::Value) -> Result<i64> {
        self.db
            .prepare_cached("INSERT INTO events (at, kind, body) VALUES (?1, ?2, ?3)")
            .and_then(|mut row| row.insert(params![now(), kind, body.to_string()]))
            .map_err(self.fail("write"))
    }

    /// Events after number `after` (0: all), in order.
    pub fn events(&self, after: i64) -> Result<Vec<EventRow>> {
        self.rows(
            &format!("SELECT seq, at, kind, body FROM events WHERE seq > {after} ORDER BY seq"),
            |row| {
                let body: String = row.get(3)?;
                let body = serde_json::from_str(&body).unwrap_or(serde_json::Value::Null);
                Ok(EventRow { seq: row.get(0)?, at: row.get(1)?, kind: row.get(2)?, body })
            },
        )
    }

    /// Puts a finding into the index, or its new figures over the old ones.
    pub fn index_finding(&mut self, slug: &str, finding: &Finding) -> Result<()> {
        let state = serde_json::to_value(finding.state).unwrap_or_default();
        self.db
            .execute(
                "INSERT INTO findings VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)
                 ON CONFLICT (slug) DO UPDATE SET title = ?3, state = ?4, count = ?5,
                 reproduced = ?6, replays = ?7, last_at = ?8",
                params![
                    slug,
                    finding.signature,
                    finding.title,
                    state.as_str().unwrap_or_default(),
                    finding.count,
                    finding.reproduced.0,
                    finding.reproduced.1,
                    now()
                ],
            )
            .map_err(self.fail("write"))?;
        Ok(())
    }

    /// The findings index, in the order they came: clocks jump.
    pub fn findings(&self) -> Result<Vec<FindingRow>> {
        self.rows(
            "SELECT slug, signature, title, state, count, reproduced, replays, first_at, last_at
             FROM findings ORDER BY rowid",
            |row| {
                Ok(FindingRow {
                    slug: row.get(0)?,
                    signature: row.get(1)?,
                    title: row.get(2)?,
                    state: row.get(3)?,
                    count: row.get(4)?,
                    reproduced: (row.get(5)?, row.get(6)?),
                    first_at: row.get(7)?,
                    last_at: row.get(8)?,
                })
            },
        )
    }

    /// Puts down that a program (its id and text) waits to be checked by another kernel. False: it
    /// was put down before, and nothing changes.
    pub fn want_check(&mut self, id: &str, program: &str) -> Result<bool> {
        self.db
            .prepare_cached("INSERT OR IGNORE INTO checks (id, program, ended) VALUES (?1, ?2, '')")
            .and_then(|mut row| row.execute([id, program]))
            .map(|rows| rows > 0)
            .map_err(self.fail("write"))
    }

    /// A program that waited has been checked; `ended` is a word of the caller's, not empty. Its
    /// text is dropped here.
    pub fn end_check(&mut self, id: &str, ended: &str) -> Result<()> {
        self.db
            .prepare_cached("UPDATE checks SET ended = ?2, program = '' WHERE id = ?1")
            .and_then(|mut row| row.execute([id, ended]))
            .map(drop)
            .map_err(self.fail("write"))
    }

    /// Texts of programs that wait, the longest waiting first, at most `limit`, those with an id
    /// in `except` left out.
    pub fn waiting_checks(&self, limit: usize, except: &BTreeSet<String>) -> Result<Vec<String>> {
        let query = format!(
            "SELECT id, program FROM checks WHERE ended = '' ORDER BY seq LIMIT {}",
            limit.saturating_add(except.len())
        );
        let rows: Vec<(String, String)> =
            self.rows(&query, |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows = rows.into_iter().filter(|(id, _)| !except.contains(id));
        Ok(rows.map(|(_, program)| program).take(limit).collect())
    }

    /// Programs put down for a check, counted by how it ended; those that wait under "".
    pub fn checks(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.rows("SELECT ended, count(*) FROM checks GROUP BY ended", |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?.max(0) as u64))
        })?;
        Ok(rows.into_iter().collect())
    }

    /// Keeps the engine's state: a file beside the journal, named in it once it is on disk.
    pub fn save_checkpoint(&mut self, programs: u64, blob: &[u8]) -> Result<()> {
        let hash = blake3::hash(blob).to_hex().to_string();
        let file = format!("engine-{programs}-{}.bin", &hash[..8]);
        durable::write(&self.dir.join(&file), blob)?;
        let older = self.checkpoint_row()?.map(|(name, _)| name).filter(|name| *name != file);
        self.db
            .execute(
                "INSERT OR REPLACE INTO checkpoint VALUES (1, ?1, ?2, ?3, ?4)",
                params![now(), file, programs as i64, hash],
            )
            .map_err(self.fail("write"))?;
        if let Some(name) = older {
            // The row names the new file: failing to remove the old one only costs space.
            let _ = fs::remove_file(self.dir.join(name));
        }
        Ok(())
    }

    /// The engine's state as last kept; `None` if there is none or its file was damaged.
    pub fn checkpoint(&self) -> Result<Option<Vec<u8>>> {
        let Some((name, hash)) = self.checkpoint_row()? else { return Ok(None) };
        // The name comes from a file others may have touched: only a bare name is followed.
        if name.contains('/') {
            return Ok(None);
        }
        let blob = fs::read(self.dir.join(name)).ok();
        Ok(blob.filter(|blob| blake3::hash(blob).to_hex().as_str() == hash))
    }

    fn checkpoint_row(&self) -> Result<Option<(String, String)>> {
        self.db
            .query_row("SELECT file, hash FROM checkpoint", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(self.fail("read"))
    }

    fn rows<T>(
        &self,
        query: &str,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.db
            .prepare(query)
            .and_then(|mut rows| rows.query_map([], read)?.collect())
            .map_err(self.fail("read"))
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}
