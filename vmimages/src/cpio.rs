//! A writer of the newc cpio format the kernel unpacks as its initramfs. Same entries in, same
//! bytes out: no time, no owner, inodes count from 1. Source: Documentation/driver-api/
//! early-userspace/buffer-format.rst.

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub fn dir(&mut self, name: &str, mode: u32) {
        self.entry(name, S_IFDIR | mode, (0, 0), &[]);
    }

    pub fn char_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, S_IFCHR | mode, (major, minor), &[]);
    }

    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, S_IFREG | mode, (0, 0), data);
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", 0, (0, 0), 0, 0);
        // Whole 512-byte blocks, as cpio(1) writes them.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        self.header(name, mode, device, self.entries, data.len());
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn header(&mut self, name: &str, mode: u32, device: (u32, u32), ino: u32, len: usize) {
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        let name_len = name.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize
        // check
        let (major, minor) = device;
        let size = len as u32;
        for field in [ino, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_len, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
pub mod read {
    //! A reader of its own, so that the writer is not checked against itself.

    #[derive(Debug, PartialEq, Eq)]
    pub struct Entry {
        pub name: String,
        pub ino: u32,
        pub mode: u32,
        pub mtime: u32,
        pub rdev: (u32, u32),
        pub data: Vec<u8>,
    }

    pub fn entries(bytes: &[u8]) -> Vec<Entry> {
        let mut at = 0;
        let mut all = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let from = at + 6 + 8 * n;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize;
            let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
            assert_eq!(bytes[name_end - 1], 0);
            let data_at = name_end.next_multiple_of(4);
            let data_end = data_at + field(6) as usize;
            if name == "TRAILER!!!" {
                return all;
            }
            all.push(Entry {
                name,
                ino: field(0),
                mode: field(1),
                mtime: field(5),
                rdev: (field(9), field(10)),
                data: bytes[data_at..data_end].to_vec(),
            });
            at = data_end.next_multiple_of(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{read::entries, *};

    #[test]
    fn an_archive_reads_back_whole() {
        let mut a = Archive::default();
        a.dir("dev", 0o755);
        a.char_device("dev/console", 0o600, 5, 1);
        for len in 0..9 {
            a.file(&format!("f{}", "x".repeat(len)), 0o755, &vec![7; len]);
        }
        let bytes = a.finish();
        assert_eq!(bytes.len() % 512, 0);
        let all = entries(&bytes);
        assert_eq!(all.len(), 11);
        assert_eq!((all[0].mode, all[0].name.as_str()), (0o040_755, "dev"));
        assert_eq!((all[1].mode, all[1].rdev), (0o020_600, (5, 1)));
        for (len, entry) in all[2..].iter().enumerate() {
            assert_eq!(entry.data, vec![7; len]);
            assert_eq!((entry.mode, entry.mtime), (0o100_755, 0));
        }
        let inos: Vec<u32> = all.iter().map(|e| e.ino).collect();
        assert_eq!(inos, (1..=11).collect::<Vec<_>>());
    }
}
