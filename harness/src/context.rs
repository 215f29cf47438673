//! What every command is given: the home, the configuration, the terminal.
//!
//! Made once in `main`, passed by reference, never a global.

use crate::cli::{Cli, GlobalArgs};
use crate::config::Config;
use crate::exit::ExpectedError;
use crate::term::Term;
use std::path::PathBuf;

/// Surroundings of one call of `hgm`.
#[derive(Debug)]
pub struct Context {
    /// Where kernels, images, runs and the default corpus live. Not made until something is kept.
    pub home: PathBuf,
    pub config: Config,
    /// Machine output: data on stdout as JSON, nothing else there.
    pub json: bool,
    pub term: Term,
    pub global: GlobalArgs,
}

impl Context {
    /// Reads environment and configuration; flags win over both.
    pub fn of(cli: &Cli, term: Term) -> Result<Context, ExpectedError> {
        let home = home(&cli.global)?;
        let config = Config::load(&cli.global, &cli.verb.overrides())?;
        Ok(Context { home, config, json: cli.global.json, term, global: cli.global.clone() })
    }

    /// The corpus folder: as configured, else `corpus` in the home.
    pub fn corpus_dir(&self) -> PathBuf {
        self.config.corpus.clone().unwrap_or_else(|| self.home.join("corpus"))
    }
}

/// `--home`, `$HGM_HOME`, `$XDG_CACHE_HOME/hgm`, `~/.cache/hgm`, in this order.
fn home(global: &GlobalArgs) -> Result<PathBuf, ExpectedError> {
    let of_env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = global
        .home
        .clone()
        .or_else(|| of_env("HGM_HOME"))
        .or_else(|| of_env("XDG_CACHE_HOME").map(|dir| dir.join("hgm")))
        .or_else(|| of_env("HOME").map(|dir| dir.join(".cache/hgm")));
    let home = home.ok_or_else(|| {
        ExpectedError::config(
            "no home: neither --home, HGM_HOME, XDG_CACHE_HOME nor HOME is set",
            "pass --home DIR, or set HGM_HOME",
        )
    })?;
    std::path::absolute(&home).map_err(|error| {
        ExpectedError::config(format!("bad home {}", home.display()), "pass --home DIR")
            .cause(error)
    })
}
