//! One file per verb; each has `run(args, ctx) -> anyhow::Result<Exit>`.

pub mod completions;
pub mod config;
pub mod help;
