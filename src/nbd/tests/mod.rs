//! The protocol by itself, and the server with good and bad clients.

mod dirty;
mod fuzz;
mod tls;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::answer::{merge, read_parts};
use super::negotiate::{Negotiation, Next, Offer, Session, Tls, option_header};
use super::protocol::{command, command_flag, option, option_reply};
use super::request::Request;
use super::*;

const DISK_BYTES: u64 = 1 << 20;
/// A reply that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk in memory whose flush waits for the test, and which fails where it is told to.
#[derive(Default)]
struct Disk {
    bytes: Mutex<Vec<u8>>,
    flush_held: Mutex<bool>,
    flush_changed: Condvar,
    read_only: bool,
    damaged: bool,
}

impl Disk {
    fn new() -> Self {
        Self { bytes: Mutex::new(vec![0; DISK_BYTES as usize]), ..Self::default() }
    }

    fn hold_flush(&self, held: bool) {
        *self.flush_held.lock().unwrap() = held;
        self.flush_changed.notify_all();
    }
}

impl Export for Disk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        assert!(offset != 66_560, "a bug of the export");
        if self.damaged {
            return Err(io::Error::other("frame 7 of delta x does not open"));
        }
        let start = offset as usize;
        target.copy_from_slice(&self.bytes.lock().unwrap()[start..start + target.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, payload: Bytes, _fua: bool) -> io::Result<()> {
        let start = offset as usize;
        self.bytes.lock().unwrap()[start..start + payload.len()].copy_from_slice(&payload);
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64, _trim: bool, _fua: bool) -> io::Result<()> {
        self.write(offset, vec![0; length as usize].into(), false)
    }
    fn flush(&self) -> io::Result<()> {
        let held = self.flush_held.lock().unwrap();
        drop(self.flush_changed.wait_while(held, |held| *held).unwrap());
        Ok(())
    }
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        let bytes = self.bytes.lock().unwrap();
        let range = &bytes[offset as usize..(offset + length) as usize];
        let blocks = range.chunks(4096).map(|block| {
            let zero = block.iter().all(|byte| *byte == 0);
            let length = block.len() as u64;
            BlockStatus { length, hole: zero, zero }
        });
        Ok(blocks.collect())
    }
}

/// Lets flushes go when the test ends, however it ends: the server's end waits for them.
struct HeldFlush<'a>(&'a Disk);

impl<'a> HeldFlush<'a> {
    fn new(disk: &'a Disk) -> Self {
        disk.hold_flush(true);
        Self(disk)
    }
}

impl Drop for HeldFlush<'_> {
    fn drop(&mut self) {
        self.0.hold_flush(false);
    }
}

struct Served {
    directory: tempfile::TempDir,
    disk: Arc<Disk>,
    server: Server,
}

fn served(disk: Disk) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk);
    let export = Arc::clone(&disk) as Arc<dyn Export>;
    let server = Server::bind(&directory.path().join("disk.sock"), "disk", export).unwrap();
    Served { directory, disk, server }
}

impl Served {
    fn client(&self) -> Client {
        Client::connect(self.server.socket(), "disk").unwrap()
    }
}

fn error_of<T: std::fmt::Debug>(result: Result<T, NbdError>) -> String {
    match result.unwrap_err() {
        NbdError::Request { error, .. } => error.to_string(),
        other => panic!("no answer but {other}"),
    }
}

#[test]
fn what_is_written_is_read() {
    let served = served(Disk::new());
    let mut client = served.client();
    assert_eq!(client.size_bytes(), DISK_BYTES);
    client.write(512, &[7; 1024], true).unwrap();
    client.zero(1024, 512).unwrap();
    client.flush().unwrap();
    let mut all = vec![1; DISK_BYTES as usize];
    client.read(0, &mut all).unwrap();
    assert_eq!(all[..], served.disk.bytes.lock().unwrap()[..]);
    assert_eq!((all[511], all[512], all[1024]), (0, 7, 0));
    let status = client.block_status(0, DISK_BYTES).unwrap();
    let lengths: Vec<_> = status.iter().map(|s| (s.length, s.hole, s.zero)).collect();
    assert_eq!(lengths, [(4096, false, false), (DISK_BYTES - 4096, true, true)]);
    client.trim(0, 4096).unwrap();
    assert_eq!(client.block_status(0, DISK_BYTES).unwrap().len(), 1);
}

