//! Opened frames that are likely to be read again, bounded in bytes.
//!
//! Two readers of one frame wait for one fetch: a 256 KiB frame read in 4 KiB pieces from several
//! connections is opened once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

/// Delta (position in the chain) and frame.
pub(super) type FrameKey = (usize, u32);

/// Frames by key; the one that was not used for longest goes first.
#[derive(Debug)]
pub(super) struct FrameCache {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<FrameKey, Slot>,
    by_use: BTreeMap<u64, FrameKey>,
    uses: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Slot {
    frame: Arc<OnceCell<Bytes>>,
    bytes: u64,
    used: u64,
}

impl FrameCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// The place of a frame of `bytes`, to be filled by whoever comes first.
    pub(super) fn slot(&self, key: FrameKey, bytes: u64) -> Arc<OnceCell<Bytes>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.uses += 1;
        let used = state.uses;
        state.by_use.insert(used, key);
        let slot = state.slots.entry(key).or_insert_with(|| {
            state.bytes += bytes;
            Slot { frame: Arc::default(), bytes, used }
        });
        if slot.used != used {
            state.by_use.remove(&slot.used);
            slot.used = used;
        }
        let frame = Arc::clone(&slot.frame);
        while state.bytes > self.bytes_max && state.slots.len() > 1 {
            let Some((_, oldest)) = state.by_use.pop_first() else {
                break;
            };
            let gone = state.slots.remove(&oldest);
            state.bytes -= gone.map_or(0, |slot| slot.bytes);
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::FrameCache;

    #[test]
    fn the_frame_not_used_for_longest_goes_first() {
        let cache = FrameCache::new(300);
        let first = cache.slot((0, 0), 100);
        first.set(bytes::Bytes::from_static(b"0")).unwrap();
        cache.slot((0, 1), 100);
        cache.slot((1, 0), 100);
        assert!(cache.slot((0, 0), 100).initialized());
        cache.slot((2, 0), 100); // (0, 1) goes
        assert!(cache.slot((0, 0), 100).initialized());
        let state = cache.state.lock().unwrap();
        assert_eq!((state.bytes, state.slots.len(), state.by_use.len()), (300, 3, 3));
        assert!(!state.slots.contains_key(&(0, 1)));
        drop(state);
        cache.slot((3, 0), 1000); // larger than all: kept alone
        assert_eq!(cache.state.lock().unwrap().slots.len(), 1);
    }
}
