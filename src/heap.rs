//! The C library's heap and the large blocks of the data path.
//!
//! Owns: what is told to the heap before anything else runs. Left alone it learns from the first large
//! block that is freed to put such blocks beside small ones, where what is free among them is never
//! given back: a server of 100 machines had 375 MiB where it has 277 MiB now.

#![allow(unsafe_code, reason = "`mallopt` has no safe form")]

/// A block of this size or more is a mapping of its own, gone when it is freed.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 1 << 20;

/// To be called first of all.
pub(crate) fn settle() {
    // SAFETY: two numbers are kept by the heap; nothing of ours is passed, and no other thread runs yet.
    // A number that it refuses leaves it as it was, which costs memory and nothing else.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, OWN_MAPPING_BYTES);
    }
}
