//! Bytes of any kind: no panic, nothing allocated that did not arrive.

use std::io::{self, Cursor, Read, Write};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::nbd::connection::{self, Link};

/// Requests in, replies out, without a socket.
fn transmit_bytes(input: &[u8], stopping: &AtomicBool) -> io::Result<Vec<u8>> {
    let disk = Disk::new();
    let mut output = Vec::new();
    let link = Link {
        export: &disk,
        session: Session { structured: input.len() % 2 == 1, allocation: input.len() % 2 == 1 },
        stopping,
        hang_up: &|| {},
    };
    connection::transmit(Cursor::new(input), &mut output, &link).map(|()| output)
}

struct Talk {
    input: Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl Read for Talk {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.input.read(target)
    }
}

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn option_bytes() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        Just(named("disk", &[0, 1, 0, 3])),
        Just(named("disk", &[0, 0, 0, 1, 0, 0, 0, 5, b'b', b'a', b's', b'e', b':'])),
    ];
    (0u32..13, data, any::<bool>()).prop_map(|(number, data, honest)| {
        let length = if honest { data.len() as u32 } else { u32::MAX - number };
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length.to_be_bytes(), &data].concat()
    })
}

fn request_bytes() -> impl Strategy<Value = Vec<u8>> {
    let sectors = prop_oneof![0u64..3000, Just(u64::MAX / 512)];
    let length = prop_oneof![(0u32..4096).prop_map(|n| n * 512), any::<u32>()];
    (any::<u16>(), 0u16..10, sectors, length, 0usize..8192).prop_map(
        |(flags, command, sector, length, payload)| {
            let flags = flags & 0x3f;
            let mut bytes = request::encode(flags, command, 7, sector * 512, length).to_vec();
            bytes.resize(bytes.len() + if command == 1 { payload } else { 0 }, 1);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_handshake_panics(
        flags in 0u32..5,
        options in prop::collection::vec(option_bytes(), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let tls = [Tls::Never, Tls::Demanded, Tls::Begun][noise.len() % 3];
        let input = [flags.to_be_bytes().to_vec(), options.concat(), noise].concat();
        let mut talk = Talk { input: Cursor::new(input), sent: Vec::new() };
        let offer = offer();
        if let Ok(mut begun) = connection::greet(&mut talk, &offer, tls) {
            while let Ok(Next::Secure) = connection::negotiate(&mut talk, &mut begun) {}
        }
        prop_assert!(talk.sent.len() < 64 << 10);
    }

    #[test]
    fn no_request_panics(
        requests in prop::collection::vec(request_bytes(), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        // The disk panics at one offset on purpose; that is caught and counts as no answer.
        let input = [requests.concat(), noise].concat();
        let _ended = transmit_bytes(&input, &AtomicBool::new(false));
    }
}

#[test]
fn requests_that_come_while_stopping_are_answered_with_shutdown() {
    let requests = request::encode(0, command::READ, 9, 0, 512);
    let sent = transmit_bytes(&requests, &AtomicBool::new(true)).unwrap();
    assert_eq!(sent[4..8], 108u32.to_be_bytes());
}
