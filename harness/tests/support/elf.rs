//! A small kernel-like ELF file with line tables, made by the compiler when a test wants it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Source files. `MARK` notes the address of its `nop` in a section of its own, in link order:
/// hugetlb.c:4, hugetlb.c:5, inner.h:4, mmap.c:4 to :6.
const SOURCES: &[(&str, &str)] = &[
    (
        "include/linux/inner.h",
        "#define MARK asm volatile(\"1: nop\\n.pushsection .marks,\\\"a\\\"\\n\
         .quad 1b\\n.popsection\")\n\
         static inline __attribute__((always_inline)) void inner(void)\n\
         {\n\
         \tMARK;\n\
         }\n",
    ),
    (
        "mm/hugetlb.c",
        "#include \"../include/linux/inner.h\"\n\
         static __attribute__((noinline)) void same(void)\n\
         {\n\
         \tMARK;\n\
         \tMARK;\n\
         }\n\
         void hugetlb_fault(void)\n\
         {\n\
         \tsame();\n\
         \tinner();\n\
         }\n",
    ),
    (
        "mm/mmap.c",
        "#include \"../include/linux/inner.h\"\n\
         static __attribute__((noinline)) void same(void)\n\
         {\n\
         \tMARK;\n\
         \tMARK;\n\
         \tMARK;\n\
         }\n\
         void vm_munmap(void) { same(); }\n",
    ),
    (
        "init/main.c",
        "void hugetlb_fault(void);\nvoid vm_munmap(void);\n\
         void start_kernel(void) { hugetlb_fault(); vm_munmap(); }\n",
    ),
];

/// A symbol of code: name, address, bytes to the next one.
pub type Named = (String, u64, u64);

/// Compiles it below `dir` and gives its path: from the tree itself with relative paths, or from a
/// folder beside it with whole ones, as `make O=` does.
pub fn build(dir: &Path, in_tree: bool, flags: &[&str]) -> PathBuf {
    let tree = dir.join("tree");
    let out = dir.join("out");
    fs::create_dir_all(&out).unwrap();
    for (name, text) in SOURCES {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let vmlinux = dir.join("vmlinux");
    let mut cc = Command::new("cc");
    cc.args([
        "-O0",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-fcf-protection=none",
        "-Wl,-e,start_kernel",
    ]);
    cc.args(["-Wl,--build-id"]).args(flags).arg("-o").arg(&vmlinux);
    for name in ["mm/hugetlb.c", "mm/mmap.c", "init/main.c"] {
        cc.arg(if in_tree { PathBuf::from(name) } else { tree.join(name) });
    }
    let done = cc.current_dir(if in_tree { &tree } else { &out }).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    vmlinux
}

/// Functions as `nm` lists them.
pub fn functions(vmlinux: &Path) -> Vec<Named> {
    let listed = Command::new("nm").arg("-n").arg(vmlinux).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let all: Vec<(u64, &str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((address, words.next()?, words.next()?))
        })
        .collect();
    let code = |kind: &str| kind.eq_ignore_ascii_case("t");
    let code: Vec<_> = all.iter().filter(|(_, kind, _)| code(kind)).collect();
    let after = |at: usize| code.get(at + 1).map_or(0, |next| next.0 - code[at].0);
    code.iter().enumerate().map(|(at, s)| (s.2.to_owned(), s.0, after(at))).collect()
}

/// Addresses of the marks.
pub fn marks(vmlinux: &Path) -> Vec<u64> {
    let raw = vmlinux.with_extension("marks");
    let mut objcopy = Command::new("objcopy");
    objcopy.args(["-O", "binary", "--only-section=.marks"]).arg(vmlinux).arg(&raw);
    assert!(objcopy.status().unwrap().success());
    let bytes = fs::read(raw).unwrap();
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// `function+0xOFF/0xLEN` of an address, as a kernel prints it.
pub fn printed(vmlinux: &Path, address: u64) -> String {
    let all = functions(vmlinux);
    let (name, start, length) = all.iter().rfind(|(_, start, _)| *start <= address).unwrap();
    format!("{name}+{:#x}/{length:#x}", address - start)
}
