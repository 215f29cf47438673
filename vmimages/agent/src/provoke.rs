//! Real kernel faults on request, through LKDTM, for proving that the host reads what this kernel
//! prints of them. Here: impatient watchdogs and the write. Never: what the kernel should print.

use crate::sys;
use case::limits::CRASH_TYPE_BYTES_MAX;

const DIRECT: &str = "/sys/kernel/debug/provoke-crash/DIRECT";
/// How long the writer is waited for, in steps of [`STEP_MS`]; a fault may keep it for ever.
const STEPS: u32 = 20;
const STEP_MS: u64 = 25;

/// Watchdogs that wait minutes by default; those a kernel lacks are left alone.
const IMPATIENT: [(&str, &str); 5] = [
    ("/proc/sys/kernel/hung_task_timeout_secs", "2"),
    ("/proc/sys/kernel/hung_task_check_interval_secs", "1"),
    ("/proc/sys/kernel/hung_task_warnings", "10"),
    ("/proc/sys/kernel/hung_task_panic", "0"),
    ("/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", "3"),
];

/// Twice as many seconds until a CPU that does not schedule is a soft lockup.
const LOCKUP: (&str, &str) = ("/proc/sys/kernel/watchdog_thresh", "1");

/// Writes the crash type in a child of its own, which may die of it. 0, or why it was refused.
pub fn provoke(name: &str) -> u16 {
    if name.is_empty() || name.len() > CRASH_TYPE_BYTES_MAX {
        return libc::EINVAL as u16;
    }
    // A stalled RCU reader keeps its CPU as well: there the lockup must not come first.
    let lockup = name.ends_with("LOCKUP").then_some(LOCKUP);
    for (path, value) in IMPATIENT.into_iter().chain(lockup) {
        let _ = sys::put(path, value);
    }
    // SAFETY: the supervisor has one thread; the child only opens, writes and exits.
    match unsafe { libc::fork() } {
        -1 => sys::errno() as u16,
        0 => {
            let refused = sys::put(DIRECT, name).err().unwrap_or(0);
            // SAFETY: ends the child, nothing of the supervisor's is flushed.
            unsafe { libc::_exit(refused) }
        }
        child => outcome(child),
    }
}

/// The errno the child ended with; 0 if a signal ended it or it is still at work.
fn outcome(child: i32) -> u16 {
    for _ in 0..STEPS {
        let mut status = 0;
        // SAFETY: the pid is our child's, the status is ours.
        match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
            0 => sys::sleep_ms(STEP_MS),
            _ if libc::WIFEXITED(status) => {
                visit_every_cpu();
                return libc::WEXITSTATUS(status) as u16;
            }
            _ => return 0,
        }
    }
    0
}

/// An idle CPU keeps the address space that last ran on it: until another one comes by, that of
/// the writer is not taken down and nothing is said of its counters.
fn visit_every_cpu() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for cpu in 0..cpus {
        // SAFETY: as above; the child only moves to a CPU and exits.
        match unsafe { libc::fork() } {
            -1 => {}
            0 => {
                sys::pin_to_cpu(cpu);
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            child => {
                // SAFETY: our child; its status is not wanted.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
        }
    }
}
