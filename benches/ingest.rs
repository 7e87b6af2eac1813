//! The data port over loopback, from TLS to the cache log: what a GiB costs its threads.
//!
//! `cargo bench --bench ingest [-- GIB]` runs real clients against the real listener, once with a
//! log that only counts and once with the cache log on disk, and beside it what rustls's buffered
//! connection costs for the same bytes. CPU is the process's less that of the client threads.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on shall say where")]

#[path = "scale/mod.rs"]
mod scale;

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use holdfast::cache::{self, Durable};
use holdfast::clock::{Clock, System};
use holdfast::format::wire::{
    self, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello, encode_from_agent,
};
use holdfast::ingest::{
    Admitted, CreditTerms, Fingerprint, Ingest, IngestSetup, LinkSetup, MachineLink, Machines,
    OpenError, StreamState, server_config,
};
use holdfast::model::{
    CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin, Extent, Generation, Incarnation,
    MachineId, MachineKey, Record, Sequence,
};
use holdfast::observe::{CpuTimer, Metrics};
use holdfast::settings::{CacheSettings, LimitSettings, ServerSettings, TlsFiles, load_server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

const DISK_BYTES: u64 = 1 << 30;

/// What one run does.
#[derive(Clone, Copy)]
struct Load {
    connections: u64,
    write_bytes: u64,
    bytes: u64,
}

struct Site {
    issuer: Issuer<'static, KeyPair>,
    ca: rcgen::Certificate,
    tls: Arc<ServerConfig>,
    settings: Arc<ServerSettings>,
}

impl Site {
    fn new(directory: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let path = |name: &str| directory.join(name);
        let files = TlsFiles {
            ca_certificate: path("ca.crt"),
            ca_key: path("ca.key"),
            certificate: path("server.crt"),
            key: path("server.key"),
            operator_certificate: path("operator.crt"),
            operator_key: path("operator.key"),
        };
        let (certificate, key) = issued(&issuer, SanType::DnsName("holdfast".try_into().unwrap()));
        std::fs::write(&files.ca_certificate, ca.pem()).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let tls = server_config(&files, System.wall()).unwrap();
        let file = path("holdfast.toml");
        let text = "site = \"bench\"\nserver = \"ps-1\"\nstore = \"dir:store\"\n\
                    advertise = \"localhost:1\"\n";
        std::fs::write(&file, text).unwrap();
        let settings = load_server(&file).unwrap();
        let limits = LimitSettings { idle_timeout: Duration::from_secs(60), ..settings.limits };
        let settings = Arc::new(ServerSettings { limits, ..settings });
        Self { issuer, ca, tls, settings }
    }

    fn client(&self, machine: &str) -> Arc<ClientConfig> {
        let uri = format!("spiffe://bench/machine/{machine}");
        let (certificate, key) =
            issued(&self.issuer, SanType::URI(uri.as_str().try_into().unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key);
        Arc::new(config.unwrap())
    }
}

fn issued(issuer: &Issuer<'_, KeyPair>, name: SanType) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![name];
    (params.signed_by(&key, issuer).unwrap(), key)
}

fn machine(number: u64) -> MachineId {
    format!("m-{number}").parse().unwrap()
}

struct Links(HashMap<MachineId, Arc<MachineLink>>);

#[async_trait]
impl Machines for Links {
    async fn open(
        &self,
        machine: &MachineId,
        _: &Fingerprint,
    ) -> Result<Arc<MachineLink>, OpenError> {
        let link = self.0.get(machine).cloned();
        link.ok_or(OpenError::Unknown { machine: machine.clone() })
    }

    async fn knows(&self, _: &MachineId, _: &Fingerprint) -> Result<(), OpenError> {
        Ok(())
    }
}

fn links(load: Load, appends: &mpsc::Sender<Admitted>, metrics: &Arc<Metrics>) -> Links {
    let (_credit, credit) = watch::channel(CreditTerms::FREE);
    let link = |number| {
        let machine = machine(number);
        let link = MachineLink::new(LinkSetup {
            machine: machine.clone(),
            server: "bench".parse().unwrap(),
            generation: Generation(1),
            stream: StreamState::default(),
            published: Sequence::ZERO,
            bookmark_interval_ms: 5000,
            appends: appends.clone(),
            credit: credit.clone(),
            metrics: metrics.machine(&machine),
        });
        (machine, link)
    };
    Links((0..load.connections).map(link).collect())
}

/// Tells each machine how far it is.
fn tell(links: &HashMap<MachineKey, Arc<MachineLink>>, durable: Vec<Durable>) {
    let mut newest: HashMap<MachineKey, Durable> = HashMap::new();
    for record in durable {
        newest.insert(record.machine(), record);
    }
    for (machine, record) in newest {
        links[&machine].made_durable(record.through());
        links[&machine].published_through(record.sequence());
    }
}

/// The server on a shard's runtime, until `drain`; with the cache log in `directory`, or none.
fn serve(
    site: &Site,
    load: Load,
    directory: Option<&Path>,
    metrics: &Arc<Metrics>,
    drain: watch::Receiver<bool>,
) -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (appends, mut admitted) = mpsc::channel(1024);
    let links = links(load, &appends, metrics);
    let by_key: HashMap<_, _> =
        links.0.values().map(|link| (link.key(), Arc::clone(link))).collect();
    let ingest = Ingest::new(IngestSetup {
        site: "bench".parse().unwrap(),
        tls: Arc::clone(&site.tls),
        settings: watch::Sender::new(Arc::clone(&site.settings)).subscribe(),
        limits: site.settings.limits.clone(),
        shards: 1,
        clock: System::clock(),
        metrics: Arc::clone(metrics),
        machines: Arc::new(links),
        certificates_every: Duration::from_secs(3600),
        operator: axum::Router::new(),
        drain,
    });
    drop(appends);
    let settings = directory.map(|directory| CacheSettings {
        directory: directory.join("cache"),
        segment_bytes: 64 << 20,
        bytes_max: 2 << 30,
        warn_fill: 0.8,
        slow_fill: 0.9,
        stop_fill: 0.95,
    });
    let metrics = Arc::clone(metrics);
    let thread = std::thread::spawn(move || {
        tokio_uring::start(async move {
            let port = tokio_uring::spawn(async move {
                ingest.serve(tokio::net::TcpListener::from_std(listener).unwrap()).await;
            });
            match settings {
                Some(settings) => {
                    let opened =
                        cache::open(&settings, 0, 1, System::clock(), System::entropy(), metrics);
                    let opened = opened.unwrap();
                    opened.recycling.begin();
                    // The links hold the way into the log: it ends with the process.
                    let writing = opened.writer.run(admitted, |all| tell(&by_key, all));
                    tokio::select! { end = writing => end.unwrap(), _ = port => {} }
                }
                None => {
                    let counting = async {
                        let mut many = Vec::new();
                        while admitted.recv_many(&mut many, 64).await > 0 {
                            let durable = many.drain(..).map(|one: Admitted| {
                                let sequence = one.record.sequence;
                                let record = Record { sequence, change: Change::CatchUpEnd };
                                Durable::never_written(one.machine, record)
                            });
                            tell(&by_key, durable.collect());
                        }
                    };
                    tokio::select! { () = counting => {}, _ = port => {} }
                }
            }
        });
    });
    (port, thread)
}

/// One agent, flat out within its credit.
async fn agent(config: Arc<ClientConfig>, port: u16, number: u64, load: Load) {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("holdfast").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, socket).await.unwrap();
    let request = "GET /v1/replicate HTTP/1.1\r\nHost: holdfast\r\nConnection: Upgrade\r\n\
                   Upgrade: holdfast/1\r\n\r\n";
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.unwrap());
    }
    let disks = vec![DiskSpec {
        index: DiskIndex(0),
        name: "root".parse().unwrap(),
        size_bytes: DISK_BYTES,
    }];
    let hello = Hello {
        version: wire::VERSION,
        machine: machine(number),
        agent: Incarnation([1; 16]),
        epoch: Epoch(0),
        disks: disks.clone(),
        witnessed: Sequence::ZERO,
        last: Sequence::ZERO,
    };
    let (mut reader, writer) = tokio::io::split(tls);
    let mut writer = tokio::io::BufWriter::with_capacity(64 << 10, writer);
    put(&mut writer, &encode_from_agent(&FromAgent::Hello(hello))).await;
    writer.flush().await.unwrap();
    let (credit, mut limit) = watch::channel((0, 0));
    let count = load.bytes / load.connections / load.write_bytes;
    let last = count + 3;
    let hearing = async {
        loop {
            let mut header = [0; HEADER_BYTES];
            reader.read_exact(&mut header).await.unwrap();
            let header = FrameHeader::decode(&header).unwrap();
            let mut payload = vec![0; header.payload_length() as usize];
            reader.read_exact(&mut payload).await.unwrap();
            let (durable, limit) = match wire::decode_from_server(&header, &payload).unwrap() {
                FromServer::Welcome(welcome) => (0, welcome.credit_limit),
                FromServer::Ack(ack) => (ack.durable.0, ack.credit_limit),
                other => panic!("{other:?}"),
            };
            credit.send_replace((durable, limit));
            if durable >= last {
                return;
            }
        }
    };
    let sending = async {
        let mut sent = 0;
        let begin = EpochBegin { epoch: Epoch(1), disks };
        let begin = [
            Change::EpochBegin(begin),
            Change::CatchUpBegin(CatchUp::InitialReplication),
            Change::CatchUpEnd,
        ];
        let data: holdfast::model::Payload =
            (0..load.write_bytes).map(|n| (n * 7 % 253) as u8).collect::<Vec<_>>().into();
        let places = DISK_BYTES / load.write_bytes;
        let writes = (0..count).map(|n| Change::Write {
            disk: DiskIndex(0),
            extent: Extent::new(n % places * load.write_bytes, load.write_bytes, 1 << 20).unwrap(),
            payload: data.clone(),
        });
        for (sequence, change) in (1..).map(Sequence).zip(begin.into_iter().chain(writes)) {
            let frame = encode_from_agent(&FromAgent::Record(Record { sequence, change }));
            sent += (HEADER_BYTES + frame.payload.len()) as u64;
            if limit.borrow().1 < sent {
                writer.flush().await.unwrap();
                limit.wait_for(|(_, limit)| *limit >= sent).await.unwrap();
            }
            put(&mut writer, &frame).await;
        }
        writer.flush().await.unwrap();
    };
    tokio::join!(hearing, sending);
}

