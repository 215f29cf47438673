//! The whole Op set, declared once: the enum, its text form and its reference table come from the
//! same lines. What an op does in the kernel is the agent's business, what it should do the
//! oracle's; here are only the names and the fields.

use crate::value::*;
use serde::{Deserialize, Serialize};

/// One field of an op in the text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    pub name: &'static str,
    pub expected: &'static str,
    pub optional: bool,
}

/// One op in the text form. An op that makes an object is written `f0 = memfd …`: its first
/// field stands before the sign.
#[derive(Clone, Copy, Debug)]
pub struct OpSpec {
    pub kind: OpKind,
    pub name: &'static str,
    pub about: &'static str,
    pub fields: &'static [FieldSpec],
    /// The first field is written on the left of `=`.
    pub makes: bool,
}

/// Why an op could not be built from its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldError {
    Missing(&'static FieldSpec),
    Bad(&'static FieldSpec),
}

macro_rules! ops {
    ($($(#[doc = $about:literal])* $variant:ident $name:literal $($makes:ident)? {
        $($(#[doc = $fabout:literal])* $field:ident : $ty:ty $(= $default:expr)?,)*
    })*) => {
        /// An operation; see [`OpSpec`] tables by [`OpKind::spec`] for the text form.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Op { $($(#[doc = $about])* $variant { $($(#[doc = $fabout])* $field: $ty,)* },)* }

        /// The name of an op without its fields.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum OpKind { $($variant,)* }

        impl OpKind {
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant,)*];
            pub fn spec(self) -> &'static OpSpec {
                match self { $(OpKind::$variant => {
                    const FIELDS: &[FieldSpec] = &[$(FieldSpec {
                        name: stringify!($field),
                        expected: <$ty as Value>::EXPECTED,
                        optional: false $(|| !stringify!($default).is_empty())?,
                    },)*];
                    const SPEC: OpSpec = OpSpec {
                        kind: OpKind::$variant,
                        name: $name,
                        about: concat!($($about, "\n",)*),
                        fields: FIELDS,
                        makes: false $(|| stringify!($makes).len() > 0)?,
                    };
                    &SPEC
                })* }
            }
            pub fn by_name(name: &str) -> Option<OpKind> {
                match name { $($name => Some(OpKind::$variant),)* _ => None }
            }
        }

        impl Op {
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$variant { .. } => OpKind::$variant,)* }
            }
            /// Calls `f` with each field that differs from its default, in order.
            pub(crate) fn each_field(&self, f: &mut dyn FnMut(usize, &dyn Fn(&mut String))) {
                match self { $(Op::$variant { $($field),* } => {
                    let mut _index = 0usize;
                    $({
                        let default: Option<$ty> = Option::<$ty>::None$(.or(Some($default)))?;
                        if default.as_ref() != Some($field) {
                            f(_index, &|out: &mut String| $field.print(out));
                        }
                        _index += 1;
                    })*
                })* }
            }
            pub(crate) fn build(
                kind: OpKind,
                word: &mut dyn FnMut(&'static str) -> Option<String>,
            ) -> Result<Op, FieldError> {
                match kind { $(OpKind::$variant => {
                    let _spec = OpKind::$variant.spec();
                    let mut _index = 0usize;
                    $(let $field: $ty = {
                        let field_spec = &_spec.fields[_index];
                        _index += 1;
                        match word(field_spec.name) {
                            Some(text) => <$ty as Value>::parse(&text).ok_or(FieldError::Bad(field_spec))?,
                            None => {
                                let default: Option<$ty> = Option::<$ty>::None$(.or(Some($default)))?;
                                default.ok_or(FieldError::Missing(field_spec))?
                            }
                        }
                    };)*
                    Ok(Op::$variant { $($field),* })
                })* }
            }
        }
    };
}

