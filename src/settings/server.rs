//! The rules of `holdfast.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::Check;
use super::prices;
use super::raw::{RawCache, RawLimits, RawSeal, RawServer, RawSidecar, RawTls};
use super::tuning::{Bounds, Row, TABLE};
use super::{
    ApplySettings, AzureUrl, BatchSettings, CacheSettings, LevelBounds, LimitSettings,
    RateSchedule, SealSettings, ServerSettings, SettingsError, SidecarSettings, StoreUrl,
    StreamBounds, TlsFiles, UploadSettings, uplink,
};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Longest block that every store takes.
pub(super) const BLOCK_BYTES_MAX: u64 = 64 * MIB;

pub(super) fn check(raw: RawServer, path: &Path) -> Result<ServerSettings, SettingsError> {
    let mut c = Check::new(path)?;
    let listen = c.socket("listen", raw.listen.as_deref(), "0.0.0.0:9443");
    let advertise = raw.advertise.clone().unwrap_or_else(|| {
        let everywhere = listen.ip().is_unspecified();
        let rule = "must be set when `listen` names every address of this machine";
        let cure = "set it to HOST:PORT as agents reach this server";
        c.relation(!everywhere, "advertise", "(not set)", rule, cure);
        listen.to_string()
    });
    c.host_port("advertise", &advertise);
    // What can change at run time is filled in by its table.
    let mut settings = ServerSettings {
        site: c.name("site", raw.site.as_deref()),
        server: c.name("server", raw.server.as_deref()),
        store: store(&mut c, raw.store.as_deref()),
        listen,
        advertise,
        metrics_listen: c.socket("metrics_listen", raw.metrics_listen.as_deref(), "127.0.0.1:9445"),
        run_directory: c.path("run_directory", raw.run_directory.as_deref(), "run"),
        tls: tls(&mut c, &raw.tls),
        key_file: c.path("key_file", raw.key_file.as_deref(), "kek.hex"),
        shards: 0,
        cache: cache(&mut c, &raw.cache),
        batch: BatchSettings { bytes_max: 0, age_max: Duration::ZERO },
        seal: seal(&mut c, &raw.seal),
        levels: LevelBounds { min: 0, max: 0 },
        upload: UploadSettings {
            streams: StreamBounds { min: 0, max: 0 },
            rate: RateSchedule {
                default: None,
                windows: uplink::windows(&mut c, &raw.upload.window),
            },
            block_bytes: 0,
            orphan_grace: Duration::ZERO,
        },
        apply: ApplySettings {
            enabled: true,
            interval: Duration::ZERO,
            idle_interval_max: Duration::ZERO,
            streams: 0,
        },
        limits: limits(&mut c, &raw.limits),
        sidecar: sidecar(&mut c, &raw.sidecar),
        prices: None,
    };
    let shards = shards_default(&raw, &settings.cache);
    settings.shards = c.narrow("shards", raw.shards, shards, 1..=256);
    for row in TABLE {
        tunable(&mut c, row, &raw, &mut settings);
    }
    relations(&mut c, &settings);
    settings.prices = raw.prices.map(|raw| prices::check(&mut c, raw));
    c.finish(settings)
}

/// A setting that can change at run time, by its row.
fn tunable(c: &mut Check, row: &Row, raw: &RawServer, settings: &mut ServerSettings) {
    if matches!(row.bounds, Bounds::Windows { .. }) {
        return; // filled in already: what is wrong within a list has names of its own
    }
    let default = row.bounds.default();
    let value = (row.raw)(raw).map_or(Some(default.clone()), |value| {
        let taken = row.bounds.take(&value);
        if taken.is_none() {
            let cure = format!("leave it out for the default, {default}");
            c.violation(row.key, value, &row.bounds.rule(), &cure);
        }
        taken
    });
    (row.put)(settings, value.unwrap_or(default));
}

/// An address from the command line.
pub(super) fn store_url(text: &str, base: &Path) -> Result<StoreUrl, SettingsError> {
    let mut c = Check::new(&base.join("--store"))?;
    let url = store(&mut c, Some(text));
    c.finish(url)
}

