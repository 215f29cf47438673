//! Content of pages as runs: the tag words of each page, compressed where tags rise by one page
//! index from page to page. Pure: no syscalls here, and no memory of the program is touched.

use case::limits::{PAGE, WORD_OFFSETS};
use case::observation::{ContentRun, Word};
use case::program::Tag;

/// What a 64-bit word of a page says.
pub fn word(raw: u64) -> Word {
    if raw == 0 { Word::Zero } else { Word::Tag(Tag::of_word(raw)) }
}

/// The word `pages` pages further on in the same run.
fn advanced(word: Word, pages: u32) -> Word {
    match word {
        Word::Tag(tag) => Word::Tag(Tag { page: tag.page.wrapping_add(pages), ..tag }),
        same => same,
    }
}

/// Compresses the (head, tail) words of consecutive pages.
pub fn runs_of(words: impl Iterator<Item = (Word, Word)>) -> Vec<ContentRun> {
    let mut runs: Vec<ContentRun> = Vec::new();
    for (head, tail) in words {
        match runs.last_mut() {
            Some(run)
                if advanced(run.head, run.pages) == head
                    && advanced(run.tail, run.pages) == tail =>
            {
                run.pages += 1;
            }
            _ => runs.push(ContentRun { pages: 1, head, tail }),
        }
    }
    runs
}

/// Runs of a buffer whose first byte lies `first` bytes into its page. Words not wholly inside
/// the buffer are `Unread`; an empty buffer has no pages.
pub fn runs_of_bytes(first: u64, bytes: &[u8]) -> Vec<ContentRun> {
    let first = first % PAGE;
    let end = first + bytes.len() as u64;
    let at = |offset: u64| -> Word {
        if offset < first || offset + 8 > end {
            return Word::Unread;
        }
        let from = (offset - first) as usize;
        bytes[from..from + 8].try_into().map_or(Word::Unread, |raw| word(u64::from_le_bytes(raw)))
    };
    let pages = if bytes.is_empty() { 0 } else { end.div_ceil(PAGE) };
    let [head, tail] = WORD_OFFSETS;
    runs_of((0..pages).map(|page| (at(page * PAGE + head), at(page * PAGE + tail))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(serial: u32, page: u32) -> Word {
        Word::Tag(Tag { serial, page })
    }

    #[test]
    fn rising_tags_are_one_run() {
        let words = (0..512).map(|page| (tag(3, page), tag(3, page)));
        let run = ContentRun { pages: 512, head: tag(3, 0), tail: tag(3, 0) };
        assert_eq!(runs_of(words), vec![run]);
    }

    #[test]
    fn a_page_out_of_line_ends_the_run() {
        let words = [
            (Word::Zero, Word::Zero),
            (Word::Zero, Word::Zero),
            (tag(1, 7), tag(1, 7)),
            (tag(1, 8), tag(2, 8)),
            (tag(1, 9), tag(2, 9)),
            (tag(1, 9), tag(2, 9)),
        ];
        let runs = runs_of(words.into_iter());
        assert_eq!(runs.iter().map(|r| r.pages).collect::<Vec<_>>(), [2, 1, 2, 1]);
        assert_eq!(runs[2].tail, tag(2, 8));
    }

    #[test]
    fn only_whole_words_of_a_buffer_count() {
        let mut bytes = vec![0u8; 8192];
        bytes[4088..4096].copy_from_slice(&Tag { serial: 5, page: 1 }.word().to_le_bytes());
        bytes[4096..4104].copy_from_slice(&Tag { serial: 6, page: 2 }.word().to_le_bytes());
        let whole = runs_of_bytes(0, &bytes);
        assert_eq!(whole.len(), 2);
        assert_eq!((whole[0].head, whole[0].tail), (Word::Zero, tag(5, 1)));
        assert_eq!((whole[1].head, whole[1].tail), (tag(6, 2), Word::Zero));
        let part = runs_of_bytes(4, &bytes[4..4100]);
        assert_eq!((part[0].head, part[0].tail), (Word::Unread, tag(5, 1)));
        assert_eq!((part[1].head, part[1].tail), (Word::Unread, Word::Unread));
        assert!(runs_of_bytes(0, &[]).is_empty());
    }
}
