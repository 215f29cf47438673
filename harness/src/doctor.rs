//! Checks of the host: each gives a state, what was found, and how to mend it.
//!
//! Nothing is changed but for a probe file in the home. Printing is the command's business.

use crate::assets;
use crate::config::{Config, faults_of, find_file};
use crate::context::Context;
use crate::term::clean_str;
use nix::sys::statvfs::statvfs;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Below this nothing can be kept; a kernel package alone unpacks to hundreds of MiB.
const DISK_MIB_MIN: u64 = 1024;
/// Below this a long campaign may fill the disk.
const DISK_MIB_GOOD: u64 = 8192;
/// Oldest QEMU the devices and options were tried with.
const QEMU_MAJOR_MIN: u32 = 7;
/// A tool that does not even print its version by then hangs.
const TOOL_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    Warn,
    Fail,
}

impl State {
    pub const fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        }
    }
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do; empty if all is well.
    pub fix: String,
}

/// State, detail, fix.
type Found = (State, String, String);

fn ok(detail: impl Into<String>) -> Found {
    (State::Ok, detail.into(), String::new())
}
fn warn(detail: impl Into<String>, fix: impl Into<String>) -> Found {
    (State::Warn, detail.into(), fix.into())
}
fn fail(detail: impl Into<String>, fix: impl Into<String>) -> Found {
    (State::Fail, detail.into(), fix.into())
}

/// One check: looks, says what it found.
type Look = fn(&Context) -> Found;

/// Every check by name, in the order shown.
pub const CHECKS: &[(&str, Look)] = &[
    ("config", config),
    ("home", home),
    ("disk", disk),
    ("memory", memory),
    ("qemu", qemu),
    ("sandbox", sandbox),
    ("kvm", kvm),
    ("namespaces", namespaces),
    ("jail", jail),
    ("user", user),
    ("agent", agent),
    ("coverage", coverage),
    ("kernels", kernels),
    ("apt", apt),
    ("build", build),
];

/// Runs the checks that are not skipped.
pub fn examine(ctx: &Context, skip: &[String]) -> Vec<Check> {
    CHECKS
        .iter()
        .filter(|(name, _)| !skip.iter().any(|word| word == name))
        .map(|(name, check)| {
            let (state, detail, fix) = check(ctx);
            Check { name, state, detail, fix }
        })
        .collect()
}

fn config(ctx: &Context) -> Found {
    match find_file(&ctx.global) {
        Ok(None) => ok("no hgm.toml; defaults are in force"),
        Ok(Some(path)) => match faults_of(&path) {
            Ok(faults) if faults.is_empty() => match Config::load(&ctx.global, &[]) {
                Ok(_) => ok(path.display().to_string()),
                Err(error) => fail(error.message, error.help),
            },
            Ok(faults) => fail(
                format!("{}: {} fault(s): {}", path.display(), faults.len(), faults[0].message),
                "hgm config check lists all",
            ),
            Err(error) => fail(error.message, error.help),
        },
        Err(error) => fail(error.message, error.help),
    }
}

fn home(ctx: &Context) -> Found {
    let dir = &ctx.home;
    let probe = fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
    match probe {
        Ok(_) => ok(dir.display().to_string()),
        Err(error) => fail(
            format!("cannot write to {}: {error}", dir.display()),
            "make it writable, or choose another folder with --home or HGM_HOME",
        ),
    }
}

fn disk(ctx: &Context) -> Found {
    let existing = ctx.home.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let stat = match statvfs(existing) {
        Ok(stat) => stat,
        Err(error) => return warn(format!("{}: {error}", existing.display()), "check the disk"),
    };
    let free = (stat.blocks_available() * stat.fragment_size()) >> 20;
    let detail = format!("{free} MiB free for {}", ctx.home.display());
    let fix = "free space, or choose another file system with --home or HGM_HOME";
    match free {
        0..DISK_MIB_MIN => fail(detail, fix),
        DISK_MIB_MIN..DISK_MIB_GOOD => warn(detail, fix),
        _ => ok(detail),
    }
}

fn memory(ctx: &Context) -> Found {
    let Some(free) = free_memory_mib() else {
        return warn("cannot read /proc/meminfo", "check that /proc is mounted");
    };
    let (one, jobs) = (u64::from(ctx.config.memory_mib), u64::from(ctx.config.jobs));
    let detail = format!("{free} MiB free, {jobs} job(s) of {one} MiB");
    if free < one {
        fail(detail, "lower memory_mib (hgm help config), or free memory")
    } else if free < one * jobs {
        warn(detail, format!("pass --jobs {}, or lower memory_mib", free / one))
    } else {
        ok(detail)
    }
}

