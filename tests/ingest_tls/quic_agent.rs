//! An agent over QUIC that says exactly what a test tells it to, on the stream that it tells.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use holdfast::format::wire::{
    self, Ack, Frame, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello, Refuse, Welcome,
};
use holdfast::model::{CatchUp, Change, Epoch, EpochBegin, Record, Sequence};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};

use crate::agent::{disks, hello};
use crate::pki::{Ca, Pair};
use crate::server::Server;

pub(crate) const ALPN: &[u8] = b"holdfast/1";

pub(crate) struct QuicAgent {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) control: SendStream,
    pub(crate) heard: RecvStream,
    pub(crate) records: Vec<SendStream>,
    pub(crate) next: u64,
}

/// What a client with this certificate and protocol uses.
pub(crate) fn client(ca: &Ca, pair: Option<&Pair>, alpn: &[u8]) -> ClientConfig {
    let mut tls = ca.client(pair).config().as_ref().clone();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.enable_early_data = true; // what the worst client would ask for
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

pub(crate) fn endpoint() -> Endpoint {
    Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

pub(crate) fn address(server: &Server) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, server.port).into()
}

impl QuicAgent {
    /// Through the handshake; nothing is said yet.
    pub(crate) async fn connected(server: &Server, pair: &Pair) -> Self {
        let endpoint = endpoint();
        let config = client(&server.ca, Some(pair), ALPN);
        let connecting = endpoint.connect_with(config, address(server), "holdfast").unwrap();
        let connection = connecting.await.unwrap();
        let (control, heard) = connection.open_bi().await.unwrap();
        Self { connection, endpoint, control, heard, records: Vec::new(), next: 1 }
    }

    /// Welcomed, with this many streams for records.
    pub(crate) async fn welcomed(
        server: &Server,
        pair: &Pair,
        hello: Hello,
        streams: usize,
    ) -> (Self, Welcome) {
        let mut agent = Self::connected(server, pair).await;
        agent.say(&FromAgent::Hello(hello)).await;
        let Some(FromServer::Welcome(welcome)) = agent.hear().await else { panic!("no welcome") };
        agent.next = welcome.durable.0 + 1;
        for _ in 0..streams {
            agent.records.push(agent.connection.open_uni().await.unwrap());
        }
        (agent, welcome)
    }

    /// In its first epoch, in order.
    pub(crate) async fn tracking(server: &Server, pair: &Pair, streams: usize) -> Self {
        let (mut agent, _) = Self::welcomed(server, pair, hello("web-1"), streams).await;
        let (epoch, disks) = (Epoch(1), disks());
        let begin = Change::EpochBegin(EpochBegin { epoch, disks });
        let copy = Change::CatchUpBegin(CatchUp::InitialReplication);
        for change in [begin, copy, Change::CatchUpEnd] {
            let at = agent.next as usize % streams;
            agent.record(at, change).await;
        }
        agent.durable(3).await;
        agent
    }

    pub(crate) async fn say(&mut self, message: &FromAgent) {
        send(&mut self.control, wire::encode_from_agent(message)).await;
    }

    /// The next record, on one of the streams.
    pub(crate) async fn record(&mut self, stream: usize, change: Change) -> u64 {
        let sequence = Sequence(self.next);
        self.next += 1;
        self.say_on(stream, &FromAgent::Record(Record { sequence, change })).await;
        sequence.0
    }

    pub(crate) async fn say_on(&mut self, stream: usize, message: &FromAgent) {
        send(&mut self.records[stream], wire::encode_from_agent(message)).await;
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) async fn hear(&mut self) -> Option<FromServer> {
        let mut header = [0; HEADER_BYTES];
        self.heard.read_exact(&mut header).await.ok()?;
        let header = FrameHeader::decode(&header).unwrap();
        let mut payload = vec![0; header.payload_length() as usize];
        self.heard.read_exact(&mut payload).await.ok()?;
        let message = wire::decode_from_server(&header, &Bytes::from(payload));
        Some(message.unwrap())
    }

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

    /// Waits for the refusal; then the end must follow.
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

async fn send(stream: &mut SendStream, frame: Frame) {
    // A server that has refused us takes no more; what it said is still to be heard.
    let mut parts = vec![Bytes::copy_from_slice(&frame.header)];
    parts.extend(frame.payload.fragments().iter().cloned());
    let _ = stream.write_all_chunks(&mut parts).await;
}
