//! The command line: every verb, flag and help text, and nothing that acts on them.
//!
//! Flags that also have a configuration key are `Option`: [`Verb::overrides`] hands them to
//! `config`, and commands read the configuration, never the flag.

mod findings;
mod gate;
mod hub;
mod report;

use crate::config::parse_duration;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use findings::*;
pub use gate::*;
pub use hub::*;
pub use report::*;

/// Fuzz and regression-test the huge page, userfaultfd and THP code of Linux kernels.
#[derive(Debug, Parser)]
#[command(
    name = "hgm",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "First steps:\n  hgm doctor                        what this host lacks\n  \
                  hgm kernel add debian:6.1         register a kernel\n  \
                  hgm fuzz --kernel NAME --for 10m  a first campaign\n\n\
                  Topics: hgm help exit-codes | ops | config"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct GlobalArgs {
    /// Print JSON on stdout: one object, or one per line where a verb reports as it goes.
    #[arg(long, global = true)]
    pub json: bool,
    /// Where kernels, images and runs live [default: $HGM_HOME, else ~/.cache/hgm].
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Configuration file [default: $HGM_CONFIG, else ./hgm.toml if there].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Profile of the configuration file [default: $HGM_PROFILE, else default].
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Set a configuration key for this call; may be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub set: Vec<String>,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t = ColorWhen::Auto)]
    pub color: ColorWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Doctor(DoctorArgs),
    Status(StatusArgs),
    Work(WorkArgs),
    Kernel(KernelArgs),
    Fuzz(FuzzArgs),
    Run(RunArgs),
    Repro(ReproArgs),
    Shrink(ShrinkArgs),
    Regress(RegressArgs),
    Gate(GateArgs),
    Bisect(BisectArgs),
    Findings(FindingsArgs),
    Report(ReportArgs),
    Trend(TrendArgs),
    Corpus(CorpusArgs),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    Help(HelpArgs),
}

/// Check what this host needs to run campaigns; say how to fix what is missing.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm doctor\n  hgm doctor --json | jq '.checks[] | \
                        select(.state == \"fail\")'\n\nEnds with 75 if a check fails.")]
pub struct DoctorArgs {
    /// Leave out a check by name; may be repeated.
    #[arg(long, value_name = "CHECK", action = ArgAction::Append)]
    pub skip: Vec<String>,
}

/// Register kernels, build them, and list them.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    #[command(subcommand)]
    pub verb: KernelVerb,
}

#[derive(Clone, Debug, Subcommand)]
pub enum KernelVerb {
    Add(KernelAddArgs),
    Build(KernelBuildArgs),
    List(KernelListArgs),
    Selftest(KernelSelftestArgs),
}

/// Register a kernel, so that other verbs can name it.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm kernel add debian:6.1\n  hgm kernel add \
                        debian:6.1.0-50\n  hgm kernel add arch/x86/boot/bzImage \
                        --modules /tmp/mods/lib/modules/6.12.0+")]
pub struct KernelAddArgs {
    /// A bzImage file, or from the host's apt sources: debian:6.1 (newest), debian:6.1.0-50 (an
    /// ABI), debian:6.1.192-2 (a version).
    #[arg(value_name = "SPEC")]
    pub spec: String,
    /// Modules folder that belongs to the image (a lib/modules/RELEASE tree).
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
}

/// Build a kernel from sources and patches, and register it.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm kernel build --source debian:6.1 --preset kasan\n  \
                        hgm kernel build --source ~/linux --preset race --name mine\n  \
                        hgm kernel build --source debian:6.1 --patch series.mbox --preset kasan\n  \
                        hgm kernel build --preset plain --hgm --name hgm-6.1\n\n\
                        The sources are copied: your tree is never written. The next build of the \
                        same\npreset and tree compiles only what changed; the same inputs are \
                        not built again.\nmake runs without network and sees nothing but the \
                        tools and the build folder.\nEnds with 101 if the kernel does not build.")]
