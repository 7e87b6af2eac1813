//! A token authority on loopback: answers as Azure's does, and knows one of each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_core::base64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const FEDERATED: &str = "projected.service.account";
pub(crate) const IDENTITY_HEADER: &str = "of this machine";
/// What it says to whom it does not know.
pub(crate) const REFUSAL: &str = "AADSTS7000215: no such credential here";

/// What it wants to see.
#[derive(Clone)]
pub(crate) enum Kind {
    Secret,
    Federated,
    Managed,
    /// An assertion signed with this certificate's key.
    Certificate(Vec<u8>),
}

pub(crate) struct Authority {
    address: String,
    served: Arc<AtomicUsize>,
}

/// Seconds since 1970.
#[allow(clippy::disallowed_methods, reason = "a token says when it ends")]
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Not signed: the emulator looks at the claims alone.
pub(crate) fn token() -> String {
    let part = |text: String| base64::encode_url_safe(text).trim_end_matches('=').to_owned();
    let (from, to) = (now() - 60, now() + 3600);
    let claims = format!(
        r#"{{"aud":"https://storage.azure.com","iss":"https://sts.windows.net/x/","iat":{from},"nbf":{from},"exp":{to}}}"#
    );
    format!("{}.{}.c2ln", part(r#"{"alg":"RS256","typ":"JWT"}"#.to_owned()), part(claims))
}

impl Authority {
    /// With the emulator's certificate: Azure's crate speaks to an authority over TLS alone.
    pub(crate) fn start(certificates: &Path, kind: Kind) -> Self {
        let read = |name: &str| std::fs::read(certificates.join(name)).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&read("leaf.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read("leaf.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        Self::listen("https", move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            serve(rustls::StreamOwned::new(connection, stream), &kind)
        })
    }

    /// As a machine's own identity endpoint is.
    pub(crate) fn start_plain(kind: Kind) -> Self {
        Self::listen("http", move |stream| serve(stream, &kind))
    }

    fn listen(
        scheme: &str,
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(usize::from(serve(stream).is_ok()), Ordering::SeqCst);
            }
        });
        Self { address, served }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

fn serve(stream: impl Read + Write, kind: &Kind) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let header = |wanted: &str| {
        head.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let form = |wanted: &str| {
        let pairs = form_pairs(&body);
        pairs.into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
    };
    let good = match kind {
        Kind::Secret => form("client_secret").as_deref() == Some(PASSWORD),
        Kind::Federated => form("client_assertion").as_deref() == Some(FEDERATED),
        Kind::Managed => {
            head[0].contains("client_id=mine")
                && header("x-identity-header").as_deref() == Some(IDENTITY_HEADER)
        }
        Kind::Certificate(certificate) => {
            form("client_assertion").is_some_and(|assertion| signed(&assertion, certificate))
        }
    };
    let (status, answer) = match good {
        true => (
            "200 OK",
            format!(
                r#"{{"token_type":"Bearer","expires_in":3600,"expires_on":"{}","resource":"x","access_token":"{}"}}"#,
                now() + 3600,
                token()
            ),
        ),
        false => (
            "401 Unauthorized",
            format!(
                r#"{{"error":"invalid_client","error_codes":[7000215],"error_description":"{REFUSAL}"}}"#
            ),
        ),
    };
    let length = answer.len();
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{answer}"
    )?;
    stream.flush()
}

fn form_pairs(body: &[u8]) -> Vec<(String, String)> {
    let url = azure_core::http::Url::parse(&format!("x:?{}", String::from_utf8_lossy(body)));
    let url = url.unwrap();
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// Signed with the certificate's key, by an application that names that certificate, for us.
fn signed(assertion: &str, certificate: &[u8]) -> bool {
    let (text, signature) = assertion.rsplit_once('.').unwrap();
    let (header, claims) = text.split_once('.').unwrap();
    let decode = |text: &str| base64::decode_url_safe(text).unwrap();
    let json = |text: &str| serde_json::from_slice::<serde_json::Value>(&decode(text)).unwrap();
    let (header, claims) = (json(header), json(claims));
    use sha2::Digest;
    let thumbprint = base64::encode_url_safe(sha2::Sha256::digest(certificate));
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let key = parsed.public_key().subject_public_key.data.as_ref();
    let key =
        ring::signature::UnparsedPublicKey::new(&ring::signature::RSA_PSS_2048_8192_SHA256, key);
    key.verify(text.as_bytes(), &decode(signature)).is_ok()
        && header["alg"] == "PS256"
        && header["x5t#S256"] == thumbprint.trim_end_matches('=')
        && claims["aud"].as_str().unwrap().ends_with("/oauth2/v2.0/token")
        && claims["iss"] == "app"
        && claims["sub"] == "app"
        && claims["exp"].as_u64().unwrap() > now()
}
