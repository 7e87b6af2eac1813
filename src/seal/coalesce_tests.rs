use super::super::testing::{Stream, batches};
use super::*;

type Kept = Vec<(u64, u16, u64, u32, Option<u8>)>;

fn kept(stream: &Stream, items: Vec<Durable>, keep_every_write: bool) -> Kept {
    let batches = batches(&stream.machine, items, 1 << 20);
    let [batch] = batches.as_slice() else { panic!() };
    let (pieces, marks) = coalesce(batch, keep_every_write);
    assert_eq!(marks.len(), 1);
    let row = |piece: &Piece<'_>| {
        let (offset, length) = (piece.extent.offset() / 512, piece.extent.length() / 512);
        if let Some(bytes) = piece.bytes {
            assert_eq!(bytes.len(), piece.extent.length() as usize);
        }
        (piece.sequence.0, piece.disk.0, offset, length, piece.bytes.map(|bytes| bytes[0]))
    };
    pieces.iter().map(row).collect()
}

fn history(stream: &mut Stream) -> Vec<Durable> {
    vec![
        stream.epoch(1),
        stream.write(0, 0, [[1; 512], [2; 512], [3; 512], [4; 512]].concat()),
        stream.write(1, 1, vec![5; 512]),
        stream.write(0, 1, vec![6; 512]),
        stream.zero(0, 3, 9),
        stream.write(1, 1, vec![7; 512]),
        stream.write(1, 4, vec![0; 1024]),
    ]
}

#[test]
fn the_last_writer_wins() {
    let mut stream = Stream::new("web");
    let items = history(&mut stream);
    assert_eq!(
        kept(&stream, items, false),
        [
            (2, 0, 0, 1, Some(1)),
            (2, 0, 2, 1, Some(3)),
            (4, 0, 1, 1, Some(6)),
            (5, 0, 3, 9, None),
            (6, 1, 1, 1, Some(7)),
            (7, 1, 4, 2, None),
        ]
    );
}

#[test]
fn or_every_write_is_kept() {
    let mut stream = Stream::new("web");
    let items = history(&mut stream);
    assert_eq!(
        kept(&stream, items, true),
        [
            (2, 0, 0, 4, Some(1)),
            (3, 1, 1, 1, Some(5)),
            (4, 0, 1, 1, Some(6)),
            (5, 0, 3, 9, None),
            (6, 1, 1, 1, Some(7)),
            (7, 1, 4, 2, None),
        ]
    );
}

#[test]
fn one_set_bit_anywhere_is_no_zero() {
    assert!(is_zero(&[0; 1024]));
    for byte in 0..1024 {
        let mut bytes = [0; 1024];
        bytes[byte] = 0x80;
        assert!(!is_zero(&bytes), "{byte}");
    }
}

#[test]
fn runs_of_zeros_inside_a_write_are_cut_out() {
    let mut stream = Stream::new("web");
    let mut payload = vec![9; 256 << 10];
    payload[..40 << 10].fill(0); // at the start
    payload[(64 << 10) + 512..(100 << 10)].fill(0); // whole units inside: 68 KiB to 100 KiB
    payload[(120 << 10)..(140 << 10)].fill(0); // too short
    payload[(200 << 10)..].fill(0); // at the end
    let items = vec![stream.epoch(1), stream.write(0, 8, payload.clone())];
    let batch = batches(&stream.machine, items, 1 << 20).remove(0);
    let (pieces, _) = coalesce(&batch, false);
    let every_write = coalesce(&batch, true).0;
    assert_eq!(every_write.len(), pieces.len(), "whether every write is kept or not");
    let shape: Vec<_> = pieces
        .iter()
        .map(|p| (p.extent.offset() / 1024, p.extent.length() / 1024, p.bytes.is_none()))
        .collect();
    let expected =
        [(4, 40, true), (44, 28, false), (72, 32, true), (104, 100, false), (204, 56, true)];
    assert_eq!(shape, expected);
    let mut back = Vec::new();
    for piece in &pieces {
        let length = piece.extent.length() as usize;
        back.extend_from_slice(&piece.bytes.map_or(vec![0; length], <[u8]>::to_vec));
    }
    assert_eq!(back, payload);
}
