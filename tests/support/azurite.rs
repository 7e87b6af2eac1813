//! Azure's emulator, where `tests/run` installed it: on a port that the system chooses, in memory,
//! gone when the test program is.

#![allow(dead_code, reason = "not every test program uses all of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Account and key that every Azurite has.
pub(crate) const ACCOUNT: &str = "devstoreaccount1";
pub(crate) const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A name that its certificate has, too, and that no resolver knows: a proxy does.
pub(crate) const ELSEWHERE: &str = "blob.elsewhere.example";

/// A running emulator.
pub(crate) struct Azurite {
    scheme: &'static str,
    pub(crate) port: u16,
    directory: tempfile::TempDir,
    child: Child,
    /// The emulator ends when this pipe does: also when the test program is killed.
    alive: Option<ChildStdin>,
}

/// What `tests/run` installs beside the build.
pub(crate) fn tool(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools").join(path)
}

/// Says loudly what is missing; under CI that is a failure.
pub(crate) fn skipped(why: &str) {
    // Past the harness, which keeps what a passing test prints and may have begun a line.
    let line = format_args!("\nskipped: {why}\n");
    std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
    assert!(std::env::var_os("CI").is_none(), "CI never skips: {why}");
}

/// The path of an installed tool; says so when it is missing.
pub(crate) fn installed(path: &str) -> Option<PathBuf> {
    let found = tool(path);
    if found.exists() {
        return Some(found);
    }
    skipped(&format!("{} is not installed; tests/run does it", found.display()));
    None
}

impl Azurite {
    /// Starts one; `None`, loudly, where it is not installed.
    pub(crate) fn start(tls: bool, more: &[&str]) -> Option<Self> {
        let program = installed("node_modules/.bin/azurite-blob")?;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("key"), KEY).unwrap();
        // `cat` ends when our end of the pipe is closed; then exactly that emulator is ended.
        let script =
            r#""$0" "$@" </dev/null 2>/dev/null & azurite=$!; cat >/dev/null; kill $azurite; wait"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(program);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]);
        command.args(["--disableTelemetry", "--skipApiVersionCheck", "--disableProductStyleUrl"]);
        command.args(more).current_dir(directory.path());
        if tls {
            let (certificate, key) = certificates(directory.path());
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let alive = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("azurite says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("successfully listens on ") {
                break address.trim().rsplit_once(':').unwrap().1.parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop)); // its log must not fill the pipe
        let scheme = if tls { "https" } else { "http" };
        Some(Self { scheme, port, directory, child, alive })
    }

    /// The account's blob endpoint.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}/{ACCOUNT}", self.scheme, self.port)
    }

    /// The authority behind the emulator's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A file with the account's key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    /// What follows `azure:` for this container, through another port if need be.
    pub(crate) fn address(&self, container: &str, port: u16) -> String {
        let file = self.key_file();
        let place = format!("{}://127.0.0.1:{port}/{ACCOUNT}/{container}", self.scheme);
        let mut text = format!("azure:{place}?auth=shared-key&file={}", file.display());
        if self.scheme == "https" {
            text.push_str(&format!("&ca-file={}", self.ca_file().display()));
        }
        text
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        drop(self.alive.take());
        self.child.wait().ok();
    }
}

/// An authority and a leaf of it: rustls refuses a certificate that signed itself.
pub(crate) fn certificates(directory: &Path) -> (PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", ELSEWHERE].map(str::to_owned).to_vec();
    let leaf = CertificateParams::new(names).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, ca_key)).unwrap();
    let written = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    written("ca.pem", &ca.pem());
    (written("leaf.pem", &leaf.pem()), written("leaf.key", &key.serialize_pem()))
}