#[test]
fn every_refusal_has_its_number_and_the_connection_goes_on() {
    let served = served(Disk::new());
    let mut client = served.client();
    assert_eq!(error_of(client.write(DISK_BYTES - 512, &[0; 1024], false)), "ENOSPC");
    assert_eq!(error_of(client.read(DISK_BYTES, &mut [0; 512])), "EINVAL");
    assert_eq!(error_of(client.read(1, &mut [0; 512])), "EINVAL");
    assert_eq!(error_of(client.write(0, &[0; 100], false)), "EINVAL");
    assert_eq!(error_of(client.trim(DISK_BYTES, 512)), "EINVAL");
    assert_eq!(error_of(client.zero(u64::MAX - 1023, 512)), "ENOSPC");
    client.write(0, &[1; 512], false).unwrap();

    let served = self::served(Disk { read_only: true, ..Disk::new() });
    let mut client = served.client();
    assert!(client.read_only());
    assert_eq!(error_of(client.write(0, &[0; 512], false)), "EPERM");
    assert_eq!(error_of(client.trim(0, 512)), "EPERM");
    client.read(0, &mut [0; 512]).unwrap();

    let served = self::served(Disk { damaged: true, ..Disk::new() });
    assert_eq!(error_of(served.client().read(0, &mut [0; 512])), "EIO");
}

#[test]
fn a_request_is_checked_against_what_was_agreed() {
    let session = Session { structured: true, allocation: true };
    let check = |command, flags, offset, length, session| {
        let request = Request { flags, command, cookie: 1, offset, length };
        let bytes: [u8; 28] = request.write().try_into().unwrap();
        let parsed = Request::parse(&bytes).unwrap();
        assert_eq!(parsed, request);
        parsed.check(session, 64 << 20, false).map_err(|code| code.to_string())
    };
    let refused = |code: &str| Err(code.to_owned());
    let most = REQUEST_BYTES_MAX;
    assert!(check(command::READ, command_flag::DF, 0, most, session).is_ok());
    assert_eq!(
        check(command::READ, command_flag::DF, 0, most + 512, session),
        refused("EOVERFLOW")
    );
    assert_eq!(check(command::READ, 0, 0, most + 512, session), refused("EINVAL"));
    assert!(check(command::TRIM, 0, 0, most + 512, session).is_ok());
    assert_eq!(check(command::READ, command_flag::REQ_ONE, 0, 512, session), refused("EINVAL"));
    let fast = command_flag::FAST_ZERO;
    assert_eq!(check(command::WRITE_ZEROES, fast, 0, 512, session), refused("ENOTSUP"));
    assert!(check(command::WRITE_ZEROES, command_flag::NO_HOLE, 0, 512, session).is_ok());
    assert!(check(command::BLOCK_STATUS, 0, 0, 512, session).is_ok());
    let plain = Session::default();
    assert_eq!(check(command::BLOCK_STATUS, 0, 0, 512, plain), refused("EINVAL"));
    for unknown in [5, 8, 9, 0xffff] {
        assert_eq!(check(unknown, 0, 0, 512, session), refused("EINVAL"));
    }
    let write = |length| {
        let request = Request { flags: 0, command: command::WRITE, cookie: 0, offset: 0, length };
        Request::parse(&request.write().try_into().unwrap()).is_ok()
    };
    assert!(write(most));
    assert!(!write(u32::MAX), "a payload of 4 GiB ends the connection");
}

fn offer() -> Offer {
    Offer { name: "disk".to_owned(), size_bytes: DISK_BYTES, read_only: false }
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), rest].concat()
}

fn last_reply(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap())
}