pub struct KernelBuildArgs {
    /// debian:6.1, debian:6.12, an exact version (debian:6.1.192-2), or a kernel source tree.
    #[arg(long, value_name = "SPEC|DIR", required_unless_present = "hgm")]
    pub source: Option<String>,
    /// Patch for `patch -p1`, mailbox of a series, or folder of patches; may be repeated. A
    /// folder's *.config files are laid over the preset.
    #[arg(long = "patch", value_name = "FILE|DIR", action = ArgAction::Append)]
    pub patches: Vec<PathBuf>,
    /// Apply our own series for HugeTLB high-granularity mapping first [default source: debian:6.1].
    #[arg(long)]
    pub hgm: bool,
    /// Which configuration: plain is fast, kasan and race find more and are slow.
    #[arg(long, value_enum, default_value_t = PresetChoice::Plain)]
    pub preset: PresetChoice,
    /// Name to register it under [default: the preset and what it was built of].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Compilers at a time [default: one per CPU].
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// Leave out the fixes debug presets get for known faults of the base tree.
    #[arg(long)]
    pub no_base_fixes: bool,
}

/// Kernel configurations of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresetChoice {
    /// Every feature under test, cheap detectors only.
    Plain,
    /// KASAN, lockdep, DEBUG_VM, page_table_check, KCOV, fault injection.
    Kasan,
    /// Full preemption, and KCSAN where the compiler has it.
    Race,
}

/// List registered kernels.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm kernel list\n  hgm kernel list --json")]
pub struct KernelListArgs {}

/// Provoke real faults in guests of a debug kernel and show whether each one is seen.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hgm kernel selftest kasan-6.1\n  hgm kernel selftest kasan-6.1 \
                        --only use-after-free --times 5\n\nFaults are made by LKDTM \
                        (CONFIG_LKDTM); build with --patch vmimages/selftest for all of them.\n\
                        Ends with 102 if a fault is missed or blamed wrongly."
)]
pub struct KernelSelftestArgs {
    /// Registered kernel, by name or shortest unique prefix.
    #[arg(value_name = "KERNEL")]
    pub kernel: String,
    /// Provoke each fault this often, each time in a fresh guest.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,
    /// Only this fault; may be repeated.
    #[arg(long, value_name = "FAULT", action = ArgAction::Append)]
    pub only: Vec<String>,
    /// Keep the console text of each report in this folder.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
}

/// Fuzz a kernel: make programs, run them in VMs, judge every result, keep what is new.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm fuzz --kernel debian-6.1 --for 10m\n  hgm fuzz --kernel \
                        debian-6.1 --programs 5000 --seed 7 --jobs 2\n  hgm fuzz --resume\n  \
                        hgm fuzz --kernel plain-6.1 --verify kasan-6.1 --for 1h --jobs 4\n\n\
                        Ctrl-C once drains and closes the run; `--resume` goes on with it.\n\
                        Ends with 0, or 100 with findings; see hgm help exit-codes.")]
pub struct FuzzArgs {
    /// Registered kernel, by name or shortest unique prefix.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// Use the bzImage built in this kernel tree, as it is; nothing is built.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "resume"])]
    pub tree: Option<PathBuf>,
    /// A second, registered kernel that sees more (KASAN, lockdep): what the first finds
    /// interesting is run there again, and findings of either are replayed on the other. Of the
    /// VMs of --jobs (2 at least), `verify_jobs` are its own.
    #[arg(long, value_name = "KERNEL")]
    pub verify: Option<String>,
    /// Stop after this long: 90s, 10m, 8h. Without it and --programs, runs until stopped.
    #[arg(long = "for", value_name = "TIME", value_parser = duration_arg)]
    pub duration: Option<String>,
    /// Stop after this many programs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub programs: Option<u64>,
    /// Stop at the first confirmed finding that is not known.
    #[arg(long)]
    pub until_finding: bool,
    /// VMs at a time.
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// Seed of all randomness [default: from the clock, and printed].
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Go on with an earlier run: its id, or the latest one.
    #[arg(long, value_name = "RUN", num_args = 0..=1, default_missing_value = "latest")]
    pub resume: Option<String>,
    /// Folder of programs to start from and to add to.
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// How progress is shown; auto is bar on a terminal and lines elsewhere.
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    pub progress: Progress,
    /// Plant no faults. The run then proves less: a blind detector would go unnoticed.
    #[arg(long)]
    pub no_canaries: bool,
    /// How VMs run; auto proves KVM by booting a guest.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
    /// Who counts executed kernel text; auto is the plugin under TCG, KCOV under KVM.
    #[arg(long, value_enum)]
    pub coverage: Option<CoverageChoice>,
    /// What the campaign is about: a kernel function, a file (mm/hugetlb.c), or a patch on disk.
    /// Only their coverage counts; may be repeated.
    #[arg(long, value_name = "FUNCTION|FILE|PATCH", action = ArgAction::Append)]
    pub focus: Vec<String>,
    /// Exchange corpus entries and findings with other machines: the address of a nats-server with
    /// JetStream (nats://127.0.0.1, tls://HOST) or of a folder they share (file:///DIR).
    #[arg(long, value_name = "ADDRESS")]
    pub hub: Option<String>,
    /// What new programs are made by. `nothing` is for measuring what guidance is worth.
    #[arg(long, value_enum)]
    pub guide: Option<GuideChoice>,
}

