//! Flags of `hgm findings`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// List findings of all runs, one line a bug; show one; mark it; say which are one bug.
#[derive(Clone, Debug, Args)]
pub struct FindingsArgs {
    #[command(subcommand)]
    pub verb: FindingsVerb,
}

#[derive(Clone, Debug, Subcommand)]
pub enum FindingsVerb {
    List(FindingsListArgs),
    Show(FindingsShowArgs),
    Mark(MarkArgs),
    Merge(FindingsMergeArgs),
    Split(FindingsSplitArgs),
    Fetch(FindingsFetchArgs),
}

/// List findings: state, k of n, times seen, runs, kernels, signature.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm findings list\n  hgm findings list --run latest --all \
                        --json")]
pub struct FindingsListArgs {
    /// Of this run only: its id, the shortest unique prefix, or latest.
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Known deviations too.
    #[arg(long)]
    pub all: bool,
}

/// Print a finding: what was expected and seen, how often, its program.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm findings show h-040-pread")]
pub struct FindingsShowArgs {
    /// Finding: its folder, or its name in any run, or the shortest unique prefix.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Get what all machines found from a hub, with its evidence: one folder a bug, which `hgm repro`,
/// `hgm shrink` and `hgm findings show` take.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hgm findings fetch found --hub nats://127.0.0.1\n  hgm repro \
                        found/h-040-pread-1f0c --kernel debian-6.1"
)]
pub struct FindingsFetchArgs {
    /// Folder for them; made if missing. What it has already is kept, and seen once more.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Address of the hub [default: hub of the configuration].
    #[arg(long, value_name = "ADDRESS")]
    pub hub: Option<String>,
}

/// Mark a finding: as known on its kernel, or not to be shown to others.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm findings mark h-040-pread --known MY-1 --why 'read(2) \
                        says EIO'\n  hgm findings mark refcount --embargo")]
pub struct MarkArgs {
    /// Finding: its folder, or its name in any run, or the shortest unique prefix.
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub marking: Marking,
    /// What it breaks and which document decides; goes with --known.
    #[arg(long, value_name = "TEXT", requires = "known")]
    pub why: Option<String>,
    /// Registered kernel whose list gets it [default: the one the finding was seen on].
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Marking {
    /// List it under this id in known.toml beside the kernel's image: reported as known from now on.
    #[arg(long, value_name = "ID")]
    pub known: Option<String>,
    /// Mark that it must not leave this machine; lists show it as embargo.
    #[arg(long)]
    pub embargo: bool,
    /// Take an embargo back.
    #[arg(long)]
    pub no_embargo: bool,
}

/// Say that findings are one bug: from now on they are listed and counted as one, in earlier and
/// in later runs. What was recorded of each stays as it is.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm findings merge h-040-pread h-040-read\n\n\
                        Each decision is a line of merges.jsonl in the home; hgm findings split \
                        takes it back.")]
pub struct FindingsMergeArgs {
    /// Findings: their folders, names in any run, or shortest unique prefixes. The first one gives
    /// the bug its name.
    #[arg(value_name = "ID", required = true, num_args = 2..)]
    pub ids: Vec<String>,
}

/// Take a finding out of the bug it was merged into; the one that gave a bug its name takes the
/// whole bug apart.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm findings split h-040-read")]
pub struct FindingsSplitArgs {
    /// Finding: its folder, or its name in any run, or the shortest unique prefix.
    #[arg(value_name = "ID")]
    pub id: String,
}
