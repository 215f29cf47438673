//! The hub a user names: from address and configuration to a campaign's place among others.

use crate::campaign::Fleet;
use crate::context::Context;
use crate::exit::ExpectedError;
use crate::term::clean_str;
use hub::{Access, Address, Folder, Nats, Post, Scope, Work};
use std::path::Path;
use vmimages::Kernel;

/// Joins the others, if the configuration names a hub. A hub that is not there yet is waited for in
/// the background.
pub fn join(ctx: &Context, kernel: &Kernel, run: &Path) -> Result<Option<Fleet>, ExpectedError> {
    let Some(address) = &ctx.config.hub else { return Ok(None) };
    let scope = scope(kernel)?;
    let exchange = open(ctx, address, Some(scope.clone()))?;
    let post = Post::open(exchange).map_err(|error| {
        ExpectedError::infrastructure(
            "cannot start the hub's thread",
            "check the limits of this user",
        )
        .cause(error)
    })?;
    let run = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Some(Fleet::new(post, scope, machine(&run), kernel.id.clone(), run)))
}

/// The way to a hub.
pub fn open(
    ctx: &Context,
    address: &str,
    scope: Option<Scope>,
) -> Result<Box<dyn Work>, ExpectedError> {
    let config = &ctx.config;
    let parsed = Address::parse(address, config.hub_plain)
        .map_err(|error| ExpectedError::config(clean_str(&error.to_string()), error.help()))?;
    let access = Access { credentials: config.hub_credentials.clone(), ca: config.hub_ca.clone() };
    let opened = match parsed {
        Address::Folder(dir) => {
            Folder::open(&dir, scope).map(|folder| Box::new(folder) as Box<dyn Work>)
        }
        Address::Nats { host, port, tls } => {
            Nats::open(&host, port, tls, &access, scope).map(|nats| Box::new(nats) as Box<dyn Work>)
        }
    };
    opened.map_err(|away| {
        let what = format!("cannot use the hub {}: {}", clean_str(address), clean_str(&away.0));
        ExpectedError::config(what, "check hub, hub_credentials and hub_ca (hgm help config)")
    })
}

/// The hub that is configured or named by `--hub`.
pub fn address(ctx: &Context) -> Result<&str, ExpectedError> {
    let none = || ExpectedError::usage("no hub", "pass --hub nats://127.0.0.1");
    ctx.config.hub.as_deref().ok_or_else(none)
}

/// Machines with the same image meet, whatever they call it.
pub fn scope(kernel: &Kernel) -> Result<Scope, ExpectedError> {
    let image = std::fs::read(&kernel.image).map_err(|error| {
        let what = format!("cannot read {}", kernel.image.display());
        ExpectedError::infrastructure(what, "register the kernel again").cause(error)
    })?;
    let hash: String = blake3::hash(&image).to_hex().chars().take(16).collect();
    Scope::new(&hash)
        .ok_or_else(|| ExpectedError::infrastructure("no hash", "report this as a bug"))
}

/// A name of this run's machine that no other has: host, and a part of the run's own.
pub fn machine(run: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let host: String =
        host.trim().to_ascii_lowercase().chars().filter(|c| fits(*c)).take(24).collect();
    let run: String = run.chars().filter(|c| fits(*c)).collect();
    let tail = &run[run.len().saturating_sub(12)..];
    format!("{}-{tail}", if host.is_empty() { "host" } else { &host })
}
