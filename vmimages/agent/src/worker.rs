//! The worker: runs programs one after the other, line by line, looks where asked, and proves
//! after each that nothing is left. It serves requests from its supervisor until told otherwise;
//! a worker whose process is no longer like new says so and is replaced.

use crate::board::{Board, PAR_SLOT};
use crate::exec::{self, Lane, Reply, Shared};
use crate::ops_proc::{self, Remote};
use crate::views::{self, Subject};
use crate::{canary, guard, handler, kcov, look, ops_map, special, sys, timeout};
use case::link::{Canary, FromGuest, Look, RunOutcome, RunRequest};
use case::observation::{Counters, FaultSeen, LineObs, Observation, Skip, Status};
use case::program::Act;
use case::value::{Advice, ProcId};
use case::{Op, wire};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// How long freed pages may take to come back before the counters count as final.
const SETTLE_MS: u64 = 200;
/// Bytes of one request from the supervisor.
const REQUEST_BYTES_MAX: usize = case::limits::FRAME_BYTES_MAX;
/// First byte of an answer to the supervisor.
pub const CLEAN: u8 = 0;
/// The same, from a worker that must be replaced.
pub const USED: u8 = 1;

/// Serves requests: u32 length and a postcard `RunRequest`; answers are a byte [`CLEAN`] or
/// [`USED`], a u32 length and wire frames that go to the host as they are.
pub fn serve(sock: i32, board: &'static Board) -> Result<(), i32> {
    // A fault and its handler take turns: on one CPU that is a switch, on two it is a wake-up
    // of an idle CPU. Only `par` threads run side by side. First touches stay on one node too.
    sys::pin_to_cpu(0);
    guard::install();
    guard::signal_stack();
    timeout::enroll(board, 0);
    timeout::start(board).map_err(|e| e.raw_os_error().unwrap_or(libc::ENOMEM))?;
    warm_up();
    kcov::start();
    let mut fresh = true;
    loop {
        let mut head = [0u8; 4];
        sys::read_exact(sock, &mut head)?;
        let len = u32::from_le_bytes(head) as usize;
        if len > REQUEST_BYTES_MAX {
            return Err(libc::EMSGSIZE);
        }
        let mut body = vec![0u8; len];
        sys::read_exact(sock, &mut body)?;
        let request = postcard::from_bytes::<RunRequest>(&body).map_err(|_| libc::EBADMSG)?;
        kcov::clear();
        let (outcome, mut used) = run(board, &request, fresh);
        fresh = false;
        let mut frame = covered_frame(request.id);
        let (done, too_big) = done_frame(request.id, outcome)?;
        frame.extend_from_slice(&done);
        used |= too_big;
        let mut answer = Vec::with_capacity(frame.len() + 5);
        answer.push(if used { USED } else { CLEAN });
        answer.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        answer.extend_from_slice(&frame);
        sys::write_all(sock, &answer)?;
        if used {
            return Ok(());
        }
    }
}

/// Opens what looks keep open, so that descriptors made later are the program's.
fn warm_up() {
    look::prepare();
    special::prepare();
    let mut frames = look::Frames::default();
    // SAFETY: getpid has no arguments.
    let pid = unsafe { libc::getpid() };
    let at = case::value::Place::new(0, 0);
    let _ = look::pages(pid, at, 1, true, &mut frames);
    let _ = look::vmas(pid, at, 4096, true);
    let _ = look::status(pid);
    look::counters();
}

/// What goes ahead of the result where the host wants coverage; else nothing.
fn covered_frame(id: u64) -> Vec<u8> {
    if !kcov::is_on() {
        return Vec::new();
    }
    kcov::collect();
    wire::encode(&FromGuest::Covered { id, cells: kcov::cells() }).unwrap_or_default()
}

