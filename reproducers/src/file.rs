//! The whole file: head, helpers, program, check, and the process that watches the program.

use crate::check::{self, Check, Side};
use crate::ops::{Script, text_of};
use crate::settings::{self, Needs};
use crate::words::{commented, quoted, young};
use crate::{BEHAVES, CANNOT, Refused, Request, SHOWS, Style};
use case::limits::{ARENA_BASE, ARENA_STRIDE};
use case::value::*;
use case::{Expectation, Op};

/// Headers that every file has.
const HEADERS: [&str; 13] = [
    "<errno.h>",
    "<fcntl.h>",
    "<signal.h>",
    "<stdarg.h>",
    "<stdio.h>",
    "<stdlib.h>",
    "<string.h>",
    "<sys/mman.h>",
    "<sys/prctl.h>",
    "<sys/types.h>",
    "<sys/wait.h>",
    "<time.h>",
    "<unistd.h>",
];

/// The C file of a request, or why there can be none. The file checks what was asked for, or it is
/// not written.
pub fn write(request: &Request) -> Result<String, Refused> {
    let mut script = Script::of(request)?;
    let check = check::of(&mut script)?;
    let needs = settings::needs(request);
    for part in ["line", "pin_cpu", "cannot", "objects"] {
        script.parts.need(part);
    }
    if !needs.settings.is_empty() {
        script.parts.need("settings");
    }
    if needs.pools.iter().any(Option::is_some) {
        script.parts.need("need_pool");
    }
    if needs.nodes > 1 {
        script.parts.need("need_nodes");
    }
    script.parts.complete();
    make_texts(&mut script, &needs);
    let helpers = script.parts.text();
    let rest = [
        script.threads.clone(),
        run_line(&script),
        program(&script, &check),
        check_function(&check),
        watcher(&script, &check, &needs),
    ]
    .concat();
    let constants = young(&format!("{helpers}{rest}"));
    Ok([head(request, &check), includes(&script), defines(&script, &constants), helpers, rest]
        .concat())
}

fn head(request: &Request, check: &Check) -> String {
    let mut text = String::from("// SPDX-License-Identifier: GPL-2.0 OR MIT\n/*\n");
    let mut say = |line: &str| {
        let line = commented(line);
        text.push_str(if line.is_empty() { " *" } else { " * " });
        text.push_str(&line);
        text.push('\n');
    };
    if request.embargo {
        say("UNDER EMBARGO: not fixed yet, not to be passed on.");
        say("");
    }
    say(&format!("{}, seen on {}.", request.signature, request.kernel));
    if !request.rule.is_empty() {
        say(&format!("Rule {}", request.rule));
    }
    say(&format!("Expected: {}.", check.expected));
    say("");
    say("  gcc -static -O1 -pthread -o reproducer FILE.c && ./reproducer   (as root)");
    say("");
    say(&format!(
        "Ends with {BEHAVES} if the kernel behaves, {SHOWS} if it shows the bug, {CANNOT} if this \
         machine cannot tell (it says why)."
    ));
    say("Written by hgm from this program; numbers of lines count from 0:");
    say("");
    for line in case::text::print_bare(request.program).lines().skip(2) {
        say(&format!("  {line}"));
    }
    text.push_str(" */\n");
    text
}

fn includes(script: &Script) -> String {
    let mut headers = script.parts.headers.clone();
    headers.extend(HEADERS);
    let (kernel, libc): (Vec<_>, Vec<_>) = headers.iter().partition(|h| h.starts_with("<linux"));
    let lines = |list: &[&&str]| list.iter().map(|h| format!("#include {h}\n")).collect::<String>();
    format!("#define _GNU_SOURCE\n{}{}\n", lines(&libc), lines(&kernel))
}

