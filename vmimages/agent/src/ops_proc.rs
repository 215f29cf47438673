//! Processes: forking them, the loop a forked process serves its lines in, and the worker's side
//! of that. All processes of a program share one table of file descriptors, so that objects made
//! after a fork are everybody's and a close is a close.

use crate::board::{Board, NONE};
use crate::exec::{self, Lane, Outcome, Reply, plain, skip};
use crate::{guard, kcov, look, special, sys, timeout};
use case::Op;
use case::observation::{Output, SignalSeen, Skip, Spot, Status, View};
use case::value::{ProcId, What};
use std::sync::atomic::Ordering::SeqCst;

/// Sent instead of a line number: release everything and exit.
const END: u32 = u32::MAX;
/// Bytes of one reply of a forked process.
const REPLY_BYTES_MAX: usize = case::limits::FRAME_BYTES_MAX;
/// Extra time a process has to answer after its op should have been broken off.
const GRACE_MS: u64 = 1000;

/// Runs the op if it is one of this file's.
pub fn run(lane: &mut Lane, op: &Op) -> Option<Outcome> {
    match op {
        Op::Fork { child } => Some(fork(lane, *child)),
        _ => None,
    }
}

/// Looks that only the process itself can take.
pub fn own_views(lane: &Lane, op: &Op) -> Vec<View> {
    match op {
        Op::Observe { at, len, what } if what.has(What::MINCORE) => {
            let result = look::mincore(*at, len.0);
            vec![View::Mincore { proc: ProcId(lane.proc), at: *at, result }]
        }
        _ => Vec::new(),
    }
}

fn fork(lane: &mut Lane, child: ProcId) -> Outcome {
    let board = lane.shared.board;
    let pair = match sys::socketpair() {
        Ok(pair) => pair,
        Err(errno) => return (exec::failed(errno), Output::Nothing),
    };
    forget_looks(board);
    let mut flags = libc::CLONE_FILES | libc::SIGCHLD;
    if lane.proc != 0 {
        // The worker is every process's parent: it waits for them.
        flags |= libc::CLONE_PARENT;
    }
    // SAFETY: a plain fork apart from the shared descriptors: the child gets a copy of this
    // stack. Other threads of the process (watchdog, fault handlers) hold no lock and do not
    // allocate.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as u64, 0, 0, 0, 0) };
    match pid {
        -1 => {
            let errno = sys::errno();
            pair.into_iter().for_each(sys::close);
            (exec::failed(errno), Output::Nothing)
        }
        0 => serve(lane, child, pair[1]),
        pid => {
            let slot = &board.procs[usize::from(child.0)];
            // SAFETY: no pointers.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            slot.pidfd.store(pidfd as i32, SeqCst);
            slot.own.store(pair[1], SeqCst);
            slot.sock.store(pair[0], SeqCst);
            slot.pid.store(pid as i32, SeqCst);
            (Status::Ok(0), Output::Nothing)
        }
    }
}

/// Closes cached looks, lest a child that shares the descriptors closes them under its parent.
fn forget_looks(board: &Board) {
    for proc in &board.procs {
        let pid = proc.pid.load(SeqCst);
        if pid != 0 {
            look::forget(pid);
        }
    }
}

/// The life of a forked process.
fn serve(lane: &mut Lane, me: ProcId, sock: i32) -> ! {
    // SAFETY: dies with the worker.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    lane.owned.disown();
    lane.strays.clear();
    (lane.slot, lane.proc) = (usize::from(me.0), me.0);
    special::forget_poison();
    kcov::in_child();
    timeout::enroll(lane.shared.board, lane.slot);
    let mut code = 0;
    loop {
        let mut word = [0u8; 4];
        if sys::read_exact(sock, &mut word).is_err() {
            break;
        }
        let line = u32::from_le_bytes(word);
        let Some(op) = lane.shared.ops.get(line as usize) else {
            lane.owned.release();
            break;
        };
        let reply = exec::run(lane, line as u16, op);
        let sent = postcard::to_stdvec(&reply).ok().map(|body| {
            let head = (body.len() as u32).to_le_bytes();
            sys::write_all(sock, &head).and_then(|()| sys::write_all(sock, &body))
        });
        if !matches!(sent, Some(Ok(()))) {
            code = 1;
            break;
        }
    }
    kcov::stop();
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// A process as the worker sees it.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    pub board: &'static Board,
    pub proc: ProcId,
}

