//! Parsers of smaps, numa_maps and "Label: n kB" texts, by label and on bytes: the fields differ
//! between kernels. Pure; no file is opened here.

use case::observation::VmaObs;
use case::value::Place;

/// The header line of a VMA in smaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub start: u64,
    pub end: u64,
    /// r 1, w 2, x 4, shared 8.
    pub perms: u8,
    pub off: u64,
}

/// A VMA while its lines come in.
#[derive(Debug, Default)]
pub(super) struct Smaps {
    vmas: Vec<VmaObs>,
    /// The lines being read belong to the last of `vmas`.
    inside: bool,
}

/// Whether more text is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    Wanted,
    /// A VMA at or after the end of the range was seen: addresses only rise.
    Past,
}

impl Smaps {
    /// Takes whole lines; VMAs that do not overlap `[from, to)` or lie outside the arena are
    /// left out.
    pub(super) fn feed(&mut self, text: &[u8], from: u64, to: u64) -> More {
        for line in text.split(|b| *b == b'\n') {
            let Some(first) = line.first() else { continue };
            if first.is_ascii_uppercase() {
                if let (true, Some(vma)) = (self.inside, self.vmas.last_mut()) {
                    take_field(vma, line);
                }
                continue;
            }
            let Some(header) = header(line) else { continue };
            if header.start >= to {
                self.inside = false;
                return More::Past;
            }
            let place = Place::of_addr(header.start).filter(|_| header.end > from);
            self.inside = place.is_some();
            if let Some(at) = place {
                let len = header.end.saturating_sub(header.start);
                let Header { perms, off, .. } = header;
                let (kb, flags) = (Vec::with_capacity(24), Vec::with_capacity(12));
                self.vmas.push(VmaObs { at, len, perms, off, kb, flags, numa: None });
            }
        }
        More::Wanted
    }

    pub(super) fn into_vmas(self) -> Vec<VmaObs> {
        self.vmas
    }
}

fn take_field(vma: &mut VmaObs, line: &[u8]) {
    if let Some(flags) = line.strip_prefix(b"VmFlags:") {
        let words = flags.split(|b| b.is_ascii_whitespace());
        vma.flags.extend(words.filter_map(|word| <[u8; 2]>::try_from(word).ok()));
    } else if let Some((label, kb)) = labelled(line) {
        vma.kb.push((label, kb));
    }
}

/// `start-end perms offset dev inode path`.
pub(super) fn header(line: &[u8]) -> Option<Header> {
    let mut words = line.split(|b| *b == b' ');
    let range = words.next()?;
    let perms = words.next()?;
    let off = hex(words.next()?)?;
    let dash = range.iter().position(|b| *b == b'-')?;
    let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
    let letters = [(b'r', 1), (b'w', 2), (b'x', 4), (b's', 8)];
    let bit = |(letter, bit): (u8, u8)| if perms.contains(&letter) { bit } else { 0 };
    Some(Header { start, end, perms: letters.into_iter().map(bit).sum(), off })
}

/// A line `Label:   n kB`; of lines without a unit only THPeligible.
pub(super) fn labelled(line: &[u8]) -> Option<(String, u64)> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (label, rest) = (&line[..colon], line[colon + 1..].trim_ascii());
    let digits = match rest.strip_suffix(b" kB") {
        Some(digits) => digits,
        None if label == b"THPeligible" => rest,
        None => return None,
    };
    let kb = decimal(digits)?;
    Some((String::from_utf8_lossy(label).into_owned(), kb))
}

/// Every "Label: n kB" line, in file order.
pub(super) fn labels(text: &[u8]) -> Vec<(String, u64)> {
    text.split(|b| *b == b'\n').filter_map(labelled).collect()
}

/// A line of numa_maps: start address and the rest.
pub(super) fn numa_line(line: &[u8]) -> Option<(u64, &[u8])> {
    let space = line.iter().position(|b| *b == b' ')?;
    Some((hex(&line[..space])?, line[space + 1..].trim_ascii_end()))
}

/// Unsigned decimal without sign or blanks.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10)
}

fn hex(digits: &[u8]) -> Option<u64> {
    number(digits, 16)
}

fn number(digits: &[u8], base: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, b| {
        let digit = char::from(*b).to_digit(base)?;
        n.checked_mul(u64::from(base))?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests;
