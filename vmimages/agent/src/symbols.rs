//! The kernel's text symbols out of /proc/kallsyms, for the host, who has nothing else: what
//! distributions ship as System.map is empty.

use case::cover::{SYMBOL_BYTES_MAX, SYMBOLS_MAX, SYMBOLS_PER_PART, Symbol};
use std::io::{BufRead, BufReader};

/// All text symbols of the kernel itself, in parts that fit a frame. Empty where the file is not
/// there or hides addresses.
pub fn parts() -> Vec<Vec<Symbol>> {
    let Ok(file) = std::fs::File::open("/proc/kallsyms") else { return Vec::new() };
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    let all: Vec<Symbol> = lines.filter_map(|line| symbol(&line)).take(SYMBOLS_MAX).collect();
    all.chunks(SYMBOLS_PER_PART).map(<[Symbol]>::to_vec).collect()
}

/// `ffffffff81000000 T name`; a module's symbol has its module behind a tab.
fn symbol(line: &[u8]) -> Option<Symbol> {
    let mut words = line.split(|byte| *byte == b' ');
    let (addr, kind, name) = (words.next()?, words.next()?, words.next()?);
    let is_text = matches!(kind, b"t" | b"T" | b"w" | b"W");
    if !is_text || name.contains(&b'\t') || name.is_empty() || name.len() > SYMBOL_BYTES_MAX {
        return None;
    }
    let addr = u64::from_str_radix(std::str::from_utf8(addr).ok()?, 16).ok()?;
    (addr != 0).then(|| Symbol { addr, name: name.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_the_kernel_itself_counts() {
        let got = symbol(b"ffffffff81234560 t move_ptes.isra.0").unwrap();
        assert_eq!(
            (got.addr, got.name.as_slice()),
            (0xffff_ffff_8123_4560, &b"move_ptes.isra.0"[..])
        );
        for other in [
            &b"ffffffff81234560 D jiffies"[..],
            b"ffffffffc0001000 t virtio_init\t[virtio]",
            b"0000000000000000 T hidden",
            b"garbage",
            b"ffffffff81234560 T ",
            b"",
        ] {
            assert_eq!(symbol(other), None);
        }
    }
}
