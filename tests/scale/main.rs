//! What a machine costs a process server while nothing happens on it.
//!
//! `HOLDFAST_SCALE=10000 cargo test --release --test scale -- --nocapture` measures with as many
//! machines as it is told; without, few enough for every run of the suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod herd;
mod observed;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use observed::Observed;
use support::{Site, pause};

/// What an idle machine may cost at most, everything counted that is not the file cache. Measured:
/// docs/configuration.md; the bound leaves room for another allocator's rounding.
const IDLE_MACHINE_BYTES_MAX: u64 = 100_000;

fn from_environment(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn an_idle_machine_costs_little_memory() {
    let count = from_environment("HOLDFAST_SCALE", 300);
    let watch_s = from_environment("HOLDFAST_SCALE_WATCH_S", 0);
    let heartbeat =
        Duration::from_millis(from_environment("HOLDFAST_SCALE_HEARTBEAT_MS", 10_000) as u64);
    observed::raise_file_limit();
    let site = Site::new();
    site.set("limits.connections_max", 20_000);
    site.set("cache.bytes_max", 1 << 30);
    for (key, name) in [
        ("apply.interval_ms", "HOLDFAST_SCALE_APPLY_MS"),
        ("batch.age_max_ms", "HOLDFAST_SCALE_AGE_MS"),
    ] {
        site.set(key, from_environment(name, 1000) as i64);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let machines = runtime.block_on(herd::enrol(&site, count));
    eprintln!("{count} machines enrolled");
    let server = site.serve();
    let empty = Observed::of(server.pid());
    eprintln!("empty:     {empty:?}");
    let port = site.port;
    let start = std::time::Instant::now();
    let agents = runtime.block_on(herd::connect(port, &machines));
    let connected = Observed::of(server.pid());
    eprintln!("connected: {connected:?} after {:?}", start.elapsed());
    let idle: Vec<_> =
        agents.into_iter().map(|agent| runtime.spawn(agent.idle(heartbeat))).collect();
    pause(from_environment("HOLDFAST_SCALE_SETTLE_MS", 3000) as u64);
    let before = Observed::of(server.pid());
    for _ in 0..watch_s / 10 {
        let (from, at) = (Observed::of(server.pid()), std::time::Instant::now());
        pause(10_000);
        let to = Observed::of(server.pid());
        let cpu = (to.cpu_ms - from.cpu_ms) as f64 / at.elapsed().as_millis() as f64 * 100.0;
        eprintln!("idle: {cpu:.1} % of a core, {:?}", to);
    }
    let after = Observed::of(server.pid());
    let alive = idle.iter().filter(|agent| !agent.is_finished()).count();
    assert_eq!(alive, count, "agents were cut off\n{}", server.log());
    let each = before.anonymous.max(after.anonymous).saturating_sub(empty.anonymous) / count as u64;
    eprintln!("{each} bytes each");
    assert!(each <= IDLE_MACHINE_BYTES_MAX, "{each} bytes for each of {count} idle machines");
}
