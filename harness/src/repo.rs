//! A git repository of our own beside the user's: it borrows the user's objects and writes nothing
//! there. Which commit a bisection asks about next is git's own decision. No builds, no VMs here.

use crate::exit::ExpectedError;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    Bad,
    /// It does not build, does not boot, or said nothing.
    Skip,
}

impl Verdict {
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Bad => "bad",
            Verdict::Skip => "skip",
        }
    }
}

/// Where a bisection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This commit is to be tried.
    Try(String),
    /// The first bad commit.
    Found(String),
    /// Only skipped commits are left: any of these may be it.
    Among(Vec<String>),
}

/// Our clone.
#[derive(Debug)]
pub struct Repo {
    dir: PathBuf,
}

/// The commit a word means in a user's repository, as a whole hash.
pub fn commit(tree: &Path, word: &str) -> Result<String, ExpectedError> {
    let asked = format!("{word}^{{commit}}");
    let out = git(tree, &["rev-parse", "--verify", "--quiet", "--end-of-options", &asked])?;
    let hash = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    if out.status.success() && !hash.is_empty() {
        return Ok(hash);
    }
    let inside = git(tree, &["rev-parse", "--git-dir"])?.status.success();
    Err(match inside {
        true => ExpectedError::config(
            format!("{} has no commit `{word}`", tree.display()),
            "name a tag, a branch or a hash that git log shows there",
        ),
        false => ExpectedError::config(
            format!("{} is no git repository", tree.display()),
            "name the top folder of a kernel's git tree",
        ),
    })
}

/// Hash, author, date and subject of a commit of this repository, for people.
pub fn describe(dir: &Path, commit: &str) -> Result<String, ExpectedError> {
    told(git(dir, &["show", "-s", "--format=%h %an %as %s", commit])?, "show")
}

fn git(dir: &Path, args: &[&str]) -> Result<Output, ExpectedError> {
    let mut command = Command::new("git");
    // No hook of the user's, no pager, no question.
    command.arg("-C").arg(dir).args(["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0"]);
    command.args(args).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).output().map_err(|error| {
        ExpectedError::infrastructure("cannot run git", "apt-get install git").cause(error)
    })
}

