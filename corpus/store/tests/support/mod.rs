//! What tests of failing disks and of killed writers put into a store.

use case::{Finding, FindingState, Source};

pub fn finding(signature: String) -> Finding {
    Finding {
        signature,
        title: "planted".into(),
        source: Source::Console,
        state: FindingState::Unconfirmed,
        known: None,
        kernel: "k".into(),
        seed: 0,
        reproduced: (0, 5),
        elsewhere: None,
        embargo: false,
        count: 1,
        violation: None,
        replay: "hgm repro".into(),
    }
}
