//! One connection: handshake under a deadline, then a reader and a few workers.
//!
//! Owns: the threads, the memory and the reply lock of one client. Does not own: other clients;
//! whatever this one does or leaves undone is felt by nobody else.

use std::io::{self, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::Shutdown;

use super::answer::{answer, memory_bytes};
use super::error::ErrorCode;
use super::export::Export;
use super::gate::{Gate, Hold};
use super::negotiate::{
    Negotiation, Next, OPTION_HEADER_BYTES, Offer, Session, Tls, greeting, option_header,
};
use super::protocol::REQUEST_BYTES_MAX;
use super::reply;
use super::request::{Command, REQUEST_BYTES, Request};
use super::socket::{Deadline, Socket};
use super::tls::{Secured, ServerTls};
use crate::format::bytes::FormatError;

/// Requests of one client that are carried out at the same time: a slow FLUSH holds up one of them.
const WORKERS: usize = 4;
/// Requests that wait for a worker.
const QUEUE_REQUESTS_MAX: usize = 64;
/// Payload bytes that one client has in memory: its longest request, or many short ones.
const MEMORY_BYTES_MAX: u32 = REQUEST_BYTES_MAX;
/// Time for the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Memory for a payload grows with what has arrived, in steps of this.
const PAYLOAD_STEP_BYTES: usize = 1 << 20;

/// Serves one client until it leaves, breaks the protocol, or `stopping` and its socket is shut. With
/// `tls`, `admit` is called when it is known who the client is and that it wants the disk (it may not believe
/// this server, and leave), before any request of it is read.
pub(super) fn serve(
    socket: &Socket,
    (offer, export): (&Offer, &dyn Export),
    stopping: &AtomicBool,
    tls: Option<&ServerTls>,
    admit: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let mut handshake = Deadline::within(socket, HANDSHAKE_TIMEOUT);
    let demanded = if tls.is_some() { Tls::Demanded } else { Tls::Never };
    let mut talk = greet(&mut handshake, offer, demanded)?;
    let hang_up = || {
        let _gone = socket.shutdown(Shutdown::Both); // fails when it hung up first
    };
    let link = |session| Link { export, session, stopping, hang_up: &hang_up };
    // A client may be idle, or stopped, for as long as it likes: only its own slot waits.
    let patient = || socket.read_within(None).and_then(|()| socket.write_within(None));
    match (negotiate(&mut handshake, &mut talk)?, tls) {
        (Next::Transmit(session), None) => {
            patient()?;
            transmit(BufReader::with_capacity(64 << 10, socket), socket, &link(session))
        }
        (Next::Secure, Some(tls)) => {
            let mut connection = tls.accept(&mut handshake)?;
            let mut private = rustls::Stream::new(&mut connection, &mut handshake);
            let Next::Transmit(session) = negotiate(&mut private, &mut talk)? else {
                return Ok(());
            };
            admit()?;
            patient()?;
            let secured = Secured::new(connection, socket);
            transmit(secured.input(), secured.output(), &link(session))
        }
        (_, None) => Ok(()),
        (_, Some(_)) => {
            let cure =
                "it left without TLS; give it tls-creds (x509), plain NBD is not served here";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, cure))
        }
    }
}

/// The first bytes of both.
pub(super) fn greet<'a>(
    stream: &mut (impl Read + Write),
    offer: &'a Offer,
    tls: Tls,
) -> io::Result<Negotiation<'a>> {
    stream.write_all(&greeting())?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    Negotiation::begin(offer, tls, flags).map_err(malformed)
}

/// Options, until one that ends their row.
pub(super) fn negotiate(
    stream: &mut (impl Read + Write),
    talk: &mut Negotiation<'_>,
) -> io::Result<Next> {
    loop {
        let mut header = [0; OPTION_HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let (number, length) = option_header(&header).map_err(malformed)?;
        let mut data = vec![0; length];
        stream.read_exact(&mut data)?;
        let (bytes, next) = talk.answer(number, &data);
        stream.write_all(&bytes)?;
        if next != Next::Option {
            return Ok(next);
        }
    }
}

fn malformed(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What reader and workers of one client share besides its two ends.
pub(super) struct Link<'a> {
    pub(super) export: &'a dyn Export,
    pub(super) session: Session,
    pub(super) stopping: &'a AtomicBool,
    /// Ends both directions, so that whoever waits for the client wakes up.
    pub(super) hang_up: &'a (dyn Fn() + Sync),
}

struct Job<'a> {
    request: Request,
    command: Command,
    payload: Bytes,
    _memory: Hold<'a>,
}

