//! What every command is given: the home, the configuration, the terminal.
//!
//! Made once in `main`, passed by reference, never a global.

use crate::cli::{Cli, ConfigVerb, GlobalArgs, Verb};
use crate::config::Config;
use crate::exit::{ExpectedError, nearest};
use crate::term::Term;
use std::path::PathBuf;
use vmimages::Kernel;

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
        let config = match Config::load(&cli.global, &cli.verb.overrides()) {
            Err(_) if works_without_config(&cli.verb) => Config::builtin(),
            other => other?,
        };
        Ok(Context { home, config, json: cli.global.json, term, global: cli.global.clone() })
    }

    /// The corpus folder: as configured, else `corpus` in the home.
    pub fn corpus_dir(&self) -> PathBuf {
        self.config.corpus.clone().unwrap_or_else(|| self.home.join("corpus"))
    }

    /// Where verdicts on KVM are remembered.
    pub fn accel_cache(&self) -> PathBuf {
        self.home.join("accel")
    }

    /// Where golden VMs are kept.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.home.join("snapshots")
    }

    /// The kernel configured or named by `--kernel`; if none is, the only one registered.
    pub fn kernel(&self) -> Result<Kernel, ExpectedError> {
        self.choose(self.config.kernel.as_deref())
    }

    /// The kernel of this name or shortest unique prefix.
    pub fn kernel_named(&self, word: &str) -> Result<Kernel, ExpectedError> {
        self.choose(Some(word))
    }

    fn choose(&self, word: Option<&str>) -> Result<Kernel, ExpectedError> {
        let mut known = vmimages::kernels(&self.home);
        let names: Vec<String> = known.iter().map(|kernel| kernel.id.clone()).collect();
        let add = "register one: hgm kernel add debian:6.1, or hgm kernel add BZIMAGE";
        let Some(word) = word else {
            return match (known.pop(), names.len()) {
                (Some(only), 1) => Ok(only),
                (None, _) => Err(ExpectedError::config("no kernel registered", add)),
                (Some(_), _) => Err(ExpectedError::config(
                    "no kernel chosen",
                    format!("pass --kernel with one of: {}", names.join(", ")),
                )),
            };
        };
        // `debian:6.1`, as `hgm kernel add` takes it, names the kernel as well.
        let word = &word.replacen("debian:", "debian-", 1);
        let mut fits: Vec<Kernel> =
            known.into_iter().filter(|kernel| kernel.id.starts_with(word.as_str())).collect();
        if let Some(at) = fits.iter().position(|kernel| kernel.id == *word) {
            return Ok(fits.swap_remove(at));
        }
        // `debian-6.1` is 6.1.x before it is a prefix of 6.12.x.
        let series = |kernel: &Kernel| {
            kernel.id[word.len()..].starts_with(|c: char| !c.is_ascii_alphanumeric())
        };
        if fits.len() > 1 && fits.iter().any(series) {
            fits.retain(series);
        }
        if fits.len() > 1 {
            let fits: Vec<&str> = fits.iter().map(|kernel| kernel.id.as_str()).collect();
            let message = format!("`{word}` fits {} kernels", fits.len());
            return Err(ExpectedError::config(message, format!("name one: {}", fits.join(", "))));
        }
        fits.pop().ok_or_else(|| {
            let help = match nearest(word, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => add.to_owned(),
                None => format!("kernels there: {}", names.join(", ")),
            };
            ExpectedError::config(format!("no kernel `{word}` registered"), help)
        })
    }
}

/// Verbs that must help even when the configuration is broken.
fn works_without_config(verb: &Verb) -> bool {
    match verb {
        Verb::Doctor(_) | Verb::Help(_) | Verb::Completions(_) | Verb::Man(_) => true,
        Verb::Config(args) => matches!(args.verb, ConfigVerb::Check),
        _ => false,
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
