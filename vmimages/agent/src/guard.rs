//! Guarded loads and stores: the one routine of the agent that may fault, and the signal handler
//! that gets it out. Signals anywhere else are noted and survived only if the kernel sends them
//! beside a normal return (memory failure); a fault of the agent's own code kills the process.

use case::observation::{SignalSeen, Spot};
use case::value::Place;
use std::cell::Cell;

std::arch::global_asm!(
    ".pushsection .text.hgm_guard,\"ax\",@progbits",
    ".balign 64",
    ".globl hgm_guard_load",
    ".globl hgm_guard_store",
    ".globl hgm_guard_begin",
    ".globl hgm_guard_end",
    ".globl hgm_guard_exit",
    "hgm_guard_begin:",
    "hgm_guard_load:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    "hgm_guard_store:",
    "mov [rdi], rsi",
    "xor eax, eax",
    "ret",
    "hgm_guard_end:",
    "hgm_guard_exit:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn hgm_guard_load(addr: u64, out: *mut u64) -> i32;
    fn hgm_guard_store(addr: u64, value: u64) -> i32;
    static hgm_guard_begin: u8;
    static hgm_guard_end: u8;
    static hgm_guard_exit: u8;
}

/// A signal as the kernel described it.
#[derive(Clone, Copy, Debug)]
struct Raw {
    signo: i32,
    code: i32,
    addr: u64,
    lsb: i16,
}

/// Why a guarded access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Signal(SignalSeen),
    /// The watchdog broke it off.
    Broken,
}

// Plain cells without destructors: a static program reaches them at a fixed offset from the
// thread pointer, so the signal handler may use them.
thread_local! {
    static FAULT: Cell<Option<Raw>> = const { Cell::new(None) };
    static ALSO: Cell<Option<Raw>> = const { Cell::new(None) };
    static ALSO_COUNT: Cell<u32> = const { Cell::new(0) };
}

/// The signal the watchdog sends.
pub fn break_signal() -> i32 {
    libc::SIGRTMIN() + 2
}

const BUS_MCEERR_AR: i32 = 4;
const BUS_MCEERR_AO: i32 = 5;
/// More survivable signals than this in one op: the agent is in a loop.
const ALSO_MAX: u32 = 4096;

/// Installs the handlers for the process.
pub fn install() {
    // The watchdog's signals queue up while a long fault is in the kernel. Taken one after the
    // other they fit on the signal stack, nested they run over it.
    let faults = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    let breaks = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: sigaction with a handler that only touches thread-local cells and its own context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        for (signo, flags) in
            [(libc::SIGSEGV, faults), (libc::SIGBUS, faults), (break_signal(), breaks)]
        {
            action.sa_flags = flags;
            libc::sigaction(signo, &action, std::ptr::null_mut());
        }
    }
}

/// Gives the calling thread an alternate signal stack (kept for its life).
pub fn signal_stack() {
    const BYTES: usize = 64 << 10;
    // SAFETY: a fresh mapping becomes the alternate stack.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at != libc::MAP_FAILED {
            let stack = libc::stack_t { ss_sp: at, ss_flags: 0, ss_size: BYTES };
            libc::sigaltstack(&stack, std::ptr::null_mut());
        }
    }
}

/// Takes the thread's signal stack back, before the thread ends.
pub fn drop_signal_stack() {
    // SAFETY: reads and disables the current alternate stack, then unmaps it.
    unsafe {
        let mut old: libc::stack_t = std::mem::zeroed();
        let off =
            libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        if libc::sigaltstack(&off, &mut old) == 0 && !old.ss_sp.is_null() {
            libc::munmap(old.ss_sp, old.ss_size);
        }
    }
}

extern "C" fn on_signal(signo: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext; fields are read at their x86-64
    // places (si_addr at 16, si_addr_lsb at 24).
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        let begin = &raw const hgm_guard_begin as i64;
        let end = &raw const hgm_guard_end as i64;
        let inside = (begin..end).contains(rip);
        if signo == break_signal() {
            if inside {
                *rip = &raw const hgm_guard_exit as i64;
            }
            return;
        }
        let lsb = *info.cast::<u8>().add(24).cast::<i16>();
        let code = (*info).si_code;
        let raw = Raw { signo, code, addr: (*info).si_addr() as u64, lsb };
        if inside {
            FAULT.set(Some(raw));
            *rip = &raw const hgm_guard_exit as i64;
            return;
        }
        let survivable =
            signo == libc::SIGBUS && matches!(code, BUS_MCEERR_AR | BUS_MCEERR_AO) || code <= 0;
        let count = ALSO_COUNT.get() + 1;
        ALSO_COUNT.set(count);
        if survivable && count < ALSO_MAX {
            if ALSO.get().is_none() {
                ALSO.set(Some(raw));
            }
            return;
        }
        // A fault of the agent's own code: die of it, so that the supervisor sees the signal.
        libc::signal(signo, libc::SIG_DFL);
    }
}

/// Where an address lies, for reports.
pub fn spot(addr: u64) -> Spot {
    match Place::of_addr(addr) {
        Some(place) => Spot::In(place),
        None => Spot::Outside((addr & 0xfff) as u16),
    }
}

impl Raw {
    fn seen(self) -> SignalSeen {
        let poison = matches!(self.code, BUS_MCEERR_AR | BUS_MCEERR_AO);
        SignalSeen {
            signo: self.signo as u8,
            code: self.code,
            at: spot(self.addr),
            lsb: if self.signo == libc::SIGBUS && poison { self.lsb as u8 } else { 0 },
        }
    }
}

fn outcome(failed: i32) -> Result<(), Fault> {
    if failed == 0 {
        return Ok(());
    }
    Err(match FAULT.take() {
        Some(raw) => Fault::Signal(raw.seen()),
        None => Fault::Broken,
    })
}

/// Loads the 8-byte word at an address of the arena.
pub fn load(addr: u64) -> Result<u64, Fault> {
    let mut word = 0;
    // SAFETY: the routine survives a fault on `addr`; `out` is a local.
    outcome(unsafe { hgm_guard_load(addr, &mut word) })?;
    Ok(word)
}

/// Stores a word at an address of the arena.
pub fn store(addr: u64, value: u64) -> Result<(), Fault> {
    // SAFETY: the routine survives a fault; addresses come from the arena only.
    outcome(unsafe { hgm_guard_store(addr, value) })
}

/// Forgets signals of earlier ops.
pub fn arm() {
    FAULT.set(None);
    ALSO.set(None);
    ALSO_COUNT.set(0);
}

/// The signal that came beside a normal return, if one did.
pub fn take_also() -> Option<SignalSeen> {
    ALSO.take().map(Raw::seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_back_as_values() {
        install();
        signal_stack();
        let mut word = 7u64;
        let at = &raw mut word as u64;
        assert_eq!(load(at), Ok(7));
        assert_eq!(store(at, 9), Ok(()));
        assert_eq!(word, 9);
        let hole = Place::new(3, 0x2008).addr();
        let seen = SignalSeen { signo: 11, code: 1, at: Spot::In(Place::new(3, 0x2008)), lsb: 0 };
        assert_eq!(load(hole), Err(Fault::Signal(seen)));
        assert_eq!(store(hole, 1), Err(Fault::Signal(seen)));
    }
}
