//! SIGINT and SIGTERM as a count to look at. The signals are blocked in every thread and taken by
//! one that waits for them, so no handler code runs anywhere. The third one ends the process at
//! once; VMs die with it.

use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Signals received so far.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    count: Arc<AtomicU32>,
    last: Arc<AtomicI32>,
}

impl Signals {
    /// Takes over both signals. Call it before other threads start: they inherit the mask.
    pub fn watch() -> std::io::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        let signals = Signals::default();
        let seen = signals.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = set.wait() {
                seen.last.store(signal as i32, Ordering::SeqCst);
                if seen.count.fetch_add(1, Ordering::SeqCst) >= 2 {
                    std::process::exit(128 + signal as i32);
                }
            }
        })?;
        Ok(signals)
    }

    pub fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// 130 or 143 once a signal came.
    pub fn code(&self) -> Option<i32> {
        (self.count() > 0).then(|| 128 + self.last.load(Ordering::SeqCst))
    }
}
