//! The expectation in C: what is told of it, and the function that looks.

use crate::ops::Script;
use crate::words::{self, bytes, errno, place, quoted};
use crate::{Refused, Request};
use case::Op;
use case::expect::{Expectation, PoolCounter, SlotWanted, Wanted};
use case::observation::{FIELD_UNTOUCHED, Word, event, pm};
use case::program::{HANDLER_SERIAL, Tag};
use case::value::*;

/// Where the check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In the program, after its last line.
    Inside,
    /// In the process that watches the program, once all of it is gone.
    After,
}

/// The check of a file.
#[derive(Debug)]
pub struct Check {
    pub side: Side,
    /// For people.
    pub expected: String,
    /// Body of `static int check(void)`: not 0 where the kernel behaves.
    pub body: String,
}

fn inside(expected: impl Into<String>, body: String) -> Check {
    Check { side: Side::Inside, expected: expected.into(), body }
}

/// The check of a script's request; notes in the script what it needs.
pub fn of(script: &mut Script) -> Result<Check, Refused> {
    script.parts.need("say");
    match script.request.expectation {
        Expectation::Outcome(wanted) => outcome(script, wanted),
        Expectation::Content { page, word, wanted } => content(script, *page, *word, wanted),
        Expectation::Field(wanted) => Ok(field(script, *wanted)),
        Expectation::Slot { index, wanted } => Ok(slot(script, *index, wanted)),
        Expectation::Size(size) => {
            let range = (*size, *size);
            Ok(noted(script, "size of the file", 0, range))
        }
        Expectation::Blocks { low, high } => {
            Ok(noted(script, "blocks of the file", 1, (*low, *high)))
        }
        Expectation::Entry { .. }
        | Expectation::Frames { .. }
        | Expectation::MapCount { .. }
        | Expectation::PageFlag { .. } => Ok(entry(script)),
        Expectation::Mapped { .. }
        | Expectation::Perms { .. }
        | Expectation::VmFlag { .. }
        | Expectation::Smaps { .. }
        | Expectation::Status { .. } => Ok(text_of_proc(script)),
        Expectation::Mincore { proc, at, resident } => mincore(script, *proc, *at, *resident),
        Expectation::Pool { .. } | Expectation::PoolOrder => Ok(pools(script)),
        Expectation::Event { .. } => Ok(message(script)),
        Expectation::Beside { on } => Ok(beside(script, *on)),
        Expectation::NoLeak { .. }
        | Expectation::Corrupted { .. }
        | Expectation::NoReport { .. }
        | Expectation::Ends => Ok(after(script)),
    }
}

/// The line that is checked must have been issued.
fn issued(request: &Request) -> Result<(), Refused> {
    let lines = request.program.each_line().len();
    match usize::from(request.line) < lines {
        true => Ok(()),
        false => Err(Refused("the violation names no line of the program".into())),
    }
}

fn outcome(script: &mut Script, wanted: &[Wanted]) -> Result<Check, Refused> {
    issued(script.request)?;
    let (mut texts, mut tests) = (Vec::new(), Vec::new());
    for want in wanted {
        let (text, test) = one_outcome(script, want);
        texts.push(text);
        tests.push(test);
    }
    script.parts.need("say_seen");
    let line = script.request.line;
    let body = format!(
        "\tstruct seen *c = &s->seen[{line}];\n\n\tsay_seen(c);\n\treturn {};\n",
        tests.join(" ||\n\t       ")
    );
    Ok(inside(format!("the call {}", texts.join(", or ")), body))
}

