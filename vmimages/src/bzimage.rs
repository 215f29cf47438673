//! The setup header of an x86 kernel image: is it one, and what does it call itself.
//! Source: Documentation/x86/boot.rst.

use crate::ImageError;
use std::path::Path;

/// `boot_flag`, 0xAA55 in every boot sector.
const BOOT_FLAG_AT: usize = 0x1fe;
/// `header`, the magic "HdrS".
const MAGIC_AT: usize = 0x202;
/// `version` of the boot protocol, u16.
const PROTOCOL_AT: usize = 0x206;
/// `kernel_version`: offset of a NUL-terminated text, less 0x200, u16.
const VERSION_PTR_AT: usize = 0x20e;
/// Bytes of version text looked at.
const VERSION_MAX: usize = 256;

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?))
}

/// The first word of the version text (what `uname -r` will say), or why `image` is no kernel.
pub fn release(path: &Path, image: &[u8]) -> Result<String, ImageError> {
    let bad = |why| ImageError::NotAKernel { path: path.to_path_buf(), why };
    if image.starts_with(b"\x7fELF") {
        return Err(bad("it is an ELF file"));
    }
    if u16_at(image, BOOT_FLAG_AT) != Some(0xaa55) {
        return Err(bad("it has no boot sector"));
    }
    if image.get(MAGIC_AT..MAGIC_AT + 4) != Some(b"HdrS") {
        return Err(bad("its boot sector lacks the magic `HdrS`"));
    }
    // 2.02 is the first protocol with an initrd and command line any current kernel uses.
    if u16_at(image, PROTOCOL_AT).is_none_or(|v| v < 0x0202) {
        return Err(bad("its boot protocol is older than 2.02"));
    }
    let at = u16_at(image, VERSION_PTR_AT).unwrap_or(0);
    if at == 0 {
        return Ok("unknown".into());
    }
    let text = image.get(usize::from(at) + 0x200..).unwrap_or_default();
    let word: String = text
        .iter()
        .take(VERSION_MAX)
        .take_while(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(b))
        .map(|&b| char::from(b))
        .collect();
    Ok(if word.is_empty() { "unknown".into() } else { word })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0u8; 2048];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x510].copy_from_slice(b"6.1.0-1 (x@y) #1");
        image
    }

    #[test]
    fn release_is_the_first_word_of_the_version_text() {
        assert_eq!(release(Path::new("k"), &image()).unwrap(), "6.1.0-1");
    }

    #[test]
    fn every_broken_header_is_refused() {
        for (at, why) in [(0x1fe, "boot sector"), (0x202, "HdrS"), (0x207, "older")] {
            let mut broken = image();
            broken[at] = 0;
            let err = release(Path::new("k"), &broken).unwrap_err().to_string();
            assert!(err.contains(why), "{err}");
        }
        for len in [0, 0x1ff, 0x204, 0x207] {
            assert!(release(Path::new("k"), &image()[..len]).is_err(), "{len}");
        }
    }
}
