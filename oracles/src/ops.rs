//! What each op should do: one file per family, each with a `step(world, cx)`.

pub mod access;
pub mod advice;
pub mod file;
pub mod mapping;
pub mod migrate;
pub mod process;
pub mod system;
pub mod uffd;