fn one_outcome(script: &mut Script, want: &Wanted) -> (String, String) {
    match *want {
        Wanted::Ok(i64::MIN, i64::MAX) => ("succeeds".into(), "c->how == RETURNED".into()),
        Wanted::Ok(n, high) if n == high => {
            (format!("gives {n}"), format!("(c->how == RETURNED && c->ret == {n})"))
        }
        Wanted::Ok(low, high) => (
            format!("gives {low} to {high}"),
            format!("(c->how == RETURNED && c->ret >= {low} && c->ret <= {high})"),
        ),
        Wanted::Err(n) => (
            format!("fails with {}", errno(n)),
            format!("(c->how == FAILED && c->err == {})", errno(n)),
        ),
        Wanted::Blocks => ("waits for ever".into(), "c->how == WAITED".into()),
        Wanted::Signal { signo, code, at, lsb } => {
            let name = if signo == 7 { "SIGBUS" } else { "SIGSEGV" };
            let mut text = format!("gets {name} with si_code {code}");
            let mut test =
                format!("c->how == SIGNALLED && c->signo == {signo} && c->code == {code}");
            if let Some(at) = at {
                script.regions.insert(at.region.0);
                text.push_str(&format!(" at {at}"));
                test.push_str(&format!(" &&\n\t\tc->addr == {}", place(at)));
            }
            if lsb != 0 {
                text.push_str(&format!(", si_addr_lsb {lsb}"));
                test.push_str(&format!(" && c->lsb == {lsb}"));
            }
            (text, format!("({test})"))
        }
    }
}

/// `keep` of this page and word of what the checked line brought.
fn keep(script: &mut Script, page: u32, word: u8) {
    script.parts.need("keep");
    let line = script.request.line;
    script.parts.make(
        "KEEP",
        format!(
            "/* What the check needs of what line {line} brought. */\n\
             static void keep(unsigned long page, int word, long value)\n{{\n\
             \tif (l == &s->seen[{line}] && page == {page} && word == {word}) {{\n\
             \t\tl->out[0] = value;\n\t\tl->out[1] = 1;\n\t}}\n}}\n"
        ),
    );
}

fn word_text(word: Word) -> String {
    match word {
        Word::Zero | Word::Unread => "zero".into(),
        Word::Tag(Tag { serial, page }) if serial >= HANDLER_SERIAL => {
            format!("the copy of u{}'s handler to page {page}", serial - HANDLER_SERIAL)
        }
        Word::Tag(Tag { serial, page }) => {
            format!("the store of line {} to page {page}", serial.wrapping_sub(1))
        }
    }
}

fn content(script: &mut Script, page: u32, word: u8, wanted: &[Word]) -> Result<Check, Refused> {
    issued(script.request)?;
    if wanted.contains(&Word::Unread) {
        return Err(Refused("a word was read that lies outside of the range".into()));
    }
    keep(script, page, word);
    script.parts.need("say_word");
    let texts: Vec<String> = wanted.iter().map(|word| word_text(*word)).collect();
    let raw = |word: &Word| match word {
        Word::Tag(tag) => tag.word(),
        _ => 0,
    };
    let tests: Vec<String> =
        wanted.iter().map(|word| format!("c->out[0] == (long)0x{:x}UL", raw(word))).collect();
    let which = if word == 0 { "first" } else { "last" };
    let expected = format!(
        "the {which} word of page {page} of what line {} reads is {}",
        script.request.line,
        texts.join(" or ")
    );
    let body = format!(
        "\tstruct seen *c = &s->seen[{}];\n\n\tif (!c->out[1])\n\
         \t\tcannot(\"the page was not read\");\n\
         \tsay_word(c->out[0]);\n\treturn {};\n",
        script.request.line,
        tests.join(" || ")
    );
    script.parts.need("cannot");
    Ok(inside(expected, body))
}

fn field(script: &Script, wanted: i64) -> Check {
    let text = match wanted {
        FIELD_UNTOUCHED => "the kernel leaves the output field of the ioctl alone".into(),
        n => format!("the output field of the ioctl is {n}"),
    };
    let body = format!(
        "\tlong got = s->seen[{}].out[0];\n\n\
         \tsay(got == {FIELD_UNTOUCHED}L ? \"seen: it was left alone\" : \"seen: %ld\", got);\n\
         \treturn got == {wanted}L;\n",
        script.request.line
    );
    inside(text, body)
}

