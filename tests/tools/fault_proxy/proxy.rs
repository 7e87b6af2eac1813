//! A proxy in front of the emulator that fails on purpose, each container by its own plan.
//!
//! Owns: what happens to the n-th request of a container. It knows HTTP/1.1 as far as Azure's client
//! speaks it: a head, and a body of known length.

use std::collections::HashMap;
use std::io::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::words::Fault;

#[derive(Clone)]
struct Request {
    head: String,
    body: Vec<u8>,
}

#[derive(Default)]
struct Container {
    requests: u64,
    plan: HashMap<u64, Fault>,
    /// To be delivered when so many requests have come.
    late: Vec<(u64, Request)>,
    /// Every request is reset.
    away: bool,
    /// Faults that happened.
    fired: u64,
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    behind: u16,
    containers: Mutex<HashMap<String, Container>>,
}

impl Proxy {
    pub(crate) async fn start(behind: u16) -> Result<Arc<Self>, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let proxy = Arc::new(Self { port, behind, containers: Mutex::default() });
        let own = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = Arc::clone(&own);
                tokio::spawn(async move { own.serve(stream).await.ok() });
            }
        });
        Ok(proxy)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The n-th request (from 0) of `container` fails so.
    pub(crate) fn plan(&self, container: &str, plan: HashMap<u64, Fault>) {
        self.containers().entry(container.to_owned()).or_default().plan = plan;
    }

    /// Begins or ends an outage.
    pub(crate) fn away(&self, container: &str, away: bool) {
        self.containers().entry(container.to_owned()).or_default().away = away;
    }

    /// Requests that came, and faults that happened.
    pub(crate) fn counts(&self, container: &str) -> (u64, u64) {
        let containers = self.containers();
        containers.get(container).map_or((0, 0), |found| (found.requests, found.fired))
    }

    /// Delivers what is still on its way; how many that was.
    pub(crate) async fn deliver_all(&self, container: &str) -> usize {
        let late = match self.containers().get_mut(container) {
            Some(found) => std::mem::take(&mut found.late),
            None => return 0,
        };
        for (_, request) in &late {
            self.deliver(request).await;
        }
        late.len()
    }

    /// A request alone on a connection of its own; whatever the answer is.
    async fn deliver(&self, request: &Request) {
        let mut answered = Vec::new();
        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", self.behind)).await {
            forward(request, &mut server, &mut answered).await.ok();
        }
    }

    async fn serve(&self, mut client: TcpStream) -> Result<(), Error> {
        let mut server = TcpStream::connect(("127.0.0.1", self.behind)).await?;
        let mut read = Vec::new();
        loop {
            let Some(request) = next_request(&mut client, &mut read).await? else {
                return Ok(());
            };
            let (fault, due) = self.arrived(&request);
            for late in due {
                self.deliver(&late).await;
            }
            let mut answer = Vec::new();
            match fault {
                None | Some(Fault::Again(_)) => {
                    forward(&request, &mut server, &mut answer).await?;
                    client.write_all(&answer).await?;
                }
                Some(Fault::FailedBefore) => {
                    client.write_all(&refusal(500, "InternalError")).await?
                }
                Some(Fault::FailedAfter) => {
                    forward(&request, &mut server, &mut answer).await?;
                    client.write_all(&refusal(500, "InternalError")).await?;
                }
                Some(Fault::Busy) => client.write_all(&refusal(503, "ServerBusy")).await?,
                Some(Fault::Gateway(_)) => {
                    client.write_all(b"HTTP/1.1 503 busy\r\nContent-Length: 0\r\n\r\n").await?;
                }
                Some(Fault::ResetBefore | Fault::Late(_)) => return reset(client),
                Some(Fault::ResetAfter) => {
                    forward(&request, &mut server, &mut answer).await?;
                    return reset(client);
                }
                Some(Fault::SilentBefore) => return silent(client).await,
                Some(Fault::SilentAfter) => {
                    forward(&request, &mut server, &mut answer).await?;
                    return silent(client).await;
                }
            }
        }
    }

    /// Counts a request, says what happens to it and what is delivered before it.
    fn arrived(&self, request: &Request) -> (Option<Fault>, Vec<Request>) {
        let path = request.head.split(' ').nth(1).unwrap_or_default();
        let container = path.split(['/', '?']).nth(2).unwrap_or_default().to_owned();
        let mut containers = self.containers();
        let found = containers.entry(container).or_default();
        let number = found.requests;
        found.requests += 1;
        let (due, later) = std::mem::take(&mut found.late)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, _)| *at <= number);
        found.late = later;
        let due = due.into_iter().map(|(_, request)| request).collect();
        if found.away {
            return (Some(Fault::ResetBefore), due);
        }
        let fault = found.plan.remove(&number);
        found.fired += u64::from(fault.is_some());
        if let Some(Fault::Again(after) | Fault::Late(after) | Fault::Gateway(after)) = fault {
            found.late.push((number.saturating_add(after), request.clone()));
        }
        (fault, due)
    }
}

/// Until a whole request is there; `None` at the end of the connection.
async fn next_request(
    client: &mut TcpStream,
    read: &mut Vec<u8>,
) -> Result<Option<Request>, Error> {
    loop {
        if let Some(end) = find(read, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end + 4]).into_owned();
            let length = end + 4 + content_length(&head);
            while read.len() < length {
                if client.read_buf(read).await? == 0 {
                    return Ok(None);
                }
            }
            let rest = read.split_off(length);
            let body = std::mem::replace(read, rest).split_off(end + 4);
            return Ok(Some(Request { head, body }));
        }
        if client.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

/// Sends a request on and takes its answer whole.
async fn forward(
    request: &Request,
    server: &mut TcpStream,
    answer: &mut Vec<u8>,
) -> Result<(), Error> {
    server.write_all(request.head.as_bytes()).await?;
    server.write_all(&request.body).await?;
    let closed = || Error::other("the emulator closed the connection");
    let end = loop {
        if let Some(end) = find(answer, b"\r\n\r\n") {
            break end + 4;
        }
        if server.read_buf(answer).await? == 0 {
            return Err(closed());
        }
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let without_body = request.head.starts_with("HEAD ") || head.starts_with("http/1.1 304");
    let chunked = head.contains("transfer-encoding: chunked");
    let whole = |answer: &[u8]| match chunked && !without_body {
        true => answer.ends_with(b"0\r\n\r\n"),
        false => answer.len() >= end + if without_body { 0 } else { content_length(&head) },
    };
    while !whole(answer) {
        if server.read_buf(answer).await? == 0 {
            return Err(closed());
        }
    }
    Ok(())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn content_length(head: &str) -> usize {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// With the number that every answer of Azure has.
fn refusal(status: u16, code: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} no\r\nx-ms-request-id: 1\r\nx-ms-error-code: {code}\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
    )
    .into_bytes()
}

fn reset(client: TcpStream) -> Result<(), Error> {
    client.set_zero_linger()
}

/// Until the client gives up.
async fn silent(mut client: TcpStream) -> Result<(), Error> {
    let mut ignored = Vec::new();
    while client.read_buf(&mut ignored).await? > 0 {
        ignored.clear();
    }
    Ok(())
}
