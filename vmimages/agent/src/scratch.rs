//! Buffers outside the arena for syscalls that copy: source pages with tags in their words and
//! zeros elsewhere, and room for what a read brings.

use case::limits::{PAGE, WORD_OFFSETS};
use case::program::Tag;

/// Smallest mapping, and the size up to which pages are kept between uses.
const KEEP_BYTES: usize = 4 << 20;

/// A lazily mapped buffer of one thread. Its content is all zero between uses.
#[derive(Debug)]
pub struct Scratch {
    base: *mut u8,
    cap: usize,
}

// SAFETY: the mapping belongs to whoever owns the value.
unsafe impl Send for Scratch {}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { base: std::ptr::null_mut(), cap: 0 }
    }
}

/// Positions of the tag words in `[from, from + len)`: (position, page).
fn words(from: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = from + len;
    let pages = if len == 0 { from / PAGE..from / PAGE } else { from / PAGE..end.div_ceil(PAGE) };
    pages
        .flat_map(|page| WORD_OFFSETS.map(|word| (page * PAGE + word, page)))
        .filter(move |(at, _)| *at >= from && at + 8 <= end)
}

impl Scratch {
    /// A buffer with all the page tables it ever keeps, so that VmPTE, which the program's tables
    /// are a part of, is the same before and after a use. Without memory it is an empty one.
    pub fn ready() -> Scratch {
        let mut scratch = Scratch::default();
        scratch.settle();
        scratch
    }

    /// Goes back to the size that is kept, with its page tables.
    fn settle(&mut self) {
        const TABLE_BYTES: usize = 2 << 20;
        if self.cap > KEEP_BYTES {
            self.release();
        }
        if self.room(KEEP_BYTES as u64).is_ok() {
            for at in (0..KEEP_BYTES).step_by(TABLE_BYTES).chain([KEEP_BYTES - 1]) {
                // SAFETY: inside the mapping; a read maps the zero page.
                unsafe { self.base.add(at).read_volatile() };
            }
        }
    }

    fn room(&mut self, len: u64) -> Result<(), i32> {
        let want = usize::try_from(len).map_err(|_| libc::ENOMEM)?.max(KEEP_BYTES);
        if want <= self.cap {
            return Ok(());
        }
        self.release();
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                want,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(crate::sys::errno());
        }
        // SAFETY: advice on the mapping just made. No huge pages: the agent must not disturb
        // the counters a program is judged by.
        unsafe { libc::madvise(at, want, libc::MADV_NOHUGEPAGE) };
        (self.base, self.cap) = (at.cast(), want);
        Ok(())
    }

    /// A zeroed buffer for `[from, from + len)` of some object, lying at the same offset into its
    /// page as `from` does.
    pub fn zeroed(&mut self, from: u64, len: u64) -> Result<*mut u8, i32> {
        let skew = from % PAGE;
        self.room(skew + len)?;
        // SAFETY: inside the mapping.
        Ok(unsafe { self.base.add(skew as usize) })
    }

    /// The same with the tag of each page in its words; page numbers count from the object's
    /// start.
    pub fn tagged(&mut self, from: u64, len: u64, serial: u32) -> Result<*mut u8, i32> {
        let buffer = self.zeroed(from, len)?;
        for (at, page) in words(from, len) {
            let tag = Tag { serial, page: page as u32 };
            // SAFETY: `words` stays inside the range the buffer was made for; 8-byte aligned.
            unsafe { buffer.add((at - from) as usize).cast::<u64>().write(tag.word()) };
        }
        Ok(buffer)
    }

    /// Makes the buffer of the last use zero again.
    pub fn wipe(&mut self, from: u64, len: u64) {
        if self.base.is_null() {
            return;
        }
        if self.cap > KEEP_BYTES {
            self.settle();
            return;
        }
        if len as usize > KEEP_BYTES / 2 {
            // SAFETY: drops the pages of our own private mapping.
            unsafe { libc::madvise(self.base.cast(), self.cap, libc::MADV_DONTNEED) };
            return;
        }
        let skew = from % PAGE;
        for (at, _) in words(from, len) {
            // SAFETY: as in `tagged`.
            unsafe { self.base.add((skew + at - from) as usize).cast::<u64>().write(0) };
        }
    }

    /// A page-aligned buffer with any content for the time of `use_it`. Aborts without memory, as a
    /// `Vec` would.
    pub fn with<R>(&mut self, len: usize, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
        let Ok(buffer) = self.zeroed(0, len as u64) else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; KEEP_BYTES]>())
        };
        // SAFETY: `len` bytes of the mapping, which nothing else uses while `self` is borrowed.
        let done = use_it(unsafe { std::slice::from_raw_parts_mut(buffer, len) });
        if self.cap > KEEP_BYTES {
            self.settle();
        }
        done
    }

    /// The first `len` bytes of the buffer for `[from, ..)`.
    pub fn bytes(&self, from: u64, len: u64) -> &[u8] {
        if self.base.is_null() {
            return &[];
        }
        let skew = (from % PAGE) as usize;
        let len = (len as usize).min(self.cap - skew);
        // SAFETY: inside the mapping, which nothing else writes while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.add(skew), len) }
    }

    fn release(&mut self) {
        if !self.base.is_null() {
            // SAFETY: our own mapping, no borrow of it lives.
            unsafe { libc::munmap(self.base.cast(), self.cap) };
        }
        (self.base, self.cap) = (std::ptr::null_mut(), 0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::runs_of_bytes;
    use case::observation::Word;

    #[test]
    fn tags_sit_in_the_words_and_wipe_takes_them_out() {
        let mut scratch = Scratch::default();
        scratch.tagged(8192, 8192, 5).unwrap();
        let runs = runs_of_bytes(8192, scratch.bytes(8192, 8192));
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].pages, 2);
        assert_eq!(runs[0].tail, Word::Tag(Tag { serial: 5, page: 2 }));
        scratch.wipe(8192, 8192);
        assert!(scratch.bytes(0, 8192).iter().all(|b| *b == 0));
    }

    #[test]
    fn an_unaligned_range_keeps_its_offset_into_the_page() {
        let mut scratch = Scratch::default();
        let at = scratch.tagged(4100, 4092, 9).unwrap();
        assert_eq!(at as u64 % PAGE, 4);
        let runs = runs_of_bytes(4100, scratch.bytes(4100, 4092));
        assert_eq!(runs[0].head, Word::Unread);
        assert_eq!(runs[0].tail, Word::Tag(Tag { serial: 9, page: 1 }));
    }
}