fn slot(script: &mut Script, index: u32, wanted: &[SlotWanted]) -> Check {
    keep(script, index, 0);
    let text = |want: &SlotWanted| match want {
        SlotWanted::Node => "a node".to_owned(),
        SlotWanted::Err(n) => format!("-{}", errno(*n)),
    };
    let test = |want: &SlotWanted| match want {
        SlotWanted::Node => "(status >= 0 && status < 1024)".to_owned(),
        SlotWanted::Err(n) => format!("status == -{}", errno(*n)),
    };
    let texts: Vec<String> = wanted.iter().map(text).collect();
    let tests: Vec<String> = wanted.iter().map(test).collect();
    let body = format!(
        "\tlong status = s->seen[{}].out[0];\n\n\
         \tsay(\"seen: status %ld (%s)\", status, status < 0 ? strerror(-status) : \"a node\");\n\
         \treturn {};\n",
        script.request.line,
        tests.join(" || ")
    );
    inside(format!("status slot {index} is {}", texts.join(" or ")), body)
}

fn span(name: &str, low: u64, high: u64) -> (String, String) {
    match (low, high) {
        (low, u64::MAX) => (format!("{low} or more"), format!("{name} >= {low}")),
        (low, high) if low == high => (low.to_string(), format!("{name} == {low}")),
        (low, high) => (format!("{low} to {high}"), format!("{name} >= {low} && {name} <= {high}")),
    }
}

fn noted(script: &Script, what: &str, out: u8, (low, high): (u64, u64)) -> Check {
    let (text, test) = span("got", low, high);
    let body = format!(
        "\tlong got = s->seen[{}].out[{out}];\n\n\tsay(\"seen: %ld\", got);\n\treturn {test};\n",
        script.request.line
    );
    inside(format!("{what}: {text}"), body)
}

const PAGEMAP: [(u8, u8, &str); 5] = [
    (pm::PRESENT, 63, "present"),
    (pm::SWAP, 62, "swap"),
    (pm::FILE, 61, "file"),
    (pm::EXCLUSIVE, 56, "exclusive"),
    (pm::UFFD_WP, 57, "uffd-wp"),
];

fn pagemap_text(bits: u8) -> String {
    let set = PAGEMAP.iter().filter(|(bit, ..)| bits & bit != 0);
    let words: Vec<&str> = set.map(|(_, _, name)| *name).collect();
    if words.is_empty() { "nothing".into() } else { words.join("+") }
}

fn pagemap_word(bits: u8) -> String {
    let set = PAGEMAP.iter().filter(|(bit, ..)| bits & bit != 0);
    let word: u64 = set.map(|(_, shift, _)| 1u64 << shift).sum();
    format!("0x{word:x}UL")
}

fn entry_body(pid: &str, at: Place, mask: &str, bits: &str) -> String {
    format!(
        "\tunsigned long e = entry({pid}, {});\n\n\tsay_entry(e & {mask});\n\
         \treturn (e & {mask}) == {bits};\n",
        place(at)
    )
}

