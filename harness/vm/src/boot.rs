//! From a specification to a ready agent, or to a reason a user can act on.

use crate::VmSpec;
use crate::command::{Fds, NODES, Ram, qemu_args};
use crate::console::Console;
use crate::cover::Counters;
use crate::jail;
use crate::link::{Broken, Link};
use crate::memory::Memory;
use crate::process::Process;
use crate::qmp::{Qmp, QmpError};
use case::link::{FromGuest, ToGuest};
use case::profile::Profile;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Console shown in an error, in bytes.
const CONSOLE_TAIL_BYTES: usize = 4096;
/// QEMU's log shown in an error, in bytes.
const STDERR_TAIL_BYTES: u64 = 2048;
/// How long QEMU may take to open its monitor.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the console is looked at during the boot.
const GLANCE: Duration = Duration::from_millis(100);
/// How long a QEMU that closed a stream may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Share of the boot timeout after which an agent that is up but not heard is given up.
const LINK_PATIENCE: f64 = 0.4;
/// What the agent writes to the console once its end of the link is open and set up.
const LINK_OPEN: &[u8] = b"agent: link on ";
/// The same when it found no virtio port and fell back by itself.
const LINK_SERIAL: &[u8] = b"agent: link on /dev/ttyS";
/// What it writes before it switches off a machine that offers no link.
const LINK_ABSENT: &[u8] = b"agent: no link";
/// Last words of a kernel's unpacker (arch/x86/boot/compressed/error.c).
const HALTED: &[u8] = b"-- System halted";

/// Why there is no VM. `Display` is the error line, [`BootError::help`] the help line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    #[error("there is no QEMU at `{}`", path.display())]
    NoQemu { path: PathBuf },
    #[error("QEMU cannot be started: {source}")]
    Start { source: std::io::Error },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("QEMU refused to run ({status}): {stderr}")]
    Refused { status: ExitStatus, stderr: String },
    #[error("QEMU ended during the boot ({status}) {stderr}")]
    Died { status: ExitStatus, stderr: String, console: String },
    #[error("the kernel panicked during the boot: {panic}")]
    Panicked { panic: String, console: String },
    #[error("the image stopped before its kernel ran: {why}")]
    Halted { why: String, console: String },
    #[error("the agent was not ready within {seconds:.0} s; the console's last line: {last}")]
    NoReady { seconds: f64, last: String, console: String },
    #[error("the agent is up, but nothing came over {link}")]
    NoLink { link: &'static str, console: String },
    #[error("the agent does not speak this version's protocol: {why}")]
    Protocol { why: String, console: String },
    #[error("the golden VM cannot be {what}: {why}")]
    Golden { what: &'static str, why: String },
}

impl BootError {
    /// One line: what to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            BootError::NoQemu { .. } => {
                "install it (apt-get install --no-install-recommends qemu-system-x86) or name it"
            }
            BootError::Start { .. } => "check that the file is a QEMU this user may execute",
            BootError::Io { .. } => "check permissions and free space of the working directory",
            BootError::Refused { .. } => {
                "the line above is QEMU's own; check the kernel, the memory and the accelerator"
            }
            BootError::Died { .. } => {
                "QEMU or the machine ran out of something; see qemu.log and console.log"
            }
            BootError::Panicked { .. } => {
                "this kernel does not boot here; see console.log, try another kernel or config"
            }
            BootError::Halted { .. } => "this image is damaged; build it or copy it again",
            BootError::NoReady { .. } => {
                "see console.log; a loaded machine or a debug kernel needs a longer boot timeout"
            }
            BootError::NoLink { .. } => {
                "the kernel needs VIRTIO_CONSOLE and VIRTIO_PCI (or their modules), or the serial \
                 link"
            }
            BootError::Protocol { .. } => "rebuild the agent together with the host program",
            BootError::Golden { .. } => "boot every VM instead; see qemu.log",
        }
    }

    /// The end of the console as the guest wrote it, not escaped; empty where no guest ran.
    pub fn console(&self) -> &str {
        match self {
            BootError::Died { console, .. }
            | BootError::Panicked { console, .. }
            | BootError::Halted { console, .. }
            | BootError::NoReady { console, .. }
            | BootError::NoLink { console, .. }
            | BootError::Protocol { console, .. } => console,
            _ => "",
        }
    }
}