/// What the host and our cgroup leave us.
fn free_memory_mib() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let host = line.split_whitespace().next()?.parse::<u64>().ok()? >> 10;
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(max, used)| max.saturating_sub(used) >> 20);
    Some(group.map_or(host, |group| group.min(host)))
}

fn qemu(ctx: &Context) -> Found {
    let fix = "install it (Debian: apt-get install qemu-system-x86), or set qemu in hgm.toml";
    let Some(path) = find_tool(ctx.config.qemu.as_os_str()) else {
        return fail(format!("no {} in PATH", ctx.config.qemu.display()), fix);
    };
    match run_tool(Command::new(&path).arg("--version")) {
        Ok(text) => {
            let version = text.split("version ").nth(1).and_then(|t| t.split_whitespace().next());
            let major = version.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
            let version = version.unwrap_or("of unknown version");
            let detail = format!("{} {version}", path.display());
            match major {
                Some(major) if major >= QEMU_MAJOR_MIN => ok(detail),
                _ => warn(detail, format!("QEMU {QEMU_MAJOR_MIN}.0 or newer is what was tried")),
            }
        }
        Err(why) => fail(format!("{} does not run: {why}", path.display()), fix),
    }
}

/// Whether this QEMU was built with seccomp: it parses the option before it prints its version.
fn sandbox(ctx: &Context) -> Found {
    let Some(path) = find_tool(ctx.config.qemu.as_os_str()) else {
        return warn("not checked: no QEMU", "see the check qemu");
    };
    match run_tool(Command::new(path).args(["-sandbox", "on,spawn=deny", "--version"])) {
        Ok(_) => ok("QEMU has -sandbox"),
        Err(why) => {
            warn(format!("QEMU has no -sandbox: {why}"), "use a QEMU that was built with seccomp")
        }
    }
}

/// The device proves nothing; a guest that booted does. Booting is the campaign's business: here
/// only what it remembered is read.
fn kvm(ctx: &Context) -> Found {
    let slow = "VMs run under TCG: about 20 to 50 times slower, and no isolation boundary";
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = device {
        let fix = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "add your user to the group kvm",
            _ => "turn on virtualisation in the firmware (or nested, in a VM) and load kvm",
        };
        return warn(format!("/dev/kvm: {error}; {slow}"), fix);
    }
    let mut verdicts: Vec<(std::time::SystemTime, String)> = fs::read_dir(ctx.accel_cache())
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_string_lossy().into_owned();
            let text = name.starts_with("accel-").then(|| read_head(&path)).flatten()?;
            Some((fs::metadata(&path).ok()?.modified().ok()?, text))
        })
        .collect();
    verdicts.sort();
    let newest = verdicts.pop().map(|(_, text)| text);
    let verdict = newest.as_deref().map(|text| text.split_once('\n').unwrap_or((text, "")));
    match verdict {
        Some(("kvm", _)) => ok("a guest has booted under KVM"),
        Some(("tcg", why)) => warn(
            format!("/dev/kvm opens, but guests do not boot: {}; {slow}", why.trim()),
            format!("use a host with working KVM; {} remembers", ctx.accel_cache().display()),
        ),
        _ => ok("/dev/kvm opens; the first campaign proves it by booting a guest"),
    }
}

fn namespaces(_: &Context) -> Found {
    let fix = "allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
               kernel.apparmor_restrict_unprivileged_userns";
    if find_tool(OsStr::new("unshare")).is_none() {
        return warn("not checked: no unshare in PATH", "install util-linux");
    }
    match run_tool(Command::new("unshare").args(["--user", "--map-root-user", "true"])) {
        Ok(_) => ok("user namespaces work"),
        Err(why) => warn(format!("no user namespaces: {why}"), fix),
    }
}

/// Under TCG nothing else stands between a guest and this host.
fn jail(_: &Context) -> Found {
    match vm::Jail::find() {
        Ok(_) => ok("QEMU runs in namespaces of its own"),
        Err(why) => fail(
            format!("no jail for QEMU: {}", clean_str(&why)),
            "install bubblewrap and allow user namespaces (in a container: seccomp unconfined and \
             /proc unmasked, see docs/ci.md); --set jail=off runs without",
        ),
    }
}

/// What got out of QEMU and of the jail would be who started it (J8).
fn user(_: &Context) -> Found {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    who(nix::unistd::geteuid().as_raw(), &map)
}