fn defines(script: &Script, constants: &str) -> String {
    let mut out = format!(
        "enum {{ BEHAVES = {BEHAVES}, SHOWS = {SHOWS}, CANNOT = {CANNOT} }};\n\
         #define ROUNDS {}\n#define SECONDS {}\t/* for one round */\n\n\
         #define K(n) ((n) * 1024UL)\n#define M(n) ((n) * 1048576UL)\n\
         #define G(n) ((n) * 1073741824UL)\n#define AT(address) ((void *)(address))\n",
        script.request.rounds.max(1),
        script.request.seconds.max(1)
    );
    if !script.regions.is_empty() {
        out.push_str("/* Where the program's mappings lie. */\n");
    }
    for region in &script.regions {
        out.push_str(&format!("#define R{region} 0x{:x}UL\n", Place::new(*region, 0).addr()));
    }
    for (name, value) in [
        ("EVENTS", "4096".to_owned()),
        ("POISONED", "64".to_owned()),
        ("LATE_MAX", "32".to_owned()),
        ("R_BASE", format!("0x{ARENA_BASE:x}UL")),
        ("R_STRIDE", format!("0x{ARENA_STRIDE:x}UL")),
        ("BUFFER", if has_giants(script) { "G(1)" } else { "M(2)" }.to_owned()),
        ("LIMITED", u8::from(script.limited).to_string()),
    ] {
        let wanted = match name {
            "EVENTS" => script.parts.has("events"),
            "POISONED" => script.parts.has("unpoison_all"),
            "LIMITED" => script.parts.has("in_process"),
            _ => script.parts.has("handler"),
        };
        if wanted {
            out.push_str(&format!("#define {name} {value}\n"));
        }
    }
    format!("{out}{constants}\n")
}

/// Page size of each mapping the program makes or moves, by region; the smallest of several.
fn page_sizes(script: &Script) -> [Option<PageSize>; 8] {
    let lines = script.request.program.each_line();
    let file_page = |file: FileId| {
        lines.iter().find_map(|(_, _, op)| match op {
            Op::Memfd { file: made, page, .. } | Op::Hugetlbfs { file: made, page }
                if *made == file =>
            {
                Some(*page)
            }
            _ => None,
        })
    };
    let mut sizes = [None; 8];
    let mut note = |at: &Place, page: PageSize| {
        let size: &mut Option<PageSize> = &mut sizes[usize::from(at.region.0 & 7)];
        *size = Some(size.map_or(page, |known: PageSize| known.min(page)));
    };
    for (_, _, op) in &lines {
        if let Op::Mmap { at, from, page, .. } = op {
            note(at, from.and_then(|part| file_page(part.file)).unwrap_or(*page));
        }
    }
    for (_, _, op) in &lines {
        if let Op::Mremap { at, to: Some(to), .. } = op {
            let page = sizes[usize::from(at.region.0 & 7)].unwrap_or(PageSize::Base);
            let size = &mut sizes[usize::from(to.region.0 & 7)];
            *size = Some(size.map_or(page, |known| known.min(page)));
        }
    }
    sizes
}

fn has_giants(script: &Script) -> bool {
    page_sizes(script).contains(&Some(PageSize::Huge1G))
}

/// Texts that hang on the program, for the marked places of the helpers.
fn make_texts(script: &mut Script, needs: &Needs) {
    let texts = [
        ("SHARED", shared(script)),
        ("OBJECTS", objects(script)),
        ("HANDLERS", handler_type(script)),
        ("SETTLE", settle(script)),
        ("PAGEAT", page_at(script)),
        ("ENDWAITS", end_waits(script)),
        ("SETTINGS", needs.table()),
    ];
    for (name, text) in texts {
        script.parts.make(name, text);
    }
}

/// Names of the descriptors the program makes, and of its processes.
fn names(script: &Script) -> (Vec<String>, Vec<String>) {
    let (mut fds, mut procs) = (Vec::new(), Vec::new());
    for (_, _, op) in script.request.program.each_line() {
        match op {
            Op::Memfd { file, .. } | Op::Hugetlbfs { file, .. } => fds.push(file.to_string()),
            Op::Uffd { uffd, .. } => fds.push(uffd.to_string()),
            Op::Pin { pin, .. } => fds.push(pin.to_string()),
            Op::Fork { child } => procs.push(child.to_string()),
            _ => {}
        }
    }
    (fds, procs)
}

fn shared(script: &Script) -> String {
    let (fds, procs) = names(script);
    let mut out = String::new();
    if script.forks {
        out.push_str("struct process {\n\tpid_t pid;\n\tint sock;\n};\n\n");
    }
    if script.parts.has("events") {
        out.push_str(
            "struct event {\n\tint line, uffd;\n\tunsigned char event, flags;\n\
             \tunsigned long at;\n};\n\n",
        );
    }
    out.push_str(
        "/* Shared by all processes. */\nstruct shared {\n\tint now;\t\t/* line that runs */\n",
    );
    let lines = script.request.program.lines() + 1;
    out.push_str(&format!("\tstruct seen seen[{lines}];\t/* one a line */\n"));
    out.push_str("\tchar note[4096];\t/* what is told of the round */\n\tpid_t p0;\n");
    if script.parts.has("kmsg") {
        out.push_str("\tchar report[512];\n");
    }
    if script.parts.has("events") {
        out.push_str("\tint event_count;\n\tstruct event events[EVENTS];\n");
    }
    if script.parts.has("unpoison_all") {
        out.push_str(
            "\tint poisoned_count;\n\tstruct {\n\t\tunsigned long at, pfn;\n\t} poisoned[POISONED];\n",
        );
    }
    if script.forks && !fds.is_empty() {
        out.push_str(&format!("\tint {};\n", fds.join(", ")));
    }
    if !procs.is_empty() {
        out.push_str(&format!("\tstruct process {};\n", procs.join(", ")));
    }
    out + "};\n\nstatic struct shared *s;\n"
}