fn store(c: &mut Check, value: Option<&str>) -> StoreUrl {
    let cure =
        "write store = \"dir:PATH\" or \"azure:https://ACCOUNT.blob.core.windows.net/CONTAINER\"";
    c.required("store", value, cure);
    if let Some(rest) = value.and_then(|text| text.strip_prefix("azure:")) {
        match AzureUrl::parse(rest, c.base()) {
            Ok(url) => return StoreUrl::Azure(Box::new(url)),
            Err(broken) => {
                for one in broken {
                    c.violation("store", format!("azure:{rest}"), &one.rule, &one.cure);
                }
                return StoreUrl::Dir(PathBuf::new());
            }
        }
    }
    let path = value.and_then(|text| text.strip_prefix("dir:"));
    if let (Some(text), None) = (value, path) {
        c.violation(
            "store",
            format!("{text:?}"),
            "must name a known kind of store: dir:PATH or azure:URL",
            cure,
        );
    }
    StoreUrl::Dir(c.path("store", path, "store"))
}

fn tls(c: &mut Check, raw: &RawTls) -> TlsFiles {
    let mut file =
        |key: &str, value: &Option<String>, default| c.path(key, value.as_deref(), default);
    TlsFiles {
        ca_certificate: file("tls.ca_certificate", &raw.ca_certificate, "ca.crt"),
        ca_key: file("tls.ca_key", &raw.ca_key, "ca.key"),
        certificate: file("tls.certificate", &raw.certificate, "server.crt"),
        key: file("tls.key", &raw.key, "server.key"),
        operator_certificate: file(
            "tls.operator_certificate",
            &raw.operator_certificate,
            "operator.crt",
        ),
        operator_key: file("tls.operator_key", &raw.operator_key, "operator.key"),
    }
}

fn cache(c: &mut Check, raw: &RawCache) -> CacheSettings {
    let settings = CacheSettings {
        directory: c.path("cache.directory", raw.directory.as_deref(), "cache"),
        segment_bytes: c.number(
            "cache.segment_bytes",
            raw.segment_bytes,
            SEGMENT_BYTES,
            4 * MIB..=GIB,
        ),
        bytes_max: c.number("cache.bytes_max", raw.bytes_max, CACHE_BYTES, 16 * MIB..=64 * TIB),
        warn_fill: 0.0,
        slow_fill: 0.0,
        stop_fill: 0.0,
    };
    c.multiple("cache.segment_bytes", settings.segment_bytes, 4 * KIB);
    settings
}

fn seal(c: &mut Check, raw: &RawSeal) -> SealSettings {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let settings = SealSettings {
        threads: c.narrow("seal.threads", raw.threads, cores.min(256), 1..=256),
        compress: false,
        level: 0,
        frame_bytes: c.narrow("seal.frame_bytes", raw.frame_bytes, 256 * KIB, 16 * KIB..=MIB),
    };
    c.multiple("seal.frame_bytes", u64::from(settings.frame_bytes), 4 * KIB);
    settings
}

fn limits(c: &mut Check, raw: &RawLimits) -> LimitSettings {
    LimitSettings {
        connections_max: c.narrow(
            "limits.connections_max",
            raw.connections_max,
            2_048,
            1..=1_000_000,
        ),
        handshakes_max: c.narrow("limits.handshakes_max", raw.handshakes_max, 256, 1..=65_536),
        handshake_timeout: millis(
            c,
            "limits.handshake_timeout_ms",
            raw.handshake_timeout_ms,
            5_000,
            100,
            60_000,
        ),
        idle_timeout: Duration::ZERO,
        receive_bytes_max: c.number(
            "limits.receive_bytes_max",
            raw.receive_bytes_max,
            RECEIVE_BYTES,
            4 * MIB..=64 * GIB,
        ),
        credit_bytes: 0,
        quic_bytes_max: c.number(
            "limits.quic_bytes_max",
            raw.quic_bytes_max,
            48 * MIB,
            4 * MIB..=64 * GIB,
        ),
    }
}

fn sidecar(c: &mut Check, raw: &RawSidecar) -> SidecarSettings {
    let days = c.number("sidecar.certificate_days", raw.certificate_days, 365, 1..=3_650);
    SidecarSettings {
        listen: c.socket("sidecar.listen", raw.listen.as_deref(), "127.0.0.1:9444"),
        token_ttl: seconds(c, "sidecar.token_ttl_s", raw.token_ttl_s, 3_600, 1, 7 * 86_400),
        certificate_ttl: Duration::from_secs(days * 86_400),
        snapshot_interval_min_s: c.narrow(
            "sidecar.snapshot_interval_min_s",
            raw.snapshot_interval_min_s,
            60,
            1..=3_600,
        ),
    }
}

fn millis(
    c: &mut Check,
    key: &str,
    value: Option<i64>,
    default: u64,
    low: u64,
    high: u64,
) -> Duration {
    Duration::from_millis(c.number(key, value, default, low..=high))
}

fn seconds(
    c: &mut Check,
    key: &str,
    value: Option<i64>,
    default: u64,
    low: u64,
    high: u64,
) -> Duration {
    Duration::from_secs(c.number(key, value, default, low..=high))
}