/// Who counts executed kernel text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CoverageChoice {
    Auto,
    Plugin,
    Kcov,
    Off,
}

/// What new programs are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuideChoice {
    /// Mapping states and executed kernel text.
    All,
    /// Mapping states.
    States,
    /// Chance.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    Auto,
    Bar,
    Lines,
    None,
}

/// How VMs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    Auto,
    Kvm,
    Tcg,
}

/// Whether QEMU runs behind a wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JailChoice {
    Auto,
    On,
    Off,
}

/// When mappings are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LookChoice {
    /// After every op.
    Each,
    /// Where the program has an `observe`, and at the end.
    Asked,
}

/// Run one program and print what each op should give and gave.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm run corpus/seeds/postcopy-2m.hgm --kernel debian-6.1\n  \
                        printf 'hgm 1\\nf0 = memfd\\n' | hgm run - --kernel debian-6.1 --json")]
pub struct RunArgs {
    /// Program file; `-` is stdin.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Registered kernel, by name or shortest unique prefix.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// Use the bzImage built in this kernel tree, as it is; nothing is built.
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    pub tree: Option<PathBuf>,
    /// Look at every mapping after each op, or only where the program asks.
    #[arg(long, value_enum)]
    pub look: Option<LookChoice>,
    /// How the VM runs.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
}

/// Replay a finding or a program many times, each in a fresh child; print k of n.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm repro h-080-continue --times 20\n  hgm repro \
                        corpus/seeds/postcopy-2m.hgm --times 5 --kernel debian-6.1\n  hgm repro \
                        h-080-continue --c h080.c\n  hgm repro h080.c --kernel debian-6.12\n  \
                        hgm repro h-080-continue --times 200 --hub nats://127.0.0.1\n\n\
                        Ends with 100 if it showed at least once.")]
pub struct ReproArgs {
    /// Finding (its folder, or its name in any run, or the shortest unique prefix), a program
    /// file, or a C file that was written before.
    #[arg(value_name = "ID|FILE", required_unless_present = "c")]
    pub target: Option<String>,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub times: u32,
    /// Write one C file that shows it by itself, build it with gcc and run it in a VM [default:
    /// repro.c beside the finding, or NAME.c here].
    #[arg(long, value_name = "OUT.c", num_args = 0..=1)]
    pub c: Option<Option<PathBuf>>,
    /// The C file has the shape of a kernel selftest (TAP 13).
    #[arg(long, requires = "c")]
    pub selftest: bool,
    /// What must show [default: what the finding is, else the first that is not known].
    #[arg(long, value_name = "SIGNATURE")]
    pub signature: Option<String>,
    /// Registered kernel [default: the one the finding was seen on].
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// How the VM runs.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
    /// Have it done by the machines that work at this hub (hgm work) instead of a VM of this host.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["c", "accel", "no_snapshot"])]
    pub hub: Option<String>,
}

/// Make a program smaller while it still shows the same; several VMs try side by side.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm shrink o-006-observe --jobs 4\n  hgm shrink race.hgm \
                        --times 30 --for 10m --out small.hgm\n  hgm shrink o-006-observe --hub \
                        nats://127.0.0.1\n\nEnds with 0 if what is left shows \
                        it about as often as before, with 5 if nothing showed.")]
