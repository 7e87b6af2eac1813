//! The client with a server that has more to say of a dirty bitmap than ours.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::protocol::{GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC};
use super::*;

const GRAIN: u32 = 4096;
/// As many extents as QEMU puts into one answer.
const EXTENTS: u32 = (1 << 20) / 8;

fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Answers one option.
fn option(stream: &mut UnixStream, replies: &[(u32, &[u8])]) {
    let header: [u8; 16] = take(stream);
    let length = u32::from_be_bytes(header[12..].try_into().unwrap());
    stream.read_exact(&mut vec![0; length as usize]).unwrap();
    for (kind, body) in replies {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let magic = OPTION_REPLY_MAGIC.to_be_bytes();
        let parts = [&magic[..], &header[8..12], &kind.to_be_bytes(), &length, body];
        stream.write_all(&parts.concat()).unwrap();
    }
}

/// The context's number in this connection.
const CONTEXT: [u8; 4] = [0, 0, 0, 7];

fn handshake(stream: &mut UnixStream) {
    stream.write_all(&[&GREETING_MAGIC[..], &OPTION_MAGIC, &[0, 3]].concat()).unwrap();
    let _flags: [u8; 4] = take(stream);
    option(stream, &[(option_reply::ACK, &[])]);
    option(
        stream,
        &[
            (option_reply::META_CONTEXT, &[&CONTEXT[..], b"dirty"].concat()),
            (option_reply::ACK, &[]),
        ],
    );
    let size = (u64::from(GRAIN) * u64::from(EXTENTS)).to_be_bytes();
    let export = [&[0, 0][..], &size, &[0, 1]].concat();
    option(stream, &[(option_reply::INFO, &export), (option_reply::ACK, &[])]);
}

/// Every second piece of `GRAIN` bytes is dirty.
fn serve(mut stream: UnixStream) {
    handshake(&mut stream);
    let request: [u8; 28] = take(&mut stream);
    let rows = (0..EXTENTS).flat_map(|row| [GRAIN.to_be_bytes(), (row % 2).to_be_bytes()]);
    let body: Vec<u8> = [CONTEXT].into_iter().chain(rows).flatten().collect();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    // The last chunk of the reply, a block status.
    let head = [&[0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5][..], &request[8..16], &length].concat();
    stream.write_all(&[head, body].concat()).unwrap();
    let _goodbye = stream.read(&mut [0; 28]);
}

#[test]
fn the_longest_answer_about_a_dirty_bitmap_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qemu");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| serve(listener.accept().unwrap().0));
        let mut client =
            Client::connect_for(&Peer::Socket(socket.clone()), "bits", "qemu:dirty-bitmap:b")
                .unwrap();
        let dirty = client.dirty(0, client.size_bytes()).unwrap();
        assert_eq!(dirty.len(), EXTENTS as usize / 2);
        let grain = u64::from(GRAIN);
        assert_eq!((dirty[0].clone(), dirty[1].clone()), (grain..2 * grain, 3 * grain..4 * grain));
    });
}

#[test]
fn an_answer_without_extents_is_no_reason_to_ask_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qemu");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            handshake(&mut stream);
            for _ in 0..3 {
                let mut request = [0; 28];
                if stream.read_exact(&mut request).is_err() || request[7] == 2 {
                    return;
                }
                // The last chunk of the reply, and nothing in it.
                let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0];
                let sent = stream.write_all(&[&head[..], &request[8..16], &[0; 4]].concat());
                sent.unwrap();
            }
        });
        let mut client =
            Client::connect_for(&Peer::Socket(socket.clone()), "bits", "qemu:dirty-bitmap:b")
                .unwrap();
        let error = client.dirty(0, client.size_bytes()).unwrap_err();
        assert!(matches!(error, NbdError::Format { .. }), "{error}");
    });
}
