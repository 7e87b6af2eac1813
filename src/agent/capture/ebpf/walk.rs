//! Reads all of a hash map that the program writes meanwhile.
//!
//! Owns: that whatever stands in the map from the begin to the end is found. A walk from key to key does not
//! give that: an element that is deleted and used again under the walk's feet carries it to another bucket, past
//! all between. Does not own: what the elements mean ([`super::kernel`]).

#![allow(unsafe_code, reason = "BPF_MAP_LOOKUP_BATCH has no safe form, in aya neither")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Elements taken at a time; a bucket holds far fewer.
const PART: usize = 2048;
/// Parts of one walk: the map has fewer elements, and one that moves meanwhile is seen twice at most in each.
const PARTS_MAX: usize = 4096;
/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `union bpf_attr`, its `batch`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Batch>() == 56, "the kernel's layout");

/// All elements of a hash map with keys of one word and values of `WORDS`. The kernel copies each bucket under its
/// lock (`__htab_map_lookup_and_delete_batch`).
///
/// # Errors
/// What the kernel says.
pub(super) fn elements<const WORDS: usize>(map: impl AsFd) -> io::Result<Vec<(u64, [u64; WORDS])>> {
    let map_fd = u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let (mut keys, mut values) = (vec![0_u64; PART], vec![[0_u64; WORDS]; PART]);
    // Which bucket is next.
    let mut place = 0_u32;
    let mut found = Vec::new();
    for part in 0..PARTS_MAX {
        let begun = part > 0;
        let mut next = 0_u32;
        let mut batch = Batch {
            in_batch: if begun { (&raw const place) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: PART as u32,
            map_fd,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads and writes `batch` for as long as the call takes, and by it `place`, `next` and at
        // most `count` elements of `keys` and `values`, whose element sizes are those of the map: the caller names
        // them, and `kernel` makes the map from the object with just these. All of them outlive the call.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut batch, size_of::<Batch>())
        };
        let error = (done < 0).then(io::Error::last_os_error);
        // ENOENT: these were the last.
        let ended = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error.filter(|_| !ended) {
            return Err(error);
        }
        let count = (batch.count as usize).min(PART);
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if ended {
            return Ok(found);
        }
        place = next;
    }
    Err(io::Error::other("the map does not end"))
}