fn done_frame(id: u64, outcome: RunOutcome) -> Result<(Vec<u8>, bool), i32> {
    if let Ok(frame) = wire::encode(&FromGuest::Done { id, outcome }) {
        return Ok((frame, false));
    }
    let outcome = RunOutcome::Refused("the observation does not fit a frame".into());
    wire::encode(&FromGuest::Done { id, outcome }).map_or(Err(libc::EMSGSIZE), |f| Ok((f, true)))
}

/// Runs one program. The second value says that this process should run no other.
fn run(board: &'static Board, request: &RunRequest, fresh: bool) -> (RunOutcome, bool) {
    if let Err(wrong) = case::check::check(&request.program) {
        return (RunOutcome::Refused(wrong.to_string()), false);
    }
    board.clear();
    board.timeout_ns.store(u64::from(request.op_timeout_ms.max(1)) * 1_000_000, SeqCst);
    handler::prepare();
    let all = request.program.each_line();
    let ops: Vec<&Op> = all.iter().map(|(_, _, op)| *op).collect();
    let flip_at = canary::flip_at(request.canary, &ops);
    let shared = Shared { board, ops: &ops, flip_at };
    // SAFETY: getpid has no arguments.
    board.procs[0].pid.store(unsafe { libc::getpid() }, SeqCst);
    let mut run = Run {
        shared,
        p0: Lane::new(shared, 0, 0),
        look: request.look,
        frames: look::Frames::default(),
        lines: Vec::with_capacity(ops.len()),
        lost: BTreeSet::new(),
        used: fresh_is_due(&ops) || request.fresh,
        first_fd: lowest_free_fd(),
    };
    let before = look::counters();
    let start = sys::now();
    timeout::running(board, true);
    run.steps(request);
    let end = run.end_views();
    if request.canary == Some(Canary::KernelReport) {
        canary::kernel_report();
        run.used = true;
    }
    canary::falsify(request.canary, &mut run.lines, &ops);
    run.teardown();
    let leak = canary::Leak::plant(request.canary);
    run.used |= leak.is_some();
    let after = stable_counters(&before);
    special::unpoison_all();
    timeout::running(board, false);
    let observation =
        Observation { before, lines: run.lines, end, after, fresh, nanos: sys::now() - start };
    drop(leak);
    (RunOutcome::Finished(observation), run.used)
}

/// Ops after which a process is not like new, whatever their result.
fn fresh_is_due(ops: &[&Op]) -> bool {
    ops.iter().any(|op| match op {
        Op::Fork { .. }
        | Op::Mlock { .. }
        | Op::SetKnob { .. }
        | Op::FailNth { .. }
        | Op::Unpoison { .. }
        | Op::UffdPoison { .. }
        | Op::MigratePages { .. }
        | Op::SetMempolicy { .. } => true,
        Op::Madvise { advice, .. } => {
            matches!(advice, Advice::HwPoison | Advice::SoftOffline | Advice::Mergeable)
        }
        Op::Mmap { flags, .. } => flags.any(case::value::MmapFlags::LOCKED),
        Op::Mremap { to: None, .. } => true,
        _ => false,
    })
}

fn lowest_free_fd() -> i32 {
    // SAFETY: duplicates stderr and closes the copy again.
    unsafe {
        let fd = libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 3);
        libc::close(fd);
        fd
    }
}

/// Counters once they equal those of before, or after the time freeing may take.
fn stable_counters(before: &Counters) -> Counters {
    let until = sys::now() + SETTLE_MS * 1_000_000;
    loop {
        let after = look::counters();
        if after == *before || sys::now() >= until {
            return after;
        }
        sys::sleep_ms(5);
    }
}

struct Run<'p> {
    shared: Shared<'p>,
    p0: Lane<'p>,
    look: Look,
    frames: look::Frames,
    lines: Vec<LineObs>,
    /// Processes that did not come back from a line.
    lost: BTreeSet<u8>,
    used: bool,
    first_fd: i32,
}

