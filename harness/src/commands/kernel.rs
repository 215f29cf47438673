//! `hgm kernel add` and `hgm kernel list`; `hgm kernel build` is `build`.

use crate::cli::{KernelAddArgs, KernelArgs, KernelVerb};
use crate::commands::build;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::term::{clean_str, columns};
use serde_json::json;
use vmimages::Kernel;

/// Registers or lists kernels.
pub fn run(args: &KernelArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match &args.verb {
        KernelVerb::Add(args) => add(args, ctx),
        KernelVerb::Build(args) => build::run(args, ctx),
        KernelVerb::List(_) => Ok(list(ctx)),
        KernelVerb::Selftest(args) => super::selftest::run(args, ctx),
    }
}

fn add(args: &KernelAddArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let mut log = |line: &str| ctx.term.note(&clean_str(line));
    let kernel = vmimages::add(&ctx.home, &args.spec, args.modules.as_deref(), &mut log)
        .map_err(ExpectedError::from)?;
    if ctx.json {
        ctx.term.json(&data(&kernel));
    } else {
        ctx.term.line(&format!("registered {}", kernel.id));
        ctx.term.line(&format!("next: hgm fuzz --kernel {} --for 10m", kernel.id));
    }
    Ok(Exit::Clean)
}

fn list(ctx: &Context) -> Exit {
    let kernels = vmimages::kernels(&ctx.home);
    if ctx.json {
        let rows: Vec<_> = kernels.iter().map(data).collect();
        ctx.term.json(&json!({ "kernels": rows }));
    } else if kernels.is_empty() {
        ctx.term.note("no kernels registered; hgm kernel add debian:6.1 registers one");
    } else {
        let mut rows = vec![["KERNEL", "MODULES", "PRESET", "SOURCE"].map(String::from).to_vec()];
        rows.extend(kernels.iter().map(|kernel| {
            let preset = kernel.build.as_ref().map_or("-", |build| &build.preset);
            let (modules, preset) = (kernel.modules.len().to_string(), preset.to_owned());
            vec![kernel.id.clone(), modules, clean_str(&preset), clean_str(&kernel.source)]
        }));
        ctx.term.out(&columns(&rows));
    }
    Exit::Clean
}

/// A kernel as JSON; what was built here also says how.
pub fn data(kernel: &Kernel) -> serde_json::Value {
    json!({
        "id": kernel.id,
        "source": kernel.source,
        "image": kernel.image.display().to_string(),
        "modules": kernel.modules.len(),
        "release": kernel.release,
        "vmlinux": kernel.vmlinux.as_ref().map(|path| path.display().to_string()),
        "build": kernel.build,
    })
}
