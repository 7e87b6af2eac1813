//! The record layer against rustls's own client, and against a client that says whatever it likes.

use std::sync::Arc;

use rustls::crypto::cipher::OutboundOpaqueMessage;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};

use super::super::handshake::Handshaken;
use super::*;

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["holdfast".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    server.send_tls13_tickets = 0;
    (Arc::new(client), Arc::new(server))
}

/// Both ends behind their handshake.
async fn both() -> (ClientConnection, Opener, Sealer) {
    let (client, server) = configs();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = async {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("holdfast").unwrap();
        let tls = tokio_rustls::TlsConnector::from(client).connect(name, socket).await.unwrap();
        tls.into_inner()
    };
    let accepting = async {
        let (socket, _) = listener.accept().await.unwrap();
        let tls = Handshaken::accept(socket, server).await.unwrap();
        tls.into_parts(bytes::Bytes::new()).await.unwrap()
    };
    let ((_socket, client), parts) = tokio::join!(connecting, accepting);
    assert!(parts.incoming.is_empty() && parts.early.is_empty());
    (client, parts.opener, parts.sealer)
}

/// What a client has to send.
fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// The data in all records of `bytes`.
fn opened(opener: &mut Opener, bytes: &mut [u8]) -> Result<Vec<u8>, RecordError> {
    let (mut data, mut rest) = (Vec::new(), bytes);
    while let Some(length) = record_bytes(rest)? {
        let (record, behind) = rest.split_at_mut(length);
        if let Opened::Data(place) = opener.open(record)? {
            data.extend_from_slice(&record[place]);
        }
        rest = behind;
    }
    assert!(rest.is_empty());
    Ok(data)
}

fn say(client: &mut ClientConnection, data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    client.writer().write_all(data).unwrap();
    sent(client)
}

