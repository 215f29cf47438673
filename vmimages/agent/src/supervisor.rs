//! PID 1 after boot: takes requests from the link, hands programs to a worker process one at a
//! time, relays answers, and stays alive whatever happens to the worker.

use crate::board::Board;
use crate::init::Settings;
use crate::link::Link;
use crate::{executable, kcov, provoke, sabotage, stuck, symbols, sys, worker};
use case::link::{FromGuest, RunOutcome, RunRequest, ToGuest};
use case::profile::Profile;
use case::wire::{self, Decoder};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;

/// A program may take this many op timeouts, and this much more.
const OP_TIMEOUTS: u64 = 4;
const EXTRA_MS: u64 = 5_000;
/// Canary reports wait for the kernel's hung-task scan.
const CANARY_MS: u64 = 10_000;
/// How long killed processes may take to go.
const REAP_MS: u64 = 2_000;
/// Bytes of one answer of the worker: what it covered, and what it saw.
const ANSWER_BYTES_MAX: usize = 2 * (case::limits::FRAME_BYTES_MAX + wire::HEADER_BYTES);

struct Worker {
    pid: i32,
    sock: i32,
    board: &'static Board,
    /// Has run no program yet.
    fresh: bool,
    /// Bytes of its answer so far.
    answer: Vec<u8>,
}

struct Running {
    id: u64,
    deadline: u64,
}

struct Supervisor<'a> {
    link: &'a Link,
    settings: &'a Settings,
    worker: Option<Worker>,
    queue: VecDeque<RunRequest>,
    running: Option<Running>,
    /// Bytes for the host that go out in one write.
    out: Vec<u8>,
}

/// Serves until the link fails; returns its errno.
pub fn serve(link: &Link, profile: &Profile, settings: &Settings) -> i32 {
    ignore_pipe_signals();
    let mut supervisor = Supervisor {
        link,
        settings,
        worker: None,
        queue: VecDeque::new(),
        running: None,
        out: Vec::new(),
    };
    let mut decoder = Decoder::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        if let Err(errno) = supervisor.turn() {
            return errno;
        }
        let ready = supervisor.wait();
        if ready.worker {
            supervisor.read_worker();
        }
        supervisor.reap();
        if ready.link {
            match sys::read_some(link.fd, &mut buffer) {
                // The host side of the port is closed for now.
                Ok(0) => sys::sleep_ms(20),
                Ok(n) => decoder.push(&buffer[..n]),
                Err(libc::EAGAIN) => {}
                Err(errno) => return errno,
            }
        }
        loop {
            match decoder.next::<ToGuest>() {
                Ok(Some(message)) => supervisor.take(message, profile),
                Ok(None) => break,
                Err(error) => {
                    sys::say(&format!("bad frame from the host: {error}"));
                    return libc::EBADMSG;
                }
            }
        }
    }
}

