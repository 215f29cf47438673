//! `--focus`: which functions a campaign is about. A word is a function, a file of the kernel, or
//! a patch on disk, whose hunks name functions. A word nobody knows is an error, never nothing.

use super::text::{self, Text, UNKNOWN};
use crate::exit::{ExpectedError, nearest};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// Bytes of a patch that are read.
const PATCH_BYTES_MAX: u64 = 16 << 20;

/// Functions in focus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Focus {
    /// As given.
    pub words: Vec<String>,
    /// Indices into the text's functions.
    pub functions: BTreeSet<u32>,
    /// What was made of the words, where that is not plain.
    pub notes: Vec<String>,
}

impl Focus {
    /// What the words mean for this kernel; `None` without words.
    pub fn of(words: &[String], text: &Text) -> Result<Option<Focus>, ExpectedError> {
        let mut focus =
            Focus { words: words.to_vec(), functions: BTreeSet::new(), notes: Vec::new() };
        for word in words {
            match patch_file(word)? {
                Some(patch) => focus.add_patch(word, &patch, text)?,
                None => focus.add_name(word, text)?,
            }
        }
        Ok((!words.is_empty()).then_some(focus))
    }

    fn add_name(&mut self, word: &str, text: &Text) -> Result<(), ExpectedError> {
        let functions = text.functions.iter().enumerate();
        let named: Vec<u32> = functions
            .filter(|(_, f)| f.name == word || is_file(&f.file, word))
            .map(|(index, _)| index as u32)
            .collect();
        if named.is_empty() {
            return Err(unknown(word, text));
        }
        self.functions.extend(named);
        Ok(())
    }

    fn add_patch(&mut self, word: &str, patch: &str, text: &Text) -> Result<(), ExpectedError> {
        let before = self.functions.len();
        for (file, names) in changes(patch) {
            let inside = |f: &(usize, &super::Function)| f.1.file == file;
            let all = || text.functions.iter().enumerate();
            let named: Vec<u32> = all()
                .filter(|(_, f)| f.file == file || f.file == UNKNOWN)
                .filter(|(_, f)| names.iter().any(|name| same(&f.name, name)))
                .map(|(index, _)| index as u32)
                .collect();
            if named.is_empty() && all().any(|f| inside(&f)) {
                // New, inlined or renamed functions: their file is as near as can be said.
                self.notes.push(format!("no function of {word} in {file} is known: all of it"));
                self.functions.extend(all().filter(inside).map(|(index, _)| index as u32));
            }
            self.functions.extend(named);
        }
        if self.functions.len() == before {
            return Err(ExpectedError::config(
                format!("{word} changes no file whose coverage counts"),
                "name a function or a file instead, such as --focus mm/hugetlb.c",
            ));
        }
        Ok(())
    }
}

/// Whether a patch on disk changes a file whose coverage can count.
pub fn touches(patch: &Path) -> Result<bool, ExpectedError> {
    let shown = patch.display().to_string();
    let Some(text) = patch_file(&shown)? else {
        let what = format!("{shown} is no patch");
        return Err(ExpectedError::config(what, "name a file with a diff, as git diff writes it"));
    };
    Ok(changes(&text).keys().any(|file| text::counts(file)))
}

/// A file is named by its path or by the end of it.
fn is_file(path: &str, word: &str) -> bool {
    path == word || path.strip_suffix(word).is_some_and(|start| start.ends_with('/'))
}

/// A system call is defined by its bare name.
fn same(function: &str, name: &str) -> bool {
    let wrapped = |start: &str| function.strip_prefix(start) == Some(name);
    function == name || ["__do_sys_", "__se_sys_", "__x64_sys_"].into_iter().any(wrapped)
}

/// The text of a patch, if the word is a file that looks like one.
fn patch_file(word: &str) -> Result<Option<String>, ExpectedError> {
    let path = Path::new(word);
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(PATCH_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| {
        ExpectedError::config(format!("cannot read {word}"), "make it readable").cause(error)
    })?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let is_patch = text.lines().any(|line| line.starts_with("+++ "))
        && text.lines().any(|line| line.starts_with("@@ "));
    Ok(is_patch.then_some(text))
}

fn unknown(word: &str, text: &Text) -> ExpectedError {
    let names = text.functions.iter().map(|f| f.name.as_str());
    let files: BTreeSet<&str> = text.functions.iter().map(|f| f.file.as_str()).collect();
    let short = files.iter().filter_map(|file| file.rsplit('/').next());
    let near = nearest(word, names.chain(files.iter().copied()).chain(short));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "name a function or a file of mm/, or a patch on disk".to_owned(),
    };
    ExpectedError::config(format!("no function or file `{word}` whose coverage counts"), help)
}

/// Files of a patch, each with the names of functions its hunks are in or define.
fn changes(patch: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut file = String::new();
    let mut inside = false;
    for line in patch.lines() {
        if let Some(path) = line.strip_prefix("+++ ") {
            let path = path.split('\t').next().unwrap_or(path);
            file = path.split_once('/').map_or(path, |(_, rest)| rest).to_owned();
            (inside, _) = (false, all.entry(file.clone()).or_default());
            continue;
        }
        if line.starts_with("diff ") {
            inside = false;
        }
        let context = line.strip_prefix("@@ ").and_then(|rest| rest.split_once("@@"));
        let code = match context {
            Some((_, code)) => {
                inside = true;
                code.trim_start()
            }
            // Also what a hunk removes: an older kernel still has it.
            None if inside => match line.split_at_checked(1) {
                Some(("+" | "-" | " ", code)) => code,
                _ => continue,
            },
            None => continue,
        };
        if let Some(name) = defined(code) {
            all.entry(file.clone()).or_default().insert(name.to_owned());
        }
    }
    all
}

