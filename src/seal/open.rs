//! A delta in the store → its records, by ranges, nothing believed before it is proven.
//!
//! Owns: what is fetched, in which order everything is checked. Does not own: which deltas there
//! are (the manifest), what their records mean.

use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::compress::decompress;
use super::encrypt::ObjectKey;
use super::error::{Disbelief, Part, SealError};
use super::frames::nonce;
use super::key::KeyRing;
use crate::format::bytes::FormatError;
use crate::format::delta::{
    DeltaHeader, DeltaIndex, DeltaTrailer, FrameEntry, HEADER_BYTES, INDEX_NUMBER, TRAILER_BYTES,
};
use crate::format::manifest::DeltaEntry;
use crate::model::{DeltaId, Epoch, Generation, MachineId, MachineKey, ObjectName, Sequence};
use crate::store::Store;

/// What is read of an object's end at first: the trailer, and the index unless it is long.
const TAIL_BYTES: u64 = 64 << 10;

/// What the manifest says about a delta; an object that says otherwise is refused.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Whose.
    pub machine: MachineId,
    /// Ownership under which it was made.
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its id.
    pub id: DeltaId,
    /// The delta it must chain to (`Some(None)`: to none), where that is known.
    pub previous: Option<Option<DeltaId>>,
    /// First record.
    pub first: Sequence,
    /// Last record.
    pub last: Sequence,
    /// Length of the object.
    pub object_bytes: u64,
}

/// A delta whose header, index and key were proven; frames are fetched when they are needed.
pub struct OpenDelta {
    name: ObjectName,
    header: DeltaHeader,
    header_bytes: [u8; HEADER_BYTES],
    index: DeltaIndex,
    key: ObjectKey,
}

impl Expected {
    /// What a manifest's entry says.
    #[must_use]
    pub fn of(machine: &MachineId, entry: &DeltaEntry, previous: Option<Option<DeltaId>>) -> Self {
        Self {
            machine: machine.clone(),
            generation: entry.generation,
            epoch: entry.epoch,
            id: entry.id,
            previous,
            first: entry.first,
            last: entry.last,
            object_bytes: entry.object_bytes,
        }
    }

    fn check(&self, header: &DeltaHeader) -> Result<(), FormatError> {
        fn same<T: PartialEq + fmt::Debug>(
            field: &'static str,
            found: T,
            expected: T,
        ) -> Result<(), FormatError> {
            if found == expected {
                return Ok(());
            }
            let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
            Err(FormatError::value(field, found, expected))
        }
        same("machine", header.machine, MachineKey::of(&self.machine))?;
        same("id", header.id, self.id)?;
        same("generation", header.generation, self.generation)?;
        same("epoch", header.epoch, self.epoch)?;
        same("first", header.first, self.first)?;
        same("last", header.last, self.last)?;
        match self.previous {
            Some(previous) => same("previous", header.previous, previous),
            None => Ok(()),
        }
    }
}

impl OpenDelta {
    /// Fetches header, trailer and index and proves that they are what the manifest names.
    ///
    /// # Errors
    /// Names object and part: not there, cut, altered, swapped, of another machine or key.
    pub async fn open(
        store: &dyn Store,
        name: &ObjectName,
        expected: &Expected,
        keys: &KeyRing,
    ) -> Result<Self, SealError> {
        let part = |part| {
            let name = name.clone();
            move |source: Disbelief| SealError::Delta { name, part, source }
        };
        let length = expected.object_bytes;
        let least = (HEADER_BYTES + TRAILER_BYTES) as u64;
        if length < least {
            let error = FormatError::value("object bytes", length, format_args!("{least} or more"));
            return Err(part(Part::Trailer)(error.into()));
        }
        let (head, tail) = ends(store, name, length).await?;
        let header_bytes = *head.first_chunk().expect("`fetch` gives as many bytes as asked");
        let (header, key) =
            prove_header(&header_bytes, expected, keys).map_err(part(Part::Header))?;
        let trailer = DeltaTrailer::decode(&tail[tail.len() - TRAILER_BYTES..])
            .map_err(Disbelief::from)
            .map_err(part(Part::Trailer))?;
        if trailer.object_bytes != length {
            let error = FormatError::value("object bytes", trailer.object_bytes, length);
            return Err(part(Part::Trailer)(error.into()));
        }
        let place = trailer.index;
        let tail_start = length - tail.len() as u64;
        let sealed = match place.offset.checked_sub(tail_start) {
            Some(at) => tail.slice(at as usize..tail.len() - TRAILER_BYTES),
            None => {
                let bytes = u64::from(place.sealed_bytes);
                fetch(store, name, Part::Index, place.offset, bytes).await?
            }
        };
        let index = open_sealed(&key, &header_bytes, &place, INDEX_NUMBER, sealed.into())
            .and_then(|plain| Ok(DeltaIndex::decode(&header, &plain)?))
            .and_then(|index| {
                let (found, expected) = (index.frames_end(), place.offset);
                match found == expected {
                    true => Ok(index),
                    false => Err(FormatError::value("end of the frames", found, expected).into()),
                }
            })
            .map_err(part(Part::Index))?;
        Ok(Self { name: name.clone(), header, header_bytes, index, key })
    }

