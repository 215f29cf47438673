//! The system calls a child made, in their order, read from what `strace` wrote. What they mean to a
//! disk is `disk.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What may change files, or where the next write goes. A name with a question mark is one that some
/// machines do not have. Calls `disk.rs` has no reading for are here so that it can refuse them.
const CALLS: &str = "openat,?openat2,?open,?creat,close,read,readv,write,lseek,pwrite64,ftruncate,\
    ?truncate,fsync,fdatasync,?rename,renameat,renameat2,?link,linkat,?symlink,symlinkat,?unlink,\
    unlinkat,?mkdir,mkdirat,?rmdir,dup,?dup2,dup3,fcntl,mmap,msync,writev,pwritev,pwritev2,fallocate,\
    copy_file_range,sendfile,splice,sync_file_range,syncfs,sync,io_uring_setup";
/// Longer ones would be cut short, and the reader refuses those.
const STRING_MAX: &str = "33554432";

/// One call that did not fail.
#[derive(Debug)]
pub struct Call {
    pub name: String,
    pub args: Vec<Arg>,
    pub result: i64,
}

#[derive(Debug)]
pub enum Arg {
    Text(Vec<u8>),
    /// A number, flags, a structure: as strace prints it.
    Word(String),
}

impl Arg {
    pub fn number(&self) -> Option<i64> {
        match self {
            Arg::Word(word) => word.parse().ok(),
            Arg::Text(_) => None,
        }
    }
}

impl Call {
    pub fn word(&self, at: usize) -> &str {
        match &self.args[at] {
            Arg::Word(word) => word,
            Arg::Text(_) => panic!("a text where a word should be: {}", self.name),
        }
    }

    pub fn number(&self, at: usize) -> i64 {
        let number = self.args[at].number();
        number.unwrap_or_else(|| panic!("no number: {} {at}", self.name))
    }

    pub fn text(&self, at: usize) -> &[u8] {
        match &self.args[at] {
            Arg::Text(text) => text,
            Arg::Word(word) => panic!("no text: {} {word}", self.name),
        }
    }
}

/// Runs a command to its end and gives the calls of all its threads.
pub fn of(command: &mut Command, log: &Path) -> Vec<Call> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-xx", "-e", "signal=none", "-s", STRING_MAX, "-e"]);
    strace.arg(format!("trace={CALLS}")).arg("-o").arg(log).arg("--").arg(command.get_program());
    strace.args(command.get_args());
    command.get_envs().for_each(|(name, value)| {
        strace.env(name, value.unwrap());
    });
    let out = strace.output().expect("strace (ci/install --faults)");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}{told}", String::from_utf8_lossy(&out.stdout));
    read(&std::fs::read_to_string(log).unwrap())
}

fn read(log: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    // Thread -> the first half of a call that others went on beside.
    let mut halves: BTreeMap<&str, String> = BTreeMap::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(' ').expect("thread and call");
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(half) = rest.strip_suffix(" <unfinished ...>") {
            halves.insert(thread, half.to_owned());
            continue;
        }
        let whole = match rest.split_once(" resumed>") {
            Some((_, second)) => halves.remove(thread).expect("its first half") + second,
            None => rest.to_owned(),
        };
        calls.extend(call(&whole));
    }
    calls
}

/// None: it failed, and changed nothing.
fn call(line: &str) -> Option<Call> {
    let (name, rest) = line.split_once('(').unwrap_or_else(|| panic!("no call: {line:.200}"));
    let (args, result) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("no end: {line:.200}"));
    let args = args.trim_end().strip_suffix(')').unwrap_or_else(|| panic!("no end: {line:.200}"));
    let result = result.split(' ').next().unwrap_or_default();
    let result = match result.strip_prefix("0x") {
        Some(address) => i64::from_str_radix(address, 16).ok()?,
        // A thread that ended inside a call has `?`.
        None => result.parse().ok()?,
    };
    let args = args.split(", ").map(arg).collect();
    (result >= 0).then(|| Call { name: name.to_owned(), args, result })
}

/// With `-xx` a text is `"\x61\x62"`: no comma or quote is inside.
fn arg(text: &str) -> Arg {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        assert!(!text.starts_with('"'), "cut short: {text:.80}");
        return Arg::Word(text.to_owned());
    };
    let bytes = inner.split("\\x").skip(1);
    Arg::Text(bytes.map(|hex| u8::from_str_radix(hex, 16).expect("two digits")).collect())
}