fn objects(script: &Script) -> String {
    let (fds, _) = names(script);
    if script.forks || fds.is_empty() {
        return String::new();
    }
    let all: Vec<String> = fds.iter().map(|name| format!("{name} = -1")).collect();
    format!("static int {};\n", all.join(", "))
}

fn handler_type(script: &Script) -> String {
    let names: Vec<String> = script.handlers.iter().map(|(id, _)| format!("h{}", id.0)).collect();
    format!(
        "enum policy {{ ANSWER_COPY, ANSWER_ZERO, ANSWER_POISON }};\n\n\
         /* A thread that answers the faults of a userfaultfd. */\nstruct handler {{\n\
         \tint number, uffd, stop, busy;\n\tenum policy policy;\n\tchar *buffer;\n\
         \tpthread_t thread;\n\t/* Faults to be answered, and tries that are left. */\n\
         \tunsigned long at[LATE_MAX];\n\tunsigned int flags[LATE_MAX];\n\tint left[LATE_MAX];\n\
         }};\n\nstatic struct handler {};\n",
        names.join(", ")
    )
}

fn settle(script: &Script) -> String {
    let names: Vec<String> = script.handlers.iter().map(|(id, _)| format!("&h{}", id.0)).collect();
    format!(
        "/* Waits until no handler has a message to read or to answer. */\n\
         static void settle(void)\n{{\n\tstatic struct handler *const all[] = {{ {} }};\n\
         \tsize_t i;\n\tint tries;\n\n\
         \tfor (i = 0; i < sizeof(all) / sizeof(all[0]); i++) {{\n\
         \t\tfor (tries = 0; all[i]->buffer && tries < 5000; tries++) {{\n\
         \t\t\tstruct pollfd fd = {{ all[i]->uffd, POLLIN, 0 }};\n\n\
         \t\t\tif (poll(&fd, 1, 0) <= 0 &&\n\
         \t\t\t    !__atomic_load_n(&all[i]->busy, __ATOMIC_SEQ_CST))\n\
         \t\t\t\tbreak;\n\t\t\tusleep(100);\n\t\t}}\n\t}}\n}}\n",
        names.join(", ")
    )
}

fn page_at(script: &Script) -> String {
    let mut cases = String::new();
    for (region, size) in page_sizes(script).iter().enumerate() {
        match size {
            Some(PageSize::Huge2M) => {
                cases.push_str(&format!("\tcase {region}:\n\t\treturn M(2);\n"));
            }
            Some(PageSize::Huge1G) => {
                cases.push_str(&format!("\tcase {region}:\n\t\treturn G(1);\n"));
            }
            _ => {}
        }
    }
    format!(
        "/* Page size of the mapping at an address. */\n\
         static unsigned long page_at(unsigned long at)\n{{\n\
         \tswitch ((at - R_BASE) / R_STRIDE) {{\n{cases}\tdefault:\n\t\treturn K(4);\n\t}}\n}}\n"
    )
}

fn end_waits(script: &Script) -> String {
    let lines = script.request.program.each_line();
    let mut body = String::new();
    for (_, _, op) in &lines {
        let Op::Uffd { uffd, .. } = op else { continue };
        let name = script.object(uffd);
        body.push_str(&format!(
            "\twhile (!all && {name} != -1 && read({name}, message, 32) == 32)\n\t\ttaken = 1;\n\
             \tif (all && {name} != -1) {{\n"
        ));
        if script.handlers.iter().any(|(id, _)| id == uffd) {
            body.push_str(&format!(
                "\t\tif (h{0}.buffer && write(h{0}.stop, &one, 8) != 8)\n\t\t\treturn taken;\n",
                uffd.0
            ));
        }
        body.push_str(&format!("\t\tclose({name});\n\t\t{name} = -1;\n\t\ttaken = 1;\n\t}}\n"));
    }
    format!(
        "/* Reads what nobody reads, or closes all userfaultfds; says whether there was any. */\n\
         static int end_waits(int all)\n{{\n\tstatic const unsigned long one = 1;\n\
         \tchar message[32];\n\tint taken = 0;\n\n\t(void)all;\n\t(void)one;\n\t(void)message;\n\
         {body}\treturn taken;\n}}\n"
    )
}

