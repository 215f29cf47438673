//! Figures of cold boots and clones, measured side by side in one run:
//! `cargo run --release -p vm --example clones -- KERNEL [CLONES [BOOTS]]`, with `HGM_HOME` and
//! `HGM_AGENT` set. One row a figure: name, value, unit, between tabs. The snapshot is made anew in
//! a folder of its own.

use case::link::{FromGuest, Look, RunRequest, ToGuest};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vm::{Accel, BootError, Snapshots, Vm, VmSpec};

const PROGRAM: &str = "hgm 1\nf0 = memfd page=2M\nftruncate file=f0 len=2M\n\
    mmap at=r0 len=2M share=shared from=f0\nwrite at=r0 len=8K\nread at=r0 len=8K\n";

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(75);
    }
}

fn run() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let count = |at: usize, default: usize| args.get(at).map_or(Ok(default), |text| text.parse());
    let kernel = args.first().ok_or("usage: clones KERNEL [CLONES [BOOTS]]")?;
    let clones = count(1, 20).map_err(|e| format!("{e}"))?.max(1);
    let boots = count(2, 3).map_err(|e| format!("{e}"))?.max(1);
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (spec, label) = spec(kernel, dir.path())?;
    let store = Snapshots { dir: dir.path().join("snapshots"), label };

    let mut cold = Vec::new();
    for _ in 0..boots {
        cold.push(measure(|| boot(&spec).map_err(|e| e.to_string()))?);
    }
    let mut say = |line: &str| eprintln!("{line}");
    let made = store.find_or_make(&spec, &mut say).map_err(|e| e.to_string())?.figures();
    let snapshot = store.find_or_make(&spec, &mut say).map_err(|e| e.to_string())?;
    let mut warm = Vec::new();
    for _ in 0..clones {
        warm.push(measure(|| Vm::clone_from(&snapshot, &spec).map_err(|e| e.to_string()))?);
    }

    let (boot_ms, clone_ms) = (median(&cold, |f| f.ready_ms), median(&warm, |f| f.ready_ms));
    row("cold boot, median", boot_ms, "ms");
    row("clone, median", clone_ms, "ms");
    row("cold boot / clone", boot_ms / clone_ms, "");
    row("first program after a cold boot", median(&cold, |f| f.first_ms), "ms");
    row("first program in a clone", median(&warm, |f| f.first_ms), "ms");
    row("private memory, cold boot", median(&cold, |f| f.private_mib), "MiB");
    row("private memory, clone", median(&warm, |f| f.private_mib), "MiB");
    row("snapshot: guest memory", made.ram_bytes as f64 / f64::from(1 << 20), "MiB");
    row("snapshot: device state", made.state_bytes as f64 / 1024.0, "KiB");
    row("snapshot: made in", made.build.as_secs_f64() * 1e3, "ms");
    row("snapshot: found in", snapshot.figures().load.as_secs_f64() * 1e3, "ms");
    Ok(())
}

struct Figures {
    ready_ms: f64,
    /// From the order to the answer.
    first_ms: f64,
    /// After that.
    private_mib: f64,
}

fn measure(start: impl Fn() -> Result<Vm, String>) -> Result<Figures, String> {
    let started = Instant::now();
    let mut vm = start()?;
    let ready_ms = started.elapsed().as_secs_f64() * 1e3;
    let program = case::text::parse(PROGRAM).map_err(|e| e.to_string())?;
    let (look, op_timeout_ms) = (Look::Each, 10_000);
    let run = RunRequest { id: 1, program, look, fresh: true, canary: None, op_timeout_ms };
    let started = Instant::now();
    vm.send(&ToGuest::Run(run)).map_err(|e| e.to_string())?;
    loop {
        match vm.recv(Duration::from_secs(60)).map_err(|e| e.to_string())? {
            Some(FromGuest::Done { .. }) => break,
            Some(_) => {}
            None => return Err("no answer".into()),
        }
    }
    let first_ms = started.elapsed().as_secs_f64() * 1e3;
    Ok(Figures { ready_ms, first_ms, private_mib: vm.private_kib() as f64 / 1024.0 })
}

/// Once more if the emulator's text patching race ended it.
fn boot(spec: &VmSpec) -> Result<Vm, BootError> {
    Vm::boot(spec).or_else(|_| Vm::boot(spec))
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(name: &str, value: f64, unit: &str) {
    println!("{name}\t{value:.1}\t{unit}");
}

fn spec(kernel: &str, dir: &std::path::Path) -> Result<(VmSpec, String), String> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(format!("no {name}"));
    let (home, agent) = (path("HGM_HOME")?, path("HGM_AGENT")?);
    let kernels = vmimages::kernels(&home);
    let kernel = kernels.iter().find(|k| k.id == kernel).ok_or(format!("no kernel {kernel}"))?;
    let spec = VmSpec {
        qemu: "qemu-system-x86_64".into(),
        kernel: kernel.image.clone(),
        initrd: vmimages::initramfs(&home, kernel, &agent).map_err(|e| e.to_string())?,
        memory_mib: vm::MEMORY_MIB_DEFAULT,
        cpus: 2,
        accel: Accel::Tcg,
        jail: vm::Jail::find().unwrap_or_default(),
        dir: dir.join("vm"),
        boot_timeout: Duration::from_secs(180),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    Ok((spec, kernel.id.clone()))
}
