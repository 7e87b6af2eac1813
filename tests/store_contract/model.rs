//! Random histories of page writes and snapshots against plain vectors.

use bytes::Bytes;
use holdfast::store::{SnapshotId, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::fixture::{Bench, Dice, clear, data, guard, name, owned};

/// A little more than five granules, with a short last one.
pub(crate) const SIZE: u64 = 5 * (64 << 10) + 512;

/// One step of a history. Places are in sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Write {
        at: u64,
        sectors: u64,
        fill: u8,
    },
    Clear {
        at: u64,
        sectors: u64,
    },
    Flush,
    Snapshot,
    /// Removes the n-th snapshot, counted around.
    Delete(u64),
}

impl Action {
    /// One drawn at random.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let at = dice.below(SIZE / 512);
        let left = SIZE / 512 - at;
        let most = if dice.one_in(4) { left } else { left.min(40) };
        let sectors = 1 + dice.below(most);
        match dice.below(20) {
            0..9 => Self::Write { at, sectors, fill: 1 + dice.below(255) as u8 },
            9..12 => Self::Clear { at, sectors },
            12..14 => Self::Flush,
            14..17 => Self::Snapshot,
            _ => Self::Delete(dice.next()),
        }
    }

    /// The image after it.
    pub(crate) fn apply(self, image: &mut [u8]) {
        let (at, sectors, fill) = match self {
            Self::Write { at, sectors, fill } => (at, sectors, fill),
            Self::Clear { at, sectors } => (at, sectors, 0),
            Self::Flush | Self::Snapshot | Self::Delete(_) => return,
        };
        image[at as usize * 512..(at + sectors) as usize * 512].fill(fill);
    }
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = any::<u64>().prop_map(|seed| Action::draw(&mut Dice(seed)));
    proptest::collection::vec(action, 1..40)
}

/// Runs a history on the part of the blob from `base` on.
async fn run(
    store: &dyn Store,
    blob: &holdfast::model::ObjectName,
    base: u64,
    history: &[Action],
) -> Result<(), TestCaseError> {
    let mut image = vec![0; SIZE as usize];
    let mut kept: Vec<(SnapshotId, Vec<u8>)> = Vec::new();
    for action in history {
        let by = guard(1, 0);
        match *action {
            Action::Write { at, sectors, fill } => {
                let write = data(base + at * 512, sectors as usize * 512, fill);
                store.write_pages(blob, &[write], &by).await.unwrap();
            }
            Action::Clear { at, sectors } => {
                let write = clear(base + at * 512, sectors * 512);
                store.write_pages(blob, &[write], &by).await.unwrap();
            }
            Action::Flush => store.flush_pages(blob, &by).await.unwrap(),
            Action::Snapshot => {
                let id = store.snapshot(blob, "", &by).await.unwrap();
                kept.push((id, image.clone()));
            }
            Action::Delete(nth) if !kept.is_empty() => {
                let (id, _) = kept.remove(nth as usize % kept.len());
                store.delete_snapshot(blob, &id).await.unwrap();
            }
            Action::Delete(_) => {}
        }
        action.apply(&mut image);
        let now = std::iter::once((None, &image));
        for (id, expected) in now.chain(kept.iter().map(|(id, image)| (Some(id), image))) {
            let found = store.read_pages(blob, id, base, SIZE).await.unwrap();
            prop_assert!(found == expected, "{id:?} after {action:?}");
            let ranges = store.page_ranges(blob, id, base, SIZE).await.unwrap();
            let mut rest = Bytes::from(expected.clone()).to_vec();
            for range in ranges {
                rest[(range.start - base) as usize..(range.end - base) as usize].fill(0);
            }
            prop_assert!(rest.iter().all(|byte| *byte == 0), "ranges of {id:?} miss bytes");
        }
    }
    Ok(())
}

pub(crate) async fn histories_match_a_vector(bench: Bench) {
    let config = Config { cases: bench.rounds(30), failure_persistence: None, ..Config::default() };
    // The second place lies over the border between two map sectors (4000 granules).
    for base in [0, 3998 * (64 << 10)] {
        let mut count = 0;
        let mut runner = TestRunner::new(config.clone());
        let count = &std::cell::RefCell::new(&mut count);
        runner
            .run(&actions(), |history| {
                **count.borrow_mut() += 1;
                let text = format!("seed/{base}-{}", count.borrow());
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(async {
                        let blob = owned(&bench, &text, base + SIZE).await;
                        let result = run(&*bench.store, &blob, base, &history).await;
                        bench
                            .store
                            .delete_pages(&name(&text), Some(guard(1, 0).lease))
                            .await
                            .unwrap();
                        result
                    })
                })
            })
            .unwrap();
    }
}