impl<'p> Run<'p> {
    fn steps(&mut self, request: &RunRequest) {
        for step in &request.program.steps {
            match &step.act {
                Act::One(line) => self.one(line.proc, &line.op),
                Act::Par(threads) => self.par(threads),
            }
        }
    }

    fn one(&mut self, proc: ProcId, op: &Op) {
        let line = self.lines.len() as u16;
        let reply = self.issue(proc, line, op);
        self.used |=
            matches!(reply.status, Status::Signal(_) | Status::Timeout) || reply.also.is_some();
        self.record(reply);
        self.collect_events();
        self.look_after(proc, op);
    }

    /// Has the right process run the line. Objects whose state the worker holds are its own
    /// business whoever names them.
    fn issue(&mut self, proc: ProcId, line: u16, op: &Op) -> Reply {
        let remote = |proc| Remote { board: self.shared.board, proc };
        if proc.0 != 0 && remote(proc).pid().is_none() {
            return ops_proc::bare(exec::skip(Skip::NoProcess));
        }
        if self.lost.contains(&proc.0) {
            return ops_proc::bare(exec::skip(Skip::Abandoned));
        }
        let target = match op {
            Op::CloseUffd { .. } | Op::SetKnob { .. } => ProcId(0),
            Op::Unpin { pin } => {
                let holder = self.shared.board.pins[usize::from(pin.0)].load(SeqCst);
                ProcId(holder.saturating_sub(1) as u8)
            }
            _ => proc,
        };
        if target.0 == 0 {
            return exec::run(&mut self.p0, line, op);
        }
        self.shared.board.line.store(line.into(), SeqCst);
        if matches!(op, Op::Exit {}) {
            return remote(target).exit();
        }
        let (reply, lost) = remote(target).run(line);
        if lost && remote(target).pid().is_some() {
            self.lost.insert(target.0);
        }
        reply
    }

    fn record(&mut self, reply: Reply) {
        self.lines.push(LineObs {
            status: reply.status,
            out: reply.out,
            also: reply.also,
            events: Vec::new(),
            views: reply.views,
            pools: None,
        });
    }

    fn collect_events(&mut self) {
        handler::settle(self.shared.board);
        let lines = &mut self.lines;
        handler::take_events(&mut |line: u16, seen: FaultSeen| {
            // Messages of one line may come in several parts, each with less than its fill.
            if let Some(line) = lines.get_mut(usize::from(line))
                && line.events.len() < case::limits::EVENTS_MAX
            {
                line.events.push(seen);
            }
        });
    }

    fn subject(&self, proc: ProcId) -> Option<Subject> {
        let pid = self.shared.board.procs.get(usize::from(proc.0))?.pid.load(SeqCst);
        (pid != 0).then_some(Subject { proc, pid })
    }

    fn look_after(&mut self, proc: ProcId, op: &Op) {
        let subject = self.subject(proc);
        let each = self.look == Look::Each;
        let Some(last) = self.lines.last_mut() else { return };
        let issued = !matches!(last.status, Status::Skipped(_));
        if let (Op::Observe { at, len, what }, Some(subject), true) = (op, subject, issued) {
            let own = std::mem::take(&mut last.views);
            let range = (*at, len.0);
            views::asked(subject, range, *what, &mut self.frames, own, &mut last.views);
        } else if let (true, Some(subject)) = (each && issued, subject) {
            let board = self.shared.board;
            views::after_op(board, subject, op, &mut self.frames, &mut last.views);
        }
        if each {
            last.pools = Some(look::pools());
        }
    }

