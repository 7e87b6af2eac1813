use super::super::testing::{Stream, batch_settings};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn batcher(stream: &Stream, bytes_max: u64) -> Batcher {
    let machine = MachineKey::of(&stream.machine);
    Batcher::new(machine, StreamState::BEGINNING, batch_settings(bytes_max))
}

fn closed(batcher: &mut Batcher, now: Duration) -> Vec<(u64, u64, ClosedBy)> {
    std::iter::from_fn(|| batcher.poll(now))
        .map(|batch| (batch.first().0, batch.last().0, batch.closed_by()))
        .collect()
}

#[test]
fn closes_by_bytes_before_it_is_too_large() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 4096);
    batcher.keep_every_write(true);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    for bytes in [2048, 1024, 2048, 4096, 8192, 512] {
        batcher.push(stream.write(0, 0, vec![1; bytes]), SECOND).unwrap();
    }
    let bytes = ClosedBy::Bytes;
    let batches = closed(&mut batcher, SECOND);
    assert_eq!(batches, [(1, 3, bytes), (4, 4, bytes), (5, 5, bytes), (6, 6, bytes)]);
    batcher.drain();
    assert_eq!(closed(&mut batcher, SECOND), [(7, 7, ClosedBy::Drain)]);
    batcher.drain();
    assert_eq!(closed(&mut batcher, SECOND), []);
}

#[test]
fn what_folding_takes_away_does_not_count_up_to_a_bound() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 4096);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    for _ in 0..7 {
        batcher.push(stream.write(0, 0, vec![1; 2048]), SECOND).unwrap();
        batcher.push(stream.write(1, 2, vec![1; 1024]), SECOND).unwrap();
    }
    assert_eq!(closed(&mut batcher, SECOND), []);
    batcher.push(stream.zero(0, 0, 2), SECOND).unwrap();
    batcher.push(stream.write(0, 90, vec![1; 1024]), SECOND).unwrap();
    assert_eq!(closed(&mut batcher, SECOND), [], "zeros take bytes away");
    batcher.push(stream.write(0, 100, vec![1; 1536]), SECOND).unwrap();
    let batch = batcher.poll(SECOND).unwrap();
    assert_eq!((batch.last(), batch.closed_by()), (Sequence(17), ClosedBy::Bytes));
    assert_eq!((batch.kept_bytes(), batch.payload_bytes()), (3072, 7 * 3072 + 1024));
    for _ in 0..40 {
        batcher.push(stream.write(0, 100, vec![1; 1536]), SECOND).unwrap();
    }
    let batch = batcher.poll(SECOND).unwrap();
    assert_eq!((batch.kept_bytes(), batch.closed_by()), (1536, ClosedBy::Bytes));
    assert_eq!(batch.payload_bytes(), 21 * 1536, "what stays in the cache log is bounded");
}

#[test]
fn another_granularity_closes_the_batch() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 1 << 20);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    batcher.keep_every_write(false);
    assert_eq!(closed(&mut batcher, SECOND), [], "no change");
    batcher.keep_every_write(true);
    let batch = batcher.poll(SECOND).unwrap();
    assert_eq!((batch.closed_by(), batch.keeps_every_write()), (ClosedBy::Granularity, false));
    for _ in 0..2 {
        batcher.push(stream.write(0, 0, vec![1; 512]), SECOND).unwrap();
    }
    batcher.drain();
    let batch = batcher.poll(SECOND).unwrap();
    assert_eq!((batch.kept_bytes(), batch.keeps_every_write()), (1024, true));
}

#[test]
fn closes_by_age_of_its_first_record() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 1 << 20);
    assert_eq!(batcher.deadline(), None);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    batcher.push(stream.write(0, 0, vec![1; 512]), SECOND * 19 / 10).unwrap();
    assert_eq!(batcher.deadline(), Some(2 * SECOND));
    assert_eq!(closed(&mut batcher, 2 * SECOND - Duration::from_nanos(1)), []);
    assert_eq!(closed(&mut batcher, 2 * SECOND), [(1, 2, ClosedBy::Age)]);
    assert_eq!(batcher.deadline(), None);
}

