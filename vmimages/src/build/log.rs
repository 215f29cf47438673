//! Reading make's output: objects compiled so far, and the one error a reader wants first. Pure:
//! running make is `make`.

/// Lines of context shown around an error, at most.
const EXCERPT_LINES_MAX: usize = 12;
/// Bytes of one line shown, at most.
const LINE_BYTES_MAX: usize = 300;

/// What kbuild prints before the name of each object it makes.
const STEPS: &[&str] = &["CC", "AS", "HOSTCC"];

/// The object a line of make's short output announces.
pub fn object(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let step = words.next()?;
    let name = words.next()?;
    STEPS.contains(&step).then_some(name)
}

/// The first thing that went wrong, with the lines that belong to it. Compiler and linker errors
/// go before make's own complaint about them, wherever they stand.
pub fn first_error(log: &str) -> Option<Vec<String>> {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines
        .iter()
        .position(|line| is_error(line))
        .or_else(|| lines.iter().position(|line| is_makes_word(line)))?;
    let mut from = at;
    while from > 0 && at - from < 3 && is_lead_in(lines[from - 1]) {
        from -= 1;
    }
    let mut to = at + 1;
    while to < lines.len() && to - from < EXCERPT_LINES_MAX && belongs(lines[to]) {
        to += 1;
    }
    Some(lines[from..to].iter().map(|line| cut(line)).collect())
}

/// Whether the disk was full, whatever else was said.
pub fn is_disk_full(log: &str) -> bool {
    log.contains("No space left on device")
}

fn is_error(line: &str) -> bool {
    let linker = line.contains("ld: ") || line.contains("ld.lld: ") || line.contains("ld.bfd: ");
    line.contains(": error:")
        || line.contains(": fatal error:")
        || line.starts_with("error:")
        || line.contains("internal compiler error")
        || line.contains("undefined reference to")
        || line.contains("multiple definition of")
        || line.contains("modpost: ") && line.contains("ERROR")
        || line.starts_with("ERROR: ")
        || line.contains("objtool: ") && line.contains("error")
        || line.contains("Kconfig:") && line.contains("error")
        || line.contains(": not found") && line.starts_with("/bin/sh")
        || line.ends_with(": Permission denied")
        || line.contains("Killed signal terminated program")
        || line.contains("No space left on device")
        || linker && (line.contains("cannot") || line.contains("error") || line.contains("failed"))
}

fn is_makes_word(line: &str) -> bool {
    line.starts_with("make") && line.contains("*** ")
}

fn is_lead_in(line: &str) -> bool {
    line.contains(": In function ")
        || line.contains(": At top level")
        || line.starts_with("In file included from ")
        || line.starts_with("                 from ")
        || line.contains(": in function ")
}

/// Source lines, carets, notes: what the compiler prints indented below its error.
fn belongs(line: &str) -> bool {
    let source = line.trim_start().split_once('|').is_some_and(|(number, _)| {
        line.starts_with(' ') && number.trim().bytes().all(|b| b.is_ascii_digit())
    });
    source || line.contains(": note: ")
}

fn cut(line: &str) -> String {
    let mut end = line.len().min(LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_by_what_kbuild_prints() {
        assert_eq!(object("  CC      mm/hugetlb.o"), Some("mm/hugetlb.o"));
        assert_eq!(
            object("  AS      arch/x86/entry/thunk_64.o"),
            Some("arch/x86/entry/thunk_64.o")
        );
        assert_eq!(object("  HOSTCC  scripts/basic/fixdep"), Some("scripts/basic/fixdep"));
        for other in ["  AR      mm/built-in.a", "CC", "mm/x.c:1: warning: CC", "  CC", ""] {
            assert_eq!(object(other), None, "{other}");
        }
    }

    #[test]
    fn the_compilers_error_comes_with_its_lines_and_before_makes() {
        let log = "  CC      mm/a.o\n\
                   mm/w.c:3:1: warning: unused\n\
                   make[3]: *** [scripts/Makefile.build:250: mm/z.o] Error 1\n\
                   In file included from mm/b.c:1:\n\
                   mm/b.c: In function 'f':\n\
                   mm/b.c:7:2: error: 'x' undeclared\n    7 |  x = 1;\n      |  ^\n\
                   mm/b.c:7:2: note: each undeclared identifier\n\
                   mm/b.c:9:2: error: 'y' undeclared\n";
        let seen = first_error(log).unwrap();
        assert_eq!(seen.first().unwrap(), "In file included from mm/b.c:1:");
        assert!(seen.iter().any(|l| l.contains("'x' undeclared")));
        assert!(seen.last().unwrap().contains("note:"), "{seen:?}");
        assert!(!seen.iter().any(|l| l.contains("'y'")), "{seen:?}");
    }

    #[test]
    fn linker_tools_and_make_are_heard() {
        for (log, part) in [
            ("ld: mm/a.o: in function `f':\na.c:(.text+1): undefined reference to `g'\n", "`g'"),
            ("/bin/sh: 1: flex: not found\nmake[1]: *** x Error 127\n", "flex"),
            ("make[1]: *** No rule to make target 'a.c', needed by 'a.o'.  Stop.\n", "No rule"),
            ("gcc: fatal error: Killed signal terminated program cc1\n", "Killed"),
            ("mm/Kconfig:12: syntax error\nmm/Kconfig:11: unknown statement\n", ""),
        ] {
            let seen = first_error(log);
            assert_eq!(seen.is_some(), !part.is_empty() || log.contains("Kconfig"), "{log}");
            assert!(seen.unwrap().join("\n").contains(part));
        }
        assert_eq!(first_error("  CC      a.o\nmm/a.c:1:1: warning: x\n"), None);
        assert!(is_disk_full("fatal error: error writing to /x: No space left on device\n"));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let log = format!("a.c:1:1: error: {}\n", "\u{e9}".repeat(4000));
        assert!(first_error(&log).unwrap()[0].len() <= LINE_BYTES_MAX);
    }
}