fn run_line(script: &Script) -> String {
    if !script.parts.has("processes") {
        return String::new();
    }
    format!(
        "/* Lines of forked processes. */\nstatic void run_line(int number)\n{{\n\
         \tswitch (number) {{\n{}\tdefault:\n\t\tbreak;\n\t}}\n}}\n\n",
        script.cases
    )
}

fn program(script: &Script, check: &Check) -> String {
    let (fds, _) = names(script);
    let mut start = String::from("\ts->p0 = getpid();\n\tpin_cpu(0);\n");
    if script.parts.has("fault") {
        start.push_str("\tcatch_faults();\n");
    }
    if script.forks && !fds.is_empty() {
        let all: Vec<String> = fds.iter().map(|name| format!("s->{name} = ")).collect();
        start.push_str(&format!("\t{}-1;\n", all.concat()));
    }
    let end =
        if check.side == Side::Inside { "" } else { "\t/* What is checked comes after it. */\n" };
    format!(
        "static void program(void)\n{{\n{start}\n{}{end}}}\n\n",
        script.body.trim_end_matches('\n').to_owned() + "\n"
    )
}

fn check_function(check: &Check) -> String {
    format!(
        "/* Expected: {}. */\nstatic int check(void)\n{{\n{}}}\n\n",
        commented(&check.expected),
        check.body
    )
}

/// The process that runs the program, and `main`.
fn watcher(script: &Script, check: &Check, needs: &Needs) -> String {
    let has = |part: &str, text: &str| {
        if script.parts.has(part) { text.to_owned() } else { String::new() }
    };
    let inside = check.side == Side::Inside;
    let verdict = if inside { "check() ? BEHAVES : SHOWS" } else { "BEHAVES" };
    let ended = match inside {
        true => "\treturn WEXITSTATUS(status);\n",
        false => {
            "\tif (WEXITSTATUS(status) != BEHAVES)\n\t\treturn WEXITSTATUS(status);\n\
             \treturn check() ? BEHAVES : SHOWS;\n"
        }
    };
    let late = match script.request.expectation {
        Expectation::Ends => "SHOWS",
        _ => "CANNOT",
    };
    let died = match script.request.expectation {
        // The kernel kills a task that runs into a bug of it.
        Expectation::NoReport { .. } => "\t\treturn check() ? CANNOT : SHOWS;\n",
        _ => "\t\treturn CANNOT;\n",
    };
    let before = has(
        "before",
        "\tbefore_2m = pool_of(POOL_2M);\n\tbefore_1g = pool_of(POOL_1G);\n",
    ) + &has("corrupted", "\tcorrupted_before = corrupted();\n")
        + &has(
            "kmsg",
            "\tif (kmsg_open() == -1) {\n\t\tsay(\"/dev/kmsg cannot be read\");\n\t\treturn CANNOT;\n\t}\n",
        );
    let unpoison = has("unpoison_all", "\tunpoison_all();\n");
    format!(
        "/* Runs the program once, in a process of its own. */\n\
         static int run_round(void)\n{{\n\tint status, waited = 0;\n\tpid_t pid;\n\n{before}\
         \tpid = fork();\n\tif (pid == 0) {{\n\t\tprctl(PR_SET_PDEATHSIG, SIGKILL);\n\t\tprogram();\n\
         \t\t_exit({verdict});\n\t}}\n\
         \twhile (pid != -1 && waitpid(pid, &status, WNOHANG) != pid) {{\n\
         \t\tif (waited++ > SECONDS * 100) {{\n\
         \t\t\tsay(\"seen: line %d did not end within %d s\", s->now, SECONDS);\n\
         \t\t\tkill(pid, SIGKILL);\n\t\t\treturn {late};\n\t\t}}\n\t\tusleep(10000);\n\t}}\n\
         \tif (pid == -1) {{\n\t\tsay(\"fork: %s\", strerror(errno));\n\t\treturn CANNOT;\n\t}}\n\
         \t/* Processes it left behind die with it. */\n\
         \twhile (waitpid(-1, NULL, 0) > 0)\n\t\t;\n{unpoison}\
         \tif (WIFSIGNALED(status)) {{\n\
         \t\tsay(\"the program died of signal %d in line %d\", WTERMSIG(status), s->now);\n{died}\t}}\n\
         {ended}}}\n\n{}{}",
        possible(needs),
        main_text(script.request, check, needs)
    )
}