    /// Which object.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Its header.
    #[must_use]
    pub fn header(&self) -> &DeltaHeader {
        &self.header
    }

    /// Where everything is.
    #[must_use]
    pub fn index(&self) -> &DeltaIndex {
        &self.index
    }

    /// The plaintext of one frame.
    ///
    /// # Errors
    /// When it is not there, cut, altered or from somewhere else.
    pub async fn frame(&self, store: &dyn Store, number: u32) -> Result<Bytes, SealError> {
        let frames = self.frames_range(store, number..number.saturating_add(1)).await?;
        Ok(frames.into_iter().next().unwrap_or_default())
    }

    /// The plaintext of neighbouring frames, fetched in one request; all are in memory at once, so
    /// callers bound the range.
    ///
    /// # Errors
    /// As [`OpenDelta::frame`]; one bad frame refuses them all.
    pub async fn frames_range(
        &self,
        store: &dyn Store,
        range: Range<u32>,
    ) -> Result<Vec<Bytes>, SealError> {
        let refuse = |number, source| SealError::Delta {
            name: self.name.clone(),
            part: Part::Frame(number),
            source,
        };
        let Some(entries) = self.index.frames.get(range.start as usize..range.end as usize) else {
            let expected = format_args!("less than {}", self.index.frames.len());
            let missing = range.end.saturating_sub(1);
            let error = FormatError::value("number of a frame", missing, expected);
            return Err(refuse(missing, error.into()));
        };
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(Vec::new());
        };
        let bytes = last.end() - first.offset;
        let part = Part::Frame(range.start);
        let mut sealed = BytesMut::from(fetch(store, &self.name, part, first.offset, bytes).await?);
        let mut plain = Vec::with_capacity(entries.len());
        for (number, entry) in range.zip(entries) {
            let one = sealed.split_to(entry.sealed_bytes as usize);
            let opened = open_sealed(&self.key, &self.header_bytes, entry, number.into(), one);
            plain.push(opened.map_err(|source| refuse(number, source))?);
        }
        Ok(plain)
    }
}

impl fmt::Debug for OpenDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenDelta({})", self.name)
    }
}

/// First and last bytes of an object: one request for a short one, two at once for others.
async fn ends(
    store: &dyn Store,
    name: &ObjectName,
    length: u64,
) -> Result<(Bytes, Bytes), SealError> {
    if length <= TAIL_BYTES {
        let whole = fetch(store, name, Part::Header, 0, length).await?;
        return Ok((whole.clone(), whole));
    }
    let head = fetch(store, name, Part::Header, 0, HEADER_BYTES as u64);
    let tail = fetch(store, name, Part::Trailer, length - TAIL_BYTES, TAIL_BYTES);
    futures_util::future::try_join(head, tail).await
}

/// Exactly these bytes.
async fn fetch(
    store: &dyn Store,
    name: &ObjectName,
    part: Part,
    offset: u64,
    length: u64,
) -> Result<Bytes, SealError> {
    let name = name.clone();
    match store.read_range(&name, offset, length).await {
        Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
        Ok(bytes) => {
            let source = FormatError::value("bytes given", bytes.len(), length).into();
            Err(SealError::Delta { name, part, source })
        }
        Err(source) => {
            let source = Box::new(source);
            Err(SealError::Fetch { name, part, source })
        }
    }
}

fn prove_header(
    bytes: &[u8; HEADER_BYTES],
    expected: &Expected,
    keys: &KeyRing,
) -> Result<(DeltaHeader, ObjectKey), Disbelief> {
    let header = DeltaHeader::decode(bytes)?;
    expected.check(&header)?;
    let data_key = keys.find(header.data_key)?;
    let key = data_key.delta_key(&header.salt, header.machine, header.id);
    match key.is_committed_by(&header.commitment) {
        true => Ok((header, key)),
        false => Err(Disbelief::Commitment),
    }
}

/// Proves and decompresses a frame or the index. Its plain length was bounded by whoever read its
/// entry, and is proven by the AAD before anything is allocated by it.
fn open_sealed(
    key: &ObjectKey,
    header: &[u8; HEADER_BYTES],
    entry: &FrameEntry,
    number: u64,
    mut sealed: BytesMut,
) -> Result<Bytes, Disbelief> {
    let aad = entry.aad(header, number);
    let opened = key.open(nonce(number), &aad, &mut sealed);
    let length = opened.map_err(|_| Disbelief::Altered)?.len();
    sealed.truncate(length);
    if !entry.compressed {
        return Ok(sealed.freeze());
    }
    decompress(&sealed, entry.plain_bytes as usize).map(Bytes::from).map_err(Disbelief::Compressed)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