pub struct ShrinkArgs {
    /// Finding (its folder, or its name in any run, or the shortest unique prefix), or a program
    /// file. Beside a finding, small.hgm and small.log are written.
    #[arg(value_name = "ID|FILE")]
    pub target: String,
    /// Replays of the first and of the last program; a fault that does not always show is tried as
    /// often as its rate asks for.
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub times: u32,
    /// What must show [default: what the finding is, else the first that is not known].
    #[arg(long, value_name = "SIGNATURE")]
    pub signature: Option<String>,
    /// Stop after this time and keep what there is.
    #[arg(long = "for", value_name = "TIME", value_parser = duration_arg)]
    pub duration: Option<String>,
    /// Where the small program goes; the log beside it, named .log.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Registered kernel [default: the one the finding was seen on].
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// Try on the machines that work at this hub (`hgm work`), not on this one.
    #[arg(long, value_name = "ADDRESS")]
    pub hub: Option<String>,
    /// VMs at a time [default: one per host CPU].
    #[arg(long, value_name = "N", conflicts_with = "hub")]
    pub jobs: Option<u32>,
    /// How the VMs run.
    #[arg(long, value_enum, conflicts_with = "hub")]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long, conflicts_with = "hub")]
    pub no_snapshot: bool,
}

impl ShrinkArgs {
    /// The time there is, if the user said so.
    pub fn limit(&self) -> Option<Duration> {
        self.duration.as_deref().and_then(|text| parse_duration(text).ok())
    }
}

/// Run every program of a folder against a kernel and compare with what is expected.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm regress corpus/regressions --kernel debian-6.1\n  \
                        hgm regress --kernel debian-6.1 --jobs 2 --json\n  hgm regress \
                        --kernel debian-6.1 --times 20\n  hgm regress --kernel debian-6.1 \
                        --hub nats://127.0.0.1")]
pub struct RegressArgs {
    /// Folder of programs [default: corpus/regressions].
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Registered kernel, by name or shortest unique prefix.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// Runs of each program, all of which must be as expected.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub times: u32,
    /// VMs at a time.
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// How VMs run.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
    /// Write the results as JUnit XML, too.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Have it done by the machines that work at this hub (hgm work) instead of VMs of this host.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["jobs", "accel", "no_snapshot"])]
    pub hub: Option<String>,
}

/// List, show, add and verify programs of a corpus folder.
#[derive(Clone, Debug, Args)]
pub struct CorpusArgs {
    #[command(subcommand)]
    pub verb: CorpusVerb,
}

#[derive(Clone, Debug, Subcommand)]
pub enum CorpusVerb {
    List(CorpusListArgs),
    Show(CorpusShowArgs),
    Add(CorpusAddArgs),
    Verify(CorpusVerifyArgs),
}

/// List programs: id, lines, ops.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm corpus list\n  hgm corpus list --corpus corpus/seeds")]
pub struct CorpusListArgs {
    /// Corpus folder [default: the configured one, else corpus/ in the home].
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
}

/// Print a program.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm corpus show 3fa9")]
pub struct CorpusShowArgs {
    /// Program id, or its shortest unique prefix.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Corpus folder [default: the configured one, else corpus/ in the home].
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
}

/// Add programs; adding one twice changes nothing.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm corpus add my.hgm\n  hgm corpus add corpus/seeds/*.hgm")]
pub struct CorpusAddArgs {
    /// Program files; `-` is stdin.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Corpus folder [default: the configured one, else corpus/ in the home].
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
}

/// Read every program and check its name; move what does not parse to quarantine/.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm corpus verify --corpus corpus/seeds\n\n\
                        Nothing is deleted. Ends with 3 if something is wrong.")]
pub struct CorpusVerifyArgs {
    /// Corpus folder [default: the configured one, else corpus/ in the home].
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
}

/// Show or check the configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub verb: ConfigVerb,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print every value and where it came from.
    #[command(
        after_help = "Examples:\n  hgm config show --profile ci\n  HGM_JOBS=2 hgm config show"
    )]
    Show,
    /// Check every profile of the configuration file; name all faults with their lines.
    #[command(after_help = "Examples:\n  hgm config check\n  hgm config check --config ci.toml")]
    Check,
}

/// Print a completion script for a shell.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm completions bash > \
                        ~/.local/share/bash-completion/completions/hgm")]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// Write the man pages: hgm.1, and one for each verb.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm man ~/.local/share/man/man1\n  hgm man | man -l -")]