impl Remote {
    fn slot(&self) -> &'static crate::board::Proc {
        &self.board.procs[usize::from(self.proc.0)]
    }

    /// Its process id while it lives. The slot is in memory that programs share: what is no id of a
    /// child would signal everybody.
    pub fn pid(&self) -> Option<i32> {
        let pid = self.slot().pid.load(SeqCst);
        (pid > 1).then_some(pid)
    }

    fn patience_ms(&self) -> u64 {
        self.board.timeout_ns.load(SeqCst) / 1_000_000 + GRACE_MS
    }

    /// Has it run a line. The second value is true when it did not come back at all.
    pub fn run(&self, line: u16) -> (Reply, bool) {
        if self.pid().is_none() {
            return (bare(skip(Skip::NoProcess)), false);
        }
        let sock = self.slot().sock.load(SeqCst);
        if sys::write_all(sock, &u32::from(line).to_le_bytes()).is_err() {
            return self.gone();
        }
        match self.await_reply(sock) {
            Waited::Reply => match read_reply(sock) {
                Some(reply) => (reply, false),
                None => self.gone(),
            },
            Waited::Death => self.gone(),
            Waited::Nothing => (bare((Status::Timeout, Output::Nothing)), true),
        }
    }

    fn await_reply(&self, sock: i32) -> Waited {
        let until = sys::now() + self.patience_ms() * 1_000_000;
        loop {
            let fds = [sock, self.slot().pidfd.load(SeqCst)];
            let mut fds = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            let left = until.saturating_sub(sys::now()) / 1_000_000;
            // SAFETY: two pollfds.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, left.min(1000) as i32) };
            if fds[0].revents & libc::POLLIN != 0 {
                return Waited::Reply;
            }
            if fds[1].revents != 0 {
                return Waited::Death;
            }
            if left == 0 {
                return Waited::Nothing;
            }
        }
    }

    /// It died instead of answering.
    fn gone(&self) -> (Reply, bool) {
        let signo = self.reap();
        let status = match signo {
            Some(signo) if signo > 0 => Status::Signal(SignalSeen {
                signo: signo as u8,
                code: 0,
                at: Spot::Outside(0),
                lsb: 0,
            }),
            _ => Status::Skipped(Skip::NoProcess),
        };
        (bare((status, Output::Nothing)), true)
    }

    /// Waits for its end and closes what belonged to it: the signal it died of, 0 for an exit,
    /// `None` if it does not end.
    fn reap(&self) -> Option<i32> {
        let pid = self.pid()?;
        let slot = self.slot();
        self.board.watch[usize::from(self.proc.0)].deadline.store(0, SeqCst);
        let pidfd = slot.pidfd.load(SeqCst);
        if !sys::readable(pidfd, self.patience_ms() as i32) {
            // SAFETY: a child of ours that was not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            if !sys::readable(pidfd, self.patience_ms() as i32) {
                return None;
            }
        }
        let mut status = 0;
        // SAFETY: writes one int.
        while unsafe { libc::waitpid(pid, &mut status, 0) } == -1 && sys::errno() == libc::EINTR {}
        look::forget(pid);
        slot.pid.store(0, SeqCst);
        for fd in [&slot.pidfd, &slot.sock, &slot.own] {
            let fd = fd.swap(NONE, SeqCst);
            if fd != NONE {
                sys::close(fd);
            }
        }
        Some(if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 })
    }

    /// Ends it: asked first, so that it releases its pins, then killed. False if it stays.
    pub fn end(&self) -> bool {
        if self.pid().is_none() {
            return true;
        }
        let sock = self.slot().sock.load(SeqCst);
        let _ = sys::write_all(sock, &END.to_le_bytes());
        self.reap().is_some()
    }

    /// The `exit` op.
    pub fn exit(&self) -> Reply {
        if self.pid().is_none() {
            return bare(skip(Skip::NoProcess));
        }
        bare(match self.end() {
            true => plain(0),
            false => (Status::Timeout, Output::Nothing),
        })
    }
}

enum Waited {
    Reply,
    Death,
    Nothing,
}

/// A reply with nothing but an outcome.
pub fn bare((status, out): Outcome) -> Reply {
    Reply { status, out, also: guard::take_also(), views: Vec::new() }
}

fn read_reply(sock: i32) -> Option<Reply> {
    let mut head = [0u8; 4];
    sys::read_exact(sock, &mut head).ok()?;
    let len = u32::from_le_bytes(head) as usize;
    if len > REPLY_BYTES_MAX {
        return None;
    }
    let mut body = vec![0u8; len];
    sys::read_exact(sock, &mut body).ok()?;
    postcard::from_bytes(&body).ok()
}
