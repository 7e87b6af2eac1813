use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::super::testing::{Seeded, Stream, batches, lineage, ring, seal_settings};
use super::super::{Batch, Lineage, Sealed, seal};
use super::*;
use crate::cache::{Durable, DurableChange};
use crate::clock::{Entropy, System};
use crate::format::delta::{EntrySource, TAG_BYTES};
use crate::format::names;
use crate::store::{Condition, Memory};

fn sealed(batch: Batch, lineage: Lineage, keep: bool, entropy: &dyn Entropy) -> Sealed {
    let keys = ring(&lineage.machine);
    seal(batch, lineage, keys.newest(), &seal_settings(4096), keep, entropy).unwrap()
}

fn name(expected: &Expected) -> ObjectName {
    let Expected { machine, generation, first, last, id, .. } = expected;
    names::delta(machine, *generation, *first, *last, *id)
}

/// Opens `object` as what `expected` says, with all its frames.
fn read(object: &[u8], expected: &Expected) -> Result<(OpenDelta, Vec<Bytes>), SealError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, name) = (Memory::new(System::clock()), name(expected));
        let object = Bytes::copy_from_slice(object);
        store.put(&name, object, Condition::Absent).await.unwrap();
        let keys = ring(&expected.machine);
        let delta = OpenDelta::open(&store, &name, expected, &keys).await?;
        let count = delta.index().frames.len() as u32;
        let frames = delta.frames_range(&store, 0..count).await?;
        for number in 0..count {
            assert_eq!(delta.frame(&store, number).await?, frames[number as usize]);
        }
        Ok((delta, frames))
    })
}

type Sectors = HashMap<(u16, u64), [u8; 512]>;

/// The trivially simple twin: one sector at a time.
fn apply_record(sectors: &mut Sectors, item: &Durable) {
    let (disk, extent) = match item.change() {
        DurableChange::Write { disk, extent } | DurableChange::Zero { disk, extent } => {
            (disk.0, *extent)
        }
        DurableChange::Mark(_) => return,
    };
    for (n, offset) in extent.range().step_by(512).enumerate() {
        let bytes = item.payload().get(n * 512..n * 512 + 512);
        let bytes = bytes.map_or([0; 512], |bytes| bytes.try_into().unwrap());
        sectors.insert((disk, offset), bytes);
    }
}

