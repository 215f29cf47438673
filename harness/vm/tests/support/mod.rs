//! What the boot tests share: a real kernel, the real agent, a specification.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use vm::{Accel, VmSpec};
use vmimages::Kernel;

/// `HGM_HOME`, or a place that keeps kernels between test runs.
pub fn home() -> PathBuf {
    match std::env::var_os("HGM_HOME") {
        Some(home) => home.into(),
        None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("home"),
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// The agent, built if need be.
pub fn agent() -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| {
        let built = Command::new("ci/agent").current_dir(root()).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let path = String::from_utf8(built.stdout).unwrap();
        root().join(path.lines().last().unwrap())
    })
}

/// A registered Debian kernel, fetched if need be.
pub fn kernel(spec: &str) -> Kernel {
    vmimages::add(&home(), spec, None, &mut |line| eprintln!("{line}"))
        .unwrap_or_else(|e| panic!("{e}; {}", e.help()))
}

/// What boots `kernel` with the agent, in a directory of its own.
pub fn spec_of(kernel: &Kernel) -> (VmSpec, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let spec = VmSpec {
        qemu: "qemu-system-x86_64".into(),
        kernel: kernel.image.clone(),
        initrd: vmimages::initramfs(&home(), kernel, agent()).unwrap(),
        memory_mib: vm::MEMORY_MIB_DEFAULT,
        cpus: 2,
        accel: Accel::Tcg,
        jail: vm::Jail::find().unwrap_or_default(),
        dir: dir.path().join("vm"),
        boot_timeout: Duration::from_secs(90),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    (spec, dir)
}

/// Stock Debian 6.1.
pub fn spec() -> (VmSpec, TempDir) {
    spec_of(&kernel("debian:6.1"))
}

/// CPU time a process has used, in seconds: the figure that a busy machine changes least.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // utime and stime are the 14th and 15th field; the 2nd may hold spaces, so count behind it.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every Linux ABI.
    ticks as f64 / 100.0
}