async fn put(writer: &mut (impl AsyncWriteExt + Unpin), frame: &wire::Frame) {
    writer.write_all(&frame.header).await.unwrap();
    for fragment in frame.payload.fragments() {
        writer.write_all(fragment).await.unwrap();
    }
}

fn process_cpu() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Clients in a thread of their own: how long it took, and the CPU of everything else.
fn measure(site: &Site, port: u16, load: Load) -> (f64, f64) {
    let configs: Vec<_> =
        (0..load.connections).map(|n| (n, site.client(machine(n).as_str()))).collect();
    let (start, before) = (System.monotonic(), process_cpu());
    let clients = std::thread::spawn(move || {
        let timer = CpuTimer::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agents = configs.into_iter().map(|(n, config)| agent(config, port, n, load));
            futures_util::future::join_all(agents).await;
        });
        timer.spent()
    });
    let spent = clients.join().unwrap().as_secs_f64();
    let took = (System.monotonic() - start).as_secs_f64();
    (took, process_cpu() - before - spent)
}

fn report(what: &str, load: Load, took: f64, cpu: f64, copied: u64) {
    if !scale::measured() {
        return;
    }
    let gib = load.bytes as f64 / f64::from(1 << 30);
    println!(
        "{what:<22} {:>4} x {:>7} B  {:>8.0} MB/s  {:>8.0} writes/s  {:>6.3} s/GiB  {copied} B copied",
        load.connections,
        load.write_bytes,
        load.bytes as f64 / took / 1e6,
        (load.bytes / load.write_bytes) as f64 / took,
        cpu / gib,
    );
}

