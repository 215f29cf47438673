//! Flags of `hgm report` and `hgm trend`.

use crate::commands::report::export::{self, Export};
use clap::{ArgAction, Args};

/// Show a run in any form, compare two, or read a kernel console.
#[derive(Clone, Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").args(["coverage", "console", "diff", "export"]),
    after_help = "Examples:\n  hgm report\n  hgm report 20261121 --export html=report.html \
                  --export junit=junit.xml\n  hgm report --diff 20261121 latest\n  \
                  hgm report --coverage --json | jq '.files[] | select(.blocks == 0)'\n  \
                  dmesg | hgm report --console - --kernel kasan-6.1\n\n\
                  Forms: html, json, junit, sarif, md, gitlab (all =FILE, or =- for stdout), \
                  and github.\nFindings under embargo are in none of them; their number is said."
)]
pub struct ReportArgs {
    /// Write the run in this form; may be repeated [default: a text on stdout].
    #[arg(long, value_name = "FORM=FILE", value_parser = export::parse,
          action = ArgAction::Append)]
    pub export: Vec<Export>,
    /// Compare two runs: figures, findings, what each reached.
    #[arg(long, value_names = ["RUN1", "RUN2"], num_args = 2, conflicts_with = "run")]
    pub diff: Vec<String>,
    /// Functions of the kernel that were reached, and that were not, by file.
    #[arg(long)]
    pub coverage: bool,
    /// Kernel reports in a console log (`-` is stdin), or in what a finding has kept of one:
    /// class, function to blame, signature, and the text with lines of source.
    #[arg(long, value_name = "FILE|FINDING", conflicts_with = "run")]
    pub console: Option<String>,
    /// Run, by id or shortest unique prefix [default: the latest; with --coverage the latest that
    /// has kept some].
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// Name every function, not only counts.
    #[arg(long, requires = "coverage")]
    pub functions: bool,
    /// Kernel whose vmlinux knows the lines [default: the finding's, or the only one of the
    /// release the log names].
    #[arg(long, value_name = "KERNEL", requires = "console")]
    pub kernel: Option<String>,
}

/// Show how the runs of a kernel went, one line each.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm trend\n  hgm trend --last 14 --kernel debian-6.1\n  \
                        hgm trend --export html=trend.html\n\nRuns are those of the newest run's \
                        kernel and configuration profile.")]
pub struct TrendArgs {
    /// Runs that are shown, the newest of them last.
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub last: u32,
    /// Of the newest run with this kernel: its name, or the start of it.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// Write html=FILE or json=FILE (`-` is stdout) instead of a text; may be repeated.
    #[arg(long, value_name = "FORM=FILE", value_parser = export::parse,
          action = ArgAction::Append)]
    pub export: Vec<Export>,
}
