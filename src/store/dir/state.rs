//! The state file beside a page blob: who may change it, and which snapshots it has.
//!
//! One line of JSON, so that people can read it, and a line with the CRC-32 of the first, so that
//! a flipped bit is found before anybody acts on it. Changed only under the name's lock, whole:
//! a new file is synced, renamed over the old one, and the directory is synced.

use serde::{Deserialize, Serialize};

use super::root::Root;
use super::{ObjectName, Result, SnapshotId};
use crate::store::lease::Ownership;

/// What stands in the file. Documented in `docs/formats/seed-disk.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    format: u32,
    name: String,
    pub(super) size: u64,
    pub(super) ownership: Ownership,
    /// Snapshots ever made: the next one's number.
    snapshots_made: u64,
    /// Oldest first.
    pub(super) snapshots: Vec<Snapshot>,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    pub(super) id: SnapshotId,
    pub(super) label: String,
    pub(super) kept: Kept,
}

/// How a snapshot keeps the old bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kept {
    /// Its file is a clone (FICLONE) of the whole blob.
    Clone,
    /// Its file holds the granules that were overwritten since; its map says which.
    Granules,
}

const FORMAT: u32 = 1;

/// A line and its checksum, as they stand in a file.
pub(super) fn sealed_line(line: &str) -> Vec<u8> {
    format!("{line}\n{:08x}\n", crc32fast::hash(line.as_bytes())).into_bytes()
}

/// The line of such a file, or why it cannot be believed.
pub(super) fn unsealed_line(bytes: &[u8]) -> std::result::Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_owned())?;
    let (line, sum) = text
        .strip_suffix('\n')
        .and_then(|text| text.split_once('\n'))
        .ok_or("does not have two lines")?;
    let computed = format!("{:08x}", crc32fast::hash(line.as_bytes()));
    match sum == computed {
        true => Ok(line),
        false => Err(format!("checksum is {sum:?}, content gives {computed}")),
    }
}

impl State {
    pub(super) fn new(name: &ObjectName, size: u64) -> Self {
        Self {
            format: FORMAT,
            name: name.to_string(),
            size,
            ownership: Ownership::default(),
            snapshots_made: 0,
            snapshots: Vec::new(),
        }
    }

    /// Numbers are never used twice, so an id never names two contents.
    pub(super) fn add_snapshot(&mut self, label: &str, kept: Kept) -> SnapshotId {
        self.snapshots_made += 1;
        let id = Self::id(self.snapshots_made);
        self.snapshots.push(Snapshot { id: id.clone(), label: label.to_owned(), kept });
        id
    }

    pub(super) fn next_id(&self) -> SnapshotId {
        Self::id(self.snapshots_made + 1)
    }

    fn id(number: u64) -> SnapshotId {
        SnapshotId(format!("{number:016x}"))
    }

    fn encode(&self) -> Vec<u8> {
        let line = serde_json::to_string(self).expect("plain values are always JSON");
        sealed_line(&line)
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let line = unsealed_line(bytes)?;
        let state: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if state.format != FORMAT {
            return Err(format!("format is {}, expected {FORMAT}", state.format));
        }
        let numbered = |pair: &[Snapshot]| pair[0].id < pair[1].id;
        let last = Self::id(state.snapshots_made);
        let ordered = state.snapshots.windows(2).all(numbered)
            && state.snapshots.iter().all(|one| one.id <= last && one.id.0.len() == 16);
        if !ordered {
            return Err("snapshots are not in order".to_owned());
        }
        Ok(state)
    }
}

impl Root {
    /// The state of the page blob `name`. `None` when there is no file.
    pub(super) fn state(&self, name: &ObjectName) -> Result<Option<State>> {
        let about = self.about(name);
        let path = self.beside(name).join("state");
        let read = super::disk::if_found(std::fs::read(&path));
        let Some(bytes) = read.map_err(|error| about.io("reading the state", error))? else {
            return Ok(None);
        };
        let damaged = |why: String| about.damaged(format!("{} {why}", path.display()));
        let state = State::decode(&bytes).map_err(damaged)?;
        if state.name != name.as_str() {
            return Err(damaged(format!("belongs to {}", state.name)));
        }
        Ok(Some(state))
    }

    /// Makes `state` the state. Under the name's exclusive lock.
    pub(super) fn set_state(&self, name: &ObjectName, state: &State) -> Result<()> {
        self.replace(&self.beside(name).join("state"), &state.encode())
            .map_err(|error| self.about(name).io("writing the state", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let name = ObjectName::new("seed/a").unwrap();
        let mut state = State::new(&name, 1024);
        state.add_snapshot("one", Kept::Granules);
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes), Ok(state));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(State::decode(&flipped).is_err(), "byte {at} bit {bit}");
            }
            assert!(State::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