/// Defaults that that of `shards` depends on.
const SEGMENT_BYTES: u64 = 64 * MIB;
const CACHE_BYTES: u64 = 8 * GIB;
const RECEIVE_BYTES: u64 = 128 * MIB;
/// Segments that one shard's log needs.
const SHARD_SEGMENTS_MIN: u64 = 4;
/// Memory that one shard needs for what it receives.
const SHARD_RECEIVE_BYTES_MIN: u64 = 4 << 20;

/// As many as have logs: another number is refused while there are records in them, and this host may have
/// had more cores, or fewer. Else one for each core, as far as cache and memory go round.
fn shards_default(raw: &RawServer, cache: &CacheSettings) -> u64 {
    // Where it cannot be read, the server says so.
    let found = cache.shards_found().unwrap_or(0);
    if found > 0 {
        return u64::from(found.min(256));
    }
    let set = |value: Option<i64>, default| {
        value.map_or(default, |value| u64::try_from(value).unwrap_or(0))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let segment_bytes = set(raw.cache.segment_bytes, SEGMENT_BYTES).max(1);
    let segments = set(raw.cache.bytes_max, CACHE_BYTES) / segment_bytes;
    let logs = segments / SHARD_SEGMENTS_MIN;
    let arenas = set(raw.limits.receive_bytes_max, RECEIVE_BYTES) / SHARD_RECEIVE_BYTES_MIN;
    cores.min(logs).min(arenas).clamp(1, 256)
}

/// Rules between settings: a pipeline in which each vessel holds what the one before it pours. Held
/// over the file and over every change at run time.
pub(super) fn relations(c: &mut Check, s: &ServerSettings) {
    uplink::relations(c, s);
    let batch = s.batch.bytes_max;
    c.relation(
        s.cache.segment_bytes >= 2 * batch,
        "cache.segment_bytes",
        s.cache.segment_bytes,
        &format!("must be at least 2 × batch.bytes_max = {}", 2 * batch),
        "raise it, or lower batch.bytes_max",
    );
    let four = SHARD_SEGMENTS_MIN * s.cache.segment_bytes * u64::from(s.shards);
    c.relation(
        s.cache.bytes_max >= four,
        "cache.bytes_max",
        s.cache.bytes_max,
        &format!("must hold 4 segments for each shard = {four}"),
        "raise it, or lower cache.segment_bytes or shards",
    );
    marks(c, &s.cache);
    c.relation(
        u64::from(s.seal.frame_bytes) <= batch,
        "seal.frame_bytes",
        s.seal.frame_bytes,
        &format!("must not be larger than batch.bytes_max = {batch}"),
        "lower it",
    );
    c.relation(
        s.limits.credit_bytes <= s.limits.receive_bytes_max,
        "limits.credit_bytes",
        s.limits.credit_bytes,
        &format!(
            "must not be larger than limits.receive_bytes_max = {}",
            s.limits.receive_bytes_max
        ),
        "lower it, or raise limits.receive_bytes_max",
    );
    let least = SHARD_RECEIVE_BYTES_MIN * u64::from(s.shards);
    c.relation(
        s.limits.receive_bytes_max >= least,
        "limits.receive_bytes_max",
        s.limits.receive_bytes_max,
        &format!("must be at least 4 MiB for each shard = {least}"),
        "raise it, or lower shards",
    );
    c.relation(
        s.limits.handshakes_max <= s.limits.connections_max,
        "limits.handshakes_max",
        s.limits.handshakes_max,
        &format!("must not be larger than limits.connections_max = {}", s.limits.connections_max),
        "lower it",
    );
    c.relation(
        s.limits.handshake_timeout <= s.limits.idle_timeout,
        "limits.handshake_timeout_ms",
        s.limits.handshake_timeout.as_millis(),
        "must not be longer than limits.idle_timeout_ms",
        "lower it",
    );
}

/// The marks of the cache, in order.
fn marks(c: &mut Check, cache: &CacheSettings) {
    let CacheSettings { warn_fill, slow_fill, stop_fill, .. } = *cache;
    c.relation(
        warn_fill <= slow_fill,
        "cache.warn_fill",
        warn_fill,
        &format!("must not be above cache.slow_fill = {slow_fill}"),
        "lower it, or raise cache.slow_fill",
    );
    c.relation(
        slow_fill < stop_fill,
        "cache.slow_fill",
        slow_fill,
        &format!("must be below cache.stop_fill = {stop_fill}"),
        "lower it, or raise cache.stop_fill",
    );
}
