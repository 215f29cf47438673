//! What a kernel's debug options cost: time and memory beyond an ordinary kernel's, read from its
//! configuration. Estimates for deadlines and sizes, never for judgement.

use crate::Kernel;
use crate::build::is_set;

/// How much heavier than an ordinary kernel one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Times as slow: deadlines are multiplied by it.
    pub slowdown: u32,
    /// Times 1/8 of memory that the kernel's own books need on top.
    pub memory_eighths: u32,
}

/// Of a kernel without debug options, or one whose configuration is not known.
const LIGHT: Weight = Weight { slowdown: 1, memory_eighths: 0 };

impl Kernel {
    /// Its weight by its configuration.
    pub fn weight(&self) -> Weight {
        match std::fs::read_to_string(self.dir.join("config")) {
            Ok(config) => of(&config),
            Err(_) => LIGHT,
        }
    }
}

/// Sanitizers and lock proofs were measured at 4 to 8 times under TCG; KASAN's shadow is an eighth
/// of memory, page_owner and page_table_check with lockdep's tables come close to another.
fn of(config: &str) -> Weight {
    let any = |names: &[&str]| names.iter().any(|name| is_set(config, name));
    let mut weight = LIGHT;
    if any(&["KASAN", "KCSAN", "KMSAN", "PROVE_LOCKING"]) {
        weight.slowdown = 6;
    } else if any(&["DEBUG_VM", "DEBUG_PAGEALLOC", "KCOV_INSTRUMENT_ALL"]) {
        weight.slowdown = 2;
    }
    if any(&["KASAN", "KCSAN"]) {
        weight.memory_eighths += 1;
    }
    if any(&["PAGE_OWNER", "PAGE_TABLE_CHECK", "PROVE_LOCKING"]) {
        weight.memory_eighths += 1;
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_kernels_weigh_more() {
        assert_eq!(of("CONFIG_SMP=y\n# CONFIG_KASAN is not set\n"), LIGHT);
        let kasan = of("CONFIG_KASAN=y\nCONFIG_PROVE_LOCKING=y\nCONFIG_PAGE_OWNER=y\n");
        assert_eq!(kasan, Weight { slowdown: 6, memory_eighths: 2 });
        assert_eq!(of("CONFIG_DEBUG_VM=y\n").slowdown, 2);
    }
}
