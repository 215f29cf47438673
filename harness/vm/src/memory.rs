//! A guest's memory as one file a node that has no name and ends with the last process that holds
//! it: nothing is left behind by a kill. Zero pages take no room, in memory and on disk. Never
//! here: what the memory means.

use crate::command::NODES;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Piece of a file handled at once. All digests depend on it.
const CHUNK: usize = 1 << 20;
/// What is looked at for being zero.
const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// The memory of one guest.
#[derive(Debug)]
pub struct Memory {
    nodes: [File; NODES],
}

/// What a file holds: bytes in pages that are not zero, and a hash over their places and contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: u64,
    pub hash: String,
}

impl Memory {
    /// Empty memory of that many MiB a node.
    pub fn new(mib: [u32; NODES]) -> io::Result<Memory> {
        let make = |mib: u32| -> io::Result<File> {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let file = File::from(memfd_create("hgm-ram", flags)?);
            file.set_len(u64::from(mib) << 20)?;
            Ok(file)
        };
        Ok(Memory { nodes: [make(mib[0])?, make(mib[1])?] })
    }

    /// Descriptors for another process.
    pub fn share(&self) -> io::Result<Vec<OwnedFd>> {
        self.nodes.iter().map(|file| Ok(file.try_clone()?.into())).collect()
    }

    /// From here on nobody can change it, whoever holds a descriptor. Fails while somebody maps it
    /// shared and writable.
    pub fn seal(&self) -> io::Result<()> {
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        self.nodes.iter().try_for_each(|file| {
            fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
            Ok(())
        })
    }

    /// Gives zero pages back to the host.
    pub fn shrink(&self) -> io::Result<()> {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        each_node(|node| {
            let file = &self.nodes[node];
            walk(file, |offset, chunk| {
                for (from, to, zero) in spans(chunk) {
                    if zero {
                        fallocate(file, punch, (offset + from as u64) as i64, (to - from) as i64)?;
                    }
                }
                Ok(())
            })
        })
        .map(drop)
    }

    /// Writes each node to its file.
    pub fn save(&self, files: &[File; NODES]) -> io::Result<[Content; NODES]> {
        for (from, to) in self.nodes.iter().zip(files) {
            to.set_len(from.metadata()?.len())?;
        }
        each_node(|node| copy(&self.nodes[node], &files[node]))
    }

    /// Reads each node from its file.
    pub fn load(&self, files: &[File; NODES]) -> io::Result<[Content; NODES]> {
        each_node(|node| copy(&files[node], &self.nodes[node]))
    }

    /// Memory of the host it takes, in bytes.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        self.nodes.iter().map(|file| Ok(file.metadata()?.blocks() * 512)).sum()
    }

    /// What it holds.
    pub fn content(&self) -> io::Result<[Content; NODES]> {
        each_node(|node| digest(&self.nodes[node], |_, _| Ok(())))
    }
}

/// Both nodes at a time.
fn each_node<T: Send>(work: impl Fn(usize) -> io::Result<T> + Sync) -> io::Result<[T; NODES]> {
    std::thread::scope(|scope| {
        let far = scope.spawn(|| work(1));
        let near = work(0);
        let far = far.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        Ok([near?, far?])
    })
}

fn copy(from: &File, to: &File) -> io::Result<Content> {
    digest(from, |offset, bytes| to.write_all_at(bytes, offset))
}

/// Hands out every span of pages that are not zero.
fn digest(file: &File, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<Content> {
    let mut hash = blake3::Hasher::new();
    let mut bytes = 0;
    walk(file, |offset, chunk| {
        for (from, to, zero) in spans(chunk) {
            if !zero {
                let at = offset + from as u64;
                hash.update(&at.to_le_bytes()).update(&chunk[from..to]);
                bytes += (to - from) as u64;
                each(at, &chunk[from..to])?;
            }
        }
        Ok(())
    })?;
    Ok(Content { bytes, hash: hash.finalize().to_hex().to_string() })
}

/// Spans of a chunk, each all zero pages or none: start, end, zero.
fn spans(chunk: &[u8]) -> Vec<(usize, usize, bool)> {
    let mut spans: Vec<(usize, usize, bool)> = Vec::new();
    for (n, page) in chunk.chunks(PAGE).enumerate() {
        let zero = *page == ZEROS[..page.len()];
        let (from, to) = (n * PAGE, n * PAGE + page.len());
        match spans.last_mut() {
            Some(last) if last.2 == zero => last.1 = to,
            _ => spans.push((from, to, zero)),
        }
    }
    spans
}

/// Reads every chunk of `file` that is not a hole.
fn walk(file: &File, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut buffer = vec![0u8; CHUNK];
    let mut at = 0;
    while at < len {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // No data up to the end.
            Err(Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = data.max(at) / CHUNK as u64 * CHUNK as u64;
        let size = CHUNK.min((len - at) as usize);
        file.read_exact_at(&mut buffer[..size], at)?;
        each(at, &buffer[..size])?;
        at += size as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &std::path::Path) -> [File; NODES] {
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(dir.join(name)).unwrap()
        };
        [open("0"), open("1")]
    }

    #[test]
    fn what_was_saved_is_loaded_and_zeros_take_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new([3, 5]).unwrap();
        memory.nodes[0].write_all_at(b"first page", 10).unwrap();
        memory.nodes[0].write_all_at(&[0; 64 << 10], 1 << 20).unwrap();
        memory.nodes[1].write_all_at(b"last bytes", (5 << 20) - 10).unwrap();
        memory.nodes[1].write_all_at(&[7; 3 * PAGE], 2 * PAGE as u64).unwrap();
        memory.shrink().unwrap();
        let blocks: u64 = memory.nodes.iter().map(|f| f.metadata().unwrap().blocks()).sum();
        assert_eq!(blocks * 512, 5 * PAGE as u64);
        let saved = memory.save(&files(dir.path())).unwrap();
        assert_eq!(saved.each_ref().map(|c| c.bytes), [4096, 4 * 4096]);
        assert_eq!(std::fs::metadata(dir.path().join("1")).unwrap().len(), 5 << 20);

        let again = Memory::new([3, 5]).unwrap();
        assert_eq!(again.load(&files(dir.path())).unwrap(), saved);
        assert_eq!(again.content().unwrap(), saved);
        let mut text = [0; 10];
        again.nodes[0].read_exact_at(&mut text, 10).unwrap();
        assert_eq!(&text, b"first page");
    }

    #[test]
    fn one_other_byte_or_another_place_is_another_content() {
        let of = |at: u64, byte: u8| {
            let memory = Memory::new([1, 1]).unwrap();
            memory.nodes[0].write_all_at(&[byte], at).unwrap();
            memory.content().unwrap()[0].clone()
        };
        assert_eq!(of(5, 1), of(5, 1));
        assert_ne!(of(5, 1), of(5, 2));
        assert_ne!(of(5, 1), of(5 + PAGE as u64, 1));
        assert_eq!(of(5, 0), of(6, 0));
    }

    #[test]
    fn sealed_memory_is_read_only_for_every_holder() {
        let memory = Memory::new([1, 1]).unwrap();
        memory.nodes[0].write_all_at(b"x", 0).unwrap();
        memory.seal().unwrap();
        for fd in memory.share().unwrap() {
            let file = File::from(fd);
            assert!(file.write_all_at(b"y", 0).is_err());
            assert!(file.set_len(0).is_err());
        }
        assert_eq!(memory.content().unwrap()[0].bytes, PAGE as u64);
    }
}
