//! From sources, patches and a preset to a registered kernel: fetch, patch a copy, configure,
//! check that every line took effect, make in a jail, register.
//!
//! A build lives in `HOME/builds/NAME/{src, out, build.log}`. The next one of that name compiles
//! only what changed. Registering is the last step, so nothing half-built is ever seen. Nothing
//! here starts a VM, prints, or writes to a user's tree.

mod error;
mod fragment;
mod jail;
mod kconfig;
mod log;
mod mail;
mod make;
mod mirror;
mod patches;
mod preset;
mod source;

pub use error::BuildError;
pub(crate) use fragment::is_set;
pub use preset::Preset;

use crate::add::{Parts, make_dir, read_image, register};
use crate::{AppliedPatch, Build, Kernel, bzimage, kernels_dir, load};
use fragment::Wish;
use jail::Jail;
use make::Make;
use patches::{Patch, Staged};
use source::Source;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Changes when the way kernels are built does, so that no older kernel counts as the same.
const RECIPE: &str = "1";

/// Commands a build runs, and the Debian package of each.
const TOOLS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];
/// Headers of libraries that tools of the kernel tree are linked with.
const HEADERS: &[(&str, &str)] = &[("/usr/include/libelf.h", "libelf-dev")];

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildSpec<'a> {
    pub home: &'a Path,
    /// `debian:6.1`, `debian:6.1.192-2`, or a folder.
    pub source: &'a str,
    /// Patch files, folders of them, mailboxes; in this order. A folder's `*.config` fragments are
    /// laid over the preset.
    pub patches: &'a [PathBuf],
    pub preset: Preset,
    /// Name to register under; without one, the preset and what it was built of.
    pub name: Option<&'a str>,
    pub jobs: u32,
    /// Folder of base fixes: `SERIES/every/*.patch` for all presets, `SERIES/*.patch` for debug ones.
    pub fixes: Option<&'a Path>,
}

/// What a build tells while it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Step(&'a str),
    Warning {
        what: &'a str,
        help: &'a str,
    },
    /// An object was made. `total` is an estimate, known for a build from nothing.
    Object {
        name: &'a str,
        done: u32,
        total: Option<u32>,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    pub kernel: Kernel,
    /// The same inputs were built before: make was not run.
    pub cached: bool,
    /// Objects compiled.
    pub objects: u32,
    /// make's output; absent where nothing was run.
    pub log: Option<PathBuf>,
}

/// Tools a build needs and this host lacks, with the packages that bring them.
pub fn missing_tools() -> (Vec<String>, Vec<String>) {
    let dirs: Vec<&Path> = jail::PATH.split(':').map(Path::new).collect();
    let lacks = |tool: &&(&str, &str)| !dirs.iter().any(|dir| dir.join(tool.0).is_file());
    let tools = TOOLS.iter().filter(lacks);
    let headers = HEADERS.iter().filter(|(path, _)| !Path::new(path).is_file());
    tools.chain(headers).map(|(what, package)| (what.to_string(), package.to_string())).unzip()
}

/// Builds and registers a kernel. `stop` is asked often; true ends the build, to be gone on with.
pub fn build(
    spec: &BuildSpec<'_>,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Built, BuildError> {
    if let Some(name) = spec.name.filter(|name| !is_name(name)) {
        return Err(BuildError::BadName { name: name.into() });
    }
    let (missing, packages) = missing_tools();
    if !missing.is_empty() {
        return Err(BuildError::NoTools { missing, packages });
    }
    let mut wanted = patches::load(spec.patches)?;
    let source = source::open(spec.home, spec.source, &mut |line| tell(Event::Step(line)))?;
    let work = make_dir(&spec.home.join("builds"))?;
    let mut staged = Staged::new(&work)?;
    for patch in &wanted {
        staged.apply(&source.root, patch)?;
    }
    let users = wanted.len();
    wanted.extend(base_fixes(spec, &source, &mut staged, tell)?);
    let patches: Vec<AppliedPatch> = wanted
        .iter()
        .enumerate()
        .map(|(at, patch)| AppliedPatch {
            name: patch.name.clone(),
            blake3: patch.hash(),
            base_fix: at >= users,
        })
        .collect();
    let id = spec.name.map_or_else(|| default_name(spec, &source, &patches), str::to_owned);
    let mut build = Build {
        key: String::new(),
        preset: spec.preset.name().into(),
        source_blake3: source.hash.clone(),
        patches,
        compiler: compiler()?,
        config_blake3: String::new(),
        left_out: Vec::new(),
    };
    build.key = key(&build, &wishes(spec)?);
    if let Some(kernel) = load(&kernels_dir(spec.home).join(&id)) {
        match &kernel.build {
            Some(there) if there.key == build.key => {
                return Ok(Built { kernel, cached: true, objects: 0, log: None });
            }
            Some(_) => tell(Event::Step(&format!("{id}: built of other inputs, building again"))),
            None => return Err(BuildError::NameTaken { name: id }),
        }
    }
    let dir = make_dir(&work.join(spec.name.map_or_else(|| folder(spec, &source), str::to_owned)))?;
    Job { spec, source: &source, staged: &staged, dir: &dir, stop }.run(id, build, tell)
}

