//! Which parts of a kernel's text count as coverage, and the numbers blocks of it go by. Plugin
//! and KCOV share them: a block is named by the 8 bytes of text it starts in.

use serde::{Deserialize, Serialize};

/// Bytes of text one cell stands for.
pub const CELL_BYTES: u64 = 8;
/// Ranges of one kernel.
pub const RANGES_MAX: usize = 250;
/// Cells of one kernel: 8 MiB of text.
pub const CELLS_MAX: u32 = 1 << 20;

/// Ranges of kernel addresses, ascending, apart from each other, aligned to [`CELL_BYTES`]. Cells
/// are numbered from 0, range after range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Ranges from any list of (start, end): aligned outwards, sorted, joined. What goes over the
    /// caps is an error, so that nothing is dropped in silence.
    pub fn of(mut list: Vec<(u64, u64)>) -> Result<Ranges, String> {
        list.retain(|(start, end)| start < end);
        list.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in list {
            let start = start - start % CELL_BYTES;
            let end = end.checked_next_multiple_of(CELL_BYTES).unwrap_or(end - end % CELL_BYTES);
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        let ranges = Ranges(joined);
        ranges.check()?;
        Ok(ranges)
    }

    /// Whether the list is what its type says; for lists that came over a wire or from a file.
    pub fn check(&self) -> Result<(), String> {
        if self.0.len() > RANGES_MAX {
            return Err(format!("{} ranges, the cap is {RANGES_MAX}", self.0.len()));
        }
        let mut above = 0;
        let mut cells = 0u64;
        for (start, end) in &self.0 {
            if *start < above || end <= start || start % CELL_BYTES != 0 || end % CELL_BYTES != 0 {
                return Err(format!("bad range {start:#x}..{end:#x}"));
            }
            cells = cells.saturating_add((end - start) / CELL_BYTES);
            above = *end;
        }
        if cells > u64::from(CELLS_MAX) {
            return Err(format!("{cells} cells, the cap is {CELLS_MAX}"));
        }
        Ok(())
    }

    /// The (start, end) pairs.
    pub fn pairs(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Number of cells.
    pub fn cells(&self) -> u32 {
        self.0.iter().map(|(start, end)| ((end - start) / CELL_BYTES) as u32).sum()
    }

    /// The cell of an address, if it lies in a range.
    pub fn cell(&self, addr: u64) -> Option<u32> {
        let mut first = 0;
        for (start, end) in &self.0 {
            if addr < *start {
                return None;
            }
            if addr < *end {
                return Some(first + ((addr - start) / CELL_BYTES) as u32);
            }
            first += ((end - start) / CELL_BYTES) as u32;
        }
        None
    }

    /// Where a cell's text starts.
    pub fn addr(&self, cell: u32) -> Option<u64> {
        let mut left = u64::from(cell);
        for (start, end) in &self.0 {
            let cells = (end - start) / CELL_BYTES;
            if left < cells {
                return Some(start + left * CELL_BYTES);
            }
            left -= cells;
        }
        None
    }
}

/// One function of a kernel's text, as /proc/kallsyms has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    pub addr: u64,
    /// Bytes as they came; no kernel need write UTF-8.
    pub name: Vec<u8>,
}

/// Text symbols of one kernel, modules left out.
pub const SYMBOLS_MAX: usize = 400_000;
/// Bytes of one symbol's name (KSYM_NAME_LEN of the newest kernels).
pub const SYMBOL_BYTES_MAX: usize = 512;
/// Symbols of one message.
pub const SYMBOLS_PER_PART: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_and_addresses_are_each_others_inverse() {
        let ranges =
            Ranges::of(vec![(0x1003, 0x1020), (0x2000, 0x2010), (0x1018, 0x1041)]).unwrap();
        assert_eq!(ranges.pairs(), [(0x1000, 0x1048), (0x2000, 0x2010)]);
        assert_eq!(ranges.cells(), 9 + 2);
        for cell in 0..ranges.cells() {
            let addr = ranges.addr(cell).unwrap();
            assert_eq!(ranges.cell(addr), Some(cell));
            assert_eq!(ranges.cell(addr + 7), Some(cell));
        }
        assert_eq!(ranges.addr(11), None);
        for outside in [0, 0xfff, 0x1048, 0x1fff, 0x2010, u64::MAX] {
            assert_eq!(ranges.cell(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn lists_over_the_caps_or_out_of_order_are_refused() {
        assert!(Ranges::of(vec![(0, u64::from(CELLS_MAX) * CELL_BYTES)]).is_ok());
        assert!(Ranges::of(vec![(0, u64::from(CELLS_MAX) * CELL_BYTES + 1)]).is_err());
        let many = (0..=RANGES_MAX as u64).map(|n| (n * 64, n * 64 + 8)).collect();
        assert!(Ranges::of(many).is_err());
        for bad in [vec![(8, 8)], vec![(16, 8)], vec![(4, 8)], vec![(8, 16), (8, 24)]] {
            assert!(Ranges(bad.clone()).check().is_err(), "{bad:?}");
        }
        assert_eq!(Ranges::of(Vec::new()).unwrap().cells(), 0);
    }
}
