//! A booted VM: frames out, frames in, and how it died. No thread of its own: the caller's thread
//! waits on the link and on the process at once, so a death is noticed while waiting for a reply.

use crate::boot::{self, BootError, Machine};
use crate::cover::Counters;
use crate::process::{poll_timeout, signal_of};
use crate::{Snapshot, VmSpec, qmp::QmpError};
use case::cover::{SYMBOLS_MAX, Symbol};
use case::limits::FRAME_BYTES_MAX;
use case::link::{FromGuest, ToGuest};
use case::profile::Profile;
use case::wire::{self, Decoder};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How long a guest may leave a whole socket buffer unread before a send gives it up.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes from the guest kept undecoded while a send waits.
const BACKLOG_BYTES_MAX: usize = 8 * FRAME_BYTES_MAX;
/// How long QEMU may take to end after it closed the link.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the console may take to drain after QEMU ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeathKind {
    /// QEMU ended by itself (a guest that panics or powers off ends it) or was killed.
    Exited(ExitStatus),
    /// The link closed while QEMU lives on.
    LinkLost,
    /// The guest answers no more; the caller, or a send that waited too long, gave it up.
    Silent,
    /// The guest sent what it must not.
    Protocol(String),
}

/// The end of a VM, with what helps to find the guilty program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    pub kind: DeathKind,
    /// Id of the last run that started and never ended.
    pub executing: Option<u64>,
    /// What is kept of the console since the agent was ready.
    pub console: Vec<u8>,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            DeathKind::Exited(status) => match signal_of(*status) {
                Some(signal) => write!(f, "QEMU was killed by signal {signal}"),
                None => write!(f, "QEMU ended with status {}", status.code().unwrap_or(-1)),
            },
            DeathKind::LinkLost => write!(f, "the link to the guest closed"),
            DeathKind::Silent => write!(f, "the guest stopped answering"),
            DeathKind::Protocol(why) => write!(f, "the guest broke the protocol: {why}"),
        }
    }
}

impl std::error::Error for Death {}

/// Frames over a stream that may end or lie at any byte.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: Decoder,
    /// Read while a send waited, not yet given to the decoder.
    backlog: Vec<u8>,
    /// Anything at all came from the guest.
    pub heard: bool,
}

/// Why no frame came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    Closed,
    Stuck,
    Protocol(String),
    /// The process ended and the link is read to its end.
    Ended,
}

impl Link {
    pub fn new(stream: UnixStream) -> std::io::Result<Link> {
        stream.set_nonblocking(true)?;
        Ok(Link { stream, decoder: Decoder::new(), backlog: Vec::new(), heard: false })
    }

