//! The shared file: a header of one page, then one 8-byte counter for each 8 bytes of guest text
//! in the ranges, range after range. The host's side of the same agreement is `vm`'s module
//! `cover`; a guest test runs both against each other. All numbers are little-endian.

/// First bytes of the file.
pub const MAGIC: &[u8; 8] = b"hgmcover";
/// Raised by every change of this agreement.
pub const VERSION: u32 = 1;
/// magic 8, version u32, number of ranges u32, number of counters u64, reserved 8; then the ranges
/// as pairs of u64, start and end.
pub const HEADER_BYTES: usize = 4096;
/// Where the ranges start in the header.
pub const RANGES_AT: usize = 32;
/// Bytes of one counter.
pub const COUNTER_BYTES: usize = 8;
/// Bytes of guest text one counter stands for.
pub const CELL_BYTES: u64 = 8;

/// Ranges of guest addresses in ascending order, with the number of the first counter of each.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    ranges: Vec<(u64, u64, u64)>,
}

impl Layout {
    /// Reads a header. `file_bytes` is how long the whole file is.
    pub fn read(header: &[u8], file_bytes: usize) -> Result<Layout, String> {
        let long = |at: usize| -> u64 {
            let bytes = header.get(at..at + 8).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        if header.get(..8) != Some(MAGIC) {
            return Err("the file does not start with its magic".into());
        }
        let (version, count) = (long(8) as u32, (long(8) >> 32) as usize);
        if version != VERSION {
            return Err(format!("the file is of version {version}, this plugin is of {VERSION}"));
        }
        if count > (HEADER_BYTES - RANGES_AT) / 16 {
            return Err(format!("{count} ranges do not fit the header"));
        }
        let mut ranges = Vec::with_capacity(count);
        let (mut first, mut above) = (0u64, 0u64);
        for n in 0..count {
            let (start, end) = (long(RANGES_AT + n * 16), long(RANGES_AT + n * 16 + 8));
            let aligned = start % CELL_BYTES == 0 && end % CELL_BYTES == 0;
            if start < above || end <= start || !aligned {
                return Err(format!("range {n} is out of order, empty or not aligned"));
            }
            ranges.push((start, end, first));
            first = first.saturating_add((end - start) / CELL_BYTES);
            above = end;
        }
        let room = (file_bytes.saturating_sub(HEADER_BYTES) / COUNTER_BYTES) as u64;
        if first != long(16) || first > room {
            return Err(format!("{first} counters do not fit a file of {file_bytes} bytes"));
        }
        Ok(Layout { ranges })
    }

    /// The counter of a guest address, if it lies in a range.
    pub fn cell(&self, addr: u64) -> Option<u64> {
        let next = self.ranges.partition_point(|(start, ..)| *start <= addr);
        let (start, end, first) = self.ranges.get(next.checked_sub(1)?)?;
        (addr < *end).then(|| first + (addr - start) / CELL_BYTES)
    }
}
