//! The real data port in front of a log that keeps records in memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use holdfast::cache::Durable;
use holdfast::clock::System;
use holdfast::ingest::{
    Admitted, CreditTerms, Fingerprint, Ingest, IngestSetup, LinkSetup, MachineLink, Machines,
    OpenError, QuicEnd, StreamState, quic_config, server_config,
};
use holdfast::model::{Change, Generation, MachineId, Record, Sequence};
use holdfast::observe::Metrics;
use holdfast::settings::{LimitSettings, ServerSettings, TlsFiles, load_server};
use rcgen::SanType;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::pki::Ca;

/// Enrolled machines: web-1 and on.
const MACHINES: u32 = 24;

pub(crate) struct Server {
    pub(crate) ca: Ca,
    pub(crate) port: u16,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    pub(crate) credit: watch::Sender<CreditTerms>,
    /// While false the log makes nothing durable.
    pub(crate) running: watch::Sender<bool>,
    pub(crate) drain: watch::Sender<bool>,
    pub(crate) serving: JoinHandle<()>,
    pub(crate) serving_quic: JoinHandle<std::io::Result<QuicEnd>>,
}

/// Records that are "durable", and the machines.
#[derive(Default)]
pub(crate) struct Log {
    links: Mutex<HashMap<MachineId, Arc<MachineLink>>>,
    records: Mutex<HashMap<MachineId, Vec<Record>>>,
    pub(crate) revoked: Mutex<Vec<String>>,
    /// Whether records are dropped once they are acknowledged: memory is being measured.
    pub(crate) forgets: AtomicBool,
}

impl Log {
    pub(crate) fn link(&self, machine: &str) -> Arc<MachineLink> {
        Arc::clone(&self.links.lock().unwrap()[&machine.parse::<MachineId>().unwrap()])
    }

    pub(crate) fn records(&self, machine: &str) -> Vec<Record> {
        let machine: MachineId = machine.parse().unwrap();
        let records = self.records.lock().unwrap();
        records.get(&machine).cloned().unwrap_or_default()
    }

    fn keep(&self, admitted: Admitted) {
        let links = self.links.lock().unwrap();
        let mut all = links.values();
        let link = all.find(|link| link.key() == admitted.machine).unwrap();
        let sequence = admitted.record.sequence;
        if !self.forgets.load(Ordering::Relaxed) {
            let mut records = self.records.lock().unwrap();
            let records = records.entry(link.machine().clone()).or_default();
            records.push(Record { sequence, change: apart(&admitted.record.change) });
        }
        link.made_durable(Durable::never_written(admitted.machine, admitted.record).through());
        link.published_through(sequence);
    }
}

/// A change with memory of its own: what was received into is filled again.
fn apart(change: &Change) -> Change {
    match change {
        Change::Write { disk, extent, payload } => Change::Write {
            disk: *disk,
            extent: *extent,
            payload: payload.to_bytes().to_vec().into(),
        },
        other => other.clone(),
    }
}

#[async_trait]
impl Machines for Log {
    async fn open(
        &self,
        machine: &MachineId,
        certificate: &Fingerprint,
    ) -> Result<Arc<MachineLink>, OpenError> {
        self.knows(machine, certificate).await?;
        let links = self.links.lock().unwrap();
        let link = links.get(machine).cloned();
        link.ok_or(OpenError::Unknown { machine: machine.clone() })
    }

    async fn knows(&self, machine: &MachineId, certificate: &Fingerprint) -> Result<(), OpenError> {
        if self.revoked.lock().unwrap().contains(&certificate.to_string()) {
            let (machine, certificate) = (machine.clone(), *certificate);
            return Err(OpenError::Revoked { machine, certificate });
        }
        Ok(())
    }
}

pub(crate) fn limits() -> LimitSettings {
    LimitSettings {
        connections_max: 64,
        handshakes_max: 16,
        handshake_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(20),
        receive_bytes_max: 8 << 20,
        credit_bytes: 4 << 20,
        quic_bytes_max: 48 << 20,
    }
}

