//! The stream side: lines out of chunks, open reports, their end. All state is bounded.

use super::classify::{self, TRIGGER, classify};
use super::decode::{FrameKind, Stack, address};
use super::frames;
use super::line::{self, Caller, LINE_BYTES_MAX, Line};
use super::title::{self, Facts};
use super::{Class, Report};

/// Reports that may be open at one time: one a CPU is plenty.
const OPEN_MAX: usize = 4;
/// Lines of one report that are looked at.
const REPORT_LINES_MAX: u32 = 300;
/// Frames kept of one report.
const FRAMES_MAX: usize = 48;
/// Addresses kept of one report: a lockdep report has several stacks.
const ADDRESSES_MAX: usize = 160;
/// Letters kept of a stack's heading.
const HEADING_MAX: usize = 80;
/// Reports one scanner gives; later ones are only counted.
pub const REPORTS_MAX: u32 = 1024;
/// Printk time after which an open report is over, in microseconds.
const REPORT_MICROS_MAX: u64 = 20_000_000;

/// A report whose end has not been seen.
#[derive(Debug)]
struct Open {
    class: Class,
    head: String,
    caller: Option<Caller>,
    time: Option<u64>,
    start: u64,
    end: u64,
    lines: u32,
    /// `Call Trace:` was seen.
    traced: bool,
    in_interrupt: bool,
    /// `<TASK>` was seen and not its end: what is no frame stands in between.
    in_task: bool,
    /// A frame stood in the stack of the trace.
    framed: bool,
    /// The next `at: f` names the lock operation to blame.
    awaits_lock: bool,
    blamed: Option<String>,
    symbols: Vec<String>,
    facts: Facts,
    /// Newest line that may head a stack.
    heading: String,
    stacks: Vec<Stack>,
    addresses: usize,
}

/// Finds kernel reports in a console that comes in pieces. Any split gives the same reports.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Start of the line that is not complete yet, cut to [`LINE_BYTES_MAX`].
    partial: Vec<u8>,
    /// Its true length in bytes so far.
    partial_len: u64,
    /// Bytes of complete lines consumed.
    offset: u64,
    open: Vec<Open>,
    seen: bool,
    given: u32,
    dropped: u64,
}

/// What a body line is to the report it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Stack,
    StackEnd,
    End,
    Other,
}

impl Scanner {
    pub fn new() -> Scanner {
        Scanner::default()
    }