/// Whether this machine can run the program at all.
fn possible(needs: &Needs) -> String {
    let mut tests =
        String::from("\tif (geteuid() != 0) {\n\t\tsay(\"needs root\");\n\t\treturn 0;\n\t}\n");
    if !needs.settings.is_empty() {
        tests.push_str("\tif (set_up() == -1)\n\t\treturn 0;\n");
    }
    let pools = [("POOL_2M", "2 MiB"), ("POOL_1G", "1 GiB")];
    for ((dir, size), pages) in pools.iter().zip(needs.pools) {
        if let Some(pages) = pages {
            tests.push_str(&format!(
                "\tif (need_pool({dir}, \"{size}\", {pages}) == -1)\n\t\treturn 0;\n"
            ));
        }
    }
    if needs.nodes > 1 {
        tests.push_str(&format!("\tif (need_nodes({}) == -1)\n\t\treturn 0;\n", needs.nodes));
    }
    format!(
        "/* Whether this machine can tell at all; makes it ready. */\n\
         static int possible(void)\n{{\n{tests}\treturn 1;\n}}\n\n"
    )
}

fn main_text(request: &Request, check: &Check, needs: &Needs) -> String {
    let mut facts = vec![format!("{}", request.signature)];
    if !request.rule.is_empty() {
        facts.push(format!("rule {}", request.rule));
    }
    let lines = request.program.each_line();
    if let Some((number, proc, op)) = lines.get(usize::from(request.line)) {
        facts.push(format!("line {number}: {}", text_of(*proc, op)));
    }
    facts.push(format!("expected: {}", check.expected));
    let facts: String = facts.iter().map(|fact| format!("\ttell({});\n", quoted(fact))).collect();
    let (mark, start, verdicts) = match request.style {
        Style::Plain => (
            "",
            String::new(),
            "\tif (status == BEHAVES)\n\t\tprintf(\"PASS: it behaves as expected (%d rounds)\\n\", round);\n\
             \telse if (status == SHOWS)\n\t\tprintf(\"FAIL: it shows the bug (round %d)\\n\", round);\n\
             \telse\n\t\tprintf(\"SKIP: this machine cannot tell\\n\");\n"
                .to_owned(),
        ),
        Style::Selftest => {
            let name = test_name(request.signature);
            (
                "# ",
                "\tprintf(\"TAP version 13\\n1..1\\n\");\n".to_owned(),
                format!(
                    "\tif (status == BEHAVES)\n\t\tprintf(\"ok 1 {name}\\n\");\n\
                     \telse if (status == SHOWS)\n\t\tprintf(\"not ok 1 {name}\\n\");\n\
                     \telse\n\t\tprintf(\"ok 1 {name} # SKIP this machine cannot tell\\n\");\n\
                     \tprintf(\"# Totals: pass:%d fail:%d xfail:0 xpass:0 skip:%d error:0\\n\",\n\
                     \t       status == BEHAVES, status == SHOWS, status == CANNOT);\n\
                     \tprintf(\"# rounds: %d\\n\", round);\n"
                ),
            )
        }
    };
    let put_back = if needs.settings.is_empty() { "" } else { "\tput_back();\n" };
    format!(
        "/* Prints a text line by line. */\nstatic void tell(const char *text)\n{{\n\
         \twhile (*text) {{\n\t\tint length = strcspn(text, \"\\n\");\n\n\
         \t\tprintf(\"{mark}%.*s\\n\", length, text);\n\
         \t\ttext += length + (text[length] == '\\n');\n\t}}\n}}\n\n\
         int main(void)\n{{\n\tint status = CANNOT, got, round = 0;\n\n\
         \tsetvbuf(stdout, NULL, _IONBF, 0);\n\
         \ts = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);\n\
         \tif (s == MAP_FAILED)\n\t\treturn CANNOT;\n\
         \tprctl(PR_SET_CHILD_SUBREAPER, 1);\n{start}{facts}\
         \tif (possible()) {{\n\
         \t\twhile (round < ROUNDS && status != SHOWS) {{\n\t\t\tround++;\n\
         \t\t\tmemset(s, 0, sizeof(*s));\n\t\t\tgot = run_round();\n\
         \t\t\tif (got != CANNOT || status == CANNOT)\n\t\t\t\tstatus = got;\n\t\t}}\n\t}}\n\
         {put_back}\ttell(s->note);\n{verdicts}\treturn status;\n}}\n"
    )
}

/// `x-02-madvise-rsvd-low`: what TAP calls the test.
fn test_name(signature: &str) -> String {
    let mut name = String::new();
    for c in signature.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => name.push(c),
            _ if !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.trim_matches('-').to_owned()
}
