//! The plan against an array.

use proptest::prelude::*;

use super::*;
use crate::format::delta::{FrameEntry, IndexEntry};
use crate::model::{Extent, Sequence};

const SECTORS: u64 = 32;

fn index(entries: Vec<(u64, u64, Option<u32>)>) -> DeltaIndex {
    let entries = entries.into_iter().enumerate().map(|(at, (start, sectors, frame))| IndexEntry {
        sequence: Sequence(at as u64 + 1),
        disk: DiskIndex(0),
        extent: Extent::new(start * 512, sectors * 512, u32::MAX).unwrap(),
        source: frame.map_or(EntrySource::Zero, |frame| EntrySource::Frame { frame, offset: 0 }),
    });
    let frame = FrameEntry { offset: 0, sealed_bytes: 1, plain_bytes: 1 << 20, compressed: false };
    DeltaIndex { frames: vec![frame; 64], entries: entries.collect(), marks: Vec::new() }
}

proptest! {
    #[test]
    fn last_writer_wins_without_overlap(
        deltas in prop::collection::vec(
            prop::collection::vec((0..SECTORS, 1u64..8, prop::option::of(0u32..64)), 0..12), 1..4)
    ) {
        let indexes: Vec<DeltaIndex> = deltas.iter().map(|d| index(d.clone())).collect();
        let mut expected: Vec<Option<Source>> = vec![None; 64];
        for (delta, entries) in deltas.iter().enumerate() {
            for &(start, sectors, frame) in entries {
                for sector in start..start + sectors {
                    let offset = (sector - start) as u32 * 512;
                    expected[sector as usize] = Some(frame.map_or(Source::Zero, |frame| {
                        Source::Frame { delta, frame, offset }
                    }));
                }
            }
        }
        let plan = plan(&indexes.iter().collect::<Vec<_>>());
        let mut found: Vec<Option<Source>> = vec![None; 64];
        let mut end = 0;
        for write in plan.disks.values().flatten() {
            prop_assert!(write.range.start >= end, "ascending, no overlap");
            end = write.range.end;
            let mut at = write.range.start;
            for (range, source) in &write.parts {
                prop_assert_eq!(range.start, at);
                for sector in range.start / 512..range.end / 512 {
                    found[sector as usize] = Some(source.skip(sector * 512 - range.start));
                }
                at = range.end;
            }
            prop_assert_eq!(at, write.range.end);
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn data_writes_stop_at_four_mebibytes_and_zeros_at_sixty_four() {
    let mib = 1 << 11; // sectors
    let data = (0..6).map(|n| (n * mib, mib, Some(n as u32))).collect();
    let sizes = |plan: &Plan| -> Vec<u64> {
        plan.disks.values().flatten().map(|w| (w.range.end - w.range.start) >> 20).collect()
    };
    assert_eq!(sizes(&plan(&[&index(data)])), [4, 2]);
    let small = (0..6).map(|n| (n * mib, mib, None)).collect();
    assert_eq!(sizes(&plan(&[&index(small)])), [6]);
    let large = vec![(0, 60 * mib, None), (60 * mib, 150 * mib, None)];
    let plan = plan(&[&index(large)]);
    assert_eq!(sizes(&plan), [64, 64, 64, 18]);
    let mut end = 0;
    for write in plan.disks.values().flatten() {
        assert_eq!((write.range.start, &write.parts[0].0), (end, &write.range));
        end = write.range.end;
    }
}