#[test]
fn options_are_answered_in_any_order() {
    let offer = offer();
    let mut talk = Negotiation::begin(&offer, Tls::Never, 3u32.to_be_bytes()).unwrap();
    let allocation = [&1u32.to_be_bytes()[..], &named("base:allocation", &[])].concat();
    let mut last = |number, data: &[u8]| {
        let (bytes, next) = talk.answer(number, data);
        (last_reply(&bytes), next)
    };
    for unsupported in [4, 5, 11, 12, 0xffff_ffff] {
        assert_eq!(last(unsupported, &[]), (option_reply::ERR_UNSUP, Next::Option));
    }
    let set = option::SET_META_CONTEXT;
    assert_eq!(last(set, &named("disk", &allocation)).0, option_reply::ERR_INVALID);
    assert_eq!(last(option::STRUCTURED_REPLY, &[1]).0, option_reply::ERR_INVALID);
    assert_eq!(last(option::STRUCTURED_REPLY, &[]).0, option_reply::ACK);
    assert_eq!(last(set, &named("disk", &allocation)).0, option_reply::ACK);
    assert_eq!(last(option::GO, &named("other", &[0, 0])).0, option_reply::ERR_UNKNOWN);
    assert_eq!(last(option::GO, &named("disk", &[0, 9])).0, option_reply::ERR_INVALID);
    assert_eq!(last(option::INFO, &named("disk", &[0, 0])), (option_reply::ACK, Next::Option));
    assert_eq!(last(option::LIST, &[]).0, option_reply::ACK);
    let both = Session { structured: true, allocation: true };
    let other_name = Session { structured: true, allocation: false };
    assert_eq!(last(option::GO, &named("", &[0, 0])).1, Next::Transmit(other_name));
    assert_eq!(last(option::GO, &named("disk", &[0, 0])).1, Next::Transmit(both));
    assert_eq!(last(option::ABORT, &[]), (option_reply::ACK, Next::Close));
    assert_eq!(talk.answer(option::EXPORT_NAME, b"other"), (Vec::new(), Next::Close));
    assert_eq!(talk.answer(option::EXPORT_NAME, b"disk").0.len(), 10);
    let mut old = Negotiation::begin(&offer, Tls::Never, [0; 4]).unwrap();
    assert_eq!(old.answer(option::EXPORT_NAME, b"disk").0.len(), 134);
    assert!(Negotiation::begin(&offer, Tls::Never, 4u32.to_be_bytes()).is_err());
    let mut long = *b"IHAVEOPT\0\0\0\x03\xff\xff\xff\xff";
    assert!(option_header(&long).is_err(), "an option of 4 GiB ends the connection");
    long[12..].fill(0);
    assert_eq!(option_header(&long), Ok((3, 0)));
}

#[test]
fn reads_are_cut_into_chunks_and_holes() {
    let extent = |length, zero| BlockStatus { length, hole: zero, zero };
    let mib = 1 << 20;
    let status = [extent(4096, true), extent(4096, false), extent(mib, true), extent(9, false)];
    let parts = read_parts(0..4 * mib, &status);
    let hole = 8192..8192 + mib;
    let expected = [
        (0..8192, false),
        (hole.clone(), true),
        (hole.end..hole.end + mib, false),
        (hole.end + mib..hole.end + 2 * mib, false),
        (hole.end + 2 * mib..4 * mib, false),
    ];
    assert_eq!(parts, expected);
    assert_eq!(merge(&[], 512, 8), [extent(512, false)]);
    assert_eq!(merge(&status, u64::from(u32::MAX), 1), [extent(4096, true)]);
    assert_eq!(merge(&[extent(9, true), extent(9, true)], 10, 8), [extent(10, true)]);
}

#[test]
fn a_slow_flush_does_not_stop_reads() {
    let served = served(Disk::new());
    let mut stream = handshaken(&served);
    let held = HeldFlush::new(&served.disk);
    stream.write_all(&request::encode(0, command::FLUSH, 1, 0, 0)).unwrap();
    stream.write_all(&request::encode(0, command::READ, 2, 0, 512)).unwrap();
    assert_eq!(simple_reply(&mut stream, 512), (2, 0));
    drop(held);
    assert_eq!(simple_reply(&mut stream, 0), (1, 0));
}

/// A connection without structured replies, past its handshake.
fn handshaken(served: &Served) -> UnixStream {
    let mut stream = UnixStream::connect(served.server.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    stream.read_exact(&mut [0; 18 + 10]).unwrap();
    stream
}

fn simple_reply(stream: &mut UnixStream, payload_bytes: usize) -> (u64, u32) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    stream.read_exact(&mut vec![0; payload_bytes]).unwrap();
    let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
    (u64::from_be_bytes(head[8..].try_into().unwrap()), error)
}