    /// Takes more bytes; gives the reports that are complete now.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Report> {
        let mut done = Vec::new();
        let mut rest = chunk;
        if self.partial_len > 0 {
            let Some(end) = newline(rest) else {
                self.keep(rest);
                return done;
            };
            self.keep(&rest[..end]);
            let raw = std::mem::take(&mut self.partial);
            let bytes = std::mem::take(&mut self.partial_len) + 1;
            self.line(&raw, bytes, &mut done);
            rest = &rest[end + 1..];
        }
        while !rest.is_empty() {
            if self.open.is_empty() {
                let quiet = quiet_lines(rest);
                self.offset += quiet as u64;
                rest = &rest[quiet..];
            }
            match newline(rest) {
                None => {
                    self.keep(rest);
                    break;
                }
                Some(end) => {
                    let raw = &rest[..end.min(LINE_BYTES_MAX)];
                    self.line(raw, end as u64 + 1, &mut done);
                    rest = &rest[end + 1..];
                }
            }
        }
        done
    }

    /// The stream is over: what is still open is complete.
    pub fn finish(mut self) -> Vec<Report> {
        let mut done = Vec::new();
        if self.partial_len > 0 {
            let raw = std::mem::take(&mut self.partial);
            let bytes = self.partial_len;
            self.line(&raw, bytes, &mut done);
        }
        self.close_all(&mut done);
        done
    }

    /// Reports not given because there were more than [`REPORTS_MAX`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.partial_len += bytes.len() as u64;
    }

    /// One complete line: `raw` is its kept beginning, `bytes` its whole length with newline.
    fn line(&mut self, raw: &[u8], bytes: u64, done: &mut Vec<Report>) {
        let start = self.offset;
        self.offset += bytes;
        let triggers = TRIGGER.is_match(raw);
        if !triggers && self.open.is_empty() {
            return;
        }
        let text = line::clean(raw);
        for part in line::parts(&text) {
            let opening = triggers.then(|| classify(part.text)).flatten();
            match opening {
                Some((class, head)) => self.opening(part, class, head, start, done),
                None => self.body(part, done),
            }
        }
    }

    fn opening(
        &mut self,
        part: Line<'_>,
        class: Class,
        head: &str,
        start: u64,
        done: &mut Vec<Report>,
    ) {
        if class == Class::Panic {
            // Whatever was being printed is over; a panic that follows from it adds nothing.
            self.close_all(done);
            if self.seen && classify::consequence(head) {
                return;
            }
        }
        if let Some(open) = self.open.iter_mut().rev().find(|o| o.caller == part.caller) {
            if !open.traced && classify::continues(open.class, class) {
                open.end = self.offset;
                open.header(class, head);
                return;
            }
            if part.caller.is_some() {
                // One context prints one report at a time.
                let caller = part.caller;
                self.close_where(done, |o| o.caller == caller);
            }
        }
        self.seen = true;
        let mut open = Open::new(class, head, part, start, self.offset);
        open.header(class, head);
        if classify::single_line(class, head) {
            self.give(open, done);
            return;
        }
        if self.open.len() >= OPEN_MAX {
            let oldest = self.open.remove(0);
            self.give(oldest, done);
        }
        self.open.push(open);
    }

    fn body(&mut self, part: Line<'_>, done: &mut Vec<Report>) {
        if part.text.starts_with("Linux version ") {
            self.close_all(done);
            return;
        }
        if let Some(now) = part.time {
            self.close_where(done, |o| {
                o.time.is_some_and(|t| now.saturating_sub(t) > REPORT_MICROS_MAX)
            });
        }
        let Some(at) = self.open.iter().rposition(|o| o.owns(&part)) else { return };
        let kind = self.open[at].take(part.text);
        let open = &self.open[at];
        let over = match kind {
            Part::End => true,
            Part::StackEnd => open.traced && open.framed && !classify::explicit_end(open.class),
            Part::Other => {
                open.traced
                    && open.framed
                    && !open.in_interrupt
                    && !open.in_task
                    && !classify::explicit_end(open.class)
            }
            Part::Stack => false,
        };
        if kind != Part::Other || !over {
            self.open[at].end = self.offset;
        }
        if over || self.open[at].lines >= REPORT_LINES_MAX {
            let open = self.open.remove(at);
            self.give(open, done);
        }
    }

    fn close_all(&mut self, done: &mut Vec<Report>) {
        self.close_where(done, |_| true);
    }

    fn close_where(&mut self, done: &mut Vec<Report>, over: impl Fn(&Open) -> bool) {
        let mut i = 0;
        while i < self.open.len() {
            if over(&self.open[i]) {
                let open = self.open.remove(i);
                self.give(open, done);
            } else {
                i += 1;
            }
        }
    }

    fn give(&mut self, open: Open, done: &mut Vec<Report>) {
        if self.given >= REPORTS_MAX {
            self.dropped += 1;
            return;
        }
        self.given += 1;
        done.push(open.report());
    }
}

impl Open {
    fn new(class: Class, head: &str, part: Line<'_>, start: u64, end: u64) -> Open {
        Open {
            class,
            head: head.chars().take(300).collect(),
            caller: part.caller,
            time: part.time,
            start,
            end,
            lines: 1,
            traced: false,
            in_interrupt: false,
            in_task: false,
            framed: false,
            awaits_lock: false,
            blamed: None,
            symbols: Vec::new(),
            facts: Facts::default(),
            heading: "report".into(),
            stacks: Vec::new(),
            addresses: 0,
        }
    }

