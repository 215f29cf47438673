//! A file of the home seen as bytes, without reading it: a kernel's vmlinux is hundreds of MB, of
//! which a lookup touches a few. Never for a file somebody may cut while it is mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Maps a whole file read-only until the process ends; to be called once per file. Pages are read
/// when they are looked at, and are the page cache's.
pub fn map_file(path: &Path) -> io::Result<&'static [u8]> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::other("larger than memory"))?;
    if bytes == 0 {
        return Ok(&[]);
    }
    // SAFETY: a new private read-only mapping of an open file at an address of the kernel's choice.
    let at = unsafe {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        libc::mmap(std::ptr::null_mut(), bytes, prot, flags, file.as_raw_fd(), 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `bytes` bytes are mapped there, stay mapped until the process ends, and nobody
    // writes them: files of a registered kernel are written once and replaced by rename.
    Ok(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"0123456789").unwrap();
        let mapped = map_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mapped, b"0123456789");
        std::fs::write(&path, b"").unwrap();
        assert!(map_file(&path).unwrap().is_empty());
        assert!(map_file(dir.path()).is_err());
        assert!(map_file(&dir.path().join("none")).is_err());
    }
}
