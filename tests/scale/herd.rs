//! Many enrolled machines, and agents for them that say what idle agents say.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use holdfast::clock::{Clock, System};
use holdfast::control::ca::SigningRequest;
use holdfast::format::wire::{
    self, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello, Progress, Welcome,
};
use holdfast::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Extent, Incarnation, MachineId, Record, Sequence, TrackingMode,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::Site;

/// Machines that are enrolled, or connect, at once.
const AT_ONCE: usize = 64;
const DISK_BYTES: u64 = 64 << 20;

/// One enrolled machine.
pub struct Machine {
    pub id: MachineId,
    tls: Arc<ClientConfig>,
}

/// Enrols `count` machines in the vault, without a process for each.
pub async fn enrol(site: &Site, count: usize) -> Vec<Machine> {
    let opened = holdfast::cli::site::Site::open(&site.config()).ok().unwrap();
    let registrar = opened.registrar().ok().unwrap();
    let ca = std::fs::read(site.root().join("ca.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let (roots, registrar) = (Arc::new(roots), &registrar);
    let machines = (0..count).map(|number| {
        let roots = Arc::clone(&roots);
        async move {
            let id: MachineId = format!("m-{number:05}").parse().unwrap();
            let (request, key) = SigningRequest::generate().unwrap();
            let enrolment = registrar.enrol(&id, &request).await.unwrap();
            let chain = CertificateDer::from_pem_slice(enrolment.issued.certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut tls = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![chain.unwrap()], key)
                .unwrap();
            tls.resumption = rustls::client::Resumption::disabled();
            Machine { id, tls: Arc::new(tls) }
        }
    });
    futures_util::stream::iter(machines).buffered(AT_ONCE).collect().await
}

/// A welcomed agent.
pub struct Agent {
    machine: MachineId,
    tls: TlsStream<TcpStream>,
    last: u64,
}

impl Agent {
    /// Connects until it is welcomed, as an agent does, and copies an empty disk if nobody did.
    pub async fn welcomed(port: u16, machine: &Machine) -> Self {
        let mut tries = 0;
        loop {
            match Self::connect(port, machine).await {
                Ok(agent) => return agent,
                Err(why) => {
                    tries += 1;
                    assert!(tries < 200, "{}: {why}", machine.id);
                    let pause = Duration::from_millis(100 + tries * 50).min(Duration::from_secs(5));
                    System.sleep(pause).await;
                }
            }
        }
    }

    async fn connect(port: u16, machine: &Machine) -> Result<Self, String> {
        let lost = |error: std::io::Error| error.to_string();
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let connector = TlsConnector::from(Arc::clone(&machine.tls));
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = connector.connect(name, tcp).await.map_err(lost)?;
        let upgrade = "GET /v1/replicate HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                       Upgrade: holdfast/1\r\n\r\n";
        tls.write_all(upgrade.as_bytes()).await.map_err(lost)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.map_err(lost)?);
        }
        let mut agent = Self { machine: machine.id.clone(), tls, last: 0 };
        agent.say(&FromAgent::Hello(hello(&machine.id))).await.map_err(lost)?;
        match hear(&mut agent.tls).await.map_err(lost)? {
            FromServer::Welcome(welcome) => agent.begin(&welcome).await.map_err(lost)?,
            other => return Err(format!("{other:?}")),
        }
        Ok(agent)
    }

    async fn begin(&mut self, welcome: &Welcome) -> std::io::Result<()> {
        self.last = welcome.durable.0;
        let epoch = Epoch(welcome.epoch.0 + 1);
        self.record(Change::EpochBegin(EpochBegin { epoch, disks: disks() })).await?;
        self.record(Change::CatchUpBegin(CatchUp::InitialReplication)).await?;
        self.record(Change::CatchUpEnd).await?;
        self.write(0, 4096).await?;
        self.bookmark().await
    }

    pub async fn write(&mut self, offset: u64, bytes: usize) -> std::io::Result<()> {
        let extent = Extent::new(offset, bytes as u64, 1 << 20).unwrap();
        let payload = noise(offset, bytes);
        self.record(Change::Write { disk: DiskIndex(0), extent, payload }).await
    }

    pub async fn bookmark(&mut self) -> std::io::Result<()> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.last.to_le_bytes());
        let kind = BookmarkKind::CrashConsistent;
        let (id, time, name) = (BookmarkId(id), System.wall(), String::new());
        self.record(Change::Bookmark(Bookmark { id, kind, time, name })).await
    }

    async fn record(&mut self, change: Change) -> std::io::Result<()> {
        self.last += 1;
        self.say(&FromAgent::Record(Record { sequence: Sequence(self.last), change })).await
    }

    pub async fn progress(&mut self) -> std::io::Result<()> {
        let progress = Progress {
            time: System.wall(),
            mode: TrackingMode::Ordered,
            last: Sequence(self.last),
            dirty_bytes: 0,
            total_bytes: DISK_BYTES,
            buffered_bytes: 0,
        };
        self.say(&FromAgent::Progress(progress)).await
    }

    async fn say(&mut self, message: &FromAgent) -> std::io::Result<()> {
        let frame = wire::encode_from_agent(message);
        self.tls.write_all(&frame.header).await?;
        self.tls.write_all(&frame.payload).await
    }

    /// Reads acks until everything sent is published.
    pub async fn published(&mut self) {
        loop {
            match hear(&mut self.tls).await {
                Ok(FromServer::Ack(ack)) if ack.published.0 >= self.last => return,
                Ok(FromServer::Ack(_)) => {}
                other => panic!("{}: no ack but {other:?}", self.machine),
            }
        }
    }

    /// Says every `pause` that it lives, until the server ends the connection.
    pub async fn idle(mut self, pause: Duration) {
        loop {
            tokio::select! {
                () = System.sleep(pause) => if self.progress().await.is_err() { return },
                heard = hear(&mut self.tls) => if heard.is_err() { return },
            }
        }
    }
}

async fn hear<R: AsyncRead + Unpin>(reader: &mut R) -> std::io::Result<FromServer> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await?;
    let header = FrameHeader::decode(&header).unwrap();
    let mut payload = vec![0; header.payload_length() as usize];
    reader.read_exact(&mut payload).await?;
    Ok(wire::decode_from_server(&header, &Bytes::from(payload)).unwrap())
}

fn noise(seed: u64, bytes: usize) -> bytes::Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect::<Vec<u8>>().into()
}

fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: DISK_BYTES }]
}

fn hello(machine: &MachineId) -> Hello {
    Hello {
        version: wire::VERSION,
        machine: machine.clone(),
        agent: Incarnation([1; 16]),
        epoch: Epoch(0),
        witnessed: Sequence::ZERO,
        last: Sequence::ZERO,
        disks: disks(),
    }
}

/// All of `machines`, connected, with their first point published.
pub async fn connect(port: u16, machines: &[Machine]) -> Vec<Agent> {
    let agents = machines.iter().map(|machine| async move {
        let mut agent = Agent::welcomed(port, machine).await;
        agent.published().await;
        agent
    });
    futures_util::stream::iter(agents).buffer_unordered(machines.len().max(1)).collect().await
}