/// Requests from `input`, replies to `output`.
pub(super) fn transmit(
    input: impl Read,
    output: impl Write + Send,
    link: &Link<'_>,
) -> io::Result<()> {
    let gate = Gate::new(MEMORY_BYTES_MAX);
    let output = Mutex::new(Some(output));
    let send = |bytes: &[u8]| send(&output, bytes, link.hang_up);
    std::thread::scope(|scope| {
        // Made in here, so that it closes before the scope waits for the workers.
        let (queue, jobs) = crossbeam_channel::bounded::<Job<'_>>(QUEUE_REQUESTS_MAX);
        for number in 0..WORKERS {
            let jobs = jobs.clone();
            let worker = std::thread::Builder::new().name(format!("nbd-worker-{number}"));
            worker.spawn_scoped(scope, move || work(&jobs, link, &send))?;
        }
        drop(jobs);
        read_requests(input, link, &gate, &queue, &send)
    })
}

fn work(
    jobs: &crossbeam_channel::Receiver<Job<'_>>,
    link: &Link<'_>,
    send: &impl Fn(&[u8]) -> io::Result<()>,
) {
    for job in jobs {
        let (request, command, payload) = (job.request, job.command, job.payload);
        let mut send = |bytes: &[u8]| send(bytes);
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let (export, session) = (link.export, link.session);
            answer(export, session, &request, command, payload, &mut send)
        }));
        if !matches!(answered, Ok(Ok(()))) {
            (link.hang_up)(); // a request without an answer would leave the client waiting for ever
        }
    }
}

/// One reply at a time. After a failed one the client's stream is out of step: nothing more is sent.
fn send<W: Write>(
    output: &Mutex<Option<W>>,
    bytes: &[u8],
    hang_up: &(dyn Fn() + Sync),
) -> io::Result<()> {
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(stream) = output.as_mut() else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let sent = stream.write_all(bytes).and_then(|()| stream.flush());
    if sent.is_err() {
        *output = None;
        hang_up();
    }
    sent
}

fn read_requests<'a>(
    mut input: impl Read,
    link: &Link<'_>,
    gate: &'a Gate,
    queue: &crossbeam_channel::Sender<Job<'a>>,
    send: &impl Fn(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (size_bytes, read_only) = (link.export.size_bytes(), link.export.read_only());
    loop {
        let mut header = [0; REQUEST_BYTES];
        match input.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let request = Request::parse(&header)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let checked = if link.stopping.load(Ordering::Acquire) {
            Err(ErrorCode::SHUTDOWN)
        } else {
            request.check(link.session, size_bytes, read_only)
        };
        match checked {
            Ok(Command::Disconnect) => return Ok(()),
            Ok(command) => {
                let memory = gate.take(memory_bytes(link.session, &request, command));
                let payload = read_payload(&mut input, request.payload_bytes())?;
                let job = Job { request, command, payload, _memory: memory };
                if queue.send(job).is_err() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
            Err(code) => {
                let skipped = u64::from(request.payload_bytes());
                io::copy(&mut input.by_ref().take(skipped), &mut io::sink())?;
                send(&reply::error(link.session, request.cookie, code, ""))?;
            }
        }
    }
}

fn read_payload(input: &mut impl Read, length: u32) -> io::Result<Bytes> {
    let length = length as usize;
    let mut payload = Vec::with_capacity(length.min(PAYLOAD_STEP_BYTES));
    while payload.len() < length {
        let start = payload.len();
        payload.resize(length.min(start + PAYLOAD_STEP_BYTES), 0);
        input.read_exact(&mut payload[start..])?;
    }
    Ok(payload.into())
}
