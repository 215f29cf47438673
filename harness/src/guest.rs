//! From names to something bootable: the kernel a user means, its known deviations, its initramfs,
//! the accelerator, and the VM specification every verb shares. Boots nothing but the probe.

use crate::assets;
use crate::cli::{AccelChoice, LookChoice};
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::{Cradle, PoolSpec};
use case::link::Look;
use oracles::known::Known;
use std::path::Path;
use std::sync::Arc;
use vm::{Accel, Snapshots, VmSpec};
use vmimages::Kernel;

/// Name of the list of known deviations beside a kernel's image.
const KNOWN: &str = "known.toml";

/// The kernel the user chose, else the one a finding or an earlier run names, else the only one.
pub fn kernel(ctx: &Context, earlier: Option<&str>) -> Result<Kernel, ExpectedError> {
    let Some(id) = earlier.filter(|_| ctx.config.kernel.is_none()) else { return ctx.kernel() };
    vmimages::kernels(&ctx.home).into_iter().find(|k| k.id == id).ok_or_else(|| {
        ExpectedError::config(
            format!("kernel {id} is not registered any more"),
            "register it again with hgm kernel add, or pass --kernel with another",
        )
    })
}

/// Known deviations: the built-in list and the one beside the image.
pub fn known(kernel: &Kernel) -> Result<Known, ExpectedError> {
    let path = kernel.dir.join(KNOWN);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Known::builtin()),
        Err(error) => {
            let what = format!("cannot read {}", path.display());
            return Err(ExpectedError::config(what, "make it readable, or remove it").cause(error));
        }
    };
    let own = Known::parse(&text).map_err(|error| {
        ExpectedError::config(format!("bad {}", path.display()), "see oracles/known.toml for one")
            .cause(error)
    })?;
    Ok(Known::builtin().with(own))
}

/// Everything a pool needs for this kernel; VM folders go below `dir`.
pub fn pool_spec(ctx: &Context, kernel: &Kernel, dir: &Path) -> Result<PoolSpec, ExpectedError> {
    let agent = assets::agent()?;
    let initrd = vmimages::initramfs(&ctx.home, kernel, &agent)
        .map_err(|error| ExpectedError::infrastructure(error.to_string(), error.help()))?;
    let config = &ctx.config;
    let mut vm = VmSpec {
        qemu: config.qemu.clone(),
        kernel: kernel.image.clone(),
        initrd,
        memory_mib: config.memory_mib,
        cpus: config.vcpus,
        accel: Accel::Tcg,
        dir: dir.to_owned(),
        boot_timeout: config.boot_timeout,
        extra_cmdline: config.cmdline.clone(),
        serial_link: false,
        cover: None,
    };
    vm.accel = match config.accel {
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Auto => {
            let mut probe = vm.clone();
            probe.dir = dir.join("probe");
            vm::probe_accel(&probe, &ctx.accel_cache())
        }
    };
    let look = match config.look {
        LookChoice::Each => Look::Each,
        LookChoice::Asked => Look::Asked,
    };
    let store = Snapshots { dir: ctx.snapshots_dir(), label: kernel.id.clone() };
    let cradle = if config.snapshots { Cradle::warm(store) } else { Cradle::cold() };
    Ok(PoolSpec {
        vm,
        cradle: Arc::new(cradle),
        look,
        op_timeout: config.op_timeout,
        depth: config.batch as usize,
        programs_max: config.vm_programs_max,
        replace_on_violation: true,
        known: Arc::new(known(kernel)?),
    })
}
