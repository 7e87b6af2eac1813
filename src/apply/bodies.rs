//! Memory in which long page writes are joined, used again from one run to the next.
//!
//! Owns: how much of it is kept. Memory of this size that is allocated anew comes from the kernel page
//! by page, zeroed, at several times the price of what is copied into it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;

use crate::store::{PAGE_WRITE_BYTES_MAX, PageBody, PageWrite};

/// Shorter bodies are allocated as they are needed.
const LEAST: usize = 1 << 20;
/// Bodies that are kept: those of a run for each of two machines.
const KEPT: usize = 8;

/// Bodies of [`PAGE_WRITE_BYTES_MAX`], shared by all appliers of a process.
#[derive(Clone, Debug, Default)]
pub struct Bodies(Arc<Mutex<Vec<BytesMut>>>);

impl Bodies {
    /// Empty, with room for `bytes`.
    pub(super) fn take(&self, bytes: usize) -> BytesMut {
        if bytes < LEAST {
            return BytesMut::with_capacity(bytes);
        }
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| BytesMut::with_capacity(bytes.max(PAGE_WRITE_BYTES_MAX as usize)))
    }

    /// Takes back those of `writes` that came from here and that nobody else holds.
    pub(super) fn give_back(&self, writes: Vec<PageWrite>) {
        for write in writes {
            let PageBody::Data(bytes) = write.body else { continue };
            if bytes.len() < LEAST {
                continue;
            }
            let Ok(mut body) = bytes.try_into_mut() else { continue };
            body.clear();
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if body.capacity() >= PAGE_WRITE_BYTES_MAX as usize && kept.len() < KEPT {
                kept.push(body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(body: BytesMut) -> PageWrite {
        PageWrite { offset: 0, body: PageBody::Data(body.freeze()) }
    }

    fn filled(bodies: &Bodies, bytes: usize) -> BytesMut {
        let mut body = bodies.take(bytes);
        assert!(body.is_empty() && body.capacity() >= bytes);
        body.resize(bytes, 7);
        body
    }

    #[test]
    fn what_comes_back_is_used_again_and_no_more_than_a_few_are_kept() {
        let bodies = Bodies::default();
        let first = filled(&bodies, LEAST);
        let place = first.as_ptr();
        let held = filled(&bodies, LEAST).freeze();
        let still = PageWrite { offset: 0, body: PageBody::Data(held.clone()) };
        bodies.give_back(vec![write(first), still, write(filled(&bodies, 512))]);
        assert_eq!(bodies.0.lock().unwrap().len(), 1, "one is held, one is short");
        assert!(held.iter().all(|byte| *byte == 7));
        assert_eq!(filled(&bodies, PAGE_WRITE_BYTES_MAX as usize).as_ptr(), place);
        let many: Vec<_> = (0..2 * KEPT).map(|_| write(filled(&bodies, LEAST))).collect();
        bodies.give_back(many);
        assert_eq!(bodies.0.lock().unwrap().len(), KEPT);
    }
}
