//! From names to something bootable: the kernel a user means, its known deviations, its initramfs,
//! the accelerator, and the VM specification every verb shares. Boots nothing but the probe.

use crate::assets;
use crate::cli::{AccelChoice, JailChoice, LookChoice};
use crate::config::Config;
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::{Cradle, PoolSpec};
use crate::term::clean_str;
use case::Family;
use case::link::Look;
use oracles::known::Known;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;
use vm::{Accel, Jail, Snapshots, VmSpec};
use vmimages::{Kernel, Weight};

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

/// The kernel built in the user's own tree, registered as it is.
pub fn tree_kernel(ctx: &Context, tree: &Path) -> Result<Kernel, ExpectedError> {
    Ok(vmimages::add_tree(&ctx.home, tree, &mut |line| ctx.term.note(&clean_str(line)))?)
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

/// Adds a deviation to the list beside a kernel's image; whole or not at all.
pub fn add_known(
    kernel: &Kernel,
    id: &str,
    signature: &str,
    title: &str,
    why: &str,
) -> Result<(), ExpectedError> {
    let listed = known(kernel)?;
    if listed.deviation.iter().any(|deviation| deviation.id == id) {
        let what = format!("{id} is listed already");
        return Err(ExpectedError::usage(what, "give it another id; hgm findings list --all"));
    }
    let path = kernel.dir.join(KNOWN);
    let mut text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|error| {
            let what = format!("cannot read {}", path.display());
            ExpectedError::infrastructure(what, "make it readable, or remove it").cause(error)
        })?,
    };
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let families: Vec<String> =
        [Family::U61, Family::U612].iter().map(|family| quoted(family.name())).collect();
    text.push_str(&format!(
        "\n[[deviation]]\nid = {}\nfamilies = [{}]\nsignatures = [{}]\ntitle = {}\nwhy = {}\n",
        quoted(id),
        families.join(", "),
        quoted(signature),
        quoted(title),
        quoted(why),
    ));
    Ok(store::write_whole(&path, text.as_bytes())?)
}

/// Everything a pool needs for this kernel; VM folders go below `dir`.
pub fn pool_spec(ctx: &Context, kernel: &Kernel, dir: &Path) -> Result<PoolSpec, ExpectedError> {
    let agent = assets::agent()?;
    let initrd = vmimages::initramfs(&ctx.home, kernel, &agent)
        .map_err(|error| ExpectedError::infrastructure(error.to_string(), error.help()))?;
    let config = &ctx.config;
    let limits = Limits::of(config, kernel.weight());
    let mut vm = VmSpec {
        qemu: config.qemu.clone(),
        kernel: kernel.image.clone(),
        initrd,
        memory_mib: limits.memory_mib,
        cpus: config.vcpus,
        accel: Accel::Tcg,
        jail: Jail::Open,
        dir: dir.to_owned(),
        boot_timeout: limits.boot_timeout,
        extra_cmdline: config.cmdline.clone(),
        serial_link: false,
        cover: None,
    };
    let found = Jail::find();
    // The probe's guest runs nothing that is fuzzed.
    vm.jail = found.clone().unwrap_or_default();
    vm.accel = match config.accel {
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Auto => {
            let mut probe = vm.clone();
            probe.dir = dir.join("probe");
            vm::probe_accel(&probe, &ctx.accel_cache())
        }
    };
    vm.jail = jail(ctx, vm.accel, found)?;
    let look = match config.look {
        LookChoice::Each => Look::Each,
        LookChoice::Asked => Look::Asked,
    };
    let registered: Vec<String> =
        vmimages::kernels(&ctx.home).into_iter().map(|kernel| kernel.id).collect();
    for gone in Snapshots::forget_all_but(&ctx.snapshots_dir(), &registered) {
        ctx.term
            .note(&format!("removed the snapshots of {gone}, which is not registered any more"));
    }
    let store = Snapshots { dir: ctx.snapshots_dir(), label: kernel.id.clone() };
    let cradle = if config.snapshots { Cradle::warm(store) } else { Cradle::cold() };
    Ok(PoolSpec {
        vm,
        cradle: Arc::new(cradle),
        look,
        op_timeout: limits.op_timeout,
        depth: config.batch as usize,
        programs_max: config.vm_programs_max,
        replace_on_violation: true,
        known: Arc::new(known(kernel)?),
        cover: None,
    })
}

