//! Processes of a program that hangs: what each of their threads does in the kernel, read from
//! /proc for the host. Kills nothing and waits for nothing.

use case::limits::STUCK_BYTES_MAX;

/// Threads of the processes of a group, each with its state and kernel stack.
pub fn threads(group: i32) -> Vec<u8> {
    let mut text = Vec::new();
    for pid in numbers("/proc") {
        if group_of(pid) != Some(group) {
            continue;
        }
        for tid in numbers(&format!("/proc/{pid}/task")) {
            text.extend_from_slice(&one(pid, tid));
        }
    }
    text.truncate(STUCK_BYTES_MAX);
    text
}

fn one(pid: i32, tid: i32) -> Vec<u8> {
    let dir = format!("/proc/{pid}/task/{tid}");
    let read = |name: &str| std::fs::read(format!("{dir}/{name}")).unwrap_or_default();
    let state = state(&read("stat"));
    // A process that ended and is only not yet waited for holds nothing up.
    if state == 'Z' || state == 'X' {
        return Vec::new();
    }
    let mut text = format!("process {pid} thread {tid} state {state}\n").into_bytes();
    text.extend_from_slice(&read("stack"));
    text
}

/// Number entries of a directory.
fn numbers(dir: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The letter behind the name in a stat line.
fn state(stat: &[u8]) -> char {
    let after = stat.iter().rposition(|b| *b == b')').map_or(0, |at| at + 2);
    stat.get(after).copied().map_or('?', char::from)
}

fn group_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(2)?.parse().ok()
}
