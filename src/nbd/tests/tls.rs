//! A server at a port: nothing before TLS, and nobody but who may.

use std::net::{TcpListener, TcpStream};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::*;

/// Where the agent is, and who QEMU is.
const AGENT: &str = "127.0.0.1";
const QEMU: &str = "kvm-1.example";

struct Authority(Issuer<'static, KeyPair>, CertificateDer<'static>);

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self(Issuer::new(params, key), certificate)
    }

    fn sign(&self, host: &str) -> Shown {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().der().clone();
        (vec![certificate], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.1.clone()).unwrap();
        roots
    }

    fn server(&self) -> ServerTls {
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots().into(), ring());
        let config = ServerConfig::builder_with_provider(ring())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap());
        let (chain, key) = self.sign(AGENT);
        let config = Arc::new(config.with_single_cert(chain, key).unwrap());
        ServerTls::new(config, QEMU.try_into().unwrap())
    }

    /// A client that believes this authority, and what it shows.
    fn client(&self, shown: Option<Shown>) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(ring())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        Arc::new(match shown {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        })
    }
}

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Private {
    authority: Authority,
    disk: Arc<Disk>,
    server: Server,
    port: u16,
}

fn private() -> Private {
    let (authority, disk) = (Authority::new(), Arc::new(Disk::new()));
    let listener = TcpListener::bind((AGENT, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let export = Arc::clone(&disk) as Arc<dyn Export>;
    let server = Server::start_for_one(listener, "disk", export, authority.server()).unwrap();
    Private { authority, disk, server, port }
}

impl Private {
    fn at(&self, host: &str, config: Arc<ClientConfig>) -> Result<Client, NbdError> {
        Client::connect_to(&Peer::Tls { host: host.to_owned(), port: self.port, config }, "disk")
    }

    fn qemu(&self) -> Client {
        self.at(AGENT, self.authority.client(Some(self.authority.sign(QEMU)))).unwrap()
    }
}

#[test]
fn before_tls_nothing_is_answered_but_how_to_begin_it() {
    let offer = offer();
    let mut talk = Negotiation::begin(&offer, Tls::Demanded, 3u32.to_be_bytes()).unwrap();
    for number in (2..12).chain([0xffff_ffff]).filter(|n| ![option::ABORT, 5].contains(n)) {
        for data in [&[][..], &named("disk", &[0, 0]), &[0; 9]] {
            let (bytes, next) = talk.answer(number, data);
            assert_eq!(next, Next::Option, "{number}");
            assert_eq!((last_reply(&bytes), bytes.len()), (option_reply::ERR_TLS_REQD, 20));
        }
    }
    assert_eq!(talk.answer(option::EXPORT_NAME, b"disk"), (Vec::new(), Next::Close));
    let (bytes, next) = talk.answer(option::ABORT, &[]);
    assert_eq!((last_reply(&bytes), next), (option_reply::ACK, Next::Close));
    let (bytes, next) = talk.answer(option::STARTTLS, &[0]);
    assert_eq!((last_reply(&bytes), next), (option_reply::ERR_INVALID, Next::Option));
    let (bytes, next) = talk.answer(option::STARTTLS, &[]);
    assert_eq!((last_reply(&bytes), next), (option_reply::ACK, Next::Secure));
    let (bytes, next) = talk.answer(option::STARTTLS, &[]);
    assert_eq!((last_reply(&bytes), next), (option_reply::ERR_INVALID, Next::Option));
    let go = talk.answer(option::GO, &named("disk", &[0, 0])).1;
    assert!(matches!(go, Next::Transmit(_)), "{go:?}");
}

#[test]
fn what_is_written_over_tls_is_read() {
    let private = private();
    let mut client = private.qemu();
    let bytes: Vec<u8> = (0..DISK_BYTES).map(|at| ((at * 2_654_435_761) >> 9) as u8).collect();
    client.write(0, &bytes, true).unwrap();
    client.zero(512, 512).unwrap();
    client.flush().unwrap();
    let mut all = vec![1; DISK_BYTES as usize];
    // The one offset at which this disk has a bug lies inside a chunk.
    client.read(0, &mut all).unwrap();
    assert!(
        all[..512] == bytes[..512] && all[512..1024] == [0; 512] && all[1024..] == bytes[1024..]
    );
    assert!(all == *private.disk.bytes.lock().unwrap());
    assert!(!client.block_status(0, DISK_BYTES).unwrap().is_empty());
}

#[test]
fn the_next_client_waits_for_what_the_one_before_had_asked_for() {
    let private = private();
    let mut client = private.qemu();
    client.write(0, &[7; 512], false).unwrap();
    let held = HeldFlush::new(&private.disk);
    let flushing = thread::spawn(move || client.flush().is_err());
    let waiting = thread::spawn({
        let config = private.authority.client(Some(private.authority.sign(QEMU)));
        let peer = Peer::Tls { host: AGENT.to_owned(), port: private.port, config };
        move || Client::connect_to(&peer, "disk").map(|mut next| next.read(0, &mut [0; 512]))
    });
    assert!(flushing.join().unwrap(), "the next client ended its connection");
    assert!(!waiting.is_finished(), "and waits for what it had asked for");
    drop(held);
    waiting.join().unwrap().unwrap().unwrap();
}

#[test]
fn who_may_not_is_refused_with_the_cure_and_disturbs_nobody() {
    let private = private();
    let mut client = private.qemu();
    let (ours, other) = (&private.authority, Authority::new());
    for (shown, cure) in [
        (None, "shows no certificate (GnuTLS"),
        (Some(other.sign(QEMU)), "of another CA"),
        (Some(ours.sign("kvm-2.example")), "of another host"),
    ] {
        let config = ours.client(shown);
        let told = refused(&ours.server(), &config);
        assert!(told.contains(cure), "{told}");
        assert!(private.at(AGENT, config).is_err(), "{cure}");
    }
    // Nor does a client believe just any server.
    let shown = || Some(ours.sign(QEMU));
    assert!(private.at("localhost", ours.client(shown())).is_err(), "no name of the agent");
    assert!(private.at(AGENT, other.client(shown())).is_err(), "a CA that it does not know");
    assert_eq!(private.server.connections(), 1);
    client.write(0, &[7; 512], false).unwrap();
    client.read(0, &mut [0; 512]).unwrap();
}

/// What the server says of a client.
fn refused(server: &ServerTls, config: &Arc<ClientConfig>) -> String {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let name = AGENT.try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
    let client = thread::spawn(move || {
        let _refused = connection.complete_io(&mut theirs);
        theirs.read_to_end(&mut Vec::new()).ok() // until the server hangs up
    });
    let told = server.accept(&mut &ours).unwrap_err();
    drop(ours);
    client.join().unwrap();
    assert_eq!(told.kind(), io::ErrorKind::PermissionDenied);
    told.to_string()
}

#[test]
fn a_plain_client_gets_nothing() {
    let private = private();
    let mut client = private.qemu();
    for (options, replies) in [
        (&b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk"[..], 0),
        (b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0IHAVEOPT\0\0\0\x02\0\0\0\0", 40),
    ] {
        let mut stream = TcpStream::connect((AGENT, private.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(options).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 18 + replies, "the greeting, and refusals");
    }
    assert_eq!(private.server.connections(), 1);
    client.read(0, &mut [0; 512]).unwrap();
}

#[test]
fn silent_strangers_keep_nobody_out() {
    let private = private();
    let strangers: Vec<_> =
        (0..40).map(|_| TcpStream::connect((AGENT, private.port)).unwrap()).collect();
    let mut client = private.qemu();
    client.read(0, &mut [0; 512]).unwrap();
    assert_eq!(private.server.connections(), 1);
    drop(strangers);
    private.server.stop();
}