/// The wall around QEMU that the configuration asks for, of what this host has. Under KVM the
/// processor keeps the guest in; under TCG nothing else does.
fn jail(ctx: &Context, accel: Accel, found: Result<Jail, String>) -> Result<Jail, ExpectedError> {
    match (ctx.config.jail, found) {
        (JailChoice::Off, _) => Ok(open(ctx, "jail = off")),
        (_, Ok(jail)) => Ok(jail),
        (JailChoice::Auto, Err(why)) if accel == Accel::Kvm => Ok(open(ctx, &why)),
        (_, Err(why)) => Err(ExpectedError::infrastructure(
            format!("no jail for QEMU: {}", clean_str(&why)),
            "install bubblewrap and allow user namespaces (hgm doctor), or pass --set jail=off \
             where nothing on this host needs guarding",
        )),
    }
}

/// No wall; said once.
fn open(ctx: &Context, why: &str) -> Jail {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        ctx.term.warn(
            &format!("QEMU runs without a jail: {}", clean_str(why)),
            "a guest that breaks out of QEMU can do what this user can",
        );
    });
    Jail::Open
}

/// Refuses to judge code of strangers without a wall, unless told that it is none.
pub fn walled(ctx: &Context, allow_weak: bool) -> Result<(), ExpectedError> {
    let why = match (ctx.config.jail, Jail::find()) {
        (JailChoice::Auto | JailChoice::On, Ok(_)) => return Ok(()),
        _ if allow_weak => return Ok(()),
        (JailChoice::Off, _) => "jail = off".to_owned(),
        (_, Err(why)) => clean_str(&why),
    };
    Err(ExpectedError::infrastructure(
        format!("a gate runs kernels of strangers, and there is no jail for QEMU: {why}"),
        "see hgm doctor, or pass --allow-weak-jail if both kernels are code you trust",
    ))
}

/// Sizes and deadlines of a VM. What the user set stands; a default follows the kernel's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    memory_mib: u32,
    boot_timeout: Duration,
    op_timeout: Duration,
}

impl Limits {
    fn of(config: &Config, weight: Weight) -> Limits {
        let mut limits = Limits {
            memory_mib: config.memory_mib,
            boot_timeout: config.boot_timeout,
            op_timeout: config.op_timeout,
        };
        if config.is_default("memory_mib") {
            limits.memory_mib += limits.memory_mib / 8 * weight.memory_eighths;
        }
        if config.is_default("boot_timeout_s") {
            limits.boot_timeout *= weight.slowdown;
        }
        if config.is_default("op_timeout_ms") {
            limits.op_timeout *= weight.slowdown;
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    #[test]
    fn a_heavy_kernel_gets_more_unless_the_user_said_what() {
        let heavy = Weight { slowdown: 6, memory_eighths: 2 };
        let light = Weight { slowdown: 1, memory_eighths: 0 };
        let mut config = Config::builtin();
        let plain = Limits::of(&config, light);
        assert_eq!(plain.memory_mib, config.memory_mib);
        let kasan = Limits::of(&config, heavy);
        assert_eq!(kasan.memory_mib, plain.memory_mib / 4 * 5);
        assert_eq!(kasan.op_timeout, plain.op_timeout * 6);
        assert_eq!(kasan.boot_timeout, plain.boot_timeout * 6);
        for setting in &mut config.settings {
            setting.origin = Origin::Flag("--set".into());
        }
        assert_eq!(Limits::of(&config, heavy), plain);
    }
}
