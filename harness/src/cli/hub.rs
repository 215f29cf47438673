//! Verbs about other machines: who is there, and work for them.

use super::{AccelChoice, duration_arg};
use crate::config::parse_duration;
use clap::Args;
use std::time::Duration;

/// Show the machines that meet at a hub: what each runs, how fast, what it found, last seen when;
/// and the work that lies there.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm status --hub nats://127.0.0.1\n  hgm status --hub \
                        nats://127.0.0.1 --json | jq '.machines[].programs'\n\nEnds with 75 if \
                        the hub does not answer.")]
pub struct StatusArgs {
    /// Address of the hub [default: hub of the configuration].
    #[arg(long, value_name = "ADDRESS")]
    pub hub: Option<String>,
}

/// Do what other machines ask for at a hub: regression cases, and replays of programs.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  hgm work --hub nats://127.0.0.1 --kernel debian-6.1 --jobs \
                        2\n  hgm work --hub tls://HOST --kernel debian-6.1 --for 8h\n\nWhoever \
                        starts hgm regress --hub or hgm repro --hub with the same kernel image \
                        asks. Ctrl-C\ngives back what is not done; what a worker that is lost \
                        held, another one does half a\nminute later. With --json, one line for \
                        each task.")]
pub struct WorkArgs {
    /// Address of the hub [default: hub of the configuration].
    #[arg(long, value_name = "ADDRESS")]
    pub hub: Option<String>,
    /// Registered kernel, by name or shortest unique prefix.
    #[arg(long, value_name = "KERNEL")]
    pub kernel: Option<String>,
    /// VMs at a time.
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// Take no more work after this time, and end with what was taken [default: until stopped].
    #[arg(long = "for", value_name = "TIME", value_parser = duration_arg)]
    pub duration: Option<String>,
    /// How VMs run.
    #[arg(long, value_enum)]
    pub accel: Option<AccelChoice>,
    /// Boot every VM instead of cloning one that booted.
    #[arg(long)]
    pub no_snapshot: bool,
}

impl WorkArgs {
    /// The time there is, if the user said so.
    pub fn limit(&self) -> Option<Duration> {
        self.duration.as_deref().and_then(|text| parse_duration(text).ok())
    }
}
