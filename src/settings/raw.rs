//! The settings files as they are written: every key optional, nothing checked but its type.
//!
//! Numbers are `i64` so that a negative one is reported with all other violations.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServer {
    pub(super) site: Option<String>,
    pub(super) server: Option<String>,
    pub(super) store: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) metrics_listen: Option<String>,
    pub(super) run_directory: Option<String>,
    pub(super) key_file: Option<String>,
    pub(super) shards: Option<i64>,
    pub(super) tls: RawTls,
    pub(super) cache: RawCache,
    pub(super) batch: RawBatch,
    pub(super) seal: RawSeal,
    pub(super) upload: RawUpload,
    pub(super) apply: RawApply,
    pub(super) limits: RawLimits,
    pub(super) sidecar: RawSidecar,
    pub(super) prices: Option<RawPrices>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPrices {
    pub(super) currency: Option<String>,
    pub(super) put: Option<f64>,
    pub(super) stage_block: Option<f64>,
    pub(super) commit_blocks: Option<f64>,
    pub(super) read: Option<f64>,
    pub(super) properties: Option<f64>,
    pub(super) list: Option<f64>,
    pub(super) delete: Option<f64>,
    pub(super) page_blob: Option<f64>,
    pub(super) write_pages: Option<f64>,
    pub(super) snapshot: Option<f64>,
    pub(super) lease: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTls {
    pub(super) ca_certificate: Option<String>,
    pub(super) ca_key: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) operator_certificate: Option<String>,
    pub(super) operator_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCache {
    pub(super) directory: Option<String>,
    pub(super) segment_bytes: Option<i64>,
    pub(super) bytes_max: Option<i64>,
    pub(super) warn_fill: Option<f64>,
    pub(super) slow_fill: Option<f64>,
    pub(super) stop_fill: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBatch {
    pub(super) bytes_max: Option<i64>,
    pub(super) age_max_ms: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSeal {
    pub(super) threads: Option<i64>,
    pub(super) compress: Option<bool>,
    pub(super) level: Option<i64>,
    pub(super) level_min: Option<i64>,
    pub(super) level_max: Option<i64>,
    pub(super) frame_bytes: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpload {
    pub(super) streams_min: Option<i64>,
    pub(super) streams_max: Option<i64>,
    pub(super) bytes_per_s: Option<i64>,
    pub(super) window: Vec<RawWindow>,
    pub(super) block_bytes: Option<i64>,
    pub(super) orphan_grace_s: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWindow {
    pub(super) days: Option<String>,
    pub(super) hours: Option<String>,
    pub(super) bytes_per_s: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApply {
    pub(super) enabled: Option<bool>,
    pub(super) interval_ms: Option<i64>,
    pub(super) idle_interval_max_s: Option<i64>,
    pub(super) streams: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) connections_max: Option<i64>,
    pub(super) handshakes_max: Option<i64>,
    pub(super) handshake_timeout_ms: Option<i64>,
    pub(super) idle_timeout_ms: Option<i64>,
    pub(super) receive_bytes_max: Option<i64>,
    pub(super) credit_bytes: Option<i64>,
    pub(super) quic_bytes_max: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSidecar {
    pub(super) listen: Option<String>,
    pub(super) token_ttl_s: Option<i64>,
    pub(super) certificate_days: Option<i64>,
    pub(super) snapshot_interval_min_s: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAgent {
    pub(super) machine: Option<String>,
    pub(super) servers: Option<Vec<String>>,
    pub(super) server_name: Option<String>,
    pub(super) server_timeout_ms: Option<i64>,
    pub(super) ca_certificate: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) state_directory: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) transport: Option<String>,
    pub(super) quic_congestion: Option<String>,
    pub(super) buffer_bytes_max: Option<i64>,
    pub(super) bitmap_chunk_bytes: Option<i64>,
    pub(super) bandwidth_bytes_per_second_max: Option<i64>,
    pub(super) application: Option<RawApplication>,
    pub(super) ebpf: RawEbpf,
    pub(super) mirror: RawMirror,
    pub(super) disk: Vec<RawDisk>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEbpf {
    pub(super) ring_bytes: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMirror {
    pub(super) ca_certificate: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) server_credentials: Option<String>,
    pub(super) client_credentials: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApplication {
    pub(super) freeze: Vec<String>,
    pub(super) thaw: Vec<String>,
    pub(super) qga: Option<String>,
    pub(super) timeout_ms: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDisk {
    pub(super) name: Option<String>,
    pub(super) path: Option<String>,
    pub(super) capture: Option<String>,
    pub(super) socket: Option<String>,
    pub(super) qmp: Option<String>,
    pub(super) device: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) address: Option<String>,
    pub(super) reads_port: Option<i64>,
    pub(super) mount: Option<String>,
    pub(super) scan: Option<RawScan>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawScan {
    pub(super) interval_s: Option<i64>,
    pub(super) read_bytes_per_second_max: Option<i64>,
    pub(super) snapshot: Option<Vec<String>>,
    pub(super) release: Option<Vec<String>>,
    pub(super) path: Option<String>,
    pub(super) timeout_ms: Option<i64>,
}