/// What the client hears.
fn heard(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let mut data = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
        match client.reader().read_to_end(&mut data) {
            Ok(_) => {}
            Err(wait) => assert_eq!(wait.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    Ok(data)
}

#[tokio::test]
async fn data_and_key_updates_pass_in_both_directions() {
    let (mut client, mut opener, mut sealer) = both().await;
    for round in 0..40_u8 {
        let data = vec![round; 40_000];
        let mut bytes = say(&mut client, &data);
        assert_eq!(opened(&mut opener, &mut bytes).unwrap(), data, "round {round}");
        let mut reply = Vec::new();
        sealer.seal(&data, &mut reply).unwrap();
        assert_eq!(heard(&mut client, &reply).unwrap(), data, "round {round}");
        if round % 2 == 0 {
            client.refresh_traffic_keys().unwrap();
        }
        if round % 5 == 0 {
            sealer.limit = sealer.sequence + UPDATE_MARGIN; // worn out
        } else {
            sealer.limit = SEQUENCE_MAX;
        }
    }
    let mut end = Vec::new();
    sealer.end(&mut end).unwrap();
    sealer.end(&mut end).unwrap();
    client.read_tls(&mut &end[..]).unwrap();
    assert!(client.process_new_packets().unwrap().peer_has_closed());
    client.send_close_notify();
    let mut end = sent(&mut client);
    assert_eq!(opener.open(&mut end).unwrap(), Opened::End);
}

#[tokio::test]
async fn a_key_that_the_peer_wants_changed_is_changed_before_the_next_data() {
    let (mut client, mut opener, mut sealer) = both().await;
    opener.keys.owed.store(true, Ordering::Relaxed);
    let mut bytes = Vec::new();
    sealer.seal(b"under the new key", &mut bytes).unwrap();
    assert_eq!(sealer.sequence, 1, "a key update, then the first record of the new key");
    assert_eq!(heard(&mut client, &bytes).unwrap(), b"under the new key");
    assert!(opened(&mut opener, &mut say(&mut client, b"ok")).is_ok());
}

/// A client that seals what no client would.
struct Hostile {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Hostile {
    #[allow(deprecated, reason = "it needs no further keys")]
    fn of(client: ClientConnection) -> Self {
        let Some(SupportedCipherSuite::Tls13(suite)) = client.negotiated_cipher_suite() else {
            panic!("no TLS 1.3");
        };
        let secrets = client.dangerous_extract_secrets().unwrap();
        let encrypter = encrypter(suite.aead_alg, secrets.tx.1).unwrap();
        Self { encrypter, sequence: secrets.tx.0 }
    }

    fn record(&mut self, typ: ContentType, data: &[u8]) -> Vec<u8> {
        let plain =
            OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload: data.into() };
        let sealed: OutboundOpaqueMessage = self.encrypter.encrypt(plain, self.sequence).unwrap();
        self.sequence += 1;
        sealed.encode()
    }
}

async fn hostile() -> (Hostile, Opener, Sealer) {
    let (client, opener, sealer) = both().await;
    (Hostile::of(client), opener, sealer)
}

#[tokio::test]
async fn whatever_has_no_place_here_ends_the_connection_with_its_alert() {
    use AlertDescription as A;
    type Records<'a> = &'a [(ContentType, &'a [u8])];
    let handshake = ContentType::Handshake;
    let update = [24, 0, 0, 1, 1];
    let cases: &[(Records<'_>, A)] = &[
        (&[(handshake, &[])], A::UnexpectedMessage),
        (&[(handshake, &[4, 0, 0, 0])], A::UnexpectedMessage),
        (&[(handshake, &[1])], A::UnexpectedMessage),
        (&[(handshake, &[24, 0, 0, 2, 0])], A::UnexpectedMessage),
        (&[(handshake, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0])], A::UnexpectedMessage),
        (&[(handshake, &[24, 0, 0, 1, 2])], A::IllegalParameter),
        (&[(handshake, &update[..3]), (ContentType::ApplicationData, b"x")], A::UnexpectedMessage),
        (&[(handshake, &update[..3]), (handshake, &update[2..])], A::UnexpectedMessage),
        (&[(ContentType::Alert, &[1])], A::UnexpectedMessage),
        (&[(ContentType::Alert, &[1, 0, 1, 0])], A::UnexpectedMessage),
        (&[(ContentType::Heartbeat, &[1])], A::UnexpectedMessage),
        (&[(ContentType::ChangeCipherSpec, &[1])], A::UnexpectedMessage),
        (&[(ContentType::Unknown(0), &[])], A::UnexpectedMessage),
        (&[(ContentType::ApplicationData, &[][..]); 33], A::UnexpectedMessage),
        (&[(ContentType::Alert, &[1, 90][..]); 33], A::UnexpectedMessage),
    ];
    for (records, alert) in cases {
        let (mut client, mut opener, _) = hostile().await;
        let (last, before) = records.split_last().unwrap();
        for (typ, data) in before {
            assert_eq!(opener.open(&mut client.record(*typ, data)).unwrap(), Opened::Nothing);
        }
        let error = opener.open(&mut client.record(last.0, last.1)).unwrap_err();
        let told = opener.keys.alert.load(Ordering::Relaxed);
        assert_eq!(A::from(told), *alert, "{records:?}: {error}");
    }
}

#[tokio::test]
async fn a_fatal_alert_is_not_answered_and_ours_is_the_last_word() {
    let (mut client, mut opener, _) = hostile().await;
    let error = opener.open(&mut client.record(ContentType::Alert, &[2, 40])).unwrap_err();
    assert!(matches!(error, RecordError::Alert(AlertDescription::HandshakeFailure)));
    assert_eq!(opener.keys.alert.load(Ordering::Relaxed), NO_ALERT);

    let (mut client, mut opener, mut sealer) = both().await;
    let mut bytes = say(&mut client, b"changed on the way");
    bytes[20] ^= 1;
    let error = opener.open(&mut bytes).unwrap_err();
    assert!(matches!(error, RecordError::Sealed(Error::DecryptError)), "{error}");
    let mut end = Vec::new();
    sealer.end(&mut end).unwrap();
    let heard = heard(&mut client, &end).unwrap_err();
    assert_eq!(heard, Error::AlertReceived(AlertDescription::BadRecordMac));
}

#[tokio::test]
async fn a_key_update_may_come_in_parts() {
    let (mut client, mut opener, mut sealer) = hostile().await;
    for (part, sequence) in [(&[24, 0][..], 1), (&[0, 1], 2), (&[1], 0)] {
        let mut record = client.record(ContentType::Handshake, part);
        assert_eq!(opener.open(&mut record).unwrap(), Opened::Nothing);
        let before = opener.sequence;
        assert!(before == sequence || sequence != 0, "the new key counts from zero");
    }
    assert!(opener.keys.owed.load(Ordering::Relaxed));
    sealer.seal(b"x", &mut Vec::new()).unwrap();
    assert!(!opener.keys.owed.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_key_is_not_used_for_ever() {
    let (mut client, mut opener, _) = hostile().await;
    opener.sequence = SEQUENCE_MAX;
    let error = opener.open(&mut client.record(ContentType::ApplicationData, b"x")).unwrap_err();
    assert!(matches!(error, RecordError::Unexpected(_)), "{error}");
}

#[test]
fn a_header_is_refused_before_its_record_is_waited_for() {
    assert_eq!(record_bytes(&[23, 3, 3, 0]).unwrap(), None);
    assert_eq!(record_bytes(&[23, 3, 3, 0x41, 0]).unwrap(), Some(RECORD_BYTES_MAX));
    assert_eq!(record_bytes(&[23, 9, 9, 0, 17, 1]).unwrap(), Some(22));
    let alert = |header: &[u8]| record_bytes(header).unwrap_err().alert();
    assert_eq!(alert(&[23, 3, 3, 0x41, 1]), Some(AlertDescription::RecordOverflow));
    for kind in [0, 20, 21, 22, 24] {
        assert_eq!(alert(&[kind, 3, 3, 0, 20]), Some(AlertDescription::UnexpectedMessage));
    }
}
