//! The part of QEMU's plugin API 1 that is used here (include/qemu/qemu-plugin.h of QEMU 7.2).
//! Declarations only.

use std::ffi::{c_int, c_void};

/// A translation block; opaque.
#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

/// `QEMU_PLUGIN_INLINE_ADD_U64` of `enum qemu_plugin_op`.
pub const ADD_U64: c_int = 0;

/// `qemu_plugin_vcpu_tb_trans_cb_t`.
pub type Translated = unsafe extern "C" fn(id: u64, tb: *mut Block);

unsafe extern "C" {
    /// Calls `callback` for every block that is translated.
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    /// Guest virtual address of the block's first instruction.
    pub fn qemu_plugin_tb_vaddr(tb: *const Block) -> u64;
    /// Puts `*ptr += imm` at the head of the block. Not atomic between vCPUs: a count may be lost,
    /// a first execution never is.
    pub fn qemu_plugin_register_vcpu_tb_exec_inline(
        tb: *mut Block,
        op: c_int,
        ptr: *mut c_void,
        imm: u64,
    );
}
