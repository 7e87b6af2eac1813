//! An agent that says exactly what a test tells it to.

use bytes::Bytes;
use holdfast::format::wire::{
    self, Ack, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello, Refuse, Welcome,
};
use holdfast::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Extent, Incarnation, Record, Sequence, Timestamp,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::pki::{Pair, connect};
use crate::server::Server;

pub(crate) struct Agent {
    pub(crate) tls: TlsStream<TcpStream>,
    pub(crate) next: u64,
}

pub(crate) fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 64 << 20 }]
}

pub(crate) fn hello(machine: &str) -> Hello {
    Hello {
        version: wire::VERSION,
        machine: machine.parse().unwrap(),
        agent: Incarnation([1; 16]),
        epoch: Epoch(0),
        disks: disks(),
        witnessed: Sequence::ZERO,
        last: Sequence::ZERO,
    }
}

pub(crate) fn write(block: u64, bytes: usize) -> Change {
    Change::Write {
        disk: DiskIndex(0),
        extent: Extent::new(block * 4096, bytes as u64, 1 << 20).unwrap(),
        payload: vec![block as u8; bytes].into(),
    }
}

pub(crate) fn bookmark(id: BookmarkId, name: &str) -> Change {
    Change::Bookmark(Bookmark {
        id,
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(1),
        name: name.into(),
    })
}

/// Sends a request and gives the head of the answer, and the stream behind it.
pub(crate) async fn request(
    server: &Server,
    pair: &Pair,
    head: &str,
) -> (String, TlsStream<TcpStream>) {
    let connector = server.ca.client(Some(pair));
    let mut tls = connect(&connector, server.port).await.unwrap();
    let request = format!("{head}\r\nHost: holdfast\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match tls.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    (String::from_utf8(answer).unwrap(), tls)
}

pub(crate) const UPGRADE: &str =
    "GET /v1/replicate HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: holdfast/1";

impl Agent {
    /// Through TLS and the upgrade; nothing is said yet.
    pub(crate) async fn upgraded(server: &Server, pair: &Pair) -> Self {
        let (answer, tls) = request(server, pair, UPGRADE).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Self { tls, next: 1 }
    }

    /// Welcomed.
    pub(crate) async fn welcomed(server: &Server, pair: &Pair, hello: Hello) -> (Self, Welcome) {
        let mut agent = Self::upgraded(server, pair).await;
        agent.say(&FromAgent::Hello(hello)).await;
        match agent.hear().await {
            Some(FromServer::Welcome(welcome)) => {
                agent.next = welcome.durable.0 + 1;
                (agent, welcome)
            }
            other => panic!("no welcome but {other:?}"),
        }
    }

    /// In its first epoch, in order.
    pub(crate) async fn tracking(server: &Server, pair: &Pair, machine: &str) -> Self {
        let (mut agent, _) = Self::welcomed(server, pair, hello(machine)).await;
        agent.begin_epoch(1).await;
        agent
    }

    pub(crate) async fn begin_epoch(&mut self, epoch: u32) {
        let (epoch, disks) = (Epoch(epoch), disks());
        self.record(Change::EpochBegin(EpochBegin { epoch, disks })).await;
        self.record(Change::CatchUpBegin(CatchUp::InitialReplication)).await;
        self.record(Change::CatchUpEnd).await;
    }

    pub(crate) async fn say(&mut self, message: &FromAgent) {
        let frame = wire::encode_from_agent(message);
        // A server that has refused us may have closed already; what it said is still to be heard.
        let _ = self.tls.write_all(&frame.header).await;
        let _ = self.tls.write_all(&frame.payload.to_bytes()).await;
    }

    pub(crate) async fn record(&mut self, change: Change) -> u64 {
        let sequence = Sequence(self.next);
        self.next += 1;
        self.say(&FromAgent::Record(Record { sequence, change })).await;
        sequence.0
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) async fn hear(&mut self) -> Option<FromServer> {
        let mut header = [0; HEADER_BYTES];
        self.tls.read_exact(&mut header).await.ok()?;
        let header = FrameHeader::decode(&header).unwrap();
        let mut payload = vec![0; header.payload_length() as usize];
        self.tls.read_exact(&mut payload).await.ok()?;
        let message = wire::decode_from_server(&header, &Bytes::from(payload));
        Some(message.unwrap())
    }

    /// Waits for an ack that fits.
    pub(crate) async fn acked(&mut self, fits: impl Fn(&Ack) -> bool) -> Ack {
        loop {
            match self.hear().await {
                Some(FromServer::Ack(ack)) if fits(&ack) => return ack,
                Some(FromServer::Ack(_)) => {}
                other => panic!("no ack but {other:?}"),
            }
        }
    }

    pub(crate) async fn durable(&mut self, through: u64) {
        self.acked(|ack| ack.durable.0 >= through).await;
    }

    /// Waits for the refusal, past whatever acks come before it; then the end must follow.
    pub(crate) async fn refused(&mut self) -> Refuse {
        loop {
            match self.hear().await {
                Some(FromServer::Refuse(refuse)) => {
                    assert_eq!(self.hear().await, None, "nothing follows a refusal");
                    return refuse;
                }
                Some(_) => {}
                None => panic!("the connection ended without a refusal"),
            }
        }
    }
}
