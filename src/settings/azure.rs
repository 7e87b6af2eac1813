//! The address of an Azure store: `azure:https://ACCOUNT.blob.core.windows.net/CONTAINER?auth=…`.
//!
//! Owns: which parts such an address has, and all rules they break at once. Does not own: what is in
//! the files that it names. A secret never stands in an address, because addresses are printed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A checked address. Prints as text that gives the same address from anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureUrl {
    text: String,
    /// Blob endpoint with the container; `None`: the connection string has it.
    pub endpoint: Option<String>,
    /// The container.
    pub container: String,
    /// How this process says who it is.
    pub auth: AzureAuth,
    /// Token authority of a cloud that is not known by its endpoint's suffix.
    pub authority: Option<String>,
    /// Further CA certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// HTTP proxy.
    pub proxy: Option<String>,
    /// `user:password` for it.
    pub proxy_credentials_file: Option<PathBuf>,
    /// Requests to one page blob in a second.
    pub requests_per_second: u32,
    /// MiB to one page blob in a second.
    pub mib_per_second: u32,
    /// Longest time without a byte from the store.
    pub timeout: Duration,
}

/// How a process says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureAuth {
    /// The identity that the machine was given; `client_id` for one of several.
    ManagedIdentity {
        /// Of a user-assigned identity.
        client_id: Option<String>,
    },
    /// A Kubernetes service account. What is `None` comes from the environment that Azure sets.
    WorkloadIdentity {
        /// Application.
        client_id: Option<String>,
        /// Directory.
        tenant_id: Option<String>,
        /// The projected token.
        token_file: Option<PathBuf>,
    },
    /// An application with a password.
    ClientSecret {
        /// Directory.
        tenant_id: String,
        /// Application.
        client_id: String,
        /// The password.
        file: PathBuf,
    },
    /// An application with a certificate.
    ClientCertificate {
        /// Directory.
        tenant_id: String,
        /// Application.
        client_id: String,
        /// Certificate and RSA key, PEM.
        file: PathBuf,
    },
    /// Whoever is logged in with `az login`.
    Cli {
        /// Directory, when there are several.
        tenant_id: Option<String>,
    },
    /// The account's key.
    SharedKey {
        /// Base64, as Azure shows it.
        file: PathBuf,
    },
    /// A shared access signature.
    Sas {
        /// The query string, with or without `?`.
        file: PathBuf,
    },
    /// A connection string, which has the endpoint, too.
    ConnectionString {
        /// The text that Azure shows.
        file: PathBuf,
    },
}

/// A rule that an address breaks, and the cure.
pub(super) struct Broken {
    pub(super) rule: String,
    pub(super) cure: String,
}

const KINDS: &str = "managed-identity, workload-identity, client-secret, client-certificate, cli, \
                     shared-key, sas or connection-string";
const SECRET: &str = "holds a secret, and addresses are printed";
const KEYS: [&str; 11] = [
    "auth",
    "file",
    "client-id",
    "tenant-id",
    "authority",
    "ca-file",
    "proxy",
    "proxy-credentials-file",
    "requests-per-second",
    "mib-per-second",
    "timeout-s",
];

struct Parts {
    pairs: Vec<(String, String)>,
    broken: Vec<Broken>,
}

impl Parts {
    fn broken(&mut self, rule: impl Into<String>, cure: impl Into<String>) {
        self.broken.push(Broken { rule: rule.into(), cure: cure.into() });
    }