/// The same bytes through rustls's buffered connection, read and dropped.
fn buffered(site: &Site, load: Load) -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let read = Arc::new(AtomicU64::new(0));
    let tls = tokio_rustls::TlsAcceptor::from(Arc::clone(&site.tls));
    let cpu = Arc::new(Mutex::new(0.0));
    let (counted, spent) = (Arc::clone(&read), Arc::clone(&cpu));
    let server = std::thread::spawn(move || {
        let timer = CpuTimer::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let mut tls = tls.accept(socket).await.unwrap();
            let mut bytes = vec![0; 64 << 10];
            while let Ok(count @ 1..) = tls.read(&mut bytes).await {
                counted.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        *spent.lock().unwrap() = timer.spent().as_secs_f64();
    });
    let start = System.monotonic();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = ServerName::try_from("holdfast").unwrap();
        let connector = tokio_rustls::TlsConnector::from(site.client("m-0"));
        let mut tls = connector.connect(name, socket).await.unwrap();
        let data = vec![7; 64 << 10];
        for _ in 0..load.bytes / data.len() as u64 {
            tls.write_all(&data).await.unwrap();
        }
        tls.shutdown().await.unwrap();
    });
    server.join().unwrap();
    let took = (System.monotonic() - start).as_secs_f64();
    let cpu = *cpu.lock().unwrap();
    (took, cpu)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let gib: f64 = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(2.0);
    let bytes = scale::scaled((gib * f64::from(1 << 30)) as u64, 4 << 20);
    let directory = tempfile::tempdir_in(std::env::current_dir().unwrap().join("target"));
    let directory = directory.unwrap();
    let site = Site::new(directory.path());
    for (connections, write_bytes, part) in [(1, 1 << 20, 1), (4, 64 << 10, 1), (64, 4096, 4)] {
        let load = Load { connections, write_bytes, bytes: bytes / part };
        if connections == 1 {
            let (took, cpu) = buffered(&site, load);
            report("buffered TLS, dropped", load, took, cpu, load.bytes);
        }
        for log in [None, Some(directory.path())] {
            let metrics = Arc::new(Metrics::default());
            let drain = watch::Sender::new(false);
            let (port, thread) = serve(&site, load, log, &metrics, drain.subscribe());
            let (took, cpu) = measure(&site, port, load);
            let copied = metrics.ingest_copied_bytes.load(Ordering::Relaxed);
            let what = if log.is_some() { "in place, cache log" } else { "in place, dropped" };
            report(what, load, took, cpu, copied);
            drain.send_replace(true);
            thread.join().unwrap();
            let _ = std::fs::remove_dir_all(directory.path().join("cache"));
        }
    }
}