/// Page tables, and what the kernel says of the pages in them.
fn entry(script: &mut Script) -> Check {
    let pid = |proc: &ProcId| script.pid(*proc);
    let (text, body, places, parts): (String, String, Vec<Place>, &[&'static str]) = match script
        .request
        .expectation
    {
        Expectation::Entry { proc, at, mask, bits } => (
            format!(
                "pagemap of {proc} at {at} shows {}, of the bits {}",
                pagemap_text(*bits),
                pagemap_text(*mask)
            ),
            entry_body(&pid(proc), *at, &pagemap_word(*mask), &pagemap_word(*bits)),
            vec![*at],
            &["entry", "say_entry"],
        ),
        Expectation::Frames { one, other, apart, same } => (
            format!(
                "{} at {} and {} at {} are {} page",
                one.0,
                one.1,
                other.0,
                other.1,
                if *same { "one" } else { "not one" }
            ),
            format!(
                "\tlong one = PFN(entry({}, {}));\n\tlong other = PFN(entry({}, {}));\n\n\
                     \tsay(\"seen: their frames are %ld apart\", other - one);\n\
                     \treturn (other - one == {apart}) == {};\n",
                pid(&one.0),
                place(one.1),
                pid(&other.0),
                place(other.1),
                u8::from(*same)
            ),
            vec![one.1, other.1],
            &["pfn"],
        ),
        Expectation::MapCount { proc, at, low, high } => {
            let (text, test) = span("count", u64::from(*low), u64::from(*high));
            (
                format!("kpagecount of the page of {proc} at {at}: {text}"),
                format!(
                    "\tunsigned long count = kpage(\"/proc/kpagecount\", PFN(entry({}, {})));\n\n\
                         \tsay(\"seen: %lu\", count);\n\treturn {test};\n",
                    pid(proc),
                    place(*at)
                ),
                vec![*at],
                &["pfn", "kpage"],
            )
        }
        Expectation::PageFlag { proc, at, bit, on } => (
            format!("bit {bit} of kpageflags of the page of {proc} at {at} is {}", u8::from(*on)),
            format!(
                "\tint bit = kpage(\"/proc/kpageflags\", PFN(entry({}, {}))) >> {bit} & 1;\n\n\
                     \tsay(\"seen: %d\", bit);\n\treturn bit == {};\n",
                pid(proc),
                place(*at),
                u8::from(*on)
            ),
            vec![*at],
            &["pfn", "kpage"],
        ),
        _ => unreachable!("only expectations of entries come here"),
    };
    script.regions.extend(places.iter().map(|at| at.region.0));
    parts.iter().for_each(|part| script.parts.need(part));
    inside(text, body)
}

/// smaps and status.
fn text_of_proc(script: &mut Script) -> Check {
    let of = |proc: &ProcId| script.pid(*proc);
    let (text, look, test, at): (String, String, String, Option<Place>) =
        match script.request.expectation {
            Expectation::Mapped { proc, at, on } => (
                format!("{proc} has {} mapping at {at}", if *on { "a" } else { "no" }),
                format!("smaps({}, {}, 0, NULL, NULL)", of(proc), place(*at)),
                format!("(got != -1) == {}", u8::from(*on)),
                Some(*at),
            ),
            Expectation::Perms { proc, at, perms } => (
                format!("the mapping of {proc} at {at} has r 1, w 2, x 4, shared 8: {perms}"),
                format!("smaps({}, {}, 0, NULL, NULL)", of(proc), place(*at)),
                format!("got == {perms}"),
                Some(*at),
            ),
            Expectation::VmFlag { proc, at, letters, on } => {
                let word = String::from_utf8_lossy(letters).into_owned();
                let has = if *on { "has" } else { "does not have" };
                (
                    format!("the mapping of {proc} at {at} {has} {word} in VmFlags"),
                    format!(
                        "smaps({}, {}, 0, \"VmFlags\", {})",
                        of(proc),
                        place(*at),
                        quoted(&format!(" {word}"))
                    ),
                    format!("got == {}", u8::from(*on)),
                    Some(*at),
                )
            }
            Expectation::Smaps { proc, at, len, label, low, high } => {
                let (text, test) = span("got", *low, *high);
                let end = at.plus(*len);
                (
                    format!("{label} of {proc} from {at} to {end}: {text} kB"),
                    format!(
                        "smaps({}, {}, {}, {}, NULL)",
                        of(proc),
                        place(*at),
                        place(end),
                        quoted(label)
                    ),
                    test,
                    Some(*at),
                )
            }
            Expectation::Status { proc, label, low, high } => {
                let (text, test) = span("got", *low, *high);
                (
                    format!("{label} of {proc}: {text} kB"),
                    format!("status_kb({}, {})", of(proc), quoted(label)),
                    test,
                    None,
                )
            }
            _ => unreachable!("only expectations of smaps and status come here"),
        };
    script.parts.need(if at.is_some() { "smaps" } else { "status_kb" });
    script.regions.extend(at.map(|at| at.region.0));
    let body = format!("\tlong got = {look};\n\n\tsay(\"seen: %ld\", got);\n\treturn {test};\n");
    inside(text, body)
}

fn mincore(script: &mut Script, proc: ProcId, at: Place, resident: bool) -> Result<Check, Refused> {
    if proc.0 != 0 {
        return Err(Refused(format!("only {proc} itself can ask mincore of its memory")));
    }
    script.regions.insert(at.region.0);
    script.parts.need("cannot");
    let page = Place { off: at.off / 4096 * 4096, ..at };
    // The whole range in one call, as it was asked for: a kernel may be wrong in the middle only.
    let lines = script.request.program.each_line();
    let (start, len) = match lines.get(usize::from(script.request.line)) {
        Some((_, _, Op::Observe { at, len, .. })) if at.region == page.region => (*at, len.0),
        _ => (page, 4096),
    };
    let index = page.off.saturating_sub(start.off) / 4096;
    let body = format!(
        "\tstatic unsigned char pages[{}];\n\n\tif (mincore(AT({}), {}, pages) == -1)\n\
         \t\tcannot(\"mincore: %s\", strerror(errno));\n\
         \tsay(pages[{index}] & 1 ? \"seen: resident\" : \"seen: not resident\");\n\
         \treturn (pages[{index}] & 1) == {};\n",
        len.div_ceil(4096).max(index + 1),
        place(start),
        bytes(len),
        u8::from(resident)
    );
    let not = if resident { "" } else { "not " };
    Ok(inside(format!("mincore says that the page at {page} is {not}resident"), body))
}

fn pools(script: &mut Script) -> Check {
    script.parts.need("before");
    let Expectation::Pool { page, counter, change } = script.request.expectation else {
        let order = |now: &str| {
            format!("{now}.rsvd >= 0 && {now}.rsvd <= {now}.free && {now}.free <= {now}.total")
        };
        let body = format!(
            "\tstruct pool a = pool_of(POOL_2M), b = pool_of(POOL_1G);\n\n\
             \tsay(\"seen: 2M total %ld free %ld reserved %ld\", a.total, a.free, a.rsvd);\n\
             \tsay(\"seen: 1G total %ld free %ld reserved %ld\", b.total, b.free, b.rsvd);\n\
             \treturn {} &&\n\t       {};\n",
            order("a"),
            order("b")
        );
        return inside("0 <= reserved <= free <= total in every pool", body);
    };
    let (name, word) = match counter {
        PoolCounter::Total => ("total", "pages"),
        PoolCounter::Free => ("free", "free pages"),
        PoolCounter::Rsvd => ("rsvd", "reserved pages"),
        PoolCounter::Surp => ("surp", "surplus pages"),
    };
    let (dir, before) = pool_names(*page);
    let expected = match change {
        0 => format!("as many {word} in the {} pool as before the program", page.word()),
        n => format!("{n:+} {word} in the {} pool against before the program", page.word()),
    };
    let body = format!(
        "\tlong change = pool_of({dir}).{name} - {before}.{name};\n\n\
         \tsay(\"seen: %+ld\", change);\n\treturn change == {change};\n"
    );
    inside(expected, body)
}

fn pool_names(page: PageSize) -> (&'static str, &'static str) {
    match page {
        PageSize::Huge1G => ("POOL_1G", "before_1g"),
        _ => ("POOL_2M", "before_2m"),
    }
}

fn event_name(code: u8, flags: u8) -> &'static str {
    match code {
        event::PAGEFAULT if flags & event::FLAG_WP != 0 => "write-protect fault",
        event::PAGEFAULT if flags & event::FLAG_MINOR != 0 => "minor fault",
        event::PAGEFAULT => "missing fault",
        event::FORK => "FORK event",
        event::REMAP => "REMAP event",
        event::REMOVE => "REMOVE event",
        event::UNMAP => "UNMAP event",
        _ => "event",
    }
}

fn message(script: &mut Script) -> Check {
    let Expectation::Event { uffd, event, flags, at, on } = script.request.expectation else {
        unreachable!("only expectations of events come here")
    };
    script.parts.need("events");
    script.regions.extend(at.map(|at| at.region.0));
    let what = format!("a {} of {uffd}", event_name(*event, *flags));
    let whereat = at.map(|at| format!(" at {at}")).unwrap_or_default();
    let line = script.request.line;
    let expected =
        format!("line {line} brings {}{what}{whereat}", if *on { "" } else { "nothing like " });
    let place = at.map(|at| format!(" &&\n\t\t    e->at == {}", place(at))).unwrap_or_default();
    let body = format!(
        "\tint i, found = 0, all = 0;\n\n\
         \tfor (i = 0; i < s->event_count && i < EVENTS; i++) {{\n\
         \t\tstruct event *e = &s->events[i];\n\n\
         \t\tif (e->line != {line})\n\t\t\tcontinue;\n\t\tall++;\n\
         \t\tif (e->uffd == {} && e->event == {event} && e->flags == {flags}{place})\n\
         \t\t\tfound++;\n\t}}\n\
         \tsay(\"seen: %d such messages, %d in all\", found, all);\n\
         \treturn (found > 0) == {};\n",
        uffd.0,
        u8::from(*on)
    );
    inside(expected, body)
}

fn beside(script: &mut Script, on: bool) -> Check {
    // The signal is caught by the handler of faults.
    script.parts.need("fault");
    let expected = match on {
        true => "SIGBUS with BUS_MCEERR_AR comes beside the return",
        false => "no signal comes beside the return",
    };
    let body = format!(
        "\tint code = s->seen[{}].beside;\n\n\
         \tsay(code ? \"seen: SIGBUS with si_code %d\" : \"seen: no signal\", code);\n\
         \treturn {};\n",
        script.request.line,
        if on { "code == BUS_MCEERR_AR" } else { "code == 0" }
    );
    inside(expected, body)
}

/// What is checked when the program is gone.
fn after(script: &mut Script) -> Check {
    let (expected, body) = match script.request.expectation {
        Expectation::NoLeak { page } => {
            script.parts.need("before");
            script.parts.need("no_leak");
            let (dir, before) = pool_names(*page);
            (
                format!("the {} pool is as before once the program has gone", page.word()),
                format!("\treturn no_leak({dir}, &{before});\n"),
            )
        }
        Expectation::Corrupted { low, high } => {
            script.parts.need("corrupted");
            (
                format!("HardwareCorrupted grows by {low} to {high} pages"),
                format!(
                    "\tlong grown = corrupted() - corrupted_before;\n\n\
                     \tsay(\"seen: %ld pages\", grown);\n\
                     \treturn grown >= {low} && grown <= {high};\n"
                ),
            )
        }
        Expectation::NoReport { head, function } => {
            script.parts.need("kmsg");
            let name = function.as_deref().map_or("NULL".into(), quoted);
            (
                "the kernel reports nothing".to_owned(),
                format!(
                    "\tint shown = kmsg_shows({}, {name});\n\n\
                     \tsay(shown ? \"seen: %s\" : \"seen: no such report%s\", s->report);\n\
                     \treturn !shown;\n",
                    quoted(head)
                ),
            )
        }
        _ => (
            format!("the program ends within {} s", script.request.seconds),
            "\tsay(\"seen: it ended\");\n\treturn 1;\n".into(),
        ),
    };
    Check { side: Side::After, expected: words::commented(&expected), body }
}