fn apply_entry(sectors: &mut Sectors, delta: &OpenDelta, frames: &[Bytes], n: usize) {
    let entry = delta.index().entries[n];
    for (n, offset) in entry.extent.range().step_by(512).enumerate() {
        let bytes = match entry.source {
            EntrySource::Zero => [0; 512],
            EntrySource::Frame { frame, offset } => {
                let at = offset as usize + n * 512;
                frames[frame as usize][at..at + 512].try_into().unwrap()
            }
        };
        sectors.insert((entry.disk.0, offset), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_history_comes_back_as_a_table_of_sectors_says(
        ops in prop::collection::vec((0u16..2, 0u64..64, 1u64..24, 0u8..5), 1..60),
        keep: bool,
        bytes_max in 512u64..40_000,
    ) {
        let (mut stream, noise) = (Stream::new("web"), Seeded::new(9));
        let mut items = vec![stream.epoch(1)];
        for (n, &(disk, sector, sectors, what)) in ops.iter().enumerate() {
            let bytes = sectors as usize * 512;
            items.push(match what {
                0 => stream.zero(disk, sector, sectors),
                1 => stream.write(disk, sector, vec![0; bytes]),
                2 => stream.write(disk, sector, noise.bytes(bytes)),
                3 => stream.write(disk, sector, vec![n as u8 + 1; bytes]),
                _ => stream.bookmark("point"),
            });
        }
        let (mut model, mut rebuilt) = (Sectors::new(), Sectors::new());
        let mut previous = None;
        for (n, batch) in batches(&stream.machine, items, bytes_max).into_iter().enumerate() {
            let records = batch.items().to_vec();
            let line = lineage(&stream.machine, n as u8 + 1, previous);
            let made = sealed(batch, line, keep, &System);
            let chained = Some(previous.map(|byte| DeltaId([byte; 16])));
            let expected = Expected::of(&stream.machine, made.entry(), chained);
            let (delta, frames) = read(made.object(), &expected).unwrap();
            let mut entries = 0..delta.index().entries.len();
            for record in &records {
                apply_record(&mut model, record);
                if keep {
                    let here = |n: &usize| delta.index().entries[*n].sequence <= record.sequence();
                    while let Some(n) = entries.clone().next().filter(here) {
                        apply_entry(&mut rebuilt, &delta, &frames, n);
                        entries.next();
                    }
                    prop_assert_eq!(&rebuilt, &model, "after {}", record.sequence());
                }
            }
            entries.for_each(|n| apply_entry(&mut rebuilt, &delta, &frames, n));
            prop_assert_eq!(&rebuilt, &model, "after delta {}", n);
            let marks = records.iter().filter(|r| matches!(r.change(), DurableChange::Mark(_)));
            prop_assert_eq!(delta.index().marks.len(), marks.count());
            prop_assert_eq!(made.entry().bookmarks.len(), usize::from(
                matches!(records.last().unwrap().change(),
                    DurableChange::Mark(mark)
                        if matches!(**mark, crate::model::Change::Bookmark(_)))));
            previous = Some(n as u8 + 1);
        }
    }
}

/// Three frames: two full ones of noise (stored, so equally long) and one of words (compressed).
fn three_frames(machine: &str, seed: u64) -> (Stream, Batch) {
    let (mut stream, noise) = (Stream::new(machine), Seeded::new(seed));
    let items = vec![
        stream.epoch(1),
        stream.write(0, 0, noise.bytes(4096)),
        stream.write(0, 8, noise.bytes(4096)),
        stream.write(1, 0, b"words ab".repeat(128)),
        stream.zero(1, 100, 8),
        stream.bookmark("point"),
    ];
    let batch = batches(&stream.machine, items, 1 << 20).remove(0);
    (stream, batch)
}

fn three(machine: &str, seed: u64, id: u8) -> (Sealed, Expected) {
    let (stream, batch) = three_frames(machine, seed);
    let made = sealed(batch, lineage(&stream.machine, id, None), false, &System);
    let expected = Expected::of(&stream.machine, made.entry(), Some(None));
    (made, expected)
}

fn part(error: &SealError) -> Part {
    match error {
        SealError::Delta { part, .. } | SealError::Fetch { part, .. } => *part,
        other => panic!("{other}"),
    }
}

#[test]
fn every_flipped_bit_is_found_and_its_part_is_named() {
    let (made, expected) = three("web", 3, 1);
    let (delta, _) = read(made.object(), &expected).unwrap();
    let frames = delta.index().frames.clone();
    assert_eq!(
        frames.iter().map(|frame| frame.compressed).collect::<Vec<_>>(),
        [false, false, true]
    );
    let index_at = delta.index().frames_end() as usize;
    let trailer_at = made.object().len() - TRAILER_BYTES;
    // All bits of what is short; of long stored frames every 61st, and their tags.
    for bit in 0..made.object().len() * 8 {
        let byte = bit / 8;
        let frame = frames.iter().position(|f| (f.offset..f.end()).contains(&(byte as u64)));
        let tag = frame.is_some_and(|n| byte as u64 >= frames[n].end() - u64::from(TAG_BYTES));
        if matches!(frame, Some(0 | 1)) && !tag && bit % 61 != 0 {
            continue;
        }
        let mut flipped = made.object().to_vec();
        flipped[byte] ^= 1 << (bit % 8);
        let error = read(&flipped, &expected).map(|_| bit).unwrap_err();
        let named = part(&error);
        match frame {
            Some(number) => assert_eq!(named, Part::Frame(number as u32), "bit {bit}"),
            // `created` has nothing to be compared with: the index's tag covers it.
            None if byte < HEADER_BYTES => assert!(
                named == Part::Header || (152..160).contains(&byte) && named == Part::Index,
                "bit {bit}: {named}"
            ),
            None if byte < trailer_at => assert_eq!(named, Part::Index, "bit {bit}"),
            None => assert_eq!(named, Part::Trailer, "bit {bit}"),
        }
        assert!(error.to_string().contains(name(&expected).as_str()), "{error}");
        assert!(index_at < trailer_at);
    }
}

#[test]
fn a_cut_or_prolonged_object_is_refused() {
    let (made, expected) = three("web", 3, 1);
    let object = made.object();
    for length in (0..object.len()).step_by(7).chain(object.len() - 50..object.len()) {
        assert!(read(&object[..length], &expected).is_err(), "cut to {length}");
        // Even when the manifest were to believe it.
        let believed = Expected { object_bytes: length as u64, ..expected.clone() };
        assert!(read(&object[..length], &believed).is_err(), "believed to have {length}");
    }
    let longer = [&object[..], &[0; 9]].concat();
    let believed = Expected { object_bytes: longer.len() as u64, ..expected.clone() };
    assert!(read(&longer, &believed).is_err());
    read(object, &expected).unwrap();
}

#[test]
fn nothing_can_be_put_in_anothers_place() {
    let (a, expected) = three("web", 3, 1);
    let (delta, _) = read(a.object(), &expected).unwrap();
    let (foreign, foreign_expected) = three("db", 3, 1);
    let (other, other_expected) = three("web", 4, 2);
    let again = three("web", 3, 1).0; // the same records, sealed again under the same id

    // Whole objects under another's name.
    let mut refusals = vec![
        read(foreign.object(), &expected),
        read(a.object(), &foreign_expected),
        read(other.object(), &expected),
        read(a.object(), &other_expected),
    ];
    // An object that says another place in the stream than the manifest.
    let e = || expected.clone();
    let next = Sequence(expected.last.0 + 1);
    let elsewhere = [
        Expected { generation: Generation(2), ..e() },
        Expected { epoch: Epoch(2), ..e() },
        Expected { previous: Some(Some(DeltaId([9; 16]))), ..e() },
        Expected { first: Sequence(2), ..e() },
        Expected { last: next, ..e() },
    ];
    refusals.extend(elsewhere.iter().map(|wrong| read(a.object(), wrong)));
    // Pieces of one object in another: frames among themselves, and every part of a twin.
    let parts: Vec<_> =
        delta.index().frames.iter().map(|f| f.offset as usize..f.end() as usize).collect();
    let end = delta.index().frames_end() as usize;
    let mut swapped = a.object().to_vec();
    swapped.copy_within(parts[1].clone(), parts[0].start);
    refusals.push(read(&swapped, &expected));
    let rest = [0..HEADER_BYTES, end..a.object().len()];
    for from in [&again, &other, &foreign] {
        for range in parts.iter().chain(&rest) {
            let mut spliced = a.object().to_vec();
            let piece = from.object().get(range.clone());
            let Some(piece) = piece.filter(|piece| **piece != spliced[range.clone()]) else {
                continue;
            };
            spliced[range.clone()].copy_from_slice(piece);
            refusals.push(read(&spliced, &expected));
        }
    }
    assert!(refusals.len() >= 20, "{}", refusals.len());
    for (n, refusal) in refusals.into_iter().enumerate() {
        let error = refusal.map(|_| n).unwrap_err();
        assert_eq!(error.class(), crate::store::Class::Poison, "{n}: {error}");
    }
}

#[test]
fn no_key_meets_a_nonce_twice_whatever_is_sealed_again() {
    let mut seen = HashSet::new();
    let keys = ring(&"web".parse().unwrap());
    for attempt in 0..200u32 {
        // A crash and a retry: same records, same lineage, same key, all state as before.
        let (stream, batch) = three_frames("web", 3);
        let id = if attempt % 2 == 0 { 1 } else { attempt as u8 };
        let made = sealed(batch, lineage(&stream.machine, id, None), attempt % 3 == 0, &System);
        let expected = Expected::of(&stream.machine, made.entry(), None);
        let (delta, _) = read(made.object(), &expected).unwrap();
        let header = delta.header();
        let key = keys.newest().delta_key(&header.salt, header.machine, header.id);
        let numbers = (0..delta.index().frames.len() as u64).chain([INDEX_NUMBER]);
        for number in numbers {
            // One commitment belongs to one key: both are halves of one HKDF output.
            assert!(seen.insert((key.commitment(), nonce(number))), "attempt {attempt}");
        }
    }
    assert_eq!(seen.len(), 800);
}

#[test]
fn zeros_cost_an_entry_and_noise_is_stored() {
    let noise = Seeded::new(5);
    let size = |payload: Vec<u8>| {
        let mut stream = Stream::new("web");
        let items = vec![stream.epoch(1), stream.write(0, 0, payload)];
        let batch = batches(&stream.machine, items, 1 << 20).remove(0);
        let made = sealed(batch, lineage(&stream.machine, 1, None), false, &System);
        let expected = Expected::of(&stream.machine, made.entry(), None);
        let (delta, _) = read(made.object(), &expected).unwrap();
        let frames = delta.index().frames.iter();
        (frames.map(|frame| frame.compressed).collect::<Vec<_>>(), made.object().len())
    };
    let (frames, bytes) = size(vec![0; 1 << 20]);
    assert!(frames.is_empty() && bytes < 400, "{bytes}");
    let (frames, bytes) = size(noise.bytes(1 << 20));
    assert_eq!(frames, [false; 256]);
    assert!(bytes < (1 << 20) + 256 * 60 + 400, "{bytes}");
    let (frames, bytes) = size(b"words ab".repeat(1 << 17));
    assert!(frames == [true; 256] && bytes < 1 << 16, "{bytes}");
}

/// Version 1 stays readable: an object sealed under a fixed key with a fixed salt.
#[test]
fn golden_object() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/delta/v1-object.hex");
    let (stream, batch) = three_frames("web", 3);
    let made = sealed(batch, lineage(&stream.machine, 1, None), false, &Seeded::new(77));
    let expected = Expected::of(&stream.machine, made.entry(), Some(None));
    if !std::path::Path::new(path).exists()
        && std::env::var("HOLDFAST_GOLDEN").is_ok_and(|set| set == "new")
    {
        let lines: Vec<_> = made.object().chunks(64).map(hex::encode).collect();
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    }
    let golden: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    let golden = hex::decode(golden).unwrap();
    let expected = Expected { object_bytes: golden.len() as u64, ..expected };
    let (old, frames) = read(&golden, &expected).unwrap();
    let (new, new_frames) =
        read(made.object(), &Expected::of(&stream.machine, made.entry(), None)).unwrap();
    assert_eq!(old.header_bytes, new.header_bytes, "salt, key and commitment are the same");
    assert_eq!(frames, new_frames);
    assert_eq!(
        (&old.index().entries, &old.index().marks),
        (&new.index().entries, &new.index().marks)
    );
    // zstd may choose other bytes one day; stored frames are sealed to the same bytes for ever.
    assert_eq!(golden[..8396], made.object()[..8396]);
}