    /// A body line belongs to the report of the same caller; where the kernel prints no caller,
    /// to the newest one. Text that printk did not print belongs to none that printk opened.
    fn owns(&self, part: &Line<'_>) -> bool {
        if self.time.is_some() != part.time.is_some() {
            return false;
        }
        self.caller == part.caller || classify::any_caller(self.class)
    }

    /// Names in the opening line itself: `... in f+0x1/0x2`, `at mm/x.c:1 f+0x1/0x2`.
    fn header(&mut self, class: Class, head: &str) {
        self.stacked(head, "report");
        if class == Class::Kcsan {
            let named = head.split(" in ").nth(1).and_then(|t| t.split(" / ").next());
            if let Some(name) = named.and_then(|t| frames::bare(t.split('+').next()?.trim())) {
                self.symbol(name);
            }
            return;
        }
        for word in head.split([' ', ',']) {
            if let Some(name) = frames::symbol(word.trim_start_matches('[')) {
                self.symbol(name);
            }
        }
    }

    fn symbol(&mut self, name: &str) {
        if self.symbols.len() < FRAMES_MAX {
            self.symbols.push(name.to_string());
        }
    }

    /// Keeps the address on a line, if one stands there, under the heading it belongs to.
    fn stacked(&mut self, text: &str, heading: &str) {
        let Some((_, frame)) = address(text).filter(|_| self.addresses < ADDRESSES_MAX) else {
            return;
        };
        self.addresses += 1;
        match self.stacks.last_mut() {
            Some(stack) if stack.of == heading => stack.frames.push(frame),
            _ => self.stacks.push(Stack { of: heading.into(), frames: vec![frame] }),
        }
    }

    /// Keeps the address of a body line that is part of a stack, or the heading of the next one.
    fn addresses(&mut self, line: &str) {
        match address(line).map(|(_, frame)| frame.kind) {
            Some(FrameKind::Mention) => {}
            Some(FrameKind::Exact) => self.stacked(line, "RIP"),
            Some(_) => {
                let heading = self.heading.clone();
                self.stacked(line, &heading);
            }
            None => {
                if let Some(heading) = line.strip_suffix(':').filter(|h| !h.is_empty()) {
                    self.heading = heading.chars().take(HEADING_MAX).collect();
                }
            }
        }
    }

    /// Learns from a body line.
    fn take(&mut self, text: &str) -> Part {
        self.lines += 1;
        let line = text.trim();
        self.addresses(line);
        if line.starts_with("---[ end ") || self.ends_with_bar(line) {
            return Part::End;
        }
        if line == "Call Trace:" || line.starts_with("backtrace:") {
            self.traced = true;
            return Part::Stack;
        }
        match line {
            "<TASK>" => {
                self.in_task = true;
                return Part::Stack;
            }
            "<IRQ>" | "<NMI>" | "<SOFTIRQ>" => {
                self.in_interrupt = true;
                return Part::Stack;
            }
            "</IRQ>" | "</NMI>" | "</SOFTIRQ>" => {
                self.in_interrupt = false;
                return Part::Stack;
            }
            "</TASK>" => {
                self.in_task = false;
                return Part::StackEnd;
            }
            _ => {}
        }
        if let Some(place) = line.strip_prefix("RIP: ") {
            self.rip(place);
            return Part::Stack;
        }
        if registers(line) {
            return Part::Stack;
        }
        match frames::frame(text) {
            Some(Ok(name)) => {
                self.sure_frame(name);
                Part::Stack
            }
            Some(Err(_)) => Part::Stack,
            None => {
                self.fact(line);
                Part::Other
            }
        }
    }

    /// Sanitizers close with a bar of `=`; lockdep's bars stand at its beginning.
    fn ends_with_bar(&self, line: &str) -> bool {
        let bar = line.len() >= 40 && line.bytes().all(|b| b == b'=');
        bar && matches!(
            self.class,
            Class::Kasan | Class::Kfence | Class::Kcsan | Class::Kmsan | Class::Ubsan
        )
    }