pub struct ManArgs {
    /// Folder for all of them, made if it is not there. Without it, hgm.1 goes to stdout.
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Help on a verb, or on a topic: exit-codes, ops, config.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm help ops\n  hgm help exit-codes --json\n  hgm help fuzz")]
pub struct HelpArgs {
    /// Verb or topic.
    #[arg(value_name = "TOPIC", num_args = 0..)]
    pub topic: Vec<String>,
}

/// A value given on the command line for a configuration key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    pub key: String,
    /// As it would stand in the file, but without quotes; paths need not be UTF-8.
    pub value: OsString,
    /// The flag, for "where it came from".
    pub flag: String,
}

impl Verb {
    /// Flags that stand for configuration keys.
    pub fn overrides(&self) -> Vec<Override> {
        let mut all = Overrides::default();
        match self {
            Verb::Fuzz(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.put("verify", "--verify", args.verify.as_ref());
                all.put("duration", "--for", args.duration.as_ref());
                all.put("jobs", "--jobs", args.jobs.as_ref());
                all.path("corpus", "--corpus", args.corpus.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.choice("coverage", "--coverage", args.coverage);
                all.choice("guide", "--guide", args.guide);
                all.put("hub", "--hub", args.hub.as_ref());
                all.put("canaries", "--no-canaries", args.no_canaries.then_some(&false));
                all.cold(args.no_snapshot);
            }
            Verb::Run(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.choice("look", "--look", args.look);
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Repro(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.put("hub", "--hub", args.hub.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Findings(args) => match &args.verb {
                FindingsVerb::Mark(args) => {
                    all.put("kernel", "--kernel", args.kernel.as_ref());
                }
                FindingsVerb::Fetch(args) => all.put("hub", "--hub", args.hub.as_ref()),
                _ => {}
            },
            Verb::Shrink(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.put("hub", "--hub", args.hub.as_ref());
                all.put("jobs", "--jobs", args.jobs.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Regress(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.put("hub", "--hub", args.hub.as_ref());
                all.put("jobs", "--jobs", args.jobs.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Bisect(args) => all.choice("accel", "--accel", args.accel),
            Verb::Gate(args) => {
                all.put("confirm_times", "--times", args.times.as_ref());
                all.put("confirm_need", "--need", args.need.as_ref());
                all.put("jobs", "--jobs", args.jobs.as_ref());
                all.path("corpus", "--corpus", args.corpus.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Corpus(args) => {
                let dir = match &args.verb {
                    CorpusVerb::List(args) => &args.corpus,
                    CorpusVerb::Show(args) => &args.corpus,
                    CorpusVerb::Add(args) => &args.corpus,
                    CorpusVerb::Verify(args) => &args.corpus,
                };
                all.path("corpus", "--corpus", dir.as_ref());
            }
            Verb::Work(args) => {
                all.put("kernel", "--kernel", args.kernel.as_ref());
                all.put("jobs", "--jobs", args.jobs.as_ref());
                all.put("hub", "--hub", args.hub.as_ref());
                all.choice("accel", "--accel", args.accel);
                all.cold(args.no_snapshot);
            }
            Verb::Status(args) => all.put("hub", "--hub", args.hub.as_ref()),
            Verb::Doctor(_)
            | Verb::Report(_)
            | Verb::Trend(_)
            | Verb::Kernel(_)
            | Verb::Config(_)
            | Verb::Completions(_)
            | Verb::Man(_)
            | Verb::Help(_) => {}
        }
        all.0
    }
}

#[derive(Default)]
struct Overrides(Vec<Override>);

impl Overrides {
    fn put(&mut self, key: &str, flag: &str, value: Option<&impl ToString>) {
        if let Some(value) = value {
            self.push(key, flag, value.to_string().into());
        }
    }
    /// `--no-snapshot` of four verbs.
    fn cold(&mut self, asked: bool) {
        self.put("snapshots", "--no-snapshot", asked.then_some(&false));
    }
    fn path(&mut self, key: &str, flag: &str, value: Option<&PathBuf>) {
        if let Some(path) = value {
            self.push(key, flag, path.clone().into());
        }
    }
    fn push(&mut self, key: &str, flag: &str, value: OsString) {
        self.0.push(Override { key: key.into(), value, flag: flag.into() });
    }
    fn choice(&mut self, key: &str, flag: &str, value: Option<impl ValueEnum>) {
        let name = value.and_then(|v| v.to_possible_value()).map(|v| v.get_name().to_owned());
        self.put(key, flag, name.as_ref());
    }
}

/// Checks a duration on the command line, so that the fault is named with its flag.
fn duration_arg(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}
