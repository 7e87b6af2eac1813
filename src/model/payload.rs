//! The bytes of a write, in the pieces in which they arrived.
//!
//! Owns: that pieces read as one run of bytes. Does not own: the memory, which each piece shares with
//! whatever it was cut from. TLS delivers a write in records of 16 KiB with a few bytes between them,
//! so a large payload lies in many places; joining them would be a copy.

use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::model::Checksum;

/// Bytes in one or more fragments, summed once as they came; equal to any other payload of the same
/// bytes, however cut.
#[derive(Clone, Default)]
pub struct Payload {
    parts: Parts,
    checksum: Checksum,
}

/// One fragment costs no allocation. None is empty, but for the payload without any bytes.
#[derive(Clone)]
enum Parts {
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Default for Parts {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Payload {
    /// Bytes in all fragments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.checksum.bytes() as usize
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The checksum of its bytes; known already.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// The fragments in order: at least one, and none empty unless the payload is.
    #[must_use]
    pub fn fragments(&self) -> &[Bytes] {
        match &self.parts {
            Parts::One(bytes) => std::slice::from_ref(bytes),
            Parts::Many(fragments) => fragments,
        }
    }

    /// Appends a fragment; an empty one leaves no trace.
    pub fn push(&mut self, fragment: Bytes) {
        if fragment.is_empty() {
            return;
        }
        self.checksum = self.checksum.and(&fragment);
        match &mut self.parts {
            Parts::One(only) if only.is_empty() => *only = fragment,
            Parts::One(only) => {
                self.parts = Parts::Many(vec![std::mem::take(only), fragment]);
            }
            Parts::Many(fragments) => fragments.push(fragment),
        }
    }

    /// A part of it, which shares its bytes.
    ///
    /// # Panics
    /// When the range is not inside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let length = self.len();
        assert!(
            range.start <= range.end && range.end <= length,
            "bytes {range:?} of a payload of {length}"
        );
        let (mut part, mut at) = (Self::default(), 0);
        for fragment in self.fragments() {
            let (start, end) = (range.start.max(at), range.end.min(at + fragment.len()));
            if start < end {
                part.push(fragment.slice(start - at..end - at));
            }
            at += fragment.len();
        }
        part
    }

    /// All bytes in one run: shared when there is one fragment, copied when there are more. For
    /// small payloads, and where nothing is measured.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match &self.parts {
            Parts::One(bytes) => bytes.clone(),
            Parts::Many(fragments) => {
                let mut joined = BytesMut::with_capacity(self.len());
                fragments.iter().for_each(|fragment| joined.put_slice(fragment));
                joined.freeze()
            }
        }
    }

    /// The fragments themselves.
    #[must_use]
    pub fn into_fragments(self) -> Fragments {
        Fragments(match self.parts {
            Parts::One(bytes) => (Some(bytes), Vec::new().into_iter()),
            Parts::Many(fragments) => (None, fragments.into_iter()),
        })
    }
}

/// The fragments of a payload, by value.
#[derive(Debug)]
pub struct Fragments((Option<Bytes>, std::vec::IntoIter<Bytes>));

impl Iterator for Fragments {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.0.take().or_else(|| self.0.1.next())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { checksum: Checksum::of(&bytes), parts: Parts::One(bytes) }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl FromIterator<Bytes> for Payload {
    fn from_iter<I: IntoIterator<Item = Bytes>>(fragments: I) -> Self {
        let mut payload = Self::default();
        fragments.into_iter().for_each(|fragment| payload.push(fragment));
        payload
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        if self.checksum != other.checksum {
            return false;
        }
        let (mut left, mut right) = (Walk::over(self), Walk::over(other));
        loop {
            match (left.rest(), right.rest()) {
                ([], _) | (_, []) => return true,
                (a, b) => {
                    let both = a.len().min(b.len());
                    if a[..both] != b[..both] {
                        return false;
                    }
                    left.pass(both);
                    right.pass(both);
                }
            }
        }
    }
}

impl Eq for Payload {}

impl PartialEq<[u8]> for Payload {
    fn eq(&self, other: &[u8]) -> bool {
        let mut rest = other;
        self.len() == other.len()
            && self.fragments().iter().all(|fragment| {
                let (part, behind) = rest.split_at(fragment.len());
                rest = behind;
                fragment == part
            })
    }
}

impl PartialEq<&[u8]> for Payload {
    fn eq(&self, other: &&[u8]) -> bool {
        *self == **other
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} fragments", self.len(), self.fragments().len())?;
        match self.fragments()[0].get(..8) {
            Some(start) => write!(f, ", {start:02x?}…"),
            None => Ok(()),
        }
    }
}

/// A place in a payload.
struct Walk<'a> {
    fragments: std::slice::Iter<'a, Bytes>,
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    fn over(payload: &'a Payload) -> Self {
        Self { fragments: payload.fragments().iter(), rest: &[] }
    }

    /// What is left of the present fragment; empty at the end alone.
    fn rest(&mut self) -> &'a [u8] {
        if self.rest.is_empty()
            && let Some(next) = self.fragments.next()
        {
            self.rest = next;
        }
        self.rest
    }

    fn pass(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bytes` cut at `cuts`, whatever their order.
    fn cut(bytes: &[u8], cuts: &[usize]) -> Payload {
        let mut cuts = cuts.to_vec();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| Bytes::copy_from_slice(&bytes[pair[0]..pair[1]])).collect()
    }

    #[test]
    fn however_cut_the_bytes_are_the_same() {
        let bytes: Vec<u8> = (0..40).collect();
        let whole = Payload::from(bytes.clone());
        for cuts in [vec![], vec![1], vec![0, 0, 40], vec![7, 7, 8, 39], (0..40).collect()] {
            let payload = cut(&bytes, &cuts);
            assert_eq!((payload.len(), &payload), (40, &whole));
            assert_eq!(payload.checksum(), Checksum::of(&bytes));
            assert_eq!(payload, bytes[..]);
            assert_eq!(payload.to_bytes(), bytes);
            assert_eq!(payload.clone().into_fragments().collect::<Vec<_>>().concat(), bytes);
            assert!(payload.fragments().iter().all(|fragment| !fragment.is_empty()));
            for (start, end) in [(0, 40), (0, 0), (6, 9), (39, 40), (40, 40)] {
                assert_eq!(payload.slice(start..end), bytes[start..end]);
            }
            let mut other = bytes.clone();
            other[39] ^= 1;
            assert_ne!(payload, cut(&other, &[3]));
            assert_ne!(payload, other[..]);
            assert_ne!(payload, payload.slice(0..39));
        }
        assert_eq!(Payload::default(), cut(&[], &[]));
        assert_eq!(Payload::default().fragments().len(), 1);
    }

    #[test]
    fn a_slice_shares_its_bytes() {
        let whole = Payload::from(vec![1; 4096]);
        let part = whole.slice(512..1024);
        assert_eq!(part.fragments()[0].as_ptr(), whole.fragments()[0][512..].as_ptr());
    }
}
