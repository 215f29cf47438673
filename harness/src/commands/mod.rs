//! One file per verb; each has `run(args, ctx) -> anyhow::Result<Exit>`.

pub mod bisect;
pub mod build;
pub mod c_file;
pub mod completions;
pub mod config;
pub mod corpus;
pub mod doctor;
pub mod fetch;
pub mod findings;
pub mod fuzz;
pub mod gate;
pub mod help;
pub mod kernel;
pub mod man;
pub mod regress;
pub mod report;
pub mod repro;
pub mod run;
pub mod selftest;
pub mod shrink;
pub mod status;
pub mod trend;
pub mod work;
