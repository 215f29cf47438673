//! What a snapshot depends on, as text for people and as hashes for names. If any of it changes,
//! the snapshot is another one.

use crate::command::{Fds, NODES, Ram, kernel_args, machine_args};
use crate::probe::{find_program, version};
use crate::{Accel, VmSpec};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Raised when the files of a snapshot, or what is done to the golden VM, change.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// One thing a line: name, space, value.
    pub text: String,
    /// Hash of the programs: format, QEMU, kernel, initramfs, host where it matters.
    pub programs: String,
    /// Hash of the machine and the kernel's command line.
    pub machine: String,
}

impl Key {
    pub fn of(spec: &VmSpec) -> Key {
        let qemu = find_program(&spec.qemu);
        let version = version(&qemu);
        let version = String::from_utf8_lossy(&version).lines().next().unwrap_or("").to_string();
        let stamp = std::fs::metadata(&qemu)
            .map(|m| format!("{} bytes, changed {}.{:09}", m.len(), m.mtime(), m.mtime_nsec()))
            .unwrap_or_default();
        let mut programs = format!(
            "format {FORMAT}\nqemu {version}\nqemu-file {}, {stamp}\nkernel {}\ninitrd {}\n",
            qemu.display(),
            hash_of(&spec.kernel),
            hash_of(&spec.initrd),
        );
        if spec.accel == Accel::Kvm {
            // `-cpu host`: the state belongs to this host's processor and its KVM.
            programs.push_str(&format!("host {}\n", host()));
        }
        let fds = Fds { console: 0, link: 0, qmp: 0, cover: None };
        let args = machine_args(spec, fds, Ram::Shared([0; NODES]));
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let machine = format!("machine {}\nappend {}\n", args.join(" "), kernel_args(spec));
        let short = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..8].to_string();
        Key { programs: short(&programs), machine: short(&machine), text: programs + &machine }
    }
}

/// Hash of a file; of nothing if it cannot be read, which QEMU will complain of.
fn hash_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    blake3::hash(&bytes).to_hex().to_string()
}

fn host() -> String {
    let mut hash = blake3::Hasher::new();
    let release = std::fs::read("/proc/sys/kernel/osrelease").unwrap_or_default();
    hash.update(&release).update(b"\0");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    for name in ["model name", "microcode", "flags"] {
        let line = cpu.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        hash.update(line.as_bytes()).update(b"\0");
    }
    hash.finalize().to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoverSpec;
    use std::time::Duration;

    #[test]
    fn everything_that_goes_into_a_golden_vm_is_in_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let spec = VmSpec {
            qemu: "qemu-system-x86_64".into(),
            kernel: file("k", "one"),
            initrd: file("i", "one"),
            memory_mib: 4096,
            cpus: 2,
            accel: Accel::Tcg,
            jail: crate::Jail::Open,
            dir: "/a".into(),
            boot_timeout: Duration::from_secs(1),
            extra_cmdline: String::new(),
            serial_link: false,
            cover: None,
        };
        let key = Key::of(&spec);
        let cover = Some(CoverSpec { plugin: "/p.so".into(), ranges: Default::default() });
        let boot_timeout = Duration::from_secs(9);
        let per_vm = VmSpec { dir: "/b".into(), boot_timeout, cover, ..spec.clone() };
        assert_eq!(key, Key::of(&per_vm), "what may differ between clones is not");

        for other in [
            VmSpec { qemu: "/bin/sh".into(), ..spec.clone() },
            VmSpec { kernel: file("k2", "two"), ..spec.clone() },
            VmSpec { initrd: file("i2", "two"), ..spec.clone() },
            VmSpec { accel: Accel::Kvm, ..spec.clone() },
        ] {
            assert_ne!(key.programs, Key::of(&other).programs, "{other:?}");
        }
        for other in [
            VmSpec { memory_mib: 1024, ..spec.clone() },
            VmSpec { cpus: 1, ..spec.clone() },
            VmSpec { extra_cmdline: "slub_debug=P".into(), ..spec.clone() },
            VmSpec { serial_link: true, ..spec.clone() },
        ] {
            let other = Key::of(&other);
            assert_eq!(key.programs, other.programs);
            assert_ne!((&key.machine, &key.text), (&other.machine, &other.text));
        }
    }
}