/// A root of a user namespace that maps it to somebody else is not the host's.
fn who(uid: u32, map: &str) -> Found {
    if uid != 0 {
        return ok(format!("user {uid}"));
    }
    let first = map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let (inside, outside) = (words.next()?.ok()?, words.next()?.ok()?);
        (inside == 0).then_some(outside)
    });
    match first {
        Some(outside) if outside != 0 => ok(format!("root here, user {outside} outside")),
        _ => warn(
            "this is root: what got out of QEMU and its jail would be root too",
            "run hgm as an ordinary user; only what installs packages needs root",
        ),
    }
}

fn agent(_: &Context) -> Found {
    match assets::agent() {
        Ok(path) => ok(path.display().to_string()),
        Err(error) => fail(error.message, error.help),
    }
}

/// Campaigns run without; they are blinder then.
fn coverage(ctx: &Context) -> Found {
    let plugin = match assets::plugin() {
        Ok(plugin) => plugin,
        Err(error) => {
            return warn(format!("{}; campaigns count no kernel text", error.message), error.help);
        }
    };
    match vm::probe_plugin(&ctx.config.qemu, &plugin) {
        Ok(()) => ok(plugin.display().to_string()),
        Err(why) => warn(
            format!("QEMU does not take {}: {why}", plugin.display()),
            "use a QEMU built with plugins that speaks plugin API 1 (6.0 to 8.x)",
        ),
    }
}

fn kernels(ctx: &Context) -> Found {
    let known = vmimages::kernels(&ctx.home);
    if known.is_empty() {
        return warn("none registered", "hgm kernel add debian:6.1, or hgm kernel add BZIMAGE");
    }
    if ctx.config.kernel.is_some()
        && let Err(error) = ctx.kernel()
    {
        return fail(error.message, error.help);
    }
    let names: Vec<&str> = known.iter().map(|kernel| kernel.id.as_str()).collect();
    ok(names.join(", "))
}

fn apt(_: &Context) -> Found {
    let missing: Vec<&str> = ["apt-get", "apt-cache", "dpkg-deb"]
        .into_iter()
        .filter(|tool| find_tool(OsStr::new(tool)).is_none())
        .collect();
    if missing.is_empty() {
        ok("debian:... kernels can be fetched")
    } else {
        warn(
            format!("missing: {}; debian:... kernels cannot be fetched", missing.join(", ")),
            "register a bzImage by its path instead: hgm kernel add BZIMAGE --modules DIR",
        )
    }
}

/// Only `hgm kernel build` needs these.
fn build(_: &Context) -> Found {
    let (mut missing, mut packages) = vmimages::missing_tools();
    if find_tool(OsStr::new("bwrap")).is_none() {
        missing.push("bwrap (builds run without a sandbox)".into());
        packages.push("bubblewrap".into());
    }
    if missing.is_empty() {
        return ok("hgm kernel build can run");
    }
    let fix = format!("apt-get install {}, or ci/install --kernel-build", packages.join(" "));
    warn(format!("for hgm kernel build this is missing: {}", missing.join(", ")), fix)
}

/// A path as it is, or a name looked up in PATH.
pub fn find_tool(name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return path.is_file().then(|| path.to_owned());
    }
    let dirs = std::env::var_os("PATH")?;
    std::env::split_paths(&dirs).map(|dir| dir.join(path)).find(|path| path.is_file())
}

/// Its stdout, if it ends well and in time; else one line of what went wrong.
fn run_tool(command: &mut Command) -> Result<String, String> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if start.elapsed() > TOOL_MAX => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer in {} s", TOOL_MAX.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // Bounded, and nothing blocks: the tool has ended, though a child of its own might not have.
    let mut text = Vec::new();
    if status.success() {
        if let Some(out) = child.stdout.take() {
            let _ = out.take(64 << 10).read_to_end(&mut text);
        }
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    if let Some(err) = child.stderr.take() {
        let _ = err.take(64 << 10).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    Err(text.lines().next().map_or_else(|| status.to_string(), str::to_owned))
}

/// The first bytes of a small file.
fn read_head(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_the_host_is_warned_of() {
        let whole = "         0          0 4294967295\n";
        assert_eq!(who(1000, whole).0, State::Ok);
        assert_eq!(who(0, whole).0, State::Warn);
        assert_eq!(who(0, "").0, State::Warn, "nothing says that it is not");
        let (state, detail, _) = who(0, "0 1000 1\n1 100000 65536\n");
        assert_eq!((state, detail.as_str()), (State::Ok, "root here, user 1000 outside"));
        assert_eq!(who(0, "garbage\n1 5 7\n").0, State::Warn);
    }
}
