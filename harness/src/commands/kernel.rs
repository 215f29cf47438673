//! `hgm kernel add` and `hgm kernel list`.

use crate::cli::{KernelAddArgs, KernelArgs, KernelVerb};
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::term::{clean_str, columns};
use serde_json::json;
use vmimages::Kernel;

/// Registers or lists kernels.
pub fn run(args: &KernelArgs, ctx: &Context) -> anyhow::Result<Exit> {
    match &args.verb {
        KernelVerb::Add(args) => add(args, ctx),
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
        let mut rows = vec![["KERNEL", "MODULES", "SOURCE"].map(String::from).to_vec()];
        rows.extend(kernels.iter().map(|kernel| {
            vec![kernel.id.clone(), kernel.modules.len().to_string(), clean_str(&kernel.source)]
        }));
        ctx.term.out(&columns(&rows));
    }
    Exit::Clean
}

fn data(kernel: &Kernel) -> serde_json::Value {
    json!({
        "id": kernel.id,
        "source": kernel.source,
        "image": kernel.image.display().to_string(),
        "modules": kernel.modules.len(),
    })
}
