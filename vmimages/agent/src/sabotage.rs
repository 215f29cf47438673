//! Ways to die, for tests of the harness: all of them real.

use crate::sys;
use case::link::Sabotage;

/// Does it. Returns only if the kernel refused.
pub fn commit(how: Sabotage) {
    match how {
        Sabotage::Panic => {
            let _ = sys::put("/proc/sysrq-trigger", "c");
            // A kernel without sysrq panics when init ends.
            exit();
        }
        Sabotage::Hang => {
            if let Err(errno) = hang() {
                sys::say(&format!("no kexec: errno {errno}; spinning instead"));
                spin();
            }
        }
        Sabotage::AgentExit => exit(),
    }
}

fn exit() -> ! {
    // SAFETY: init ends, the kernel panics.
    unsafe { libc::_exit(1) }
}

/// cli; 1: hlt; jmp 1b
const STOPPED: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// struct kexec_segment.
#[repr(C)]
struct Segment {
    buf: *const u8,
    bufsz: usize,
    mem: u64,
    memsz: usize,
}

/// A new "kernel" that stops with interrupts off: kexec parks the other CPUs the same way.
fn hang() -> Result<(), i32> {
    const ENTRY: u64 = 16 << 20;
    const KEXEC_ARCH_X86_64: u64 = 62 << 16;
    const LINUX_REBOOT_CMD_KEXEC: i32 = 0x4558_4543;
    let segment = Segment { buf: STOPPED.as_ptr(), bufsz: STOPPED.len(), mem: ENTRY, memsz: 4096 };
    // SAFETY: one segment whose buffer is valid for its length.
    let loaded = unsafe {
        libc::syscall(libc::SYS_kexec_load, ENTRY, 1u64, &raw const segment, KEXEC_ARCH_X86_64)
    };
    if loaded != 0 {
        return Err(sys::errno());
    }
    // SAFETY: does not return unless refused.
    unsafe { libc::reboot(LINUX_REBOOT_CMD_KEXEC) };
    Err(sys::errno())
}

/// Without kexec: a realtime thread on each CPU that never yields. Interrupts stay on, but no
/// process of the guest runs any more.
fn spin() {
    let _ = sys::put("/proc/sys/kernel/sched_rt_runtime_us", "-1");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for cpu in (0..cpus).rev() {
        let body = move || {
            // SAFETY: affinity and policy of this thread only; the set is zeroed before.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set);
                let top = libc::sched_param { sched_priority: 99 };
                libc::sched_setscheduler(0, libc::SCHED_FIFO, &top);
            }
            loop {
                std::hint::spin_loop();
            }
        };
        if cpu == 0 {
            body();
        } else {
            std::thread::spawn(body);
        }
    }
}
