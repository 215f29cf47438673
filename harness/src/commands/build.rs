//! `hgm kernel build`, and builds for other verbs: shows a build as it goes and says what came of
//! it. How kernels are built is `vmimages`' business.

use crate::assets;
use crate::cli::{KernelBuildArgs, PresetChoice};
use crate::commands::kernel::data;
use crate::context::Context;
use crate::exit::{Exit, ExpectedError};
use crate::signals::Signals;
use crate::term::{Term, clean_str};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::time::{Duration, Instant};
use vmimages::{BuildError, BuildSpec, Built, Event, Kernel, Preset};

/// Time between plain lines that tell how far a build is.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What `--hgm` is built of where no source is named: the tree its series is written for.
const HGM_SOURCE: &str = "debian:6.1";

/// Builds, registers, reports.
pub fn run(args: &KernelBuildArgs, ctx: &Context) -> anyhow::Result<Exit> {
    let signals = Signals::watch()?;
    let mut patches = Vec::new();
    if args.hgm {
        patches.push(assets::hgm_series()?);
    }
    patches.extend_from_slice(&args.patches);
    let fixes = if args.no_base_fixes { None } else { Some(assets::fixes()?) };
    let spec = BuildSpec {
        home: &ctx.home,
        source: args.source.as_deref().unwrap_or(HGM_SOURCE),
        patches: &patches,
        preset: preset(args.preset),
        name: args.name.as_deref(),
        jobs: args.jobs.unwrap_or_else(one_per_cpu),
        fixes: fixes.as_deref(),
    };
    let start = Instant::now();
    let built = build(&spec, &signals, ctx)?;
    report(&built, start.elapsed(), ctx);
    Ok(Exit::Clean)
}

/// The kernel of a source tree as it is, built and registered in `home` under this name.
pub fn tree(
    home: &Path,
    tree: &Path,
    choice: PresetChoice,
    name: &str,
    signals: &Signals,
    ctx: &Context,
) -> Result<Kernel, ExpectedError> {
    let (source, fixes) = (tree.to_string_lossy(), assets::fixes()?);
    let spec = BuildSpec {
        home,
        source: &source,
        patches: &[],
        preset: preset(choice),
        name: Some(name),
        jobs: one_per_cpu(),
        fixes: Some(&fixes),
    };
    Ok(build(&spec, signals, ctx)?.kernel)
}

/// Builds and shows how it goes.
fn build(spec: &BuildSpec<'_>, signals: &Signals, ctx: &Context) -> Result<Built, ExpectedError> {
    let mut show = Show::new(&ctx.term);
    let result = vmimages::build(spec, &|| signals.count() > 0, &mut |event| show.event(event));
    show.close();
    match result {
        Err(error @ BuildError::Stopped { .. }) => {
            let exit = match signals.code() {
                Some(143) => Exit::Terminated,
                _ => Exit::Interrupted,
            };
            Err(ExpectedError::new(exit, error.to_string(), error.help()))
        }
        other => Ok(other?),
    }
}

fn preset(choice: PresetChoice) -> Preset {
    match choice {
        PresetChoice::Plain => Preset::Plain,
        PresetChoice::Kasan => Preset::Kasan,
        PresetChoice::Race => Preset::Race,
    }
}

fn one_per_cpu() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cpus).unwrap_or(1)
}

fn report(built: &Built, took: Duration, ctx: &Context) {
    let kernel = &built.kernel;
    if ctx.json {
        let mut json = data(kernel);
        json["cached"] = built.cached.into();
        json["objects"] = built.objects.into();
        json["seconds"] = took.as_secs().into();
        json["log"] = built.log.as_ref().map(|path| path.display().to_string()).into();
        ctx.term.json(&json);
        return;
    }
    let id = &kernel.id;
    if built.cached {
        ctx.term.line(&format!("{id}: the same inputs were built before"));
    } else {
        let secs = took.as_secs();
        let (objects, time) = (built.objects, format!("{}:{:02}", secs / 60, secs % 60));
        ctx.term.line(&format!("registered {id}: {objects} objects in {time}"));
    }
    for line in kernel.build.iter().flat_map(|build| &build.left_out) {
        ctx.term.line(&format!("left out: {}", clean_str(line)));
    }
    ctx.term.line(&format!("next: hgm fuzz --kernel {id} --for 10m"));
}

/// A bar on a terminal, lines elsewhere.
struct Show<'a> {
    term: &'a Term,
    bar: Option<ProgressBar>,
    /// Of the last plain line.
    last: Instant,
}

impl<'a> Show<'a> {
    fn new(term: &'a Term) -> Show<'a> {
        Show { term, bar: None, last: Instant::now() }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Step(text) => self.note(&clean_str(text)),
            Event::Warning { what, help } => {
                self.close();
                self.term.warn(&clean_str(what), help);
            }
            Event::Object { name, done, total } if self.term.live => self.draw(name, done, total),
            Event::Object { name, done, total } => {
                if self.last.elapsed() >= HEARTBEAT {
                    self.last = Instant::now();
                    self.term.note(&clean_str(&objects(name, done, total)));
                }
            }
        }
    }

    fn draw(&mut self, name: &str, done: u32, total: Option<u32>) {
        let unicode = self.term.unicode;
        let bar = self.bar.get_or_insert_with(|| {
            let template = match total {
                Some(_) => "{bar:24} {pos}/{len} objects  {elapsed}  {wide_msg}",
                None => "{spinner} {pos} objects  {elapsed}  {wide_msg}",
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars(if unicode { "\u{2588}\u{2593}\u{2591}" } else { "#>-" });
            ProgressBar::new(u64::from(total.unwrap_or(0))).with_style(style)
        });
        // The estimate may be short; a bar beyond its end would look broken.
        if total.is_some_and(|total| done > total) {
            bar.set_length(u64::from(done));
        }
        bar.set_position(u64::from(done));
        bar.set_message(clean_str(name));
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.term.note(text),
        }
    }

    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn objects(name: &str, done: u32, total: Option<u32>) -> String {
    match total {
        Some(total) => format!("{done}/{} objects, {name}", total.max(done)),
        None => format!("{done} objects, {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_never_count_beyond_the_end() {
        assert_eq!(objects("mm/a.o", 7, Some(1500)), "7/1500 objects, mm/a.o");
        assert_eq!(objects("mm/a.o", 1600, Some(1500)), "1600/1600 objects, mm/a.o");
        assert_eq!(objects("mm/a.o", 3, None), "3 objects, mm/a.o");
    }
}
