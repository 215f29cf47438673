//! What a report says of where a run came from: kernel, host, configuration, as notes of the
//! journal. Read once, when a campaign starts; what cannot be found out is left out.

use crate::context::Context;
use serde_json::{Map, Value, json};
use std::fs;
use vmimages::Kernel;

/// Notes and their values.
pub fn notes(ctx: &Context, kernel: &Kernel, vm: &vm::VmSpec) -> [(&'static str, Value); 3] {
    [("kernel", of_kernel(kernel)), ("host", of_host(vm)), ("config", of_config(ctx))]
}

fn of_kernel(kernel: &Kernel) -> Value {
    let mut out = Map::new();
    out.insert("source".into(), kernel.source.clone().into());
    out.insert("release".into(), kernel.release.clone().into());
    if let Ok(image) = fs::read(&kernel.image) {
        out.insert("image blake3".into(), blake3::hash(&image).to_hex().to_string().into());
    }
    if let Some(build) = &kernel.build {
        out.insert("built as".into(), build.preset.clone().into());
        out.insert("build key".into(), build.key.clone().into());
        out.insert("compiler".into(), build.compiler.clone().into());
        out.insert("sources blake3".into(), build.source_blake3.clone().into());
    }
    Value::Object(out)
}

fn of_host(vm: &vm::VmSpec) -> Value {
    let mut out = Map::new();
    if let Ok(name) = nix::sys::utsname::uname() {
        out.insert(
            "system".into(),
            format!(
                "{} {} {}",
                name.sysname().to_string_lossy(),
                name.release().to_string_lossy(),
                name.machine().to_string_lossy()
            )
            .into(),
        );
    }
    if let Ok(count) = std::thread::available_parallelism() {
        out.insert("CPUs".into(), count.get().into());
    }
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    if let Some(kib) = total {
        out.insert("memory".into(), format!("{} MiB", kib / 1024).into());
    }
    out.insert("accelerator".into(), vm.accel.name().into());
    let version = std::process::Command::new(&vm.qemu).arg("--version").output();
    if let Some(line) = version
        .ok()
        .and_then(|out| String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_owned))
    {
        out.insert("QEMU".into(), line.replace("QEMU emulator version ", "").into());
    }
    out.insert("memory of a VM".into(), format!("{} MiB", vm.memory_mib).into());
    out.insert("CPUs of a VM".into(), vm.cpus.into());
    Value::Object(out)
}

fn of_config(ctx: &Context) -> Value {
    let row = |s: &crate::config::Setting| {
        json!({
            "key": s.key,
            "value": s.value.to_string_lossy(),
            "origin": s.origin.to_string(),
        })
    };
    ctx.config.settings.iter().map(row).collect()
}