    fn text(&self, key: &str) -> Option<String> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn needed(&mut self, key: &str) -> String {
        self.text(key).unwrap_or_else(|| {
            self.broken(format!("needs {key}"), format!("add {key}=… to its query"));
            String::new()
        })
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn number(&mut self, key: &str, default: u32, most: u32) -> u32 {
        let Some(text) = self.text(key) else { return default };
        match text.parse() {
            Ok(number) if (1..=most).contains(&number) => number,
            _ => {
                let rule = format!("{key} must be 1 to {most}");
                self.broken(rule, format!("leave it out for the default, {default}"));
                default
            }
        }
    }

    fn auth(&mut self) -> AzureAuth {
        let kind = self.text("auth").unwrap_or_else(|| "managed-identity".to_owned());
        let (client, tenant) = (self.text("client-id"), self.text("tenant-id"));
        match kind.as_str() {
            "managed-identity" => AzureAuth::ManagedIdentity { client_id: client },
            "workload-identity" => AzureAuth::WorkloadIdentity {
                client_id: client,
                tenant_id: tenant,
                token_file: self.path("file"),
            },
            "cli" => AzureAuth::Cli { tenant_id: tenant },
            "client-secret" | "client-certificate" => {
                let (tenant_id, client_id) = (self.needed("tenant-id"), self.needed("client-id"));
                let file = PathBuf::from(self.needed("file"));
                match kind.as_str() {
                    "client-secret" => AzureAuth::ClientSecret { tenant_id, client_id, file },
                    _ => AzureAuth::ClientCertificate { tenant_id, client_id, file },
                }
            }
            "shared-key" => AzureAuth::SharedKey { file: PathBuf::from(self.needed("file")) },
            "sas" => AzureAuth::Sas { file: PathBuf::from(self.needed("file")) },
            "connection-string" => {
                AzureAuth::ConnectionString { file: PathBuf::from(self.needed("file")) }
            }
            _ => {
                self.broken(format!("auth must be {KINDS}"), "managed-identity is the default");
                AzureAuth::ManagedIdentity { client_id: client }
            }
        }
    }
}

impl AzureUrl {
    /// Checks what follows `azure:`. Relative files are resolved against `base`.
    pub(super) fn parse(rest: &str, base: &Path) -> Result<Self, Vec<Broken>> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parts = Parts { pairs: Vec::new(), broken: Vec::new() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            read_pair(&mut parts, pair, base);
        }
        let auth = parts.auth();
        let endpoint = endpoint(&mut parts, place, &auth);
        let container = container(&mut parts, place);
        let url = Self {
            text: shown(place, &parts.pairs),
            endpoint,
            container,
            auth,
            authority: parts.text("authority"),
            ca_file: parts.path("ca-file"),
            proxy: parts.text("proxy"),
            proxy_credentials_file: parts.path("proxy-credentials-file"),
            requests_per_second: parts.number("requests-per-second", 500, 100_000),
            mib_per_second: parts.number("mib-per-second", 60, 100_000),
            timeout: Duration::from_secs(parts.number("timeout-s", 60, 3600).into()),
        };
        if parts.broken.is_empty() { Ok(url) } else { Err(parts.broken) }
    }

    /// The account: the host's first label, or the first part of the path behind an address.
    #[must_use]
    pub fn account_of(endpoint: &str) -> String {
        let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let first = |text: &str, end: char| text.split(end).next().unwrap_or("").to_owned();
        match is_address(host) {
            true => first(path, '/'),
            false => first(host, '.'),
        }
    }

    /// Whether nobody on the network reads what goes to `endpoint`: TLS, or loopback.
    #[must_use]
    pub fn is_private(endpoint: &str) -> bool {
        let plain = endpoint.strip_prefix("http://");
        let host = plain.map(|rest| rest.split('/').next().unwrap_or_default());
        endpoint.starts_with("https://") || host.is_some_and(is_loopback)
    }
}

/// Behind an address, as in front of Azurite, the account stands in the path.
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.starts_with('[') || name.parse::<std::net::Ipv4Addr>().is_ok()
}

fn is_loopback(host: &str) -> bool {
    // Before an `@` stands a user, whatever it looks like.
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let loopback = |ip: std::net::Ipv4Addr| ip.is_loopback();
    let known = name == "localhost" || name == "[::1]";
    !host.contains('@') && (known || name.parse().is_ok_and(loopback))
}

fn read_pair(parts: &mut Parts, pair: &str, base: &Path) {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if matches!(key, "sig" | "sv" | "se" | "sp" | "AccountKey") {
        return parts
            .broken(SECRET, "write the shared access signature into a file: auth=sas&file=PATH");
    }
    if key == "proxy" && value.contains('@') {
        return parts.broken(
            SECRET,
            "write user:password into a file: proxy=http://HOST:PORT&proxy-credentials-file=PATH",
        );
    }
    if !KEYS.contains(&key) {
        return parts.broken(format!("has no part {key:?}"), format!("it has {}", KEYS.join(", ")));
    }
    let value = match key == "file" || key.ends_with("-file") {
        true => base.join(value).display().to_string(),
        false => value.to_owned(),
    };
    parts.pairs.push((key.to_owned(), value));
}