#[test]
fn closes_by_records_so_that_zeros_cannot_fill_an_index() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 1 << 20);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    for _ in 0..BATCH_RECORDS_MAX {
        batcher.push(stream.zero(0, 0, 1), SECOND).unwrap();
    }
    let last = BATCH_RECORDS_MAX as u64;
    assert_eq!(closed(&mut batcher, SECOND), [(1, last, ClosedBy::Records)]);
}

#[test]
fn a_bookmark_ends_and_an_epoch_begins_a_batch() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 1 << 20);
    batcher.push(stream.epoch(1), SECOND).unwrap();
    batcher.push(stream.bookmark("a"), SECOND).unwrap();
    batcher.push(stream.bookmark("b"), SECOND).unwrap();
    batcher.push(stream.write(0, 0, vec![1; 512]), SECOND).unwrap();
    batcher.push(stream.epoch(5), SECOND).unwrap();
    batcher.push(stream.write(0, 0, vec![1; 512]), SECOND).unwrap();
    assert_eq!(batcher.state().epoch, Epoch(5));
    batcher.drain();
    let batches: Vec<_> = std::iter::from_fn(|| batcher.poll(SECOND)).collect();
    let facts: Vec<_> = batches
        .iter()
        .map(|batch| (batch.first().0, batch.last().0, batch.epoch().0, batch.closed_by()))
        .collect();
    assert_eq!(
        facts,
        [
            (1, 2, 1, ClosedBy::Bookmark),
            (3, 3, 1, ClosedBy::Bookmark),
            (4, 4, 1, ClosedBy::EpochBegin),
            (5, 6, 5, ClosedBy::Drain),
        ]
    );
}

#[test]
fn knows_where_a_catch_up_runs() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 512); // one write a batch
    batcher.push(stream.epoch(1), SECOND).unwrap();
    for item in [
        stream.write(0, 0, vec![1; 512]),
        stream.catch_up(true),
        stream.write(0, 0, vec![1; 512]),
        stream.write(0, 0, vec![1; 512]),
        stream.catch_up(true), // the agent started again in the middle
        stream.catch_up(false),
        stream.bookmark("repaired"),
        stream.write(0, 0, vec![1; 512]),
    ] {
        batcher.push(item, SECOND).unwrap();
    }
    let facts: Vec<_> = std::iter::from_fn(|| batcher.poll(SECOND))
        .map(|batch| (batch.last().0, batch.catch_up(), batch.ends_catching_up()))
        .collect();
    assert_eq!(
        facts,
        [(2, false, false), (4, true, true), (5, true, true), (8, true, false), (9, false, false),]
    );
}

#[test]
fn refuses_what_may_not_follow_and_stays_as_it_was() {
    let mut stream = Stream::new("web");
    let mut batcher = batcher(&stream, 1 << 20);
    let early = Stream::new("web").write(0, 0, vec![1; 512]);
    let refused = |batcher: &mut Batcher, item, part: &str| {
        let before = batcher.state();
        let message = batcher.push(item, SECOND).unwrap_err().to_string();
        assert!(message.contains(part), "{part}: {message}");
        assert_eq!(batcher.state(), before);
    };
    refused(&mut batcher, early, "must begin an epoch");
    refused(&mut batcher, Stream::new("db").epoch(1), "in the stream of machine");
    refused(&mut batcher, Stream::new("web").epoch(0), "later epoch");
    batcher.push(stream.epoch(1), SECOND).unwrap();
    let at = |next| Stream { next, ..Stream::new("web") };
    refused(&mut batcher, at(1).write(0, 0, vec![1; 512]), "record 1 follows where 2 must");
    refused(&mut batcher, at(3).write(0, 0, vec![1; 512]), "record 3 follows where 2 must");
    refused(&mut batcher, at(2).epoch(1), "later epoch");
    refused(&mut batcher, at(2).catch_up(false), "did not begin");
    batcher.push(stream.catch_up(true), SECOND).unwrap();
    refused(&mut batcher, at(3).bookmark("x"), "inside a catch-up");
    batcher.push(stream.catch_up(false), SECOND).unwrap();
    batcher.push(stream.bookmark("x"), SECOND).unwrap();
    assert_eq!(closed(&mut batcher, SECOND), [(1, 4, ClosedBy::Bookmark)]);
}
