//! The program as C statements: each op the call the agent makes, with its line as a comment above.

use crate::parts::Chosen;
use crate::words::{self, bytes, place};
use crate::{Refused, Request};
use case::observation::{Skip, Status};
use case::value::*;
use case::{Act, Op};
use std::collections::BTreeSet;

/// The program being put into C.
pub struct Script<'a> {
    pub request: &'a Request<'a>,
    pub parts: Chosen,
    /// The program forks: objects live in shared memory.
    pub forks: bool,
    /// Some op is broken off when it waits.
    pub limited: bool,
    pub regions: BTreeSet<u8>,
    /// Userfaultfds with a thread that answers, and how.
    pub handlers: Vec<(UffdId, Policy)>,
    /// Body of `program`, cases of `run_line`, functions of threads.
    pub body: String,
    pub cases: String,
    pub threads: String,
    /// `fail_nth` that waits for the next op of a process.
    failing: [Option<u32>; 8],
    /// Process that holds a pin.
    holders: [u8; 8],
}

/// Userfaultfds that get a thread: those with a policy that p0 opens.
fn handlers(request: &Request) -> Vec<(UffdId, Policy)> {
    let lines = request.program.each_line();
    let opened = lines.iter().filter_map(|(_, proc, op)| match op {
        Op::Uffd { uffd, handler, .. } if proc.0 == 0 && *handler != Policy::None => {
            Some((*uffd, *handler))
        }
        _ => None,
    });
    opened.collect()
}