    /// The next message, waiting until `deadline` and watching `process` (a pidfd) meanwhile.
    pub fn next(
        &mut self,
        process: impl AsFd,
        deadline: Instant,
    ) -> Result<Option<FromGuest>, Broken> {
        let mut ended = false;
        loop {
            if let Some(message) = self.decode()? {
                return Ok(Some(message));
            }
            if self.fill(FRAME_BYTES_MAX)? {
                continue;
            }
            if ended {
                return Err(Broken::Ended);
            }
            let wanted = PollFlags::POLLIN;
            let mut fds =
                [PollFd::new(self.stream.as_fd(), wanted), PollFd::new(process.as_fd(), wanted)];
            match poll(&mut fds, poll_timeout(deadline)) {
                Ok(0) => return Ok(None),
                // Once more around, for bytes sent just before the end.
                Ok(_) => ended = fds[1].revents().is_some_and(|r| !r.is_empty()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
    }

    fn decode(&mut self) -> Result<Option<FromGuest>, Broken> {
        let broken = |e: wire::WireError| Broken::Protocol(e.to_string());
        let message = self.decoder.next::<FromGuest>().map_err(broken)?;
        if let Some(message) = &message {
            wire::check_from_guest(message).map_err(broken)?;
        }
        Ok(message)
    }

    /// Gives the decoder more bytes, if there are any.
    fn fill(&mut self, max: usize) -> Result<bool, Broken> {
        if self.backlog.is_empty() {
            self.read(max.min(64 << 10))?;
        }
        // In pieces: the decoder keeps what it has not cut yet.
        let n = self.backlog.len().min(64 << 10);
        let rest = self.backlog.split_off(n);
        self.decoder.push(&self.backlog);
        self.backlog = rest;
        Ok(n > 0)
    }

    /// One read into the backlog, without waiting.
    fn read(&mut self, max: usize) -> Result<usize, Broken> {
        let from = self.backlog.len();
        self.backlog.resize(from + max, 0);
        let result = self.stream.read(&mut self.backlog[from..]);
        self.backlog.truncate(from + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Err(Broken::Closed),
            Ok(n) => {
                self.heard = true;
                Ok(n)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(_) => Err(Broken::Closed),
        }
    }

    /// Sends one message. While the guest is slow to read, its own bytes are taken in, so that two
    /// sides that both write cannot stop each other.
    pub fn send(&mut self, message: &ToGuest, process: impl AsFd) -> Result<(), Broken> {
        let frame = wire::encode(message).map_err(|e| Broken::Protocol(e.to_string()))?;
        let deadline = Instant::now() + SEND_TIMEOUT;
        let mut sent = 0;
        while sent < frame.len() {
            match self.stream.write(&frame[sent..]) {
                Ok(n) => {
                    sent += n;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(Broken::Closed),
            }
            let mut wanted = PollFlags::POLLOUT;
            if self.backlog.len() < BACKLOG_BYTES_MAX {
                wanted |= PollFlags::POLLIN;
            }
            let mut fds = [
                PollFd::new(self.stream.as_fd(), wanted),
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, poll_timeout(deadline)) {
                Ok(0) => return Err(Broken::Stuck),
                Ok(_) if fds[1].revents().is_some_and(|r| !r.is_empty()) => {
                    return Err(Broken::Closed);
                }
                Ok(_) if self.backlog.len() < BACKLOG_BYTES_MAX => {
                    self.read(64 << 10)?;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
        Ok(())
    }
}

/// A VM whose agent is ready. Dropped, its QEMU is killed and reaped.
#[derive(Debug)]
pub struct Vm {
    machine: Machine,
    profile: Profile,
    /// Runs sent and not yet answered: replies to anything else are lies.
    outstanding: BTreeSet<u64>,
    executing: Option<u64>,
    /// Console offset at `Ready`.
    ready_at: u64,
    asked_symbols: bool,
    /// The newest run the guest has begun, and how often it has begun one or ended one.
    begun: u64,
    progress: u64,
    dead: Option<DeathKind>,
}

impl Vm {
    /// Starts QEMU and waits for the agent's `Ready`. If the kernel is up but nothing comes over
    /// virtio-serial, one second boot uses the second serial port.
    pub fn boot(spec: &VmSpec) -> Result<Vm, BootError> {
        let (machine, profile) = boot::boot(spec)?;
        Ok(Vm::of(machine, profile))
    }

    /// Starts a clone of a golden VM, in a small part of the time of a boot. Of `spec` count QEMU,
    /// the folder and, up to some seconds, the deadline; the machine is the golden one.
    pub fn clone_from(snapshot: &Snapshot, spec: &VmSpec) -> Result<Vm, BootError> {
        let (machine, profile) = snapshot.start(spec)?;
        Ok(Vm::of(machine, profile))
    }

    fn of(machine: Machine, profile: Profile) -> Vm {
        let ready_at = machine.console.mark();
        Vm {
            machine,
            profile,
            outstanding: BTreeSet::new(),
            executing: None,
            ready_at,
            asked_symbols: false,
            begun: 0,
            progress: 0,
            dead: None,
        }
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// True if the link runs over the second serial port, asked for or fallen back to.
    pub fn serial_link(&self) -> bool {
        self.machine.serial_link
    }

    /// Rises when the guest begins or ends a run: what it can say without end is no sign of life. Ids
    /// of runs must rise, too.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Queues one message; several `Run`s may be outstanding.
    pub fn send(&mut self, message: &ToGuest) -> Result<(), Death> {
        self.check_alive()?;
        if let ToGuest::Run(run) = message {
            self.outstanding.insert(run.id);
        }
        let sent = self.machine.link.send(message, self.machine.process.pidfd());
        sent.map_err(|broken| self.die(broken))
    }

    /// The next message from the guest, `None` if there is none within `timeout`.
    pub fn recv(&mut self, timeout: Duration) -> Result<Option<FromGuest>, Death> {
        self.check_alive()?;
        let deadline = Instant::now() + timeout;
        let message = self.machine.link.next(self.machine.process.pidfd(), deadline);
        match message.and_then(|m| self.note(m)) {
            Ok(message) => Ok(message),
            Err(broken) => Err(self.die(broken)),
        }
    }

    /// Keeps the books on what runs, and refuses what nobody asked for.
    fn note(&mut self, message: Option<FromGuest>) -> Result<Option<FromGuest>, Broken> {
        let lie = |what: &str, id: u64| {
            Err(Broken::Protocol(format!("{what} run {id}, which is not outstanding")))
        };
        match &message {
            Some(FromGuest::Executing { id }) => {
                if !self.outstanding.contains(id) {
                    return lie("started", *id);
                }
                self.executing = Some(*id);
                if *id > self.begun {
                    self.begun = *id;
                    self.progress += 1;
                }
            }
            Some(FromGuest::Done { id, .. }) => {
                if !self.outstanding.remove(id) {
                    return lie("answered", *id);
                }
                self.progress += 1;
                if self.executing == Some(*id) {
                    self.executing = None;
                }
            }
            Some(FromGuest::Ready(_)) => {
                return Err(Broken::Protocol("a second Ready".into()));
            }
            Some(FromGuest::Covered { id, .. }) => {
                if !self.outstanding.contains(id) {
                    return lie("measured", *id);
                }
            }
            Some(FromGuest::Symbols { .. }) if !self.asked_symbols => {
                return Err(Broken::Protocol("symbols nobody asked for".into()));
            }
            Some(
                FromGuest::Symbols { .. }
                | FromGuest::Provoked { .. }
                | FromGuest::Executed { .. }
                | FromGuest::Log(_),
            )
            | None => {}
        }
        Ok(message)
    }

    fn check_alive(&self) -> Result<(), Death> {
        match &self.dead {
            Some(kind) => Err(self.death(kind.clone())),
            None => Ok(()),
        }
    }

    fn death(&self, kind: DeathKind) -> Death {
        let console = self.machine.console.since(self.ready_at);
        Death { kind, executing: self.executing, console }
    }

    /// Settles how the VM ended, stops what is left of it, and collects its last words.
    fn die(&mut self, broken: Broken) -> Death {
        let kind = match broken {
            Broken::Protocol(why) => DeathKind::Protocol(why),
            Broken::Stuck => DeathKind::Silent,
            Broken::Closed | Broken::Ended => match self.machine.process.wait(EXIT_TIMEOUT) {
                Some(status) => DeathKind::Exited(status),
                None => DeathKind::LinkLost,
            },
        };
        self.machine.stop(DRAIN_TIMEOUT);
        self.dead = Some(kind.clone());
        self.death(kind)
    }

    /// Gives up a guest that does not answer: kills it and reports it as [`DeathKind::Silent`].
    pub fn give_up(&mut self) -> Death {
        match &self.dead {
            Some(kind) => self.death(kind.clone()),
            None => self.die(Broken::Stuck),
        }
    }

    /// Asks a silent guest where it hangs: an NMI makes its kernel print the stack and panic.
    /// True if QEMU took the order; the answer, if any, is on the console and the guest is lost.
    pub fn ask_where_it_hangs(&mut self, timeout: Duration) -> bool {
        let order = qapi::qmp::inject_nmi {};
        let result: Result<_, QmpError> = self.machine.qmp.execute(&order, timeout);
        if let Err(error) = &result {
            tracing::debug!("inject-nmi: {error}");
        }
        result.is_ok()
    }

    /// Console bytes seen so far. What follows this place is kept in preference.
    pub fn console_len(&self) -> u64 {
        self.machine.console.mark()
    }

    /// The kernel's text symbols in the order of /proc/kallsyms, as the guest tells them; to be
    /// asked while no run is outstanding.
    pub fn symbols(&mut self, timeout: Duration) -> Result<Vec<Symbol>, Death> {
        self.asked_symbols = true;
        self.send(&ToGuest::Symbols)?;
        let deadline = Instant::now() + timeout;
        let mut all = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.recv(left)? {
                Some(FromGuest::Symbols { part, more }) => {
                    all.extend(part);
                    if all.len() > SYMBOLS_MAX {
                        return Err(self.die(Broken::Protocol("symbols without end".into())));
                    }
                    if !more {
                        self.asked_symbols = false;
                        return Ok(all);
                    }
                }
                Some(_) => {}
                None => return Err(self.give_up()),
            }
        }
    }

    /// What is kept of the console from offset `from` on, and the offset behind it, from which on
    /// bytes are kept in preference: the next `from`.
    pub fn console_read(&self, from: u64) -> (Vec<u8>, u64) {
        self.machine.console.read(from)
    }

    /// What is kept of the console from offset `mark` on; never blocks.
    pub fn console_since(&self, mark: u64) -> Vec<u8> {
        self.machine.console.since(mark)
    }

    /// Id of the last run that started and has not ended.
    pub fn executing(&self) -> Option<u64> {
        self.executing
    }

    /// Cells of the coverage ranges that were executed since the last call, ascending; empty for
    /// a VM that counts nothing.
    pub fn covered(&mut self) -> Vec<u32> {
        self.machine.cover.as_mut().map(Counters::moved).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.machine.process.pid()
    }

    /// Whether somebody on the host stopped QEMU.
    pub fn is_stopped(&self) -> bool {
        self.machine.process.is_stopped()
    }

    /// Resident memory of QEMU, in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.machine.process.rss_kib()
    }

    /// Memory of QEMU that it shares with nobody, in KiB.
    pub fn private_kib(&self) -> u64 {
        self.machine.process.private_kib()
    }

    pub fn kill(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    const SECOND: Duration = Duration::from_secs(5);

    fn pair() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Link::new(ours).unwrap(), theirs)
    }

    /// Something that is never readable: a process that lives.
    fn living() -> UnixStream {
        let (a, b) = UnixStream::pair().unwrap();
        std::mem::forget(b);
        a
    }

    fn next(link: &mut Link, timeout: Duration) -> Result<Option<FromGuest>, Broken> {
        link.next(living(), Instant::now() + timeout)
    }

    #[test]
    fn frames_split_at_every_byte_arrive_whole() {
        let (mut link, mut guest) = pair();
        let message = FromGuest::Log("x".repeat(40));
        for byte in wire::encode(&message).unwrap() {
            assert_eq!(next(&mut link, Duration::ZERO), Ok(None));
            guest.write_all(&[byte]).unwrap();
        }
        assert_eq!(next(&mut link, SECOND), Ok(Some(message)));
    }

    #[test]
    fn what_was_sent_before_the_end_is_still_given_out() {
        let (mut link, mut guest) = pair();
        let ended = File::open("/dev/null").unwrap();
        for n in 0..3 {
            guest.write_all(&wire::encode(&FromGuest::Executing { id: n }).unwrap()).unwrap();
        }
        for id in 0..3 {
            let got = link.next(&ended, Instant::now() + SECOND);
            assert_eq!(got, Ok(Some(FromGuest::Executing { id })));
        }
        assert_eq!(link.next(&ended, Instant::now() + SECOND), Err(Broken::Ended));
        drop(guest);
        assert_eq!(next(&mut link, SECOND), Err(Broken::Closed));
    }

    #[test]
    fn lies_end_the_link() {
        let mut huge = wire::encode(&FromGuest::Log(String::new())).unwrap();
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        for bytes in [huge, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
            let (mut link, mut guest) = pair();
            guest.write_all(&bytes).unwrap();
            assert!(matches!(next(&mut link, SECOND), Err(Broken::Protocol(_))));
        }
    }

    #[test]
    fn two_sides_that_both_write_do_not_stop_each_other() {
        let (mut link, guest) = pair();
        let frame = wire::encode(&FromGuest::Log("y".repeat(60_000))).unwrap();
        let mut writer = guest.try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            for _ in 0..100 {
                writer.write_all(&frame).unwrap();
            }
            // Only now does the guest read, and all there is: a socket is writable again only when
            // most of what it holds is gone.
            writer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut sink = vec![0u8; 1 << 16];
            let mut got = 0;
            while let Ok(n) = writer.read(&mut sink) {
                got += n;
            }
            got
        });
        // Fill our side first, so that the send has to wait for the guest.
        let stream = link.stream.try_clone().unwrap();
        let mut filler = 0;
        while let Ok(n) = (&stream).write(&[0; 4096]) {
            filler += n;
        }
        link.send(&ToGuest::Hello, living()).unwrap();
        assert!(filler > 0);
        for _ in 0..100 {
            assert!(matches!(next(&mut link, SECOND), Ok(Some(FromGuest::Log(_)))));
        }
        let hello = wire::encode(&ToGuest::Hello).unwrap().len();
        assert_eq!(flood.join().unwrap(), filler + hello);
    }
}