/// The settings in force; nobody changes them.
fn settings(directory: &Path, limits: LimitSettings) -> watch::Receiver<Arc<ServerSettings>> {
    let file = directory.join("holdfast.toml");
    let text =
        "site = \"lab\"\nserver = \"ps-1\"\nstore = \"dir:store\"\nadvertise = \"localhost:1\"\n";
    std::fs::write(&file, text).unwrap();
    let settings = load_server(&file).unwrap();
    watch::Sender::new(Arc::new(ServerSettings { limits, ..settings })).subscribe()
}

impl Server {
    pub(crate) async fn start(limits: LimitSettings) -> Self {
        let ca = Ca::new();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = TlsFiles {
            ca_certificate: path("ca.pem"),
            ca_key: path("ca.key"),
            certificate: path("server.pem"),
            key: path("server.key"),
            operator_certificate: path("operator.pem"),
            operator_key: path("operator.key"),
        };
        std::fs::write(&files.ca_certificate, ca.certificate.pem()).unwrap();
        let name = SanType::DnsName("holdfast".try_into().unwrap());
        ca.issue(vec![name], 2999).write(&files.certificate, &files.key);
        let clock = System::clock();
        let tls = server_config(&files, clock.wall()).unwrap();
        let quic = quic_config(&tls, &limits).unwrap();
        let (metrics, log) = (Arc::new(Metrics::default()), Arc::new(Log::default()));
        let (credit, running) = (watch::Sender::new(CreditTerms::FREE), watch::Sender::new(true));
        let appends = log_task(Arc::clone(&log), running.subscribe());
        for number in 1..=MACHINES {
            let machine: MachineId = format!("web-{number}").parse().unwrap();
            let link = MachineLink::new(LinkSetup {
                machine: machine.clone(),
                server: "ps-1".parse().unwrap(),
                generation: Generation(1),
                stream: StreamState::default(),
                published: Sequence::ZERO,
                bookmark_interval_ms: 5000,
                appends: appends.clone(),
                credit: credit.subscribe(),
                metrics: metrics.machine(&machine),
            });
            log.links.lock().unwrap().insert(machine, link);
        }
        let drain = watch::Sender::new(false);
        let operator =
            axum::Router::new().route("/v1/machines", axum::routing::get(|| async { "all" }));
        let ingest = Ingest::new(IngestSetup {
            site: "lab".parse().unwrap(),
            tls,
            settings: settings(directory.path(), limits.clone()),
            limits,
            shards: 1,
            clock,
            metrics: Arc::clone(&metrics),
            machines: Arc::clone(&log) as Arc<dyn Machines>,
            certificates_every: Duration::from_millis(100),
            operator,
            drain: drain.subscribe(),
        });
        let (listener, datagrams) = sockets().await;
        let port = listener.local_addr().unwrap().port();
        let serving_quic = tokio::spawn(Arc::clone(&ingest).serve_quic(datagrams, quic));
        let serving = tokio::spawn(ingest.serve(listener));
        Self { ca, port, metrics, log, credit, running, drain, serving, serving_quic }
    }
}

/// TCP and UDP under one port that the system chose.
async fn sockets() -> (TcpListener, std::net::UdpSocket) {
    for _ in 0..16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        if let Ok(datagrams) = std::net::UdpSocket::bind(("127.0.0.1", port)) {
            return (listener, datagrams);
        }
    }
    panic!("no port is free for both");
}

fn log_task(log: Arc<Log>, mut running: watch::Receiver<bool>) -> mpsc::Sender<Admitted> {
    let (appends, mut admitted) = mpsc::channel::<Admitted>(64);
    tokio::spawn(async move {
        while let Some(next) = admitted.recv().await {
            if running.wait_for(|running| *running).await.is_err() {
                return;
            }
            log.keep(next);
        }
    });
    appends
}