fn endpoint(parts: &mut Parts, place: &str, auth: &AzureAuth) -> Option<String> {
    if matches!(auth, AzureAuth::ConnectionString { .. }) {
        if place.contains("://") {
            parts.broken("has two endpoints", "with a connection string write azure:CONTAINER?…");
        }
        return None;
    }
    let secure = place.strip_prefix("https://");
    let plain = place.strip_prefix("http://");
    let Some(rest) = secure.or(plain) else {
        parts.broken(
            "names no endpoint",
            "write azure:https://ACCOUNT.blob.core.windows.net/CONTAINER",
        );
        return None;
    };
    if rest.contains('@') {
        parts.broken(SECRET, "write ACCOUNT.blob.core.windows.net alone; keys stand in files");
    }
    if !AzureUrl::is_private(place) {
        parts.broken("goes over the network in clear text", "write https://");
    }
    let key = matches!(auth, AzureAuth::SharedKey { .. } | AzureAuth::Sas { .. });
    if plain.is_some() && !key {
        parts.broken("sends a token in clear text", "write https://, or use a shared key");
    }
    Some(place.to_owned())
}

fn container(parts: &mut Parts, place: &str) -> String {
    let path = place.split_once("://").map_or(place, |(_, rest)| rest);
    let mut names: Vec<&str> = path.split('/').collect();
    if place.contains("://") {
        let host = names.remove(0);
        if is_address(host) && !names.is_empty() {
            names.remove(0); // the account
        }
    }
    let name = names.first().copied().unwrap_or_default();
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if names.len() != 1 || !(3..=63).contains(&name.len()) || !name.bytes().all(good) {
        parts.broken(
            "must end in the name of a container",
            "3 to 63 lower-case letters, digits and hyphens: …/CONTAINER",
        );
    }
    name.to_owned()
}

fn shown(place: &str, pairs: &[(String, String)]) -> String {
    let query: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    match query.is_empty() {
        true => format!("azure:{place}"),
        false => format!("azure:{place}?{}", query.join("&")),
    }
}

impl fmt::Display for AzureUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<AzureUrl, String> {
        let joined = |broken: Vec<Broken>| {
            broken.into_iter().map(|one| one.rule).collect::<Vec<_>>().join("; ")
        };
        AzureUrl::parse(rest, Path::new("/base")).map_err(joined)
    }

    #[test]
    fn an_address_says_everything_and_prints_itself() {
        let url = parse("https://acct.blob.core.windows.net/cold?client-id=x&timeout-s=5").unwrap();
        assert_eq!(url.auth, AzureAuth::ManagedIdentity { client_id: Some("x".into()) });
        assert_eq!((url.container.as_str(), url.timeout.as_secs()), ("cold", 5));
        assert_eq!(AzureUrl::account_of(url.endpoint.as_deref().unwrap()), "acct");
        let emulated = parse("http://127.0.0.1:10000/dev/box?auth=shared-key&file=k").unwrap();
        assert_eq!(emulated.auth, AzureAuth::SharedKey { file: "/base/k".into() });
        assert_eq!(AzureUrl::account_of(emulated.endpoint.as_deref().unwrap()), "dev");
        let text = emulated.to_string();
        assert_eq!(parse(text.strip_prefix("azure:").unwrap()).unwrap(), emulated);
        let from_string = parse("box?auth=connection-string&file=/c").unwrap();
        assert_eq!((from_string.endpoint, from_string.container.as_str()), (None, "box"));
    }

    #[test]
    fn every_broken_rule_is_told_at_once() {
        for (rest, rules) in [
            ("https://a.blob.core.windows.net/", "must end in the name of a container"),
            ("box", "names no endpoint"),
            ("http://a.example/box?auth=shared-key&file=k", "goes over the network in clear text"),
            ("http://127.0.0.1/a/box", "sends a token in clear text"),
            (
                "https://a.example/box?auth=sas&file=s&sig=x",
                "holds a secret, and addresses are printed",
            ),
            ("https://a.example/box?proxy=http://me:word@proxy:8080", SECRET),
            ("https://me:word@a.example/box", SECRET),
            (
                "http://127.0.0.1:1@a.example/a/box?auth=shared-key&file=k",
                "holds a secret, and addresses are printed; goes over the network in clear text",
            ),
            ("https://a.example/box?colour=red", "has no part \"colour\""),
            ("https://a.example/box?auth=client-secret&client-id=c", "needs tenant-id; needs file"),
            (
                "https://a.example/box?requests-per-second=0",
                "requests-per-second must be 1 to 100000",
            ),
        ] {
            assert_eq!(parse(rest).unwrap_err(), rules, "{rest}");
        }
        assert!(parse("https://a.example/box?auth=magic").unwrap_err().starts_with("auth must be"));
    }
}
