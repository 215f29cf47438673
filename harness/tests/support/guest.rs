//! One real guest for tests that hold observations against the oracle: boots QEMU with a Debian
//! kernel from the shared home, runs programs one after another, takes another if it dies.

use case::link::{FromGuest, Look, RunOutcome, RunRequest, ToGuest};
use case::observation::Observation;
use case::{Profile, Program};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vm::{Accel, Snapshot, Snapshots, Vm, VmSpec};

/// More than any program takes, emulated.
const PROGRAM_TIME: Duration = Duration::from_secs(150);
/// How much longer an op may take when a program that did not end is run once more.
const PATIENCE: u32 = 4;
/// Guests that may die before the tests give up.
const DEATHS_MAX: u32 = 5;

/// A guest and what is needed to replace it.
pub struct Guest {
    spec: VmSpec,
    golden: Snapshot,
    vm: Vm,
    deaths: u32,
    next: u64,
    /// Sockets and the console log live here.
    _dir: tempfile::TempDir,
}

impl Guest {
    /// A clone of a golden VM of a kernel, by its id or as in `debian:6.1`; made, and the kernel
    /// fetched, if the home has none.
    pub fn boot(kernel: &str) -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let home = home();
        let mut say = |line: &str| println!("{line}");
        let registered = vmimages::kernels(&home).into_iter().find(|k| k.id == kernel);
        let kernel = match registered {
            Some(kernel) => kernel,
            None => vmimages::add(&home, kernel, None, &mut say).unwrap(),
        };
        let spec = VmSpec {
            qemu: "qemu-system-x86_64".into(),
            initrd: vmimages::initramfs(&home, &kernel, &agent()).unwrap(),
            kernel: kernel.image,
            memory_mib: vm::MEMORY_MIB_DEFAULT,
            cpus: 2,
            accel: Accel::Tcg,
            jail: vm::Jail::find().unwrap_or_default(),
            dir: dir.path().join("vm"),
            boot_timeout: Duration::from_secs(180),
            extra_cmdline: String::new(),
            serial_link: false,
            cover: None,
        };
        let store = Snapshots { dir: home.join("snapshots"), label: kernel.id };
        let golden = store.find_or_make(&spec, &mut say).unwrap();
        let vm = Vm::clone_from(&golden, &spec).unwrap();
        Guest { spec, golden, vm, deaths: 0, next: 0, _dir: dir }
    }

    pub fn profile(&self) -> Profile {
        self.vm.profile().clone()
    }

    /// What was seen, or why there is nothing. `op_time` is what one op may take; a program that
    /// does not end gets a second chance with more of it, as in campaigns: to clear a page of
    /// 1 GiB takes a busy machine as long as a hang.
    pub fn run(&mut self, program: &Program, op_time: Duration) -> Result<Observation, String> {
        let mut outcome = self.outcome(program, op_time);
        if matches!(outcome, Ok(RunOutcome::WorkerHung { .. })) {
            outcome = self.outcome(program, op_time * PATIENCE);
        }
        match outcome {
            Ok(RunOutcome::Finished(observation)) => Ok(observation),
            Ok(other) => Err(format!("{other:?}")),
            Err(why) => {
                self.deaths += 1;
                assert!(self.deaths <= DEATHS_MAX, "guests keep dying: {why}");
                self.vm = Vm::clone_from(&self.golden, &self.spec).unwrap();
                Err(why)
            }
        }
    }

    fn outcome(&mut self, program: &Program, op_time: Duration) -> Result<RunOutcome, String> {
        self.next += 1;
        let id = self.next;
        let request = RunRequest {
            id,
            program: program.clone(),
            look: Look::Each,
            fresh: false,
            canary: None,
            op_timeout_ms: op_time.as_millis() as u32,
        };
        let dead = |death: vm::Death| format!("the guest died: {:?}", death.kind);
        self.vm.send(&ToGuest::Run(request)).map_err(dead)?;
        let end = Instant::now() + PROGRAM_TIME;
        while Instant::now() < end {
            match self.vm.recv(Duration::from_secs(5)).map_err(dead)? {
                Some(FromGuest::Done { id: got, outcome }) if got == id => return Ok(outcome),
                _ => {}
            }
        }
        Err("the guest went silent".into())
    }
}

/// Where kernels and images are shared between tests.
fn home() -> PathBuf {
    let set = std::env::var_os("HGM_HOME").map(PathBuf::from);
    set.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/hgm"))
}

/// `$HGM_AGENT`, else the one ci/agent builds.
fn agent() -> PathBuf {
    let built = "target/x86_64-unknown-linux-gnu/agent/agent";
    let set = std::env::var_os("HGM_AGENT").map(PathBuf::from);
    let path = set.unwrap_or_else(|| root().join(built));
    assert!(path.is_file(), "no agent at {}: run ci/agent", path.display());
    path
}

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