/// The function whose definition starts on this line of C.
fn defined(code: &str) -> Option<&str> {
    if !code.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || code.ends_with(';') {
        return None;
    }
    let (head, arguments) = code.split_once('(')?;
    if head.contains("SYSCALL_DEFINE") {
        return arguments.split([',', ')']).next().filter(|name| !name.is_empty());
    }
    let name = head.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
    let keyword = ["if", "for", "while", "switch", "return", "sizeof"].contains(&name);
    (!name.is_empty() && !keyword).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::Function;

    fn text() -> Text {
        let function = |(name, file): (&str, &str)| Function {
            name: name.into(),
            file: file.into(),
            parts: vec![(0x1000, 0x1008)],
        };
        let all = [
            ("__do_sys_mremap", "mm/mremap.c"),
            ("move_vma", "mm/mremap.c"),
            ("hugetlb_fault", "mm/hugetlb.c"),
            ("hugetlb_wp", "mm/hugetlb.c"),
            ("vma_interval_tree_insert", UNKNOWN),
            ("mfill_atomic", "mm/userfaultfd.c"),
            ("handle_userfault", "fs/userfaultfd.c"),
        ];
        Text { functions: all.into_iter().map(function).collect(), ..Text::default() }
    }

    fn names(words: &[&str]) -> Result<Vec<String>, ExpectedError> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let text = text();
        let focus = Focus::of(&words, &text)?.unwrap();
        Ok(focus.functions.iter().map(|at| text.functions[*at as usize].name.clone()).collect())
    }

    #[test]
    fn functions_and_files_are_found_by_name() {
        assert_eq!(names(&["move_vma"]).unwrap(), ["move_vma"]);
        assert_eq!(names(&["mm/hugetlb.c"]).unwrap(), ["hugetlb_fault", "hugetlb_wp"]);
        assert_eq!(names(&["hugetlb.c", "move_vma"]).unwrap().len(), 3);
        // One name, two files: both.
        assert_eq!(names(&["userfaultfd.c"]).unwrap(), ["mfill_atomic", "handle_userfault"]);
        assert_eq!(Focus::of(&[], &text()).unwrap(), None);
    }

    #[test]
    fn a_name_nobody_knows_is_an_error_with_the_nearest() {
        let error = names(&["hugetlb_fualt"]).unwrap_err();
        assert!(error.help.contains("`hugetlb_fault`"), "{}", error.help);
        let error = names(&["hugetbl.c"]).unwrap_err();
        assert!(error.help.contains("`hugetlb.c`"), "{}", error.help);
        assert!(names(&["drivers/gpu"]).is_err());
        assert!(names(&["move_vma", "nothing_like_it_at_all"]).is_err());
    }

    const PATCH: &str = "diff --git a/mm/mremap.c b/mm/mremap.c\n--- a/mm/mremap.c\n\
        +++ b/mm/mremap.c\n@@ -10,6 +10,7 @@ SYSCALL_DEFINE5(mremap, unsigned long, addr,\n \tx = 1;\n\
        +\tmove_vma_not_called_here(x);\n@@ -90,3 +91,4 @@ static int other(void)\n \treturn;\n }\n \
        static unsigned long move_vma(struct vm_area_struct *vma,\n+\t\tint extra,\n\
        diff --git a/drivers/x.c b/drivers/x.c\n--- a/drivers/x.c\n+++ b/drivers/x.c\n\
        @@ -1 +1 @@ int hugetlb_fault(void)\n-\n+\n";

    #[test]
    fn a_patch_names_the_functions_its_hunks_touch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fix.patch");
        std::fs::write(&path, PATCH).unwrap();
        let word = path.to_str().unwrap();
        assert_eq!(names(&[word]).unwrap(), ["__do_sys_mremap", "move_vma"]);
        // Functions this kernel does not have: the whole file, and a note.
        let strange = PATCH.replace("move_vma", "brand_new").replace("DEFINE5(mremap", "DEFINE5(q");
        std::fs::write(&path, strange).unwrap();
        let focus = Focus::of(&[word.to_owned()], &text()).unwrap().unwrap();
        assert_eq!(focus.functions.len(), 2);
        assert!(focus.notes[0].contains("mm/mremap.c"), "{:?}", focus.notes);
        assert!(touches(&path).unwrap());
        std::fs::write(&path, PATCH.replace("mm/mremap.c", "net/core.c")).unwrap();
        assert!(names(&[word]).is_err());
        assert!(!touches(&path).unwrap());
        std::fs::write(&path, "no patch").unwrap();
        assert!(touches(&path).is_err());
    }

    #[test]
    fn definitions_are_told_from_calls() {
        assert_eq!(defined("static int *foo(int a)"), Some("foo"));
        assert_eq!(defined("foo(int a,"), Some("foo"));
        assert_eq!(defined("SYSCALL_DEFINE1(brk, unsigned long, brk)"), Some("brk"));
        for not in ["int foo(int a);", "\tfoo(a)", "}", "", "if (x)", "int x"] {
            assert_eq!(defined(not), None, "{not}");
        }
    }
}