ops! {
    /// memfd_create(2): a hugetlb file for page 2M or 1G, a shmem file for 4K. Size 0.
    Memfd "memfd" makes { file: FileId, page: PageSize = PageSize::Huge2M, flags: MemfdFlags = MemfdFlags::NONE, }
    /// A new unlinked file on a hugetlbfs mount of that page size.
    Hugetlbfs "hugetlbfs" makes { file: FileId, page: PageSize = PageSize::Huge2M, }
    /// ftruncate(2).
    Ftruncate "ftruncate" { file: FileId, len: Bytes, }
    /// fallocate(2) without PUNCH_HOLE.
    Fallocate "fallocate" { file: FileId, off: Bytes = Bytes(0), len: Bytes, flags: FallocFlags = FallocFlags::NONE, }
    /// fallocate(2) PUNCH_HOLE|KEEP_SIZE.
    Punch "punch" { file: FileId, off: Bytes = Bytes(0), len: Bytes, }
    /// pread(2); the content comes back.
    Pread "pread" { file: FileId, off: Bytes = Bytes(0), len: Bytes, }
    /// pwrite(2) of tagged pages.
    Pwrite "pwrite" { file: FileId, off: Bytes = Bytes(0), len: Bytes, }
    /// fstat(2): size and blocks.
    Fstat "fstat" { file: FileId, }
    /// fcntl(F_ADD_SEALS).
    Seal "seal" { file: FileId, seals: Seals, }
    /// close(2) of a file.
    CloseFile "close" { file: FileId, }

    /// mmap(2). `from=none` is anonymous; `page` chooses MAP_HUGETLB for anonymous memory.
    Mmap "mmap" { at: Place, len: Bytes, prot: Prot = Prot::RW, share: Share = Share::Private, from: Option<FilePart> = None, page: PageSize = PageSize::Base, flags: MmapFlags = MmapFlags::NONE, }
    /// munmap(2).
    Munmap "munmap" { at: Place, len: Bytes, }
    /// mremap(2). `to` is passed as the new address whether or not `fixed` is given.
    Mremap "mremap" { at: Place, len: Bytes, new: Bytes, to: Option<Place> = None, flags: MremapFlags = MremapFlags::NONE, }
    /// mprotect(2).
    Mprotect "mprotect" { at: Place, len: Bytes, prot: Prot, }
    /// mlock2(2).
    Mlock "mlock" { at: Place, len: Bytes, flags: MlockFlags = MlockFlags::NONE, }
    /// munlock(2).
    Munlock "munlock" { at: Place, len: Bytes, }
    /// madvise(2).
    Madvise "madvise" { at: Place, len: Bytes, advice: Advice, }

    /// userfaultfd(2) and UFFDIO_API, with a handler thread unless the policy is `none`.
    Uffd "uffd" makes { uffd: UffdId, features: UffdFeatures = UffdFeatures::NONE, handler: Policy = Policy::None, }
    /// UFFDIO_REGISTER; the result is the `ioctls` mask.
    Register "register" { uffd: UffdId, at: Place, len: Bytes, modes: UffdModes, }
    /// UFFDIO_UNREGISTER.
    Unregister "unregister" { uffd: UffdId, at: Place, len: Bytes, }
    /// UFFDIO_CONTINUE.
    Continue "continue" { uffd: UffdId, at: Place, len: Bytes, flags: FillFlags = FillFlags::NONE, }
    /// UFFDIO_COPY of tagged pages.
    Copy "copy" { uffd: UffdId, at: Place, len: Bytes, flags: FillFlags = FillFlags::NONE, }
    /// UFFDIO_ZEROPAGE.
    Zeropage "zeropage" { uffd: UffdId, at: Place, len: Bytes, flags: FillFlags = FillFlags::NONE, }
    /// UFFDIO_WRITEPROTECT.
    WriteProtect "writeprotect" { uffd: UffdId, at: Place, len: Bytes, flags: WpFlags = WpFlags::WP, }
    /// UFFDIO_POISON.
    UffdPoison "uffd_poison" { uffd: UffdId, at: Place, len: Bytes, flags: FillFlags = FillFlags::NONE, }
    /// UFFDIO_WAKE.
    Wake "wake" { uffd: UffdId, at: Place, len: Bytes, }
    /// close(2) of a userfaultfd; its handler thread ends.
    CloseUffd "close_uffd" { uffd: UffdId, }

    /// Loads the tag words of each page in the range; the content comes back.
    Read "read" { at: Place, len: Bytes, }
    /// Stores a fresh tag into each page of the range.
    Write "write" { at: Place, len: Bytes, }

    /// fork(2) of the issuing process; the child waits for ops.
    Fork "fork" makes { child: ProcId, }
    /// _exit(2) of the issuing process (not `p0`), and waiting for it.
    Exit "exit" {}

    /// move_pages(2) of each 4 KiB page (`step`=4K) or huge page of the range; `node=none` queries.
    MovePages "move_pages" { at: Place, len: Bytes, step: PageSize = PageSize::Base, node: Option<u8> = None, flags: MoveFlags = MoveFlags::MOVE, }
    /// mbind(2).
    Mbind "mbind" { at: Place, len: Bytes, mode: NumaMode, nodes: Nodes = Nodes::NONE, flags: MoveFlags = MoveFlags::NONE, }
    /// migrate_pages(2) of the issuing process.
    MigratePages "migrate_pages" { from: Nodes, to: Nodes, }
    /// set_mempolicy(2).
    SetMempolicy "set_mempolicy" { mode: NumaMode, nodes: Nodes = Nodes::NONE, }

    /// process_vm_readv(2) of the range in `target`; the content comes back.
    VmRead "vm_read" { target: ProcId = ProcId(0), at: Place, len: Bytes, }
    /// vmsplice(2) of the range into a pipe and back out; the content comes back.
    Vmsplice "vmsplice" { at: Place, len: Bytes, }
    /// One O_DIRECT transfer between the range and a RAM disk; `out` reads back what arrived.
    DirectIo "direct_io" { at: Place, len: Bytes, dir: Direction = Direction::Out, }
    /// Long-term pin (io_uring registered buffer) held until `unpin` or the end.
    Pin "pin" makes { pin: PinId, at: Place, len: Bytes, flags: PinFlags = PinFlags::NONE, }
    /// Releases a pin.
    Unpin "unpin" { pin: PinId, }
    /// One gup_test(debugfs) pass over the range, where the kernel has it.
    GupTest "gup_test" { at: Place, len: Bytes, flags: PinFlags = PinFlags::NONE, }

    /// Writes the frame that was poisoned at this place to hwpoison/unpoison-pfn.
    Unpoison "unpoison" { at: Place, }
    /// Writes a setting under /sys/kernel/mm or /proc/sys/vm.
    SetKnob "knob" { knob: Knob, value: u32, }
    /// The n-th allocation of the next op fails, where the kernel has fault injection.
    FailNth "fail_nth" { nth: u32, }
    /// Looks at the range without changing it.
    Observe "observe" { at: Place, len: Bytes, what: What = What::PAGEMAP, }
}
