//! Counters a TCG plugin keeps in memory shared with us: one for each 8 bytes of the text ranges.
//! The memory is ours: made, sized and sealed here, so that nothing QEMU does can shrink it under
//! our reads. Only the counters are read back, and any number is a valid counter.

use case::cover::{CELL_BYTES, Ranges};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// First bytes of the file, version, and bytes before the first counter: what the crate
/// `coverage`, which runs inside QEMU, expects in its module `layout`.
const MAGIC: &[u8; 8] = b"hgmcover";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
const RANGES_AT: usize = 32;
const COUNTER_BYTES: usize = size_of::<u64>();

/// What to count, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoverSpec {
    /// The plugin, as QEMU's dlopen wants it: an absolute path.
    pub plugin: PathBuf,
    pub ranges: Arc<Ranges>,
}

/// The counters of one VM.
#[derive(Debug)]
pub struct Counters {
    file: File,
    at: NonNull<AtomicU64>,
    bytes: usize,
    /// Values at the last look, one for each cell.
    last: Vec<u64>,
}

// SAFETY: the mapping belongs to this value alone on our side, and is only read through atomics.
unsafe impl Send for Counters {}

impl Counters {
    /// Memory for these ranges, all counters 0.
    pub fn create(ranges: &Ranges) -> io::Result<Counters> {
        ranges.check().map_err(io::Error::other)?;
        let cells = ranges.cells() as usize;
        let bytes = HEADER_BYTES + cells * COUNTER_BYTES;
        // SAFETY: a terminated name and flags; the new descriptor is nobody else's.
        let file = unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            let fd = libc::memfd_create(c"hgm-coverage".as_ptr(), flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(bytes as u64)?;
        file.write_all_at(&header(ranges), 0)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: integers only.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new shared mapping of our own file, read-only, at an address of the kernel's
        // choice.
        let at = unsafe {
            let (prot, fd) = (libc::PROT_READ, file.as_raw_fd());
            libc::mmap(std::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, fd, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Counters { file, at, bytes, last: vec![0; cells] })
    }

    /// A descriptor for QEMU to inherit.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Cells whose counters moved since the last look, ascending. Nothing is ever written back,
    /// so a look never races with the counting.
    pub fn moved(&mut self) -> Vec<u32> {
        // SAFETY: the mapping is page-aligned, `HEADER_BYTES` plus one counter per cell long,
        // sealed against shrinking, and lives as long as `self`; QEMU changes it behind our back,
        // hence atomics.
        let counters = unsafe {
            let first = self.at.as_ptr().add(HEADER_BYTES / COUNTER_BYTES);
            std::slice::from_raw_parts(first, self.last.len())
        };
        let mut moved = Vec::new();
        for (cell, (counter, last)) in counters.iter().zip(&mut self.last).enumerate() {
            let now = counter.load(Ordering::Relaxed);
            if now != *last {
                *last = now;
                moved.push(cell as u32);
            }
        }
        moved
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: exactly what `create` mapped; no reference into it outlives a call.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

fn header(ranges: &Ranges) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(ranges.pairs().len() as u32).to_le_bytes());
    header.extend_from_slice(&u64::from(ranges.cells()).to_le_bytes());
    header.resize(RANGES_AT, 0);
    for (start, end) in ranges.pairs() {
        header.extend_from_slice(&start.to_le_bytes());
        header.extend_from_slice(&end.to_le_bytes());
    }
    header.resize(HEADER_BYTES, 0);
    header
}

/// QEMU's `-plugin` argument. A comma in a value is written twice.
pub fn plugin_arg(spec: &CoverSpec, fd: RawFd) -> OsString {
    plugin_value(&spec.plugin, &format!("fd={fd}"))
}

fn plugin_value(plugin: &Path, option: &str) -> OsString {
    let mut arg = b"file=".to_vec();
    for &byte in plugin.as_os_str().as_bytes() {
        arg.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    arg.push(b',');
    arg.extend_from_slice(option.as_bytes());
    OsString::from_vec(arg)
}

/// What the plugin prints when QEMU was started only to try it.
const PROBE_WORD: &str = "hgm-coverage 1";
/// Time for that.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether this QEMU loads this plugin: it is started without a machine, and the plugin ends it.
/// The error says what QEMU said.
pub fn probe_plugin(qemu: &Path, plugin: &Path) -> Result<(), String> {
    let arg = plugin_value(plugin, "probe=1");
    let mut command = Command::new(qemu);
    command.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.arg("-plugin").arg(arg).stdin(Stdio::null());
    let log = tempfile::tempfile().map_err(|error| error.to_string())?;
    let out = || log.try_clone().map(Stdio::from).map_err(|error| error.to_string());
    let mut child =
        command.stdout(out()?).stderr(out()?).spawn().map_err(|error| error.to_string())?;
    let end = Instant::now() + PROBE_TIMEOUT;
    while Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // A QEMU that goes on has not loaded it.
    let _ = child.kill();
    let _ = child.wait();
    let mut said = vec![0; 4096];
    let count = log.read_at(&mut said, 0).unwrap_or(0);
    let said = String::from_utf8_lossy(&said[..count]).into_owned();
    if said.lines().any(|line| line == PROBE_WORD) {
        return Ok(());
    }
    let first = said.lines().find(|line| !line.trim().is_empty());
    Err(first.unwrap_or("it said nothing").escape_debug().to_string())
}

const _: () = assert!(CELL_BYTES as usize == COUNTER_BYTES);
const _: () = assert!(RANGES_AT + 16 * case::cover::RANGES_MAX <= HEADER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> Counters {
        let ranges = Ranges::of(vec![(0x1000, 0x1040), (0x2000, 0x2008)]).unwrap();
        Counters::create(&ranges).unwrap()
    }

    fn count(counters: &Counters, cell: u64) {
        let mut old = [0; 8];
        let at = HEADER_BYTES as u64 + cell * 8;
        counters.file.read_exact_at(&mut old, at).unwrap();
        let new = u64::from_le_bytes(old) + 1;
        counters.file.write_all_at(&new.to_le_bytes(), at).unwrap();
    }

    #[test]
    fn a_look_tells_what_moved_since_the_last() {
        let mut counters = counters();
        assert!(counters.moved().is_empty());
        for cell in [0, 8, 3, 3] {
            count(&counters, cell);
        }
        assert_eq!(counters.moved(), [0, 3, 8]);
        assert!(counters.moved().is_empty());
        count(&counters, 3);
        assert_eq!(counters.moved(), [3]);
    }

    #[test]
    fn nobody_can_shrink_or_grow_the_file_under_us() {
        let mut counters = counters();
        let other = File::from(counters.handle().unwrap());
        assert!(other.set_len(0).is_err());
        assert!(other.set_len(1 << 20).is_err());
        // A hole punched into it reads as zeroes, and rubbish is a counter like any other.
        other.write_all_at(&[0xff; HEADER_BYTES + 9 * 8], 0).unwrap();
        assert_eq!(counters.moved().len(), 9);
        assert_eq!(other.metadata().unwrap().len(), (HEADER_BYTES + 9 * 8) as u64);
    }

    #[test]
    fn commas_in_paths_stay_part_of_the_path() {
        let ranges = Arc::new(Ranges::default());
        let spec = CoverSpec { plugin: "/a,b/c.so".into(), ranges };
        assert_eq!(plugin_arg(&spec, 7), "file=/a,,b/c.so,fd=7");
    }
}