impl Repo {
    /// The clone in `dir`, made if it is not there or not whole.
    pub fn open(dir: &Path, tree: &Path) -> Result<Repo, ExpectedError> {
        let repo = Repo { dir: dir.to_owned() };
        if dir.join(".git").is_dir() && repo.ask(&["rev-parse", "--git-dir"]).is_ok() {
            return Ok(repo);
        }
        let failed = |error: std::io::Error| {
            let what = format!("cannot write {}", dir.display());
            ExpectedError::infrastructure(what, "make room, or choose another HGM_HOME")
                .cause(error)
        };
        let part = dir.with_extension("part");
        for old in [dir, &part] {
            match std::fs::remove_dir_all(old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        let (from, to) = (tree.to_string_lossy(), part.to_string_lossy());
        let above = dir.parent().unwrap_or(Path::new("."));
        let out = git(above, &["clone", "--quiet", "--shared", "--no-checkout", "--", &from, &to])?;
        told(out, "clone")?;
        std::fs::rename(&part, dir).map_err(failed)?;
        Ok(repo)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn ask(&self, args: &[&str]) -> Result<String, ExpectedError> {
        told(git(&self.dir, args)?, args.first().copied().unwrap_or_default())
    }

    /// Files as of this commit. What a build left behind stays, so that the next one is short.
    pub fn check_out(&self, commit: &str) -> Result<(), ExpectedError> {
        // A killed git leaves its lock; nobody else works here.
        let _ = std::fs::remove_file(self.dir.join(".git/index.lock"));
        self.ask(&["checkout", "--quiet", "--force", "--detach", commit]).map(|_| ())
    }

    /// Starts a bisection and tells it what is known already.
    pub fn bisect(
        &self,
        good: &str,
        bad: &str,
        known: &[(String, Verdict)],
    ) -> Result<Next, ExpectedError> {
        let _ = self.ask(&["bisect", "reset"]);
        self.ask(&["bisect", "start", "--no-checkout", bad, good])?;
        for (commit, verdict) in known {
            self.mark(commit, *verdict)?;
        }
        self.next()
    }

    /// Tells how a commit did.
    pub fn tell(&self, commit: &str, verdict: Verdict) -> Result<Next, ExpectedError> {
        self.mark(commit, verdict)?;
        self.next()
    }

    fn mark(&self, commit: &str, verdict: Verdict) -> Result<(), ExpectedError> {
        // It ends with 2 when only skipped commits are left, which the log tells as well.
        let out = git(&self.dir, &["bisect", verdict.name(), commit])?;
        if out.status.code() == Some(2) { Ok(()) } else { told(out, "bisect").map(|_| ()) }
    }

    fn next(&self) -> Result<Next, ExpectedError> {
        let log = self.ask(&["bisect", "log"])?;
        if let Some(next) = ended(&log) {
            return Ok(next);
        }
        Ok(Next::Try(self.ask(&["rev-parse", "--verify", "BISECT_HEAD"])?))
    }

    /// See [`describe`].
    pub fn describe(&self, commit: &str) -> Result<String, ExpectedError> {
        describe(&self.dir, commit)
    }

    /// About how many commits are still between the two.
    pub fn steps(&self, good: &str, bad: &str) -> Result<u32, ExpectedError> {
        let count = self.ask(&["rev-list", "--count", bad, &format!("^{good}")])?;
        let count: u64 = count.parse().unwrap_or(0);
        Ok(u64::BITS - count.leading_zeros())
    }
}

/// What a bisection's log says of its end, if it has ended.
fn ended(log: &str) -> Option<Next> {
    let hash = |line: &str, start: &str| {
        let rest = line.strip_prefix(start)?.strip_prefix('[')?;
        Some(rest.split(']').next()?.to_owned())
    };
    if let Some(found) = log.lines().find_map(|line| hash(line, "# first bad commit: ")) {
        return Some(Next::Found(found));
    }
    let left: Vec<String> =
        log.lines().filter_map(|line| hash(line, "# possible first bad commit: ")).collect();
    (!left.is_empty()).then_some(Next::Among(left))
}

/// git's answer, or its complaint.
fn told(out: Output, what: &str) -> Result<String, ExpectedError> {
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned());
    }
    let complaint = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    let help = "see what git says; the user's tree is only read";
    Err(ExpectedError::infrastructure(format!("git {what} failed"), help).cause(complaint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` commits, `n` in a file; their hashes, oldest first.
    fn tree(count: usize) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        told(git(dir.path(), &["init", "-q"]).unwrap(), "init").unwrap();
        let hashes = (0..count).map(|n| {
            std::fs::write(dir.path().join("n"), n.to_string()).unwrap();
            told(git(dir.path(), &["add", "n"]).unwrap(), "add").unwrap();
            let who = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x"];
            told(git(dir.path(), &who).unwrap(), "commit").unwrap();
            commit(dir.path(), "HEAD").unwrap()
        });
        let hashes = hashes.collect();
        (dir, hashes)
    }

    /// Runs a bisection to its end; `judge` gives the verdict on the n-th commit.
    fn walk(repo: &Repo, all: &[String], judge: impl Fn(usize) -> Verdict) -> (Next, usize) {
        let mut next = repo.bisect(&all[0], &all[all.len() - 1], &[]).unwrap();
        let mut known = Vec::new();
        while let Next::Try(commit) = &next {
            repo.check_out(commit).unwrap();
            let n: usize = std::fs::read_to_string(repo.dir().join("n")).unwrap().parse().unwrap();
            assert_eq!(&all[n], commit);
            known.push((commit.clone(), judge(n)));
            // Told one by one or all anew, as after a kill: the same.
            let anew = repo.bisect(&all[0], &all[all.len() - 1], &known).unwrap();
            repo.bisect(&all[0], &all[all.len() - 1], &known[..known.len() - 1]).unwrap();
            let (commit, verdict) = known[known.len() - 1].clone();
            next = repo.tell(&commit, verdict).unwrap();
            assert_eq!(next, anew);
        }
        (next, known.len())
    }

    #[test]
    fn the_first_bad_commit_is_found_and_the_users_tree_is_as_it_was() {
        let (dir, all) = tree(16);
        let before = std::fs::read_dir(dir.path().join(".git")).unwrap().count();
        let ours = tempfile::tempdir().unwrap();
        let repo = Repo::open(&ours.path().join("tree"), dir.path()).unwrap();
        let bad_from = |first: usize| move |n| if n < first { Verdict::Good } else { Verdict::Bad };
        for first in [1, 7, 15] {
            let (next, tries) = walk(&repo, &all, bad_from(first));
            assert_eq!(next, Next::Found(all[first].clone()));
            assert!(tries <= 4, "{tries}");
        }
        assert_eq!(repo.steps(&all[0], &all[15]).unwrap(), 4);
        // What cannot be tried is gone around, or named when nothing else is left.
        let judge = |n| if n == 8 { Verdict::Skip } else { bad_from(6)(n) };
        assert_eq!(walk(&repo, &all, judge).0, Next::Found(all[6].clone()));
        let judge = |n| if (6..9).contains(&n) { Verdict::Skip } else { bad_from(8)(n) };
        let Next::Among(mut left) = walk(&repo, &all, judge).0 else { panic!("nothing was left") };
        let mut wanted = all[6..=9].to_vec();
        left.sort();
        wanted.sort();
        assert_eq!(left, wanted);

        assert_eq!(std::fs::read_dir(dir.path().join(".git")).unwrap().count(), before);
        assert_eq!(commit(dir.path(), "HEAD").unwrap(), all[15]);
        assert!(git(dir.path(), &["status", "--porcelain"]).unwrap().stdout.is_empty());
    }

    #[test]
    fn half_a_clone_is_made_again() {
        let (dir, all) = tree(2);
        let ours = tempfile::tempdir().unwrap();
        let path = ours.path().join("tree");
        for half in [&path, &path.with_extension("part")] {
            std::fs::create_dir_all(half.join(".git")).unwrap();
        }
        let repo = Repo::open(&path, dir.path()).unwrap();
        repo.check_out(&all[1]).unwrap();
        assert!(repo.describe(&all[1]).unwrap().ends_with(" x"));
    }

    #[test]
    fn what_is_no_commit_or_no_repository_is_said() {
        let (dir, _) = tree(1);
        let error = commit(dir.path(), "v9.9").unwrap_err();
        assert!(error.message.contains("has no commit `v9.9`"), "{}", error.message);
        assert!(commit(dir.path(), "--all").is_err());
        let none = tempfile::tempdir().unwrap();
        assert!(commit(none.path(), "HEAD").unwrap_err().message.contains("no git repository"));
    }
}