fn ignore_pipe_signals() {
    // SAFETY: a disposition without a handler function.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

struct Ready {
    link: bool,
    worker: bool,
}

impl Supervisor<'_> {
    fn say(&mut self, message: &FromGuest) {
        match wire::encode(message) {
            Ok(frame) => self.out.extend_from_slice(&frame),
            Err(error) => sys::say(&format!("cannot encode an answer: {error}")),
        }
    }

    fn take(&mut self, message: ToGuest, profile: &Profile) {
        match message {
            ToGuest::Hello => self.say(&FromGuest::Ready(profile.clone())),
            ToGuest::Run(request) => self.queue.push_back(request),
            ToGuest::Sabotage(how) => sabotage::commit(how),
            ToGuest::Provoke(name) => {
                let errno = provoke::provoke(&name);
                self.say(&FromGuest::Provoked { errno });
            }
            ToGuest::Execute { binary, seconds } => {
                // Nothing else runs beside it: counters and log are its own.
                self.retire();
                let (end, printed) = executable::run(&binary, seconds);
                self.settings.restore();
                self.say(&FromGuest::Executed { end, printed });
            }
            ToGuest::Poweroff => crate::init::power_off(),
            ToGuest::Symbols => self.say_symbols(),
            ToGuest::Cover(ranges) => {
                match kcov::prepare(ranges) {
                    // A worker that is there already records nothing; the next one does.
                    Ok(()) if self.running.is_none() => {
                        self.retire();
                    }
                    Ok(()) => {}
                    Err(why) => sys::say(&format!("no coverage: {why}")),
                }
            }
        }
    }

    fn say_symbols(&mut self) {
        let mut parts = symbols::parts().into_iter().peekable();
        if parts.peek().is_none() {
            self.say(&FromGuest::Symbols { part: Vec::new(), more: false });
        }
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            self.say(&FromGuest::Symbols { part, more });
        }
    }

    /// Starts the next program if none runs, and sends what is to be said.
    fn turn(&mut self) -> Result<(), i32> {
        self.check_deadline();
        let next = if self.running.is_none() { self.queue.pop_front() } else { None };
        if let Some(request) = &next {
            // Ahead of the run and in one write with the previous answer.
            self.say(&FromGuest::Executing { id: request.id });
        }
        if !self.out.is_empty() {
            sys::write_all(self.link.fd, &self.out)?;
            self.out.clear();
        }
        if let Some(request) = next {
            self.start(&request);
        }
        Ok(())
    }

    fn start(&mut self, request: &RunRequest) {
        if request.fresh && self.worker.as_ref().is_some_and(|w| !w.fresh) {
            self.retire();
        }
        if self.worker.is_none()
            && let Err(errno) = self.spawn()
        {
            return self.refuse(request.id, &format!("no worker: errno {errno}"));
        }
        let Some(worker) = &mut self.worker else { return };
        worker.fresh = false;
        worker.board.line.store(0, SeqCst);
        let Ok(body) = postcard::to_stdvec(request) else {
            return self.refuse(request.id, "the request does not encode");
        };
        let canary = if request.canary.is_some() { CANARY_MS } else { 0 };
        let allowed = u64::from(request.op_timeout_ms) * OP_TIMEOUTS + EXTRA_MS + canary;
        self.running = Some(Running { id: request.id, deadline: sys::now() + allowed * 1_000_000 });
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        // A worker that is gone shows when it is reaped.
        let _ = sys::write_all(worker.sock, &bytes);
    }

    fn refuse(&mut self, id: u64, why: &str) {
        self.say(&FromGuest::Done { id, outcome: RunOutcome::Refused(why.into()) });
    }

    fn spawn(&mut self) -> Result<(), i32> {
        let board = Board::create()?;
        let pair = sys::socketpair()?;
        // SAFETY: the supervisor has one thread, so the child is a plain copy of it.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => {
                let errno = sys::errno();
                pair.into_iter().for_each(sys::close);
                board.destroy();
                Err(errno)
            }
            0 => become_worker(self.link.fd, pair, board),
            pid => {
                sys::close(pair[1]);
                let (sock, answer) = (pair[0], Vec::new());
                self.worker = Some(Worker { pid, sock, board, fresh: true, answer });
                Ok(())
            }
        }
    }

    fn wait(&self) -> Ready {
        let sock = self.worker.as_ref().map_or(-1, |w| w.sock);
        let mut fds =
            [self.link.fd, sock].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let wait_ms = if self.running.is_some() { 100 } else { 1000 };
        // SAFETY: two pollfds; a negative descriptor is passed over.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, wait_ms) };
        Ready { link: fds[0].revents != 0, worker: fds[1].revents != 0 }
    }

    fn read_worker(&mut self) {
        let Some(worker) = &mut self.worker else { return };
        let mut chunk = vec![0u8; 256 << 10];
        match sys::read_some(worker.sock, &mut chunk) {
            Ok(n) if n > 0 => worker.answer.extend_from_slice(&chunk[..n]),
            _ => return self.worker_gone(),
        }
        let Some((head, rest)) = worker.answer.split_at_checked(5) else { return };
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > ANSWER_BYTES_MAX {
            return self.worker_gone();
        }
        if rest.len() < len {
            return;
        }
        let used = head[0] != worker::CLEAN;
        self.out.extend_from_slice(&rest[..len]);
        worker.answer.clear();
        self.running = None;
        if used {
            self.retire();
        }
    }

    /// Ends the worker and whatever it left, puts settings back. False if something did not go.
    fn retire(&mut self) -> bool {
        let Some(worker) = self.worker.take() else { return true };
        sys::close(worker.sock);
        // SAFETY: the worker leads a process group of its own with all its children.
        unsafe { libc::kill(-worker.pid, libc::SIGKILL) };
        let until = sys::now() + REAP_MS * 1_000_000;
        let mut gone = true;
        loop {
            // SAFETY: no status is asked for; only processes of that group.
            let pid = unsafe { libc::waitpid(-worker.pid, std::ptr::null_mut(), libc::WNOHANG) };
            match pid {
                0 if sys::now() >= until => {
                    sys::say("killed processes do not go");
                    gone = false;
                    break;
                }
                0 => sys::sleep_ms(1),
                pid if pid > 0 => {}
                _ => break,
            }
        }
        worker.board.destroy();
        self.settings.restore();
        gone
    }

    /// The worker ended or lost its manners while it ran a program, or between two.
    fn worker_gone(&mut self) {
        let line = self.worker.as_ref().map_or(0, |w| w.board.line.load(SeqCst)) as u16;
        let signal = self.death_signal();
        self.retire();
        if let Some(running) = self.running.take() {
            let outcome = RunOutcome::WorkerDied { signal, line };
            self.say(&FromGuest::Done { id: running.id, outcome });
        }
    }

    /// The signal the worker died of by itself; 0 if it exited or still lives.
    fn death_signal(&self) -> i32 {
        let Some(worker) = &self.worker else { return 0 };
        let until = sys::now() + REAP_MS * 1_000_000;
        loop {
            // SAFETY: zero is a valid siginfo; WNOWAIT leaves the process for `retire`.
            let info = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
                libc::waitid(libc::P_PID, worker.pid as u32, &mut info, flags);
                info
            };
            // SAFETY: the fields of a SIGCHLD siginfo.
            let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
            if pid == worker.pid {
                return if info.si_code == libc::CLD_EXITED { 0 } else { status };
            }
            if sys::now() >= until {
                return 0;
            }
            sys::sleep_ms(1);
        }
    }

    fn check_deadline(&mut self) {
        let Some(running) = &self.running else { return };
        if sys::now() < running.deadline {
            return;
        }
        let id = running.id;
        let line = self.worker.as_ref().map_or(0, |w| w.board.line.load(SeqCst)) as u16;
        let stuck = self.worker.as_ref().map_or(Vec::new(), |w| stuck::threads(w.pid));
        let killed = self.retire();
        self.running = None;
        let outcome = RunOutcome::WorkerHung { line, stuck, killed };
        self.say(&FromGuest::Done { id, outcome });
    }

    /// Waits for orphans; the worker itself is left to `worker_gone`, which its socket's end
    /// brings about.
    fn reap(&mut self) {
        let own = self.worker.as_ref().map_or(0, |w| w.pid);
        loop {
            // SAFETY: as in `death_signal`.
            let pid = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
                libc::waitid(libc::P_ALL, 0, &mut info, flags);
                info.si_pid()
            };
            if pid == 0 || pid == own {
                return;
            }
            // SAFETY: an ended child that is not the worker.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        }
    }
}

fn become_worker(link: i32, pair: [i32; 2], board: &'static Board) -> ! {
    sys::close(link);
    sys::close(pair[0]);
    // SAFETY: a session and process group of its own, killed as one; dies with the supervisor.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let _ = sys::put("/proc/self/oom_score_adj", "500");
    let code = match worker::serve(pair[1], board) {
        Ok(()) | Err(libc::EPIPE) => 0,
        Err(errno) => {
            sys::say(&format!("worker ends: errno {errno}"));
            1
        }
    };
    // SAFETY: ends the process without running the supervisor's destructors.
    unsafe { libc::_exit(code) }
}
