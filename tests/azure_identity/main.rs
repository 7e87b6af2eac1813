//! Every way to say who we are, against a token authority of our own on loopback and Azure's
//! emulator, which takes tokens: accepted, and refused with the authority's own words.
//!
//! The program under test is the real one: some kinds are found in its environment.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

mod authority;
#[path = "../support/azurite.rs"]
mod azurite;
mod proxy;
mod renewal;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use authority::{Authority, Kind};
use azurite::{Azurite, installed};
use proxy::Proxy;

const TENANT: &str = "11111111-2222-3333-4444-555555555555";

/// One emulator for all: each case has a container of its own.
fn azurite() -> Option<&'static Azurite> {
    static ONE: OnceLock<Option<Azurite>> = OnceLock::new();
    ONE.get_or_init(|| Azurite::start(true, &["--oauth", "basic"])).as_ref()
}

struct Case {
    directory: tempfile::TempDir,
    container: &'static str,
}

impl Case {
    fn new(container: &'static str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), container }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A new site in this case's container; what it said when it was refused.
    fn init(&self, store: &str, env: &[(&str, &str)]) -> Result<(), String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        let site = self.directory.path().join("site");
        command.arg("init").arg(site).args(["--store", store, "--listen", "127.0.0.1:0"]);
        for name in ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        let output = command.envs(env.iter().copied()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    fn store(&self, azurite: &Azurite, query: &str) -> String {
        format!(
            "azure:{}/{}?{query}&ca-file={}",
            azurite.endpoint(),
            self.container,
            azurite.ca_file().display()
        )
    }
}

/// The same kind of credential, once with what the authority knows and once with something else.
fn accepted_and_refused(
    container: &'static str,
    kind: Kind,
    query: impl Fn(&Case, bool) -> String,
) {
    let Some(azurite) = azurite() else { return };
    let authority = Authority::start(azurite.ca_file().parent().unwrap(), kind);
    for good in [false, true] {
        let case = Case::new(container);
        let more = query(&case, good);
        let query = format!("{more}&authority={}", authority.address());
        let told = case.init(&case.store(azurite, &query), &[]);
        match good {
            true => told.unwrap(),
            false => {
                let said = told.unwrap_err();
                assert!(said.contains("no token") && said.contains(authority::REFUSAL), "{said}");
            }
        }
    }
    assert!(authority.served() >= 2, "the authority was asked");
}

#[test]
fn a_client_secret() {
    accepted_and_refused("secret", Kind::Secret, |case, good| {
        let file = case.file("password", if good { authority::PASSWORD } else { "wrong" });
        format!("auth=client-secret&tenant-id={TENANT}&client-id=app&file={}", file.display())
    });
}

#[test]
fn a_client_certificate() {
    let known = certificate();
    let stranger = certificate();
    let kind = Kind::Certificate(known.1.clone());
    accepted_and_refused("certificate", kind, |case, good| {
        let file = case.file("app.pem", if good { &known.0 } else { &stranger.0 });
        format!("auth=client-certificate&tenant-id={TENANT}&client-id=app&file={}", file.display())
    });
}

/// PEM of certificate and RSA key, and the certificate in DER. rcgen makes no RSA keys with ring.
fn certificate() -> (String, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=app", "-days", "2"]);
    command.arg("-keyout").arg(path("key")).arg("-out").arg(path("certificate"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let pem = format!("{}{}", read("certificate"), read("key"));
    use rustls::pki_types::pem::PemObject;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    (pem, der.to_vec())
}

#[test]
fn a_workload_identity() {
    accepted_and_refused("workload", Kind::Federated, |case, good| {
        let file = case.file("token", if good { authority::FEDERATED } else { "forged" });
        format!("auth=workload-identity&tenant-id={TENANT}&client-id=app&file={}", file.display())
    });
}

#[test]
fn a_managed_identity() {
    let Some(azurite) = azurite() else { return };
    let authority = Authority::start_plain(Kind::Managed);
    let address = format!("{}/identity", authority.address());
    for (header, good) in [("wrong", false), (authority::IDENTITY_HEADER, true)] {
        let case = Case::new("managed");
        let env = [("IDENTITY_ENDPOINT", address.as_str()), ("IDENTITY_HEADER", header)];
        let store = case.store(azurite, "auth=managed-identity&client-id=mine");
        let told = case.init(&store, &env);
        assert_eq!(told.is_ok(), good, "{told:?}");
    }
    assert!(authority.served() >= 2);
}

#[test]
fn the_azure_cli() {
    let Some(azurite) = azurite() else { return };
    for good in [false, true] {
        let case = Case::new("cli");
        let said = match good {
            true => format!(
                r#"echo '{{"accessToken":"{}","expires_on":{},"tokenType":"Bearer"}}'"#,
                authority::token(),
                authority::now() + 3600
            ),
            false => "echo 'Please run: az login' >&2; exit 1".to_owned(),
        };
        let az = case.file("az", &format!("#!/bin/sh\n{said}\n"));
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&az, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", case.directory.path().display());
        match case.init(&case.store(azurite, "auth=cli"), &[("PATH", &path)]) {
            Ok(()) => assert!(good),
            Err(said) => assert!(!good && said.contains("az login"), "{said}"),
        }
    }
}

#[test]
fn a_key_a_signature_a_connection_string() {
    let (Some(azurite), Some(python)) = (azurite(), installed("python/bin/python")) else { return };
    let case = Case::new("keyed");
    let wrong = case.file("wrong", "d3Jvbmc=");
    let store = case.store(azurite, &format!("auth=shared-key&file={}", wrong.display()));
    let said = case.init(&store, &[]).unwrap_err();
    assert!(said.contains("check the key, signature or token"), "{said}");
    let right = format!("auth=shared-key&file={}", azurite.key_file().display());
    case.init(&case.store(azurite, &right), &[]).unwrap();

    // A signature made by Azure's own library, for a container that is there.
    let case = Case::new("signed");
    let string = format!(
        "DefaultEndpointsProtocol=https;AccountName={};AccountKey={};BlobEndpoint={};",
        azurite::ACCOUNT,
        azurite::KEY,
        azurite.endpoint()
    );
    let file = case.file("string", &string);
    let ca = azurite.ca_file();
    let by_string = format!(
        "azure:{}?auth=connection-string&file={}&ca-file={}",
        case.container,
        file.display(),
        ca.display()
    );
    case.init(&by_string, &[]).unwrap();
    let sas = signature(&python, case.container);
    let status = |signature: &str| {
        let file = case.file("sas", signature);
        let store = case.store(azurite, &format!("auth=sas&file={}", file.display()));
        let other = Case::new("signed");
        other.init(&store, &[]).unwrap_err()
    };
    // Signed rightly one reads that another site is there; the signature itself is never shown.
    let said = status(&sas);
    assert!(said.contains("in use by another site") && !said.contains("sig="), "{said}");
    let said = status(&sas.replace("sig=", "sig=A"));
    assert!(!said.contains("in use") && !said.contains("sig="), "{said}");
}

fn signature(python: &Path, container: &str) -> String {
    let script = format!(
        "from azure.storage.blob import generate_container_sas as sas\n\
         import datetime as d\n\
         now = d.datetime.now(d.timezone.utc)\n\
         print(sas('{}', '{container}', '{}', permission='racwdl', expiry=now + d.timedelta(hours=1)))",
        azurite::ACCOUNT,
        azurite::KEY
    );
    let output = Command::new(python).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn an_http_proxy_with_and_without_authentication() {
    let Some(azurite) = azurite() else { return };
    for (container, wanted, given, good) in [
        ("proxied", None, None, true),
        ("proxied-as", Some("me:word"), Some("me:word"), true),
        ("proxied-not", Some("me:word"), None, false),
    ] {
        let proxy = Proxy::start(wanted);
        let case = Case::new(container);
        // Under a name that only the proxy knows: what is on loopback goes past it.
        let string = format!(
            "AccountName={};AccountKey={};BlobEndpoint=https://{}:{}/{}",
            azurite::ACCOUNT,
            azurite::KEY,
            azurite::ELSEWHERE,
            azurite.port,
            azurite::ACCOUNT
        );
        let mut store = format!(
            "azure:{container}?auth=connection-string&file={}&ca-file={}&proxy=http://127.0.0.1:{}",
            case.file("string", &string).display(),
            azurite.ca_file().display(),
            proxy.port
        );
        if let Some(given) = given {
            let file = case.file("proxy", given);
            store.push_str(&format!("&proxy-credentials-file={}", file.display()));
        }
        let told = case.init(&store, &[]);
        assert_eq!(told.is_ok(), good, "{container}: {told:?}");
        assert_eq!(proxy.tunnels() > 0, good, "every byte went through it");
    }
}

/// There an identity is asked for, and no proxy can do that in this machine's name.
#[test]
fn what_is_on_this_machine_goes_past_the_proxy() {
    let Some(azurite) = azurite() else { return };
    let proxy = Proxy::start(None);
    let case = Case::new("past");
    let query = format!(
        "auth=shared-key&file={}&proxy=http://127.0.0.1:{}",
        azurite.key_file().display(),
        proxy.port
    );
    case.init(&case.store(azurite, &query), &[]).unwrap();
    assert_eq!(proxy.tunnels(), 0);
}

/// The authority behind the certificate is asked for by name: without it nothing is sent.
#[test]
fn a_certificate_of_an_unknown_authority() {
    let Some(azurite) = azurite() else { return };
    let case = Case::new("unknown");
    let store = format!(
        "azure:{}/unknown?auth=shared-key&file={}",
        azurite.endpoint(),
        azurite.key_file().display()
    );
    let said = case.init(&store, &[]).unwrap_err();
    assert!(said.contains("not reachable") && said.contains("UnknownIssuer"), "{said}");
}
