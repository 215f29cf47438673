//! Flags of `hgm gate` and `hgm bisect`: the verbs about what a change does.

use super::{AccelChoice, PresetChoice, Progress, duration_arg};
use crate::config::parse_duration;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Judge a kernel against its base: regressions on both, then fuzzing spent on what a patch changes.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm gate --base debian:6.1 --new-tree ~/linux --patch \
                        fix.patch --budget 20m\n  hgm gate --base debian:6.1.0-47 --new \
                        debian:6.1 --budget 10m --json\n\n\
                        A finding fails the gate if it shows in 3 of 5 replays on the new kernel, \
                        in none on\nthe base, and is not listed as known. Ends with 0 clean, 100 \
                        with findings, 5 with too\nlittle evidence; 101 if the new kernel does \
                        not build, or does not boot where its\nbase does; see hgm help \
                        exit-codes.")]
pub struct GateArgs {
    /// The kernel before the change: registered, or debian:VERSION, which is fetched.
    #[arg(long, value_name = "KERNEL")]
    pub base: String,
    /// The kernel after the change, named the same way.
    #[arg(long, value_name = "KERNEL", required_unless_present = "new_tree")]
    pub new: Option<String>,
    /// Build the kernel after the change from this source tree; the tree is only read.
    #[arg(long, value_name = "DIR", conflicts_with = "new")]
    pub new_tree: Option<PathBuf>,
    /// How --new-tree is configured: give the one the base was built with.
    #[arg(long, value_enum, default_value_t = PresetChoice::Plain, requires = "new_tree")]
    pub preset: PresetChoice,
    /// The change, as git diff writes it: fuzzing is spent on the functions it touches. It is not
    /// applied to anything.
    #[arg(long, value_name = "FILE")]
    pub patch: Option<PathBuf>,
    /// Time for everything but building: 90s, 20m, 2h.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration_arg)]
    pub budget: String,
    /// Stop after this many programs, if that comes first.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub programs: Option<u64>,
    /// Programs both kernels run first [default: corpus/regressions, if it is there].
    #[arg(long, value_name = "DIR")]
    pub regressions: Option<PathBuf>,
    /// Replays of a finding on each kernel.
    #[arg(long, value_name = "N")]
    pub times: Option<u32>,
    /// Replays that must show it on the new kernel.
    #[arg(long, value_name = "K")]
    pub need: Option<u32>,
    /// Judge also where no jail is around QEMU: the kernels are then code you trust.
    #[arg(long)]
    pub allow_weak_jail: bool,
    /// Go on after the first finding that counts.
    #[arg(long)]
    pub keep_going: bool,
    /// VMs at a time; one of them, and one at least, is the base's.
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// Seed of all randomness [default: from the clock, and printed].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Folder of programs to start from and to add to.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// How progress is shown; auto is bar on a terminal and lines elsewhere.
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// How VMs run; auto proves KVM by booting a guest.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
}

impl GateArgs {
    /// The time there is.
    pub fn budget(&self) -> Duration {
        parse_duration(&self.budget).unwrap_or_default()
    }
}

/// Find the commit that brought a finding: build, boot and replay, commit by commit.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hgm bisect h-040-pread --good v6.1 --bad HEAD --tree ~/linux\n  \
                        hgm bisect race.hgm --signature X-02/madvise/rsvd:low --good v6.1 --bad \
                        v6.2\n    --tree ~/linux --build './mybuild && echo \
                        arch/x86/boot/bzImage'\n\n\
                        The tree is only read: commits are checked out in a clone in the run \
                        folder. What does\nnot build or boot is skipped. The same command goes on \
                        after any end, kill -9 included.\nEnds with 0 and the first bad commit, or \
                        with 5 if only skipped commits are left."
)]
pub struct BisectArgs {
    /// Finding (its folder, or its name in any run, or the shortest unique prefix), or a program
    /// file.
    #[arg(value_name = "ID|FILE")]
    pub target: String,
    /// A commit that does not show it: tag, branch or hash.
    #[arg(long, value_name = "REF")]
    pub good: String,
    /// A commit that shows it.
    #[arg(long, value_name = "REF")]
    pub bad: String,
    /// Git tree of the kernel.
    #[arg(long, value_name = "DIR")]
    pub tree: PathBuf,
    /// What must show [default: what the finding is, else what the bad commit shows].
    #[arg(long, value_name = "SIGNATURE")]
    pub signature: Option<String>,
    /// Shell command that builds a commit, run in its checkout with $HGM_COMMIT set. Its last line
    /// names a bzImage, a tree that was built in place, or a registered kernel; a commit it fails
    /// on is skipped. Without it, commits are built as hgm kernel build does.
    #[arg(long, value_name = "COMMAND")]
    pub build: Option<String>,
    /// How commits are configured where --build is not given.
    #[arg(long, value_enum, default_value_t = PresetChoice::Plain, conflicts_with = "build")]
    pub preset: PresetChoice,
    /// Replays of each commit: one that shows it is bad, a good one passes them all.
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub times: u32,
    /// How VMs run.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
}
