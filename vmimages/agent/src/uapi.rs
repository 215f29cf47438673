//! Numbers and structs of linux/userfaultfd.h that libc does not carry.

pub const API: u64 = 0xaa;
pub const IOC_API: u64 = 0xc018_aa3f;
pub const IOC_REGISTER: u64 = 0xc020_aa00;
pub const IOC_UNREGISTER: u64 = 0x8010_aa01;
pub const IOC_WAKE: u64 = 0x8010_aa02;
pub const IOC_COPY: u64 = 0xc028_aa03;
pub const IOC_ZEROPAGE: u64 = 0xc020_aa04;
pub const IOC_WRITEPROTECT: u64 = 0xc018_aa06;
pub const IOC_CONTINUE: u64 = 0xc020_aa07;
pub const IOC_POISON: u64 = 0xc020_aa08;

/// struct uffdio_api.
#[derive(Debug)]
#[repr(C)]
pub struct Api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

/// struct uffdio_range.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Range {
    pub start: u64,
    pub len: u64,
}

/// struct uffdio_register, uffdio_zeropage, uffdio_continue, uffdio_poison: a range, a mode, and
/// one output word.
#[derive(Debug)]
#[repr(C)]
pub struct Fill {
    pub range: Range,
    pub mode: u64,
    pub out: i64,
}

/// struct uffdio_copy.
#[derive(Debug)]
#[repr(C)]
pub struct Copy {
    pub dst: u64,
    pub src: u64,
    pub len: u64,
    pub mode: u64,
    pub copy: i64,
}

/// struct uffdio_writeprotect.
#[derive(Debug)]
#[repr(C)]
pub struct WriteProtect {
    pub range: Range,
    pub mode: u64,
}

/// One ioctl with a struct; the return value, errno in the thread's errno.
pub fn call<T>(fd: i32, request: u64, arg: &mut T) -> i64 {
    // SAFETY: each request is used with the struct whose size its number carries.
    unsafe { libc::ioctl(fd, request as libc::c_ulong as _, std::ptr::from_mut(arg)).into() }
}

const _: () = assert!(std::mem::size_of::<Api>() == 24);
const _: () = assert!(std::mem::size_of::<Fill>() == 32);
const _: () = assert!(std::mem::size_of::<Copy>() == 40);
const _: () = assert!(std::mem::size_of::<WriteProtect>() == 24);
