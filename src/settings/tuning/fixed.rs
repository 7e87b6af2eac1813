//! What cannot change while the server runs, and why: listed beside what can.

use serde_json::{Value as Json, json};

use super::super::ServerSettings;

/// One setting.
pub(super) struct Fixed {
    pub(super) key: &'static str,
    pub(super) value: fn(&ServerSettings) -> Json,
    pub(super) why: &'static str,
}

const NAME: &str = "it names what this server is to agents and in the store";
const PORT: &str = "a port is opened once";
const FILES: &str = "the file is read once";
const PLACE: &str = "what lies there is open";
const CACHE: &str = "the cache log was opened with it";
const ARENA: &str = "its memory is set aside at the start";
const SIDECAR: &str = "it concerns the sidecar, another process";
const STATUS: &str = "only the command line reads it";

macro_rules! fixed {
    ($key:literal, $why:ident, |$settings:ident| $value:expr) => {
        Fixed { key: $key, value: |$settings| json!($value), why: $why }
    };
}

fn price(settings: &ServerSettings, kind: &str) -> Option<f64> {
    settings.prices.as_ref().map(|prices| prices.of(kind))
}

/// All of them, in the order of docs/configuration.md.
#[rustfmt::skip]
pub(super) const FIXED: &[Fixed] = &[
    fixed!("site", NAME, |s| s.site.to_string()),
    fixed!("server", NAME, |s| s.server.to_string()),
    fixed!("store", NAME, |s| s.store.to_string()),
    fixed!("listen", PORT, |s| s.listen),
    fixed!("advertise", NAME, |s| s.advertise),
    fixed!("metrics_listen", PORT, |s| s.metrics_listen),
    fixed!("run_directory", PLACE, |s| s.run_directory),
    fixed!("key_file", FILES, |s| s.key_file),
    fixed!("shards", CACHE, |s| s.shards),
    fixed!("tls.ca_certificate", FILES, |s| s.tls.ca_certificate),
    fixed!("tls.ca_key", FILES, |s| s.tls.ca_key),
    fixed!("tls.certificate", FILES, |s| s.tls.certificate),
    fixed!("tls.key", FILES, |s| s.tls.key),
    fixed!("tls.operator_certificate", FILES, |s| s.tls.operator_certificate),
    fixed!("tls.operator_key", FILES, |s| s.tls.operator_key),
    fixed!("cache.directory", PLACE, |s| s.cache.directory),
    fixed!("cache.segment_bytes", CACHE, |s| s.cache.segment_bytes),
    fixed!("cache.bytes_max", CACHE, |s| s.cache.bytes_max),
    fixed!("seal.threads", ARENA, |s| s.seal.threads),
    fixed!("seal.frame_bytes", ARENA, |s| s.seal.frame_bytes),
    fixed!("limits.connections_max", ARENA, |s| s.limits.connections_max),
    fixed!("limits.handshakes_max", ARENA, |s| s.limits.handshakes_max),
    fixed!("limits.handshake_timeout_ms", ARENA, |s| s.limits.handshake_timeout.as_millis() as u64),
    fixed!("limits.receive_bytes_max", ARENA, |s| s.limits.receive_bytes_max),
    fixed!("limits.quic_bytes_max", ARENA, |s| s.limits.quic_bytes_max),
    fixed!("sidecar.listen", SIDECAR, |s| s.sidecar.listen),
    fixed!("sidecar.token_ttl_s", SIDECAR, |s| s.sidecar.token_ttl.as_secs()),
    fixed!("sidecar.certificate_days", SIDECAR, |s| s.sidecar.certificate_ttl.as_secs() / 86_400),
    fixed!("sidecar.snapshot_interval_min_s", SIDECAR, |s| s.sidecar.snapshot_interval_min_s),
    fixed!("prices.currency", STATUS, |s| s.prices.as_ref().map(|prices| &prices.currency)),
    fixed!("prices.put", STATUS, |s| price(s, "put")),
    fixed!("prices.stage_block", STATUS, |s| price(s, "stage-block")),
    fixed!("prices.commit_blocks", STATUS, |s| price(s, "commit-blocks")),
    fixed!("prices.read", STATUS, |s| price(s, "read")),
    fixed!("prices.properties", STATUS, |s| price(s, "properties")),
    fixed!("prices.list", STATUS, |s| price(s, "list")),
    fixed!("prices.delete", STATUS, |s| price(s, "delete")),
    fixed!("prices.page_blob", STATUS, |s| price(s, "page-blob")),
    fixed!("prices.write_pages", STATUS, |s| price(s, "write-pages")),
    fixed!("prices.snapshot", STATUS, |s| price(s, "snapshot")),
    fixed!("prices.lease", STATUS, |s| price(s, "lease")),
];
