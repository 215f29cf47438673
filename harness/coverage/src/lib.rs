//! A QEMU TCG plugin that adds 1 to a counter in shared memory for each execution of a translation
//! block that starts inside chosen ranges of guest addresses. The host makes the memory, says in
//! its header which ranges count, and reads the counters; `layout` is the agreement.
//!
//! Loaded with `-plugin file=libhgm_coverage.so,fd=N`, N a descriptor QEMU inherits. With `probe=1`
//! it only says that QEMU took it, and ends QEMU. Never here: symbols, meaning, policy.

mod layout;
mod qemu;

use layout::Layout;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// Version of the plugin API this was written for; QEMU refuses what it does not speak.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// What QEMU prints for `probe=1`; the host looks for it.
const PROBE_WORD: &str = "hgm-coverage 1";

/// The mapped file. Set once, before the first block is translated.
static MAP: OnceLock<Map> = OnceLock::new();

/// The shared memory and the agreement in its header.
struct Map {
    layout: Layout,
    /// First counter. A number, as a pointer may not be shared; never unmapped.
    counters: usize,
}

/// Called by QEMU once. Anything but 0 makes QEMU end with an error.
///
/// # Safety
///
/// `argv` holds `argc` pointers to terminated strings, as QEMU's documentation promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const u8,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the caller's promise.
    let args = (0..count).map(|n| unsafe { CStr::from_ptr(*argv.add(n)) });
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    let value = |name: &str| {
        args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    if value("probe").is_some() {
        println!("{PROBE_WORD}");
        std::process::exit(0);
    }
    match value("fd").and_then(|fd| fd.parse().ok()).ok_or("no fd=N given".to_owned()).and_then(map)
    {
        Ok(map) => {
            if MAP.set(map).is_err() {
                eprintln!("hgm-coverage: loaded twice");
                return 1;
            }
            // SAFETY: `translated` has the type the API asks for and lives as long as QEMU.
            unsafe { qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
            0
        }
        Err(why) => {
            eprintln!("hgm-coverage: {why}");
            1
        }
    }
}

/// Maps the file the host made, whole, and reads its header.
fn map(fd: c_int) -> Result<Map, String> {
    // SAFETY: zero is a valid `stat`, which the call fills.
    let (result, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut stat), stat)
    };
    let len = usize::try_from(stat.st_size).unwrap_or(0);
    if result != 0 || len < layout::HEADER_BYTES {
        return Err(format!("descriptor {fd} is no file of counters"));
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new shared mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(format!("cannot map it: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: the mapping is at least a header long, and nobody writes the header any more.
    let header = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), layout::HEADER_BYTES) };
    let layout = Layout::read(header, len)?;
    Ok(Map { layout, counters: at as usize + layout::HEADER_BYTES })
}

/// Called by QEMU for each block it translates.
///
/// # Safety
///
/// `tb` is a block under translation, valid during the call.
unsafe extern "C" fn translated(_id: u64, tb: *mut qemu::Block) {
    let Some(map) = MAP.get() else { return };
    // SAFETY: the caller's promise.
    let addr = unsafe { qemu::qemu_plugin_tb_vaddr(tb) };
    let Some(cell) = map.layout.cell(addr) else { return };
    let counter = map.counters + cell as usize * layout::COUNTER_BYTES;
    // SAFETY: `Layout::read` checked that every cell of its ranges lies inside the mapping, which
    // is never unmapped; the counter is 8 bytes long and aligned.
    unsafe {
        qemu::qemu_plugin_register_vcpu_tb_exec_inline(tb, qemu::ADD_U64, counter as *mut _, 1);
    }
}
