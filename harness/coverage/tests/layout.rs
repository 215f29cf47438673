//! The plugin's reading of the shared file's header, without QEMU.

#[path = "../src/layout.rs"]
mod layout;

use layout::{CELL_BYTES, COUNTER_BYTES, HEADER_BYTES, Layout, MAGIC, RANGES_AT, VERSION};

fn header(ranges: &[(u64, u64)]) -> (Vec<u8>, usize) {
    let cells: u64 = ranges.iter().map(|(from, to)| (to - from) / CELL_BYTES).sum();
    let mut header = vec![0u8; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
    header[16..24].copy_from_slice(&cells.to_le_bytes());
    for (n, (from, to)) in ranges.iter().enumerate() {
        let at = RANGES_AT + n * 16;
        header[at..at + 8].copy_from_slice(&from.to_le_bytes());
        header[at + 8..at + 16].copy_from_slice(&to.to_le_bytes());
    }
    (header, HEADER_BYTES + cells as usize * COUNTER_BYTES)
}

const BASE: u64 = 0xffff_ffff_8100_0000;

#[test]
fn addresses_find_their_counters() {
    let (bytes, len) = header(&[(BASE, BASE + 0x100), (BASE + 0x1000, BASE + 0x1008)]);
    let layout = Layout::read(&bytes, len).unwrap();
    assert_eq!(layout.cell(BASE - 1), None);
    assert_eq!(layout.cell(BASE), Some(0));
    assert_eq!(layout.cell(BASE + 7), Some(0));
    assert_eq!(layout.cell(BASE + 0xff), Some(31));
    assert_eq!(layout.cell(BASE + 0x100), None);
    assert_eq!(layout.cell(BASE + 0x1007), Some(32));
    assert_eq!(layout.cell(BASE + 0x1008), None);
    assert_eq!(layout.cell(u64::MAX), None);
}

#[test]
fn headers_that_lie_are_refused() {
    let good = header(&[(BASE, BASE + 0x100)]);
    let bad = |at: usize, value: u8| {
        let mut bytes = good.0.clone();
        bytes[at] = value;
        Layout::read(&bytes, good.1)
    };
    assert!(bad(0, b'x').is_err(), "magic");
    assert!(bad(8, 2).is_err(), "version");
    assert!(bad(13, 2).is_err(), "512 ranges");
    assert!(bad(16, 33).is_err(), "counters");
    assert!(bad(RANGES_AT, 1).is_err(), "not aligned");
    assert!(Layout::read(&good.0, good.1 - 1).is_err(), "a file too short");
    assert!(Layout::read(&good.0[..16], good.1).is_err(), "a header cut off");
    let (twice, len) = header(&[(BASE, BASE + 16), (BASE + 8, BASE + 24)]);
    assert!(Layout::read(&twice, len).is_err(), "ranges that overlap");
}