    /// Runs the threads of a block, started together.
    fn par(&mut self, threads: &[Vec<Op>]) {
        let first = self.lines.len();
        let shared = self.shared;
        let ready = AtomicUsize::new(0);
        let mut next = first;
        let mut starts = Vec::with_capacity(threads.len());
        for ops in threads {
            starts.push(next);
            next += ops.len();
        }
        let results: Vec<ParResult> = std::thread::scope(|scope| {
            let ready = &ready;
            let handles: Vec<_> = threads
                .iter()
                .zip(&starts)
                .enumerate()
                .map(|(index, (ops, start))| {
                    let (count, start) = (threads.len(), *start);
                    scope.spawn(move || {
                        par_thread(shared, PAR_SLOT + index, ready, count, start, ops)
                    })
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap_or_default()).collect()
        });
        for ((replies, strays), ops) in results.into_iter().zip(threads) {
            let missing = ops.len() - replies.len();
            let trouble = |r: &Reply| matches!(r.status, Status::Signal(_) | Status::Timeout);
            self.used |= missing > 0 || replies.iter().any(trouble);
            for reply in replies {
                self.record(reply);
            }
            for _ in 0..missing {
                self.record(ops_proc::bare(exec::skip(Skip::Abandoned)));
            }
            self.p0.strays.extend(strays);
        }
        self.collect_events();
        self.look_after_par(threads);
    }

    fn look_after_par(&mut self, threads: &[Vec<Op>]) {
        if self.look != Look::Each {
            return;
        }
        let Some(subject) = self.subject(ProcId(0)) else { return };
        let mut seen = Vec::new();
        for op in threads.iter().flatten() {
            let mut one = Vec::new();
            views::after_op(self.shared.board, subject, op, &mut self.frames, &mut one);
            for view in one {
                if !seen.contains(&view) {
                    seen.push(view);
                }
            }
        }
        if let Some(last) = self.lines.last_mut() {
            last.views.extend(seen);
        }
    }

    fn end_views(&mut self) -> Vec<case::observation::View> {
        let mut out = Vec::new();
        for proc in 0..case::limits::OBJECTS_MAX {
            if let Some(subject) = self.subject(ProcId(proc)) {
                views::at_end(self.shared.board, subject, &mut self.frames, &mut out);
            }
        }
        out
    }

    /// Gives back everything the program made.
    fn teardown(&mut self) {
        let board = self.shared.board;
        let mut forked = false;
        // Faults nobody answers would keep processes from ending.
        for uffd in &board.uffds {
            timeout::close(uffd);
        }
        handler::stop_all(board);
        for proc in 1..case::limits::OBJECTS_MAX {
            let remote = Remote { board, proc: ProcId(proc) };
            forked |= remote.pid().is_some();
            self.used |= !remote.end();
        }
        self.p0.owned.release();
        special::restore_mempolicy();
        self.used |= !ops_map::unmap_all(&mut self.p0);
        for file in &board.files {
            let fd = file.swap(crate::board::NONE, SeqCst);
            if fd != crate::board::NONE {
                sys::close(fd);
            }
        }
        if self.used || forked {
            // Descriptors of processes that died without closing theirs.
            // SAFETY: numbers no part of the worker uses: looks were opened before.
            unsafe { libc::syscall(libc::SYS_close_range, self.first_fd, u32::MAX, 0) };
        }
    }
}

/// Replies of a thread's lines, and the mappings it was given outside the arena.
type ParResult = (Vec<Reply>, Vec<(u64, u64)>);

fn par_thread(
    shared: Shared,
    slot: usize,
    ready: &AtomicUsize,
    count: usize,
    start: usize,
    ops: &[Op],
) -> ParResult {
    sys::pin_to_cpu(slot - PAR_SLOT);
    guard::signal_stack();
    timeout::enroll(shared.board, slot);
    kcov::start();
    let mut lane = Lane::new(shared, slot, 0);
    let mut replies = Vec::with_capacity(ops.len());
    ready.fetch_add(1, SeqCst);
    while ready.load(SeqCst) < count {
        std::thread::yield_now();
    }
    for (index, op) in ops.iter().enumerate() {
        replies.push(exec::run(&mut lane, (start + index) as u16, op));
    }
    timeout::dismiss(shared.board, slot);
    let strays = std::mem::take(&mut lane.strays);
    drop(lane);
    kcov::stop();
    guard::drop_signal_stack();
    (replies, strays)
}