/// A running QEMU and our ends of its streams.
#[derive(Debug)]
pub struct Machine {
    // Dropped first: without QEMU the streams end.
    pub process: Process,
    pub link: Link,
    pub qmp: Qmp,
    pub console: Console,
    pub cover: Option<Counters>,
    /// Our end of the console, to end its reader even if someone else holds QEMU's end.
    console_stream: UnixStream,
    pub serial_link: bool,
    qemu_log: PathBuf,
}

impl Machine {
    /// Kills QEMU and waits, not for long, until its last words are in.
    pub fn stop(&mut self, drain: Duration) {
        self.process.kill();
        self.process.wait(EXIT_TIMEOUT);
        self.console.wait_end(drain);
    }

    /// The end of QEMU's log, once QEMU has had time to end by itself.
    pub fn last_words(&mut self) -> String {
        self.process.wait(EXIT_TIMEOUT);
        stderr_tail(&self.qemu_log)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.process.kill();
        let _ = self.console_stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Boots `spec`; over the second serial port if virtio-serial stays silent.
pub fn boot(spec: &VmSpec) -> Result<(Machine, Profile), BootError> {
    match boot_once(spec, Origin::PowerOn) {
        Err(BootError::NoLink { .. }) if !spec.serial_link => {
            tracing::warn!("nothing came over virtio-serial; booting again with the serial link");
            boot_once(&VmSpec { serial_link: true, ..spec.clone() }, Origin::PowerOn)
        }
        result => result,
    }
}

/// What a machine starts from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    PowerOn,
    /// As above, with its memory in files.
    PowerOnIn(&'a Memory),
    /// Waits for the state of a snapshot with this memory.
    Snapshot(&'a Memory),
}

/// One boot, no second try.
pub fn boot_once(spec: &VmSpec, origin: Origin<'_>) -> Result<(Machine, Profile), BootError> {
    let started = Instant::now();
    let machine = start(spec, origin)?;
    greet(machine, spec, started, false)
}

/// Waits for the agent; `awake` if it runs already.
pub fn greet(
    mut machine: Machine,
    spec: &VmSpec,
    started: Instant,
    awake: bool,
) -> Result<(Machine, Profile), BootError> {
    match await_ready(&mut machine, spec, started, awake) {
        Ok(profile) => {
            let accel = spec.accel.name();
            tracing::debug!(pid = machine.process.pid(), accel, elapsed = ?started.elapsed(),
                "agent ready");
            Ok((machine, profile))
        }
        Err(stop) => Err(explain(machine, spec, stop)),
    }
}

fn io_error(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> BootError {
    let what = format!("{what} {}", path.display());
    move |source| BootError::Io { what, source }
}

/// Starts QEMU and opens its monitor.
pub fn start(spec: &VmSpec, origin: Origin<'_>) -> Result<Machine, BootError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&spec.dir)
        .map_err(io_error("cannot create", &spec.dir))?;
    let log_path = spec.dir.join("console.log");
    let log = File::create(&log_path).map_err(io_error("cannot create", &log_path))?;
    let qemu_log = spec.dir.join("qemu.log");
    let stderr = File::create(&qemu_log).map_err(io_error("cannot create", &qemu_log))?;

    let sockets = |source| BootError::Io { what: "cannot make sockets".into(), source };
    let (console, qemu_console) = UnixStream::pair().map_err(sockets)?;
    let (link, qemu_link) = UnixStream::pair().map_err(sockets)?;
    let (qmp, qemu_qmp) = UnixStream::pair().map_err(sockets)?;
    let memory = |source| BootError::Io { what: "cannot make shared memory".into(), source };
    let cover = spec.cover.as_ref().map(|c| Counters::create(&c.ranges)).transpose();
    let cover = cover.map_err(memory)?;
    let counters = cover.as_ref().map(Counters::handle).transpose().map_err(memory)?;
    let fds = Fds {
        console: qemu_console.as_raw_fd(),
        link: qemu_link.as_raw_fd(),
        qmp: qemu_qmp.as_raw_fd(),
        cover: counters.as_ref().map(AsRawFd::as_raw_fd),
    };
    let mut pass: Vec<OwnedFd> = vec![qemu_console.into(), qemu_link.into(), qemu_qmp.into()];
    pass.extend(counters);
    let ram = match origin {
        Origin::PowerOn => Ram::Anonymous,
        Origin::PowerOnIn(memory) => Ram::Shared(lend(memory, &mut pass)?),
        Origin::Snapshot(memory) => Ram::Private(lend(memory, &mut pass)?),
    };
    let console_stream = console.try_clone().map_err(sockets)?;
    let link = Link::new(link).map_err(sockets)?;

    let args = qemu_args(spec, fds, ram);
    let files = jail::files(spec, matches!(origin, Origin::Snapshot(_)));
    let launch = spec.jail.around(&spec.qemu, args, &files, spec.accel);
    let mut process = Process::start(launch, pass, stderr).map_err(|source| {
        if source.kind() == ErrorKind::NotFound {
            return BootError::NoQemu { path: spec.qemu.clone() };
        }
        BootError::Start { source }
    })?;
    let console = Console::start(console, Some(log)).map_err(sockets)?;
    let timeout = MONITOR_TIMEOUT.min(spec.boot_timeout);
    match Qmp::connect(qmp, timeout) {
        Ok(qmp) => {
            let serial_link = spec.serial_link;
            Ok(Machine {
                process,
                link,
                qmp,
                console,
                cover,
                console_stream,
                serial_link,
                qemu_log,
            })
        }
        Err(error) => {
            let ended = process.wait(if matches!(error, QmpError::Timeout) {
                Duration::ZERO
            } else {
                EXIT_TIMEOUT
            });
            let _ = console_stream.shutdown(std::net::Shutdown::Both);
            Err(match ended {
                Some(status) => BootError::Refused { status, stderr: stderr_tail(&qemu_log) },
                None => BootError::Start { source: std::io::Error::other(error.to_string()) },
            })
        }
    }
}

/// Descriptors of a guest's memory for QEMU, added to those it inherits.
fn lend(memory: &Memory, pass: &mut Vec<OwnedFd>) -> Result<[RawFd; NODES], BootError> {
    let failed = |source| BootError::Io { what: "cannot pass memory on".into(), source };
    let mut numbers = [-1; NODES];
    for (number, fd) in numbers.iter_mut().zip(memory.share().map_err(failed)?) {
        *number = fd.as_raw_fd();
        pass.push(fd);
    }
    Ok(numbers)
}

/// Why the wait for `Ready` ended.
enum Stop {
    Broken(Broken),
    NoLink,
    Halted,
    Late,
    Unexpected(&'static str),
}

fn await_ready(
    machine: &mut Machine,
    spec: &VmSpec,
    started: Instant,
    awake: bool,
) -> Result<Profile, Stop> {
    let deadline = started + spec.boot_timeout;
    let patience = spec.boot_timeout.mul_f64(LINK_PATIENCE);
    let mut agent_since = awake.then_some(started);
    let mut greeted = false;
    loop {
        // Over virtio the bytes wait until the agent opens the port; over the serial port they
        // would be lost, or echoed, before the agent has set it up.
        if !greeted && (!spec.serial_link || agent_since.is_some()) {
            machine.link.send(&ToGuest::Hello, machine.process.pidfd()).map_err(Stop::Broken)?;
            greeted = true;
        }
        let now = Instant::now();
        let next = deadline.min(now + GLANCE);
        match machine.link.next(machine.process.pidfd(), next).map_err(Stop::Broken)? {
            Some(FromGuest::Ready(profile)) => return Ok(profile),
            Some(FromGuest::Log(line)) => tracing::debug!("guest: {}", line.escape_debug()),
            Some(_) => return Err(Stop::Unexpected("a message before Ready")),
            None => {}
        }
        if agent_since.is_none() {
            let console = machine.console.since(0);
            if !spec.serial_link && contains(&console, LINK_SERIAL) {
                return Err(Stop::NoLink);
            }
            agent_since = contains(&console, LINK_OPEN).then_some(now);
            if contains(&console, HALTED) {
                return Err(Stop::Halted);
            }
        }
        let quiet = !machine.link.heard;
        if quiet && agent_since.is_some_and(|since| now > since + patience) {
            return Err(Stop::NoLink);
        }
        if now >= deadline {
            return Err(if quiet && agent_since.is_some() { Stop::NoLink } else { Stop::Late });
        }
    }
}

/// Turns the end of a boot into its most telling reason.
fn explain(mut machine: Machine, spec: &VmSpec, stop: Stop) -> BootError {
    let ended = match &stop {
        Stop::Broken(_) => machine.process.wait(EXIT_TIMEOUT),
        _ => None,
    };
    machine.stop(EXIT_TIMEOUT);
    let seen = machine.console.since(0);
    let console = tail_text(&seen, CONSOLE_TAIL_BYTES);
    if let Some(panic) = line_with(&seen, b"Kernel panic") {
        return BootError::Panicked { panic, console };
    }
    let stop = if contains(&seen, LINK_ABSENT) { Stop::NoLink } else { stop };
    match (stop, ended) {
        (Stop::Broken(Broken::Protocol(why)), _) => BootError::Protocol { why, console },
        (Stop::Unexpected(what), _) => BootError::Protocol { why: what.into(), console },
        (Stop::Halted, _) => BootError::Halted { why: line_above(&seen, HALTED), console },
        (Stop::NoLink, _) => {
            let link = if spec.serial_link { "the second serial port" } else { "virtio-serial" };
            BootError::NoLink { link, console }
        }
        (Stop::Broken(_), Some(status)) => {
            let stderr = stderr_tail(&machine.qemu_log);
            if seen.is_empty() && !status.success() {
                return BootError::Refused { status, stderr };
            }
            BootError::Died { status, stderr, console }
        }
        (Stop::Broken(_) | Stop::Late, _) => {
            let last = console.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("(none)");
            let last = last.trim().escape_debug().to_string();
            BootError::NoReady { seconds: spec.boot_timeout.as_secs_f64(), last, console }
        }
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|w| w == what)
}

/// The first line with `what` in it, printable.
fn line_with(text: &[u8], what: &[u8]) -> Option<String> {
    let line = text.split(|&b| b == b'\n').find(|line| contains(line, what))?;
    let line = &line[..line.len().min(300)];
    Some(String::from_utf8_lossy(line).trim().escape_debug().to_string())
}

/// The last line with something in it above the one with `what` in it, printable.
fn line_above(text: &[u8], what: &[u8]) -> String {
    let lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
    let at = lines.iter().position(|line| contains(line, what)).unwrap_or(lines.len());
    let line = lines[..at].iter().rfind(|line| !line.trim_ascii().is_empty());
    let line = line.map_or(&b"no word of why"[..], |line| &line[..line.len().min(300)]);
    String::from_utf8_lossy(line).trim().escape_debug().to_string()
}

fn tail_text(text: &[u8], max: usize) -> String {
    String::from_utf8_lossy(&text[text.len().saturating_sub(max)..]).into_owned()
}

/// The end of QEMU's log on one line.
fn stderr_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(STDERR_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(STDERR_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() { "it gave no reason".into() } else { lines.join("; ") }
}
