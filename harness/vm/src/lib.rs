//! One QEMU: its command line, its process, its console, the link to the agent inside, and
//! whether KVM can be believed. Knows nothing of programs beyond their frames, and sets no policy:
//! when a silent guest is given up is the caller's decision.
//!
//! The guest is hostile and QEMU may be its hostage: every byte that comes back is bounded.

mod boot;
mod command;
mod console;
mod cover;
mod golden;
pub mod jail;
mod link;
mod mapped;
mod memory;
mod orphans;
mod pidfd;
mod probe;
pub mod process;
mod qmp;
mod snapshot;

pub use boot::BootError;
pub use console::{HEAD_BYTES, PIN_BYTES, TAIL_BYTES};
pub use cover::{CoverSpec, probe_plugin};
pub use jail::Jail;
pub use link::{Death, DeathKind, Vm};
pub use mapped::map_file;
pub use probe::probe_accel;
pub use snapshot::{Figures, Snapshot, Snapshots};

use std::path::PathBuf;
use std::time::Duration;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Tcg,
    Kvm,
}

impl Accel {
    pub const fn name(self) -> &'static str {
        match self {
            Accel::Tcg => "tcg",
            Accel::Kvm => "kvm",
        }
    }
}

/// Smallest guest memory, in MiB, in which one 1 GiB huge page still finds its place.
pub const MEMORY_MIB_DEFAULT: u32 = 4096;

/// Everything that makes one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// The qemu-system-x86_64 binary, a path or a name looked up in PATH.
    pub qemu: PathBuf,
    /// bzImage.
    pub kernel: PathBuf,
    /// cpio with the agent as /init.
    pub initrd: PathBuf,
    /// Split into two NUMA nodes.
    pub memory_mib: u32,
    pub cpus: u8,
    pub accel: Accel,
    /// What is between QEMU and the host.
    pub jail: Jail,
    /// A directory of this VM alone, for console.log and qemu.log. Made if absent.
    pub dir: PathBuf,
    /// From start to the agent's `Ready`.
    pub boot_timeout: Duration,
    /// Appended to the kernel command line.
    pub extra_cmdline: String,
    /// Link over the second 8250 port instead of virtio-serial.
    pub serial_link: bool,
    /// Count executed blocks of kernel text; TCG only.
    pub cover: Option<CoverSpec>,
}
