//! An endpoint that dies says so, and ends what it carried.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime, UdpPoller};
use tokio::sync::watch;

use super::*;
use crate::clock::System;
use crate::ingest::machine::MachineLink;
use crate::ingest::machines::{Fingerprint, Machines, OpenError};
use crate::ingest::{IngestSetup, server_config};
use crate::model::MachineId;
use crate::observe::Metrics;
use crate::settings::{ServerSettings, TlsFiles};

/// A socket that breaks at its first datagram.
#[derive(Debug)]
struct Breaking(Arc<dyn AsyncUdpSocket>);

impl AsyncUdpSocket for Breaking {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.0.poll_recv(context, buffers, meta) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(Err(io::Error::other("the socket is broken"))),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct Nobody;

#[async_trait]
impl Machines for Nobody {
    async fn open(
        &self,
        machine: &MachineId,
        _: &Fingerprint,
    ) -> Result<Arc<MachineLink>, OpenError> {
        Err(OpenError::Unknown { machine: machine.clone() })
    }

    async fn knows(&self, _: &MachineId, _: &Fingerprint) -> Result<(), OpenError> {
        Ok(())
    }
}

fn settings() -> ServerSettings {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast.toml");
    let least = "site = \"lab\"\nserver = \"ps-1\"\nstore = \"dir:store\"\nadvertise = \"h:1\"\n";
    std::fs::write(&path, least).unwrap();
    crate::settings::load_server(&path).unwrap()
}

fn tls() -> Arc<rustls::ServerConfig> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["holdfast".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("both.pem"), certificate.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let files = TlsFiles {
        ca_certificate: path("both.pem"),
        ca_key: path("none"),
        certificate: path("both.pem"),
        key: path("key.pem"),
        operator_certificate: path("none"),
        operator_key: path("none"),
    };
    server_config(&files, System::clock().wall()).unwrap()
}

#[tokio::test]
async fn an_endpoint_that_dies_says_so() {
    let tls = tls();
    let drain = watch::Sender::new(false);
    let settings = settings();
    let limits = settings.limits.clone();
    let config = quic_config(&tls, &limits).unwrap();
    let settings = watch::Sender::new(Arc::new(settings));
    let ingest = Ingest::new(IngestSetup {
        site: "lab".parse().unwrap(),
        tls,
        limits,
        shards: 1,
        settings: settings.subscribe(),
        clock: System::clock(),
        metrics: Arc::new(Metrics::default()),
        machines: Arc::new(Nobody),
        certificates_every: Duration::from_secs(3600),
        operator: axum::Router::new(),
        drain: drain.subscribe(),
    });
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let runtime = Arc::new(TokioRuntime);
    let socket = Arc::new(Breaking(runtime.wrap_udp_socket(socket).unwrap()));
    let config = Some(config.0);
    let endpoint =
        Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, runtime)
            .unwrap();
    let serving = tokio::spawn(ingest.serve_endpoint(endpoint));
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"anything", address).unwrap();
    assert_eq!(serving.await.unwrap(), QuicEnd::Died);
}
