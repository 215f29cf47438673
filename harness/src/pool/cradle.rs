//! Where a pool's VMs come from: clones of one golden VM, made or found when the first VM is
//! needed, or cold boots when there is none or cloning fails here. Written once, then only read,
//! by every VM thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use vm::{BootError, Snapshot, Snapshots, Vm, VmSpec};

/// Clones that fail until none is tried any more.
const FAILURES_MAX: u32 = 3;

/// See the module's head.
#[derive(Debug, Default)]
pub struct Cradle {
    store: Option<Snapshots>,
    golden: OnceLock<Option<Snapshot>>,
    failures: AtomicU32,
}

impl Cradle {
    /// Every VM is booted.
    pub fn cold() -> Cradle {
        Cradle::default()
    }

    /// VMs are clones of a snapshot kept in `store`.
    pub fn warm(store: Snapshots) -> Cradle {
        Cradle { store: Some(store), ..Cradle::default() }
    }

    #[cfg(test)]
    pub fn store(&self) -> Option<&Snapshots> {
        self.store.as_ref()
    }

    /// A VM, and whether it is a clone. The first call may take a boot and the others wait for it;
    /// `say` gets a line for the user about what is made and what failed.
    pub fn start(&self, spec: &VmSpec, say: &mut dyn FnMut(&str)) -> Result<(Vm, bool), BootError> {
        let golden = self.golden.get_or_init(|| self.golden(spec, say));
        if let Some(golden) = golden
            && self.failures.load(Ordering::Relaxed) < FAILURES_MAX
        {
            match Vm::clone_from(golden, spec) {
                Ok(vm) => return Ok((vm, true)),
                Err(error) => {
                    let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                    let what = if failures < FAILURES_MAX { "a VM" } else { "every VM" };
                    say(&format!("cloning failed, {what} is booted instead: {error}"));
                }
            }
        }
        Ok((Vm::boot(spec)?, false))
    }

    fn golden(&self, spec: &VmSpec, say: &mut dyn FnMut(&str)) -> Option<Snapshot> {
        let store = self.store.as_ref()?;
        let golden = VmSpec { dir: spec.dir.join("golden"), ..spec.clone() };
        match store.find_or_make(&golden, say) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                say(&format!("no snapshot, every VM is booted: {error}"));
                None
            }
        }
    }
}