#[test]
fn stopping_answers_what_runs_and_leaves_no_socket() {
    let served = served(Disk::new());
    let mut stream = handshaken(&served);
    let idle = UnixStream::connect(served.server.socket()).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    (&idle).read_exact(&mut [0; 18]).unwrap(); // it is greeted
    let disk = Arc::clone(&served.disk);
    let held = HeldFlush::new(&disk);
    stream.write_all(&request::encode(0, command::FLUSH, 1, 0, 0)).unwrap();
    stream.write_all(&request::encode(0, command::READ, 2, 0, 512)).unwrap();
    assert_eq!(simple_reply(&mut stream, 512).0, 2); // the flush was taken before this read
    let server = served.server;
    let socket = server.socket().to_owned();
    let stopping = std::thread::spawn(move || server.stop());
    assert_eq!((&idle).read(&mut [0]).unwrap(), 0, "the end");
    drop(held);
    assert_eq!(simple_reply(&mut stream, 0), (1, 0));
    stopping.join().unwrap();
    assert!(!socket.exists());
}

#[test]
fn a_dead_servers_socket_is_replaced_and_a_living_one_is_not() {
    let first = served(Disk::new());
    let socket = first.server.socket().to_owned();
    let export: Arc<dyn Export> = Arc::new(Disk::new());
    let error = Server::bind(&socket, "disk", Arc::clone(&export)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("disk.sock"), "{error}");
    first.server.stop();

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap()); // leaves its file behind
    assert!(socket.exists());
    Server::bind(&socket, "disk", Arc::clone(&export)).unwrap().stop();

    let file = first.directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = Server::bind(&file, "disk", export).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// Whether the server hung up, and did so before the client lost its patience.
fn ended(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn bad_clients_harm_nobody_else() {
    let served = served(Disk::new());
    let mut good = served.client();
    let silent = UnixStream::connect(served.server.socket()).unwrap();
    let mut trickling = UnixStream::connect(served.server.socket()).unwrap();
    trickling.write_all(b"\0\0").unwrap();
    let mut garbage = handshaken(&served);
    garbage.write_all(&[0xff; 64]).unwrap();
    assert!(ended(&mut garbage), "garbage ends its own connection");
    // A write that never comes, a reader that never reads, and a panic of the export.
    let mut stuck = handshaken(&served);
    stuck.write_all(&request::encode(0, command::WRITE, 1, 0, REQUEST_BYTES_MAX)).unwrap();
    let mut deaf = handshaken(&served);
    for _ in 0..20 {
        deaf.write_all(&request::encode(0, command::READ, 1, 0, DISK_BYTES as u32)).unwrap();
    }
    let mut unlucky = handshaken(&served);
    unlucky.write_all(&request::encode(0, command::READ, 1, 66_560, 512)).unwrap();
    assert!(ended(&mut unlucky), "the client is not left waiting");
    good.write(0, &[5; 4096], true).unwrap();
    good.read(0, &mut [0; 4096]).unwrap();
    served.client().flush().unwrap();
    drop((silent, trickling, stuck, deaf));
    served.server.stop();
}

#[test]
fn clients_beyond_the_cap_are_turned_away() {
    let served = served(Disk::new());
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.client()).collect();
    assert!(Client::connect(served.server.socket(), "disk").is_err());
    clients[0].write(0, &[1; 512], false).unwrap();
    assert_eq!(served.server.connections(), CONNECTIONS_MAX);
}

#[test]
fn the_only_client_is_served_when_nothing_of_the_one_before_runs() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::new());
    let export = Arc::clone(&disk) as Arc<dyn Export>;
    let socket = directory.path().join("disk.sock");
    let server = Server::bind_for_one(&socket, "disk", export).unwrap();
    let served = Served { directory, disk, server };
    let mut before = handshaken(&served);
    let held = HeldFlush::new(&served.disk);
    before.write_all(&request::encode(0, command::FLUSH, 1, 0, 0)).unwrap();
    before.write_all(&request::encode(0, command::READ, 2, 0, 512)).unwrap();
    assert_eq!(simple_reply(&mut before, 512).0, 2); // the flush was taken before this read
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| tell.send(served.client()).unwrap());
        assert_eq!(before.read(&mut [0; 1]).unwrap(), 0, "its connection was ended");
        // However long: while the request of the client before runs, the next is not served.
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "served too early");
        drop(held);
        let mut client = told.recv_timeout(PATIENCE).unwrap();
        client.write(0, &[7; 512], false).unwrap();
        let first = client.first_status(0, DISK_BYTES).unwrap();
        assert_eq!((first.length, first.zero), (4096, false));
    });
    served.server.stop();
}
