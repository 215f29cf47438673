//! Who counts in this campaign: the plugin, KCOV or nobody. What was asked for and cannot be is an
//! error; what `auto` cannot have is one line, and the campaign runs without.

use super::{Book, Focus, symbols};
use crate::assets;
use crate::cli::CoverageChoice as Choice;
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::pool::{Counter, PoolSpec};
use crate::symbols::Symbols;
use std::path::PathBuf;
use std::sync::Arc;
use vm::{Accel, CoverSpec};
use vmimages::Kernel;

/// Sets up counting in `pool`; gives the books to keep, or `None` where nothing counts. `say` is
/// told, a line each, what the user should know.
pub fn set_up(
    ctx: &Context,
    kernel: &Kernel,
    pool: &mut PoolSpec,
    focus: &[String],
    say: &dyn Fn(&str),
) -> Result<Option<Book>, ExpectedError> {
    let choice = ctx.config.coverage;
    let book = match choice {
        Choice::Off => Ok(None),
        _ => choose(ctx, kernel, pool, focus, say).map(Some),
    };
    match book {
        Ok(None) if !focus.is_empty() => Err(ExpectedError::usage(
            "--focus needs coverage, and --coverage is off",
            "leave one of the two out",
        )),
        Err(error) if choice == Choice::Auto && focus.is_empty() => {
            let cause = error.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            say(&format!("coverage is off: {}{cause}; {}", error.message, error.help));
            Ok(None)
        }
        other => other,
    }
}

fn choose(
    ctx: &Context,
    kernel: &Kernel,
    pool: &mut PoolSpec,
    words: &[String],
    say: &dyn Fn(&str),
) -> Result<Book, ExpectedError> {
    let vmlinux = Symbols::of(kernel);
    // The plugin first: a campaign that cannot have it need not boot a guest to learn so.
    let plugin = match (ctx.config.coverage, pool.vm.accel) {
        (Choice::Plugin, Accel::Kvm) => {
            let help = "--accel tcg, or --coverage kcov with a kernel that has KCOV";
            return Err(ExpectedError::config("the plugin counts under TCG only", help));
        }
        (Choice::Plugin, Accel::Tcg) => Some(plugin(ctx)?),
        (Choice::Auto, Accel::Tcg) => match plugin(ctx) {
            Ok(plugin) => Some(plugin),
            Err(error) => {
                // Only a kernel with KCOV can make up for it.
                let read = symbols::read(&ctx.home, &pool.vm, &pool.cradle, &vmlinux, say)?;
                if !read.kcov {
                    return Err(error);
                }
                None
            }
        },
        _ => None,
    };
    let read = symbols::read(&ctx.home, &pool.vm, &pool.cradle, &vmlinux, say)?;
    if plugin.is_none() && !read.kcov {
        return Err(ExpectedError::config(
            format!("kernel {} has no KCOV", kernel.id),
            "use --accel tcg for the plugin, or a kernel built with CONFIG_KCOV",
        ));
    }
    let focus = Focus::of(words, &read.text)?;
    focus.iter().flat_map(|focus| &focus.notes).for_each(|note| say(note));
    let ranges = Arc::new(read.text.ranges.clone());
    let counter = if plugin.is_some() { Counter::Plugin } else { Counter::Kcov };
    pool.vm.cover = plugin.map(|plugin| CoverSpec { plugin, ranges: ranges.clone() });
    pool.cover = Some((counter, ranges));
    Ok(Book::new(&kernel.id, counter, read.text, focus))
}

/// The plugin, after this QEMU has shown that it takes it.
fn plugin(ctx: &Context) -> Result<PathBuf, ExpectedError> {
    let plugin = assets::plugin()?;
    vm::probe_plugin(&ctx.config.qemu, &plugin).map_err(|why| {
        ExpectedError::infrastructure(
            "this QEMU does not take the coverage plugin",
            "it needs a QEMU built with plugins that speaks plugin API 1 (6.0 to 8.x)",
        )
        .cause(why)
    })?;
    Ok(plugin)
}
