//! The real way in and out: NBD over a Unix socket, TLS 1.3 with client certificate, HTTP upgrade.

use std::sync::Arc;

use holdfast::agent::{Agent, AgentError, AgentStatus, Stopped};
use holdfast::clock::System;
use holdfast::format::wire::Redirect;
use holdfast::model::DiskIndex;
use holdfast::nbd::Client;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::machine::{Fast, Machine, SPEED, blocking, noise, settled, until};
use crate::server::Server;

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// The site's one: the agent's files are written beside the machine's.
    fn of(machine: &Machine) -> Self {
        let site = Self::new();
        std::fs::write(machine.path("ca.pem"), site.root.pem()).unwrap();
        site.renew(machine);
        site
    }

    /// Another certificate for the agent, in the place of the one before.
    fn renew(&self, machine: &Machine) -> Vec<u8> {
        let (agent, key) = self.issue("web-1");
        std::fs::write(machine.path("agent.pem"), agent.pem()).unwrap();
        std::fs::write(machine.path("agent.key"), key.serialize_pem()).unwrap();
        agent.der().to_vec()
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a server uses whose certificate says `name`.
    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (server, key) = self.issue(name);
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![server.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A server on a port of its own; its address.
async fn start(acceptor: TlsAcceptor, server: &Arc<Server>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(listen(listener, acceptor, Arc::clone(server)));
    address
}

/// Accepts, checks the request, switches protocols, serves.
async fn listen(listener: TcpListener, acceptor: TlsAcceptor, server: Arc<Server>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
        tokio::spawn(async move {
            let Ok(mut tls) = acceptor.accept(tcp).await else { return };
            let shown = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            server.held().shown.push(shown);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tls.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.starts_with("get /v1/replicate http/1.1\r\n"), "{head}");
            assert!(
                head.contains("upgrade: holdfast/1\r\n")
                    && head.contains("connection: upgrade\r\n")
            );
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: holdfast/1\r\n\r\n";
            tls.write_all(answer.as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            server.serve(tls).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbd_in_tls_out() {
    let mut machine = Machine::new(&[4 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    let address = start(Authority::of(&machine).acceptor("localhost"), &server).await;
    // The first server does not exist: the next one is tried.
    machine.settings.servers = vec!["127.0.0.1:1".into(), address];
    let agent =
        Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy()).unwrap();
    let again = Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy());
    assert!(matches!(again, Err(AgentError::StateInUse { .. })), "{again:?}");
    settled(&agent).await;
    let socket = machine.path("disk0.sock");
    blocking(move || {
        let mut client = Client::connect(&socket, "disk0").unwrap();
        client.write(4096, &noise(8192, 5), true).unwrap();
        client.zero(1 << 20, 65536).unwrap();
        client.trim(2 << 20, 65536).unwrap();
        client.flush().unwrap();
    })
    .await;
    server.kill(false);
    let again = |status: &AgentStatus| {
        server.held().hellos.len() == 2
            && status.server.is_some()
            && status.published == status.last
    };
    until(&agent, "connected again", again).await;
    assert_eq!(agent.stop().await, Stopped::Clean);
    server.goodbye().await;
    let held = server.held();
    assert!(held.violations.is_empty(), "{:?}", held.violations);
    let image = held.images(held.log.len() as u64).remove(&DiskIndex(0)).unwrap();
    assert!(image == machine.source(0));
    assert!(image[1 << 20..(1 << 20) + 65536].iter().all(|byte| *byte == 0));
    assert!(image[2 << 20..(2 << 20) + 65536].iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed_to_a_server_of_the_site_and_to_nobody_else() {
    let mut machine = Machine::new(&[1 << 20], 4 << 20);
    let site = Authority::of(&machine);
    let servers = ["a", "b", "stranger", "other"].map(|name| Server::named(name, 4 << 20));
    let [a, b, stranger, other] = &servers;
    let first = start(site.acceptor("127.0.0.1"), a).await;
    let goal = start(site.acceptor("127.0.0.1"), b).await;
    let addresses = vec![
        start(Authority::new().acceptor("127.0.0.1"), stranger).await,
        start(site.acceptor("ps-9.example"), other).await,
        goal.clone(),
    ];
    machine.settings.server_name = None; // each server its own
    machine.settings.servers = vec![first];
    let agent =
        Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy()).unwrap();
    settled(&agent).await;
    b.take_over(a);
    a.held().redirect = Some(Redirect { addresses, reason: "ps-1 drains".into() });
    let at_goal = |status: &AgentStatus| status.server == Some(format!("{goal} (b)"));
    let status = until(&agent, "at the goal", at_goal).await;
    assert!(status.switched_because.unwrap().contains("ps-1 drains"));
    assert!(status.last_error.unwrap().contains("TLS handshake"), "the last attempt in vain");
    for refused in [stranger, other] {
        assert!(refused.held().hellos.is_empty(), "not a word to it");
    }
    assert_eq!(agent.stop().await, Stopped::Clean);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_at_the_next_connection() {
    let mut machine = Machine::new(&[1 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    let site = Authority::of(&machine);
    machine.settings.servers = vec![start(site.acceptor("localhost"), &server).await];
    let agent =
        Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy()).unwrap();
    settled(&agent).await;
    let connected = |times: usize| {
        let server = &server;
        move |status: &AgentStatus| {
            server.held().hellos.len() == times && status.published == status.last
        }
    };
    let renewed = site.renew(&machine);
    server.kill(false);
    until(&agent, "connected again", connected(2)).await;
    assert_eq!(server.held().shown[1], renewed);
    // One that cannot be used ends nothing.
    std::fs::write(machine.path("agent.key"), "half of a k").unwrap();
    server.kill(false);
    until(&agent, "connected with the one before", connected(3)).await;
    assert_eq!(server.held().shown[2], renewed);
    assert_eq!(agent.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let machine = Machine::new(&[4096], 4 << 20);
    let refused = Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy());
    let text = format!("{}", refused.unwrap_err());
    assert!(text.contains("ca.pem"), "{text}");
    std::fs::write(machine.path("ca.pem"), "nothing").unwrap();
    let refused = Agent::start(machine.settings.clone(), Arc::new(Fast(SPEED)), System::entropy());
    assert!(matches!(refused, Err(AgentError::Certificate { .. })));
}
