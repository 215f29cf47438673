//! Whether KVM can be believed. Opening /dev/kvm proves nothing: on some hosts it opens and every
//! guest hangs. So the kernel under test is booted under KVM against a short deadline, and the
//! verdict is remembered for this host, QEMU and kernel image.

use crate::{Accel, VmSpec, boot};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A guest that runs at all is ready well within this.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// A host that failed is asked again after this: it may have been busy, or repaired.
const REFUSAL_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The accelerator to use for `spec`, whatever `spec.accel` says. `cache` is a directory for the
/// verdict files. Takes at most some ten seconds, the first time; says so in one line when it
/// falls back to TCG.
pub fn probe_accel(spec: &VmSpec, cache: &Path) -> Accel {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        tracing::info!("using TCG: /dev/kvm cannot be opened ({error})");
        return Accel::Tcg;
    }
    let verdict = cache.join(format!("accel-{}", key(spec)));
    match remembered(&verdict) {
        Some((Accel::Kvm, _)) => return Accel::Kvm,
        Some((Accel::Tcg, why)) => {
            tracing::info!("using TCG: {why} (remembered; {} forgets it)", verdict.display());
            return Accel::Tcg;
        }
        None => {}
    }
    let probe = VmSpec {
        accel: Accel::Kvm,
        boot_timeout: PROBE_TIMEOUT.min(spec.boot_timeout),
        dir: spec.dir.join("kvm-probe"),
        ..spec.clone()
    };
    let (accel, why) = match boot::boot_once(&probe, boot::Origin::PowerOn) {
        Ok(_) => (Accel::Kvm, String::new()),
        Err(error) => (Accel::Tcg, format!("no guest boots under KVM here: {error}")),
    };
    if accel == Accel::Tcg {
        tracing::warn!("using TCG: {why}");
    }
    remember(&verdict, accel, &why);
    accel
}

/// First line the accelerator's name, second line the reason.
fn remembered(path: &Path) -> Option<(Accel, String)> {
    // One from the future: the clock was set back, and nobody knows how old it is.
    let age = std::fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()?;
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    let (name, why) = text.split_once('\n')?;
    match name {
        "kvm" => Some((Accel::Kvm, String::new())),
        "tcg" if age < REFUSAL_LIFE => Some((Accel::Tcg, why.trim().to_string())),
        _ => None,
    }
}

/// A verdict that cannot be written only costs the next probe.
fn remember(path: &Path, accel: Accel, why: &str) {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        let why = why.replace('\n', " ");
        std::io::Write::write_all(&mut file, format!("{}\n{why}\n", accel.name()).as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!("cannot remember the accelerator in {}: {error}", path.display());
    }
}

/// Hash of what the verdict depends on: this host, this QEMU, this kernel image.
fn key(spec: &VmSpec) -> String {
    let mut hash = blake3::Hasher::new();
    for path in ["/etc/machine-id", "/proc/sys/kernel/hostname", "/proc/sys/kernel/osrelease"] {
        hash.update(&std::fs::read(path).unwrap_or_default()).update(b"\0");
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|l| l.starts_with("model name")).unwrap_or_default();
    hash.update(model.as_bytes()).update(b"\0");
    let qemu = find_program(&spec.qemu);
    hash.update(qemu.as_os_str().as_encoded_bytes()).update(b"\0");
    if let Ok(meta) = std::fs::metadata(&qemu) {
        for n in [meta.len() as i64, meta.mtime(), meta.mtime_nsec()] {
            hash.update(&n.to_le_bytes());
        }
    }
    hash.update(&version(&qemu)).update(b"\0");
    hash.update(&std::fs::read(&spec.kernel).unwrap_or_default());
    hash.finalize().to_hex()[..16].to_string()
}

/// What `--version` prints. A package upgrade may keep the launcher and change what it loads.
pub fn version(qemu: &Path) -> Vec<u8> {
    let mut command = std::process::Command::new(qemu);
    command.arg("--version").stdin(std::process::Stdio::null());
    command.output().map(|o| o.stdout).unwrap_or_default()
}

/// A bare name as PATH has it.
pub fn find_program(name: &Path) -> PathBuf {
    if name.components().count() > 1 {
        return name.to_path_buf();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| name.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kernel: &Path) -> VmSpec {
        VmSpec {
            qemu: "qemu-system-x86_64".into(),
            kernel: kernel.into(),
            initrd: "/i".into(),
            memory_mib: 4096,
            cpus: 1,
            accel: Accel::Tcg,
            jail: crate::Jail::Open,
            dir: "/d".into(),
            boot_timeout: Duration::from_secs(1),
            extra_cmdline: String::new(),
            serial_link: false,
            cover: None,
        }
    }

    #[test]
    fn the_verdict_is_of_this_kernel_and_this_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("k");
        std::fs::write(&kernel, "one").unwrap();
        let one = key(&spec(&kernel));
        assert_eq!(one, key(&spec(&kernel)));
        let other_qemu = VmSpec { qemu: "/bin/sh".into(), ..spec(&kernel) };
        assert_ne!(one, key(&other_qemu));
        std::fs::write(&kernel, "two").unwrap();
        assert_ne!(one, key(&spec(&kernel)));
    }

    #[test]
    fn verdicts_are_read_back_and_refusals_grow_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/accel-x");
        assert_eq!(remembered(&path), None);
        remember(&path, Accel::Tcg, "it\nhangs");
        assert_eq!(remembered(&path), Some((Accel::Tcg, "it hangs".into())));
        let old = std::time::SystemTime::now() - REFUSAL_LIFE - Duration::from_secs(9);
        File::open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(remembered(&path), None);
        let future = std::time::SystemTime::now() + 365 * 24 * REFUSAL_LIFE;
        File::open(&path).unwrap().set_modified(future).unwrap();
        assert_eq!(remembered(&path), None, "the clock was set back");
        remember(&path, Accel::Kvm, "");
        assert_eq!(remembered(&path), Some((Accel::Kvm, String::new())));
        std::fs::write(&path, "junk").unwrap();
        assert_eq!(remembered(&path), None);
    }
}
