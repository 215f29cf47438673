//! Wall clocks that jump: a command sees the time a file says, and goes on to measure true lengths.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Jumps a test should try, in seconds: an hour and ten years, ahead and back.
pub const JUMPS: [i64; 5] = [3600, -3600, 315_360_000, -315_360_000, 0];

/// Has the command see the time that [`jump`] puts into this file. Times of files stay true.
pub fn faked(command: &mut Command, file: &Path) {
    jump(file, 0);
    command
        .env("LD_PRELOAD", library())
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("NO_FAKE_STAT", "1")
        .env("FAKE_UTIME", "0");
}

/// From now on the clock is so many seconds ahead of the true one.
pub fn jump(file: &Path, seconds: i64) {
    // Whole or not at all: it is read at any moment.
    let next = file.with_extension("next");
    fs::write(&next, format!("{seconds:+}\n")).expect("a file for the clock");
    fs::rename(&next, file).expect("a file for the clock");
}

fn library() -> PathBuf {
    let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut places = libraries.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    places.find(|path| path.exists()).expect("faketime (ci/install --faults)")
}