/// One build in its folder.
struct Job<'a> {
    spec: &'a BuildSpec<'a>,
    source: &'a Source,
    staged: &'a Staged,
    dir: &'a Path,
    stop: &'a dyn Fn() -> bool,
}

impl Job<'_> {
    fn run(
        &self,
        id: String,
        mut build: Build,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Built, BuildError> {
        let lock = self.dir.join("lock");
        let lock_file =
            std::fs::File::create(&lock).map_err(BuildError::io("cannot create", &lock))?;
        if lock_file.try_lock().is_err() {
            return Err(BuildError::Busy { path: self.dir.to_path_buf() });
        }
        let (src, out) = (self.dir.join("src"), self.dir.join("out"));
        let log = self.dir.join("build.log");
        let (root, files) = (&self.source.root, &self.source.files);
        tell(Event::Step(&format!("copying sources to {}", src.display())));
        let changed = mirror::mirror(root, files, self.staged, &src, self.source.how)?;
        tell(Event::Step(&format!("{changed} source file(s) changed")));
        make_dir(&out)?;
        let (jail, open) = Jail::around(&src, &out);
        if let Some(why) = open {
            tell(Event::Warning {
                what: &format!("make runs without a sandbox: {why}"),
                help: "install bubblewrap and allow user namespaces (hgm doctor)",
            });
        }
        // The log is of this build alone.
        std::fs::write(&log, "").map_err(BuildError::io("cannot write", &log))?;
        let make = Make { jail: &jail, src: &src, out: &out, log: &log, stop: self.stop };
        let fresh = !out.join("vmlinux.o").exists();
        build.left_out = self.configure(&make, tell)?;
        let mut objects = 0;
        let total = fresh.then_some(self.spec.preset.objects());
        let jobs = format!("-j{}", self.spec.jobs.max(1));
        tell(Event::Step(&format!("make {jobs} bzImage, log in {}", log.display())));
        make.run(&[&jobs, "bzImage"], &mut |name| {
            objects += 1;
            tell(Event::Object { name, done: objects, total });
        })?;
        let kernel = self.register(id, build, &out)?;
        Ok(Built { kernel, cached: false, objects, log: Some(log) })
    }

    /// Makes `out/.config` what the preset asks for; what could not be given and may be missing.
    fn configure(
        &self,
        make: &Make<'_>,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<String>, BuildError> {
        let preset = self.spec.preset;
        let wishes = wishes(self.spec)?;
        tell(Event::Step(&format!("configuring the preset {}", preset.name())));
        // Beside the one in use: an unchanged configuration must not look newer than its objects.
        let next = make.out.join(".config.next");
        // Without the second, these would write the missing `auto.conf` of the real one.
        let into = ["KCONFIG_CONFIG=.config.next", "KCONFIG_AUTOCONFIG=/dev/null"];
        let kconfig = |what| make.run(&[into[0], into[1], what], &mut |_| ());
        let read = || std::fs::read_to_string(&next).map_err(BuildError::io("cannot read", &next));
        let _ = std::fs::remove_file(&next);
        kconfig("allnoconfig")?;
        let laid = fragment::lay_over(&read()?, &wishes);
        std::fs::write(&next, laid).map_err(BuildError::io("cannot write", &next))?;
        kconfig("olddefconfig")?;
        let config = read()?;
        let left_out = verify(&config, &wishes, make.src, preset)?;
        for line in &left_out {
            tell(Event::Step(&format!("left out: {line}")));
        }
        let used = make.out.join(".config");
        let same = std::fs::read_to_string(&used).ok().as_deref() == Some(config.as_str());
        if !same || !in_force(&make.out.join("include/config/auto.conf"), &config) {
            std::fs::rename(&next, &used).map_err(BuildError::io("cannot write", &used))?;
        }
        Ok(left_out)
    }

    fn register(&self, id: String, mut build: Build, out: &Path) -> Result<Kernel, BuildError> {
        let image_path = out.join("arch/x86/boot/bzImage");
        let config = out.join(".config");
        let text = std::fs::read(&config).map_err(BuildError::io("cannot read", &config))?;
        build.config_blake3 = blake3::hash(&text).to_hex().to_string();
        let image = read_image(&image_path)?;
        let patched = match build.patches.len() {
            0 => String::new(),
            n => format!(" with {n} patch(es)"),
        };
        let parts = Parts {
            release: bzimage::release(&image_path, &image)?,
            source: format!("{}{patched}, preset {}", self.source.about, build.preset),
            config: Some(config),
            modules: Vec::new(),
            image,
            vmlinux: Some(out.join("vmlinux")).filter(|path| path.is_file()),
            build: Some(build),
        };
        let kernels = make_dir(&kernels_dir(self.spec.home))?;
        Ok(register(&kernels, id, parts, &mut |_| ())?)
    }
}