impl<'a> Script<'a> {
    /// Puts the lines up to the one that is checked into C.
    pub fn of(request: &'a Request<'a>) -> Result<Script<'a>, Refused> {
        let lines = request.program.each_line();
        let mut script = Script {
            request,
            parts: Chosen::default(),
            forks: lines.iter().any(|(_, _, op)| matches!(op, Op::Fork { .. })),
            limited: false,
            regions: BTreeSet::new(),
            handlers: handlers(request),
            body: String::new(),
            cases: String::new(),
            threads: String::new(),
            failing: [None; 8],
            holders: [0; 8],
        };
        let mut number = 0;
        for step in &request.program.steps {
            if number > request.line {
                break;
            }
            match &step.act {
                Act::One(line) => script.one(number, line.proc, &line.op)?,
                Act::Par(threads) => script.par(number, threads)?,
            }
            number += step.lines() as u16;
        }
        Ok(script)
    }

    fn status(&self, line: u16) -> Option<Status> {
        Some(self.request.seen?.lines.get(usize::from(line))?.status)
    }

    /// The name of an object in C.
    pub fn object(&self, name: impl std::fmt::Display) -> String {
        if self.forks { format!("s->{name}") } else { name.to_string() }
    }

    /// The process id of a process of the program.
    pub fn pid(&self, proc: ProcId) -> String {
        if proc.0 == 0 { "s->p0".into() } else { format!("s->{proc}.pid") }
    }

    /// Whether an op may wait for ever, so that it has to be broken off.
    fn may_wait(&self, line: u16, racing: bool) -> bool {
        let unanswered = || {
            let lines = self.request.program.each_line();
            lines.iter().any(|(_, _, op)| matches!(op, Op::Uffd { handler: Policy::None, .. }))
        };
        match self.status(line) {
            Some(Status::Timeout) => true,
            Some(_) => racing && unanswered(),
            None => unanswered(),
        }
    }

    fn one(&mut self, number: u16, proc: ProcId, op: &Op) -> Result<(), Refused> {
        let comment = format!("/* {number}: {} */", words::commented(&text_of(proc, op)));
        if let Some(Status::Skipped(why)) = self.status(number) {
            let why = match why {
                Skip::NoObject => "what it names was never made",
                Skip::Unavailable => "that kernel lacks what it needs",
                Skip::NoProcess => "its process had ended",
                Skip::Abandoned => "its process never came back from an earlier line",
            };
            self.body.push_str(&format!("\t{comment}\n\t/* not run: {why} */\n\n"));
            return Ok(());
        }
        let runs_in = match op {
            Op::CloseUffd { .. } | Op::SetKnob { .. } | Op::Exit {} => 0,
            Op::Unpin { pin } => self.holders[usize::from(pin.0 & 7)],
            _ => proc.0,
        };
        let calls = self.calls(number, proc, op, false)?;
        let indent = if runs_in == 0 { "\t" } else { "\t\t" };
        let calls: String = calls.iter().map(|call| format!("{indent}{call}\n")).collect();
        self.parts.need("line");
        if runs_in == 0 {
            self.body.push_str(&format!("\t{comment}\n\tline({number});\n{calls}"));
        } else {
            self.parts.need("in_process");
            self.cases.push_str(&format!(
                "\tcase {number}:\n\t\t{comment}\n\t\tline({number});\n{calls}\t\tbreak;\n"
            ));
            self.body.push_str(&format!("\t{comment}\n\tin_process(&s->p{runs_in}, {number});\n"));
        }
        if !self.handlers.is_empty() {
            self.parts.need("settle");
            self.body.push_str("\tsettle();\n");
        }
        self.hold_against(number, op);
        self.body.push('\n');
        Ok(())
    }

    /// A line ahead of the checked one must end as it did where the bug was seen.
    fn hold_against(&mut self, number: u16, op: &Op) {
        let how = match self.status(number) {
            Some(Status::Ok(_)) => "RETURNED",
            Some(Status::Err(_)) => "FAILED",
            Some(Status::Signal(_)) => "SIGNALLED",
            Some(Status::Timeout) => "WAITED",
            _ => return,
        };
        if number < self.request.line && !matches!(op, Op::Observe { .. }) {
            self.parts.need("as_found");
            self.body.push_str(&format!("\tas_found({how});\n"));
        }
    }

    /// The calls of one op, timed if it may wait.
    fn calls(
        &mut self,
        number: u16,
        proc: ProcId,
        op: &Op,
        racing: bool,
    ) -> Result<Vec<String>, Refused> {
        for (at, _) in case::check::refs(op).at {
            self.regions.insert(at.region.0);
        }
        let armed = self.failing[usize::from(proc.0 & 7)].take();
        if armed.is_some() && needs_room(op) {
            return Err(Refused(format!("line {number}: fail_nth ahead of a call with a buffer")));
        }
        let mut calls = self.issue(proc, op)?;
        if let Some(nth) = armed {
            calls.insert(0, format!("fail_nth({nth});"));
            calls.push("fail_nth(0);".into());
        }
        if self.may_wait(number, racing) {
            self.limited = true;
            self.parts.need("limit");
            calls.insert(0, "limit_begin();".into());
            calls.push("limit_end();".into());
        }
        Ok(calls)
    }

    fn par(&mut self, first: u16, threads: &[Vec<Op>]) -> Result<(), Refused> {
        self.parts.need("meet");
        let mut number = first;
        let mut names = Vec::new();
        for (index, ops) in threads.iter().enumerate() {
            let name = format!("thread_{number}");
            let mut text = format!("static void *{name}(void *arg)\n{{\n\t(void)arg;\n");
            text.push_str(&format!("\tpin_cpu({index});\n\tmeet({});\n", threads.len()));
            for op in ops {
                let comment = words::commented(&text_of(ProcId(0), op));
                let calls = self.calls(number, ProcId(0), op, true)?;
                let calls: String = calls.iter().map(|call| format!("\t{call}\n")).collect();
                text.push_str(&format!("\t/* {number}: {comment} */\n\tline({number});\n{calls}"));
                number += 1;
            }
            text.push_str("\treturn NULL;\n}\n\n");
            self.threads.push_str(&text);
            names.push(name);
        }
        self.body.push_str(&format!("\t/* par: {} threads at once */\n\tmet = 0;\n", names.len()));
        for (n, name) in names.iter().enumerate() {
            self.body.push_str(&format!(
                "\tif (pthread_create(&thread[{n}], NULL, {name}, NULL))\n\
                 \t\tcannot(\"no thread\");\n"
            ));
        }
        for n in 0..names.len() {
            self.body.push_str(&format!("\tpthread_join(thread[{n}], NULL);\n"));
        }
        if !self.handlers.is_empty() {
            self.parts.need("settle");
            self.body.push_str("\tsettle();\n");
        }
        self.body.push('\n');
        Ok(())
    }

    fn call(&mut self, part: &'static str, text: String) -> Result<Vec<String>, Refused> {
        self.parts.need(part);
        Ok(vec![text])
    }

    fn issue(&mut self, proc: ProcId, op: &Op) -> Result<Vec<String>, Refused> {
        match op {
            Op::Memfd { .. }
            | Op::Hugetlbfs { .. }
            | Op::Ftruncate { .. }
            | Op::Fallocate { .. }
            | Op::Punch { .. }
            | Op::Pread { .. }
            | Op::Pwrite { .. }
            | Op::Fstat { .. }
            | Op::Seal { .. }
            | Op::CloseFile { .. } => self.file(op),
            Op::Mmap { .. }
            | Op::Munmap { .. }
            | Op::Mremap { .. }
            | Op::Mprotect { .. }
            | Op::Mlock { .. }
            | Op::Munlock { .. }
            | Op::Madvise { .. }
            | Op::Read { .. }
            | Op::Write { .. } => self.memory(op),
            Op::Uffd { .. }
            | Op::Register { .. }
            | Op::Unregister { .. }
            | Op::Continue { .. }
            | Op::Copy { .. }
            | Op::Zeropage { .. }
            | Op::WriteProtect { .. }
            | Op::UffdPoison { .. }
            | Op::Wake { .. }
            | Op::CloseUffd { .. } => self.uffd(proc, op),
            Op::Fork { .. } | Op::Exit {} => self.process(proc, op),
            Op::MovePages { .. }
            | Op::Mbind { .. }
            | Op::MigratePages { .. }
            | Op::SetMempolicy { .. } => self.numa(op),
            Op::VmRead { .. }
            | Op::Vmsplice { .. }
            | Op::DirectIo { .. }
            | Op::Pin { .. }
            | Op::Unpin { .. }
            | Op::GupTest { .. } => self.users_of_pages(proc, op),
            Op::Unpoison { .. } | Op::SetKnob { .. } | Op::FailNth { .. } | Op::Observe { .. } => {
                self.system(proc, op)
            }
        }
    }

    fn file(&mut self, op: &Op) -> Result<Vec<String>, Refused> {
        let name = |file: &FileId| self.object(file);
        match op {
            Op::Memfd { file, page, flags } => {
                let flags = words::memfd_flags(*page, *flags);
                let text = format!("{} = made(memfd_create(\"hgm\", {flags}));", name(file));
                self.call("made", text)
            }
            Op::Hugetlbfs { file, page } => {
                let text = format!(
                    "{} = made(hugetlbfs_file(\"pagesize={}\"));",
                    name(file),
                    if *page == PageSize::Huge1G { "1G" } else { "2M" }
                );
                self.parts.need("made");
                self.call("hugetlbfs_file", text)
            }
            Op::Ftruncate { file, len } => {
                let text = format!("done(ftruncate({}, {}));", name(file), bytes(len.0));
                self.call("done", text)
            }
            Op::Fallocate { file, off, len, flags } => {
                let (flags, name) = (words::falloc_flags(*flags), name(file));
                let (off, len) = (bytes(off.0), bytes(len.0));
                self.call("done", format!("done(fallocate({name}, {flags}, {off}, {len}));"))
            }
            Op::Punch { file, off, len } => {
                let (off, len, name) = (bytes(off.0), bytes(len.0), name(file));
                let mode = "FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE";
                self.call("done", format!("done(fallocate({name}, {mode}, {off}, {len}));"))
            }
            Op::Pread { file, off, len } => {
                let (off, len, name) = (bytes(off.0), bytes(len.0), name(file));
                self.call("file_read", format!("file_read({name}, {off}, {len});"))
            }
            Op::Pwrite { file, off, len } => {
                let (off, len, name) = (bytes(off.0), bytes(len.0), name(file));
                self.call("file_write", format!("file_write({name}, {off}, {len});"))
            }
            Op::Fstat { file } => {
                let text = format!("file_status({});", name(file));
                self.call("file_status", text)
            }
            Op::Seal { file, seals } => {
                let seals = words::seals(*seals);
                let text = format!("done(fcntl({}, F_ADD_SEALS, {seals}));", name(file));
                self.call("done", text)
            }
            Op::CloseFile { file } => {
                let name = name(file);
                self.parts.need("done");
                Ok(vec![format!("done(close({name}));"), format!("{name} = -1;")])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn memory(&mut self, op: &Op) -> Result<Vec<String>, Refused> {
        match op {
            Op::Mmap { at, len, prot, share, from, page, flags } => {
                let (fd, off) = match from {
                    Some(part) => (self.object(part.file), bytes(part.off)),
                    None => ("-1".into(), "0".into()),
                };
                let (at, len, prot) = (place(*at), bytes(len.0), words::prot(*prot));
                let anonymous = from.is_none().then_some(*page);
                let flags = words::mmap_flags(*share, anonymous, *flags);
                self.parts.need("placed");
                Ok(vec![
                    format!("placed(mmap(AT({at}), {len}, {prot},"),
                    format!("\t    {flags},"),
                    format!("\t    {fd}, {off}), {at});"),
                ])
            }
            Op::Munmap { at, len } => self.on_range("munmap", *at, *len, ""),
            Op::Mremap { at, len, new, to, flags } => {
                let (len, new) = (bytes(len.0), bytes(new.0));
                let flags = words::mremap_flags(*flags);
                let target = to.map_or_else(|| "NULL".into(), |to| format!("AT({})", place(to)));
                let asked = place(to.unwrap_or(*at));
                self.parts.headers.extend(["<sys/syscall.h>", "<unistd.h>"]);
                self.parts.need("placed");
                Ok(vec![
                    format!("placed((void *)syscall(SYS_mremap, AT({}), {len}, {new},", place(*at)),
                    format!("\t\t\t       {flags}, {target}), {asked});"),
                ])
            }
            Op::Mprotect { at, len, prot } => {
                self.on_range("mprotect", *at, *len, &format!(", {}", words::prot(*prot)))
            }
            Op::Mlock { at, len, flags } => {
                let (at, len) = (place(*at), bytes(len.0));
                let flags = words::mlock_flags(*flags);
                self.parts.headers.extend(["<sys/syscall.h>", "<unistd.h>"]);
                self.call("done", format!("done(syscall(SYS_mlock2, AT({at}), {len}, {flags}));"))
            }
            Op::Munlock { at, len } => self.on_range("munlock", *at, *len, ""),
            Op::Madvise { at, len, advice: Advice::HwPoison } => {
                self.parts.need("unpoison_all");
                self.call("poison", format!("poison({}, {});", place(*at), bytes(len.0)))
            }
            Op::Madvise { at, len, advice } => {
                self.on_range("madvise", *at, *len, &format!(", {}", words::advice(*advice)))
            }
            Op::Read { at, len } => {
                self.call("load", format!("load({}, {});", place(*at), bytes(len.0)))
            }
            Op::Write { at, len } => {
                let base = place(Place { off: 0, ..*at });
                let text = format!("store({base}, {}, {});", place(*at), bytes(len.0));
                self.call("store", text)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn on_range(
        &mut self,
        name: &str,
        at: Place,
        len: Bytes,
        more: &str,
    ) -> Result<Vec<String>, Refused> {
        let text = format!("done({name}(AT({}), {}{more}));", place(at), bytes(len.0));
        self.call("done", text)
    }

    fn uffd(&mut self, proc: ProcId, op: &Op) -> Result<Vec<String>, Refused> {
        let (uffd, at, len) = match op {
            Op::Uffd { uffd, features, handler } => {
                return self.open_uffd(proc, *uffd, *features, *handler);
            }
            Op::CloseUffd { uffd } => return self.close_uffd(*uffd),
            Op::Register { uffd, at, len, .. }
            | Op::Unregister { uffd, at, len }
            | Op::Continue { uffd, at, len, .. }
            | Op::Copy { uffd, at, len, .. }
            | Op::Zeropage { uffd, at, len, .. }
            | Op::WriteProtect { uffd, at, len, .. }
            | Op::UffdPoison { uffd, at, len, .. }
            | Op::Wake { uffd, at, len } => (*uffd, *at, *len),
            _ => return Ok(Vec::new()),
        };
        let (name, base) = (self.object(uffd), place(Place { off: 0, ..at }));
        let range = format!("{}, {}", place(at), bytes(len.0));
        let fill = |request: &str, flags: &FillFlags| {
            format!("uffd_fill({name}, {request}, {range}, {});", words::fill_flags(*flags))
        };
        match op {
            Op::Register { modes, .. } => {
                let modes = words::register_modes(*modes);
                self.call("uffd_register", format!("uffd_register({name}, {range}, {modes});"))
            }
            Op::Unregister { .. } => {
                self.call("uffd_range", format!("uffd_range({name}, UFFDIO_UNREGISTER, {range});"))
            }
            Op::Wake { .. } => {
                self.call("uffd_range", format!("uffd_range({name}, UFFDIO_WAKE, {range});"))
            }
            Op::Continue { flags, .. } => self.call("uffd_fill", fill("UFFDIO_CONTINUE", flags)),
            Op::Zeropage { flags, .. } => self.call("uffd_fill", fill("UFFDIO_ZEROPAGE", flags)),
            Op::UffdPoison { flags, .. } => self.call("uffd_fill", fill("UFFDIO_POISON", flags)),
            Op::WriteProtect { flags, .. } => {
                let flags = words::wp_flags(*flags);
                self.call("uffd_protect", format!("uffd_protect({name}, {range}, {flags});"))
            }
            Op::Copy { flags, .. } => {
                let flags = words::fill_flags(*flags);
                self.call("uffd_copy", format!("uffd_copy({name}, {base}, {range}, {flags});"))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn open_uffd(
        &mut self,
        proc: ProcId,
        uffd: UffdId,
        features: UffdFeatures,
        policy: Policy,
    ) -> Result<Vec<String>, Refused> {
        if proc.0 != 0 {
            return Err(Refused(format!("{proc} opens a userfaultfd, which only p0 can")));
        }
        self.parts.need("made");
        self.parts.need("uffd_open");
        let name = self.object(uffd);
        let mut calls = vec![format!("{name} = made(uffd_open({}));", words::features(features))];
        let answer = match policy {
            Policy::None => return Ok(calls),
            Policy::Copy => "ANSWER_COPY",
            Policy::Zero => "ANSWER_ZERO",
            Policy::Poison => "ANSWER_POISON",
        };
        self.parts.need("handler");
        calls.push(format!("start_handler(&h{0}, {0}, {name}, {answer});", uffd.0));
        Ok(calls)
    }

    fn close_uffd(&mut self, uffd: UffdId) -> Result<Vec<String>, Refused> {
        let name = self.object(uffd);
        self.parts.need("done");
        let mut calls = vec![format!("done(close({name}));"), format!("{name} = -1;")];
        if self.handlers.iter().any(|(id, _)| *id == uffd) {
            // Its poll holds a reference that would outlive the close.
            self.parts.need("stop_handler");
            calls.insert(0, format!("stop_handler(&h{});", uffd.0));
        }
        Ok(calls)
    }

    fn process(&mut self, proc: ProcId, op: &Op) -> Result<Vec<String>, Refused> {
        match op {
            Op::Fork { child } => {
                let more = if proc.0 == 0 { "0" } else { "CLONE_PARENT" };
                self.call("processes", format!("fork_process(&s->{child}, {more});"))
            }
            _ => self.call("end_process", format!("end_process(&s->{proc});")),
        }
    }

    fn numa(&mut self, op: &Op) -> Result<Vec<String>, Refused> {
        self.parts.headers.extend(["<sys/syscall.h>", "<unistd.h>"]);
        let mask = |nodes: &Nodes| format!("&(unsigned long){{ 0x{:x} }}", nodes.0);
        match op {
            Op::MovePages { at, len, step, node, flags } => {
                let node = node.map_or(-1, i32::from);
                let text = format!(
                    "move_each({}, {}, {}, {node}, 0x{:x});",
                    place(*at),
                    bytes(len.0),
                    bytes(step.bytes()),
                    flags.0
                );
                self.call("move_each", text)
            }
            Op::Mbind { at, len, mode, nodes, flags } => {
                let (mode, nodes) = (words::numa_mode(*mode), mask(nodes));
                let range = format!("AT({}), {}", place(*at), bytes(len.0));
                let flags = flags.0;
                let text =
                    format!("syscall(SYS_mbind, {range}, {mode}, {nodes}, 65UL, 0x{flags:x})");
                self.call("done", format!("done({text});"))
            }
            Op::MigratePages { from, to } => {
                let text = format!("{}, {}", mask(from), mask(to));
                self.call("done", format!("done(syscall(SYS_migrate_pages, 0, 65UL, {text}));"))
            }
            Op::SetMempolicy { mode, nodes } => {
                let (mode, nodes) = (words::numa_mode(*mode), mask(nodes));
                let text = format!("syscall(SYS_set_mempolicy, {mode}, {nodes}, 65UL)");
                self.call("done", format!("done({text});"))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn users_of_pages(&mut self, proc: ProcId, op: &Op) -> Result<Vec<String>, Refused> {
        let over = |at: &Place, len: &Bytes| {
            format!("{}, {}, {}", place(Place { off: 0, ..*at }), place(*at), bytes(len.0))
        };
        match op {
            Op::VmRead { target, at, len } => {
                let text = format!("vm_read({}, {});", self.pid(*target), over(at, len));
                self.call("vm_read", text)
            }
            Op::Vmsplice { at, len } => {
                self.call("splice", format!("splice_range({});", over(at, len)))
            }
            Op::DirectIo { at, len, dir: Direction::Out } => {
                self.call("direct_out", format!("direct_out({});", over(at, len)))
            }
            Op::DirectIo { at, len, dir: Direction::In } => {
                self.call("direct_in", format!("direct_in({});", over(at, len)))
            }
            Op::Pin { pin, at, len, .. } => {
                self.holders[usize::from(pin.0 & 7)] = proc.0;
                let name = self.object(pin);
                let text = format!("{name} = pin_range({}, {});", place(*at), bytes(len.0));
                self.call("pin_range", text)
            }
            Op::Unpin { pin } => {
                let text = format!("unpin({});", self.object(pin));
                self.call("unpin", text)
            }
            Op::GupTest { at, len, flags } => {
                let write = u8::from(flags.has(PinFlags::WRITE));
                let long = u8::from(flags.has(PinFlags::LONGTERM));
                let text = format!("gup({}, {}, {write}, {long});", place(*at), bytes(len.0));
                self.call("gup", text)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn system(&mut self, proc: ProcId, op: &Op) -> Result<Vec<String>, Refused> {
        match op {
            Op::Unpoison { at } => {
                self.parts.need("unpoison_all");
                self.call("unpoison", format!("unpoison({});", place(*at)))
            }
            Op::SetKnob { knob, value } => {
                let (path, text) = words::knob(*knob, *value);
                let (path, text) = (words::quoted(path), words::quoted(&text));
                self.parts.need("done");
                self.call("put_file", format!("done(put_file({path}, {text}));"))
            }
            Op::FailNth { nth } => {
                self.failing[usize::from(proc.0 & 7)] = Some(*nth);
                self.parts.need("done");
                self.call("fail_nth", format!("done(fail_nth({nth}));"))
                    .map(|calls| [calls, vec!["fail_nth(0);".into()]].concat())
            }
            _ => self.call("done", "done(0);\t/* what is looked at is below */".into()),
        }
    }
}

/// Calls that allocate a buffer first: an allocation that is to fail would be that one.
fn needs_room(op: &Op) -> bool {
    matches!(
        op,
        Op::Pread { .. }
            | Op::Pwrite { .. }
            | Op::Copy { .. }
            | Op::VmRead { .. }
            | Op::Vmsplice { .. }
            | Op::DirectIo { .. }
            | Op::MovePages { .. }
            | Op::Hugetlbfs { .. }
            | Op::Madvise { advice: Advice::HwPoison, .. }
    )
}

/// The line as the program has it.
pub fn text_of(proc: ProcId, op: &Op) -> String {
    let mut text = String::new();
    if proc.0 != 0 {
        text = format!("{proc}: ");
    }
    text + &case::text::print_op(op)
}
