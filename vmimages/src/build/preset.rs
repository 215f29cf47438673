//! The presets: which fragments make one, and what is known of the kernels they give.

use super::error::BuildError;
use super::fragment::{self, Wish};
use crate::ImageError;

const PLAIN: &str = include_str!("../../configs/plain.config");
const KASAN: &str = include_str!("../../configs/kasan.config");
const RACE: &str = include_str!("../../configs/race.config");

/// A kernel configuration of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Small and fast: every feature under test, cheap detectors only.
    Plain,
    /// KASAN, lockdep, DEBUG_VM, page_table_check, KCOV, fault injection.
    Kasan,
    /// Full preemption, and KCSAN where compiler and tree have it.
    Race,
}

impl Preset {
    pub const fn name(self) -> &'static str {
        match self {
            Preset::Plain => "plain",
            Preset::Kasan => "kasan",
            Preset::Race => "race",
        }
    }

    /// Whether its reports are worth base fixes.
    pub const fn is_debug(self) -> bool {
        !matches!(self, Preset::Plain)
    }

    /// Objects compiled from nothing, about; measured on 6.1.
    pub const fn objects(self) -> u32 {
        match self {
            Preset::Plain => 1350,
            Preset::Kasan => 1400,
            Preset::Race => 1350,
        }
    }

    /// Its fragments, in the order they are laid over each other.
    const fn texts(self) -> &'static [&'static str] {
        match self {
            Preset::Plain => &[PLAIN],
            Preset::Kasan => &[PLAIN, KASAN],
            Preset::Race => &[PLAIN, RACE],
        }
    }

    /// Every line it asks for, each symbol once.
    pub(crate) fn wishes(self) -> Result<Vec<Wish>, BuildError> {
        let parsed: Result<Vec<_>, String> =
            self.texts().iter().map(|text| fragment::parse(text)).collect();
        // The fragments are compiled in and a test parses them.
        let parsed = parsed.map_err(|why| ImageError::Command {
            command: format!("reading the preset {}", self.name()),
            stderr: why,
        })?;
        Ok(fragment::merge(&parsed))
    }
}