    fn rip(&mut self, place: &str) {
        // Segment 0010 is the kernel; 0033 is where user space entered.
        if let Some(name) = place.strip_prefix("0010:").and_then(frames::symbol) {
            self.symbol(name);
        }
    }

    fn sure_frame(&mut self, name: &str) {
        self.framed |= self.traced;
        let noticed = self.in_interrupt && classify::skips_interrupt_frames(self.class);
        // Stacks before the trace belong to other places (lockdep's chains), except where the
        // report has no trace line at all.
        let chain = !self.traced && title::slug(self.class).starts_with("lockdep");
        if !noticed && !chain {
            self.symbol(name);
        }
    }

    fn fact(&mut self, line: &str) {
        if line.starts_with("Write of size") || line.starts_with("Write at addr") {
            self.facts.access.get_or_insert("Write");
        } else if line.starts_with("Read of size") || line.starts_with("Read at addr") {
            self.facts.access.get_or_insert("Read");
        } else if let Some(cause) = line.strip_prefix("page dumped because: ") {
            self.facts.cause.get_or_insert_with(|| cause.chars().take(200).collect());
        }
        if self.awaits_lock && self.blamed.is_none() {
            let place = line.split("at: ").nth(1).unwrap_or(line);
            if let Some(Ok(name)) = frames::frame(place) {
                self.blamed = Some(name.to_string());
            }
        }
        let asks = ["trying to acquire lock:", "trying to lock:", "] takes:"];
        // Elsewhere than in lockdep's reports the locks held are circumstances, not the place.
        let holds = [" lock held by ", " locks held by "];
        let lockdep = title::slug(self.class).starts_with("lockdep");
        if asks.iter().any(|a| line.contains(a))
            || lockdep && holds.iter().any(|h| line.contains(h))
        {
            self.awaits_lock = true;
        }
        if let Some(name) = line.strip_prefix("caller is ").and_then(frames::symbol) {
            self.symbol(name);
        }
    }

    fn guilty(&self) -> Option<&str> {
        if matches!(
            self.class,
            Class::Oom | Class::BadRss | Class::NonZeroPgtables | Class::BadPageTable
        ) {
            return None;
        }
        let blamed = self.blamed.as_deref().filter(|b| !frames::skipped(b));
        let named = self.symbols.iter().map(String::as_str).find(|s| !frames::skipped(s));
        // All plumbing: better its first frame than a merge of everything without a name.
        blamed.or(named).or(self.symbols.first().map(String::as_str))
    }

    fn report(self) -> Report {
        let guilty = self.guilty();
        let (title, signature) = title::name(self.class, &self.head, &self.facts, guilty);
        Report {
            class: self.class,
            title,
            guilty: guilty.map(str::to_string),
            signature,
            start: self.start,
            end: self.end,
            stacks: self.stacks,
        }
    }
}

/// Register dumps and the lines around them, which never end a stack.
fn registers(line: &str) -> bool {
    const STARTS: &[&str] = &[
        "RSP: ",
        "RAX: ",
        "RDX: ",
        "RBP: ",
        "R10: ",
        "R13: ",
        "FS: ",
        "CS: ",
        "CR2: ",
        "DR0: ",
        "DR3: ",
        "PKRU: ",
        "Code: ",
        "ORIG_RAX: ",
        "EFLAGS: ",
        "Modules linked in:",
        "Hardware name:",
        "CPU: ",
        "Tainted: ",
        "WARNING: kernel stack regs",
    ];
    STARTS.iter().any(|s| line.starts_with(s))
}

/// Bytes at the start of `text` that hold only whole lines without a trigger.
fn quiet_lines(text: &[u8]) -> usize {
    let until = TRIGGER.find(text).map_or(text.len(), |m| m.start());
    text[..until].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1)
}

fn newline(text: &[u8]) -> Option<usize> {
    text.iter().position(|b| *b == b'\n')
}