/// What the preset asks for, with the fragments of the patches' folders laid over it.
fn wishes(spec: &BuildSpec<'_>) -> Result<Vec<Wish>, BuildError> {
    Ok(fragment::merge(&[spec.preset.wishes()?, patches::wishes(spec.patches)?]))
}

/// Base fixes of the tree's series: those in `every` for all presets, the others for presets that
/// have reports they would drown. One that does not apply is not needed, or for another tree: it is
/// left out and said.
fn base_fixes(
    spec: &BuildSpec<'_>,
    source: &Source,
    staged: &mut Staged,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Patch>, BuildError> {
    let Some(series) = spec.fixes.map(|fixes| fixes.join(&source.series)) else {
        return Ok(Vec::new());
    };
    let mut folders = vec![series.join("every")];
    if spec.preset.is_debug() {
        folders.push(series);
    }
    folders.retain(|dir| holds_patches(dir));
    let mut applied = Vec::new();
    for patch in patches::load(&folders)? {
        match staged.apply(&source.root, &patch) {
            Ok(()) => {
                tell(Event::Step(&format!("base fix {}", patch.name)));
                applied.push(patch);
            }
            Err(BuildError::PatchFails { faults, .. }) => {
                let why = faults.first().map_or("", String::as_str);
                tell(Event::Step(&format!("base fix {} left out: {why}", patch.name)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(applied)
}

/// Whether make would compile with `config`: what it includes says the same, or is to be made. One
/// that an interrupted configuration left behind is newer than `.config`, so make would trust it.
fn in_force(auto: &Path, config: &str) -> bool {
    match std::fs::read_to_string(auto) {
        Ok(text) => fragment::settings(&text) == fragment::settings(config),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn holds_patches(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.path().extension().is_some_and(|end| end == "patch"))
}

/// The optional lines that did not take effect; `Err` if any other did not.
fn verify(
    config: &str,
    wishes: &[Wish],
    tree: &Path,
    preset: Preset,
) -> Result<Vec<String>, BuildError> {
    let unmet = fragment::unmet(config, wishes);
    let names: Vec<&str> = unmet.iter().map(|unmet| unmet.wish.name.as_str()).collect();
    let reasons = kconfig::reasons(tree, &names);
    let (mut fatal, mut left_out) = (Vec::new(), Vec::new());
    for (unmet, reason) in unmet.iter().zip(reasons) {
        match &unmet.wish.optional {
            Some(why) => left_out.push(format!("{} ({why}; {reason})", unmet.text())),
            None => fatal.push(format!("{} ({reason})", unmet.text())),
        }
    }
    if fatal.is_empty() {
        Ok(left_out)
    } else {
        Err(BuildError::Config { preset: preset.name(), lines: fatal })
    }
}

fn compiler() -> Result<String, BuildError> {
    let mut command = Command::new("gcc");
    command.arg("--version").env("PATH", jail::PATH).env("LC_ALL", "C").stdin(Stdio::null());
    let text = crate::debian::output(command, "gcc")?;
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_string())
}

/// One hash over all that decides what comes out.
fn key(build: &Build, wishes: &[Wish]) -> String {
    let mut hash = blake3::Hasher::new();
    let mut put = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    for text in [RECIPE, &build.source_blake3, &build.preset, &build.compiler] {
        put(text);
    }
    wishes.iter().for_each(|wish| put(&wish.line()));
    build.patches.iter().for_each(|patch| put(&patch.blake3));
    hash.finalize().to_hex().to_string()
}

/// `kasan-6.1.192-2`, with a hash of the patches where there are any of the user's.
fn default_name(spec: &BuildSpec<'_>, source: &Source, patches: &[AppliedPatch]) -> String {
    let mut hash = blake3::Hasher::new();
    // A folder's name says little about what is in it.
    let mut tell_apart = source.how == mirror::How::Copy;
    if tell_apart {
        hash.update(source.hash.as_bytes());
    }
    for patch in patches.iter().filter(|patch| !patch.base_fix) {
        tell_apart = true;
        hash.update(patch.blake3.as_bytes());
    }
    let mut name = format!("{}-{}", spec.preset.name(), source.label);
    if spec.fixes.is_none() {
        name.push_str("-nofix");
    }
    if tell_apart {
        name.push_str(&format!("-{}", &hash.finalize().to_hex()[..8]));
    }
    name
}

/// Folder of builds that share objects: one for a preset and a tree, whatever the patches.
fn folder(spec: &BuildSpec<'_>, source: &Source) -> String {
    let mut name = format!("{}-{}", spec.preset.name(), source.label);
    if source.how == mirror::How::Copy {
        let path = source.root.as_os_str().as_encoded_bytes();
        name.push_str(&format!("-{}", &blake3::hash(path).to_hex()[..8]));
    }
    name
}

/// Fit for a folder below the home, and not hidden there.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
