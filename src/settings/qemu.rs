//! Where QEMU is, and how it and the agent reach each other.
//!
//! Owns: that everything between two hosts goes over TLS. Does not own: the certificates' content (the
//! agent reads them when it starts).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::check::Check;
use super::raw::{RawDisk, RawMirror};
use super::{AgentDisk, Capture};

/// Port of QEMU's NBD server where none is named: that of NBD.
const READS_PORT: u64 = 10_809;

/// Where a channel of QEMU is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QemuAddress {
    /// A Unix socket, on this host.
    Socket(PathBuf),
    /// `tls:HOST:PORT`.
    Tls {
        /// Name or address, which the certificate there carries.
        host: String,
        /// TCP port.
        port: u16,
    },
}

impl fmt::Display for QemuAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tls { host, port } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "tls:{host}:{port}"),
        }
    }
}

/// How QEMU on another host and the agent reach each other for one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteMirror {
    /// Where the agent takes the guest's writes.
    pub listen: SocketAddr,
    /// The same as QEMU reaches it; the agent's certificate carries the host.
    pub address: (String, u16),
    /// Where QEMU serves the guest's disks to the agent, on the monitor's host; default 10809.
    pub reads_port: u16,
}

/// TLS between the agent and QEMU on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorTls {
    /// Whoever's certificate it signed may be QEMU; default `qemu/ca-cert.pem`.
    pub ca_certificate: PathBuf,
    /// What the agent shows, to QEMU's servers and to QEMU; default `qemu/server-cert.pem`.
    pub certificate: PathBuf,
    /// Its key; default `qemu/server-key.pem`.
    pub key: PathBuf,
    /// Id of the object in QEMU by which its NBD server does TLS; default `holdfast-server`.
    pub server_credentials: String,
    /// Id of the one by which it is the agent's client; default `holdfast-client`.
    pub client_credentials: String,
}

pub(super) fn tls(c: &mut Check, raw: &RawMirror) -> MirrorTls {
    let id = |value: &Option<String>, default: &str| value.as_deref().unwrap_or(default).to_owned();
    let tls = MirrorTls {
        ca_certificate: c.path(
            "mirror.ca_certificate",
            raw.ca_certificate.as_deref(),
            "qemu/ca-cert.pem",
        ),
        certificate: c.path(
            "mirror.certificate",
            raw.certificate.as_deref(),
            "qemu/server-cert.pem",
        ),
        key: c.path("mirror.key", raw.key.as_deref(), "qemu/server-key.pem"),
        server_credentials: id(&raw.server_credentials, "holdfast-server"),
        client_credentials: id(&raw.client_credentials, "holdfast-client"),
    };
    for (key, value) in [
        ("mirror.server_credentials", &tls.server_credentials),
        ("mirror.client_credentials", &tls.client_credentials),
    ] {
        let letters = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let good =
            value.starts_with(|c: char| c.is_ascii_alphabetic()) && value.chars().all(letters);
        let cure = "name the tls-creds-x509 object of QEMU (-object tls-creds-x509,id=…)";
        c.relation(good, key, format!("{value:?}"), "must be an id of QEMU", cure);
    }
    tls
}

/// A path, or `tls:HOST:PORT`.
pub(super) fn address(c: &mut Check, key: &str, text: &str) -> QemuAddress {
    if let Some(address) = text.strip_prefix("tls:") {
        let (host, port) = host_port(c, key, address);
        return QemuAddress::Tls { host, port };
    }
    let scheme = ["tcp:", "unix:"].iter().any(|scheme| text.starts_with(scheme));
    let host = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    c.relation(
        !scheme && (text.contains('/') || !host),
        key,
        format!("{text:?}"),
        "must be the path of a socket, or tls:HOST:PORT",
        "write \"tls:HOST:PORT\" for QEMU on another host: nothing goes there without TLS",
    );
    QemuAddress::Socket(c.path(key, Some(text), ""))
}

fn host_port(c: &mut Check, key: &str, text: &str) -> (String, u16) {
    c.host_port(key, text);
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let port = port.parse().unwrap_or(0);
    let cure = "write the port on which it listens";
    c.relation(port > 0, key, format!("{text:?}"), "must have a port from 1 to 65535", cure);
    (host.trim_matches(['[', ']']).to_owned(), port)
}

/// The ways between QEMU at `monitor` and the agent, where they are not on the same host.
pub(super) fn remote(
    c: &mut Check,
    key: &dyn Fn(&str) -> String,
    raw: &RawDisk,
    monitor: &QemuAddress,
) -> Option<RemoteMirror> {
    let (listen_key, address_key, reads_key) = (key("listen"), key("address"), key("reads_port"));
    if let QemuAddress::Socket(_) = monitor {
        let set = [
            (listen_key, raw.listen.is_some()),
            (address_key, raw.address.is_some()),
            (reads_key, raw.reads_port.is_some()),
        ];
        for (key, _) in set.into_iter().filter(|(_, set)| *set) {
            let rule = "belongs to QEMU on another host (qmp = \"tls:HOST:PORT\")";
            c.violation(&key, "(set)", rule, "leave it out for a socket of this host");
        }
        return None;
    }
    let cure = "write the IP:PORT where this agent takes the guest's writes";
    c.required(&listen_key, raw.listen.as_deref(), cure);
    let listen = c.socket(&listen_key, raw.listen.as_deref(), "192.0.2.7:10811");
    let reads_port = c.narrow(&reads_key, raw.reads_port, READS_PORT, 1..=65_535);
    let address = match &raw.address {
        Some(address) => host_port(c, &address_key, address),
        None => {
            c.relation(
                !listen.ip().is_unspecified(),
                &address_key,
                "(not set)",
                "must be set where listen is every address of the host",
                "write the HOST:PORT by which QEMU reaches this agent",
            );
            (listen.ip().to_string(), listen.port())
        }
    };
    let cure = "choose one of its own for each disk";
    c.relation(listen.port() > 0, &listen_key, listen, "must have a port from 1 to 65535", cure);
    Some(RemoteMirror { listen, address, reads_port })
}

/// What the disks of one machine must not have in common, and what they must.
pub(super) fn together(c: &mut Check, disks: &[AgentDisk]) {
    let remote = disks.iter().enumerate().filter_map(|(number, disk)| match &disk.capture {
        Capture::Mirror { monitor, remote: Some(remote), .. } => Some((number, monitor, remote)),
        _ => None,
    });
    let remote: Vec<_> = remote.collect();
    for (at, (number, monitor, this)) in remote.iter().enumerate() {
        for (_, other_monitor, other) in &remote[..at] {
            let ports = (this.listen.port(), other.listen.port());
            let (one, two) = (this.listen.ip(), other.listen.ip());
            let apart = one != two && !one.is_unspecified() && !two.is_unspecified();
            let cure = "choose a port of its own for each disk";
            let key = format!("disk[{number}].listen");
            let rule = "must not be that of another disk";
            c.relation(apart || ports.0 != ports.1, &key, this.listen, rule, cure);
            c.relation(
                monitor != other_monitor || this.reads_port == other.reads_port,
                &format!("disk[{number}].reads_port"),
                this.reads_port,
                "must be the same for all disks of one QEMU, which has one NBD server",
                "write the same port for each",
            );
        }
    }
}
