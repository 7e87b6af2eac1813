//! Azure's emulator behind a proxy that fails on purpose: whatever it does, what is left in the store
//! equals what a run without faults leaves, byte for byte, and few requests more were made.
//!
//! Every case has one fault at a place that its seed chooses, some have two. `HOLDFAST_FAULT_CASES`
//! says how many cases there are; what one costs is mostly the emulator's time.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

#[path = "../support/azurite.rs"]
mod azurite;
mod late;
mod proxy;
mod rig;
#[path = "../tools/fault_proxy/words.rs"]
mod words;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azurite::Azurite;
use futures_util::{StreamExt, stream};
use holdfast::clock::Clock;
use holdfast::settings::store_url;
use holdfast::store::Store;

use proxy::Proxy;
use rig::{Outcome, Rig, Scaled, container};
use words::Fault;

/// Cases that run at once: most of a silent case is waiting.
const AT_ONCE: usize = 12;
/// Cases of one emulator.
const BATCH: usize = 100;
/// Cases unless `HOLDFAST_FAULT_CASES` says how many.
const CASES: u64 = 200;
/// How much faster waits between tries pass.
const FASTER: u32 = 50;

/// The container through `port`; through a proxy a store gives up after a second of silence.
fn opened(azurite: &Azurite, container: &str, port: u16) -> Arc<dyn Store> {
    let seconds = if port == azurite.port { 60 } else { 1 };
    let text = format!("{}&timeout-s={seconds}", azurite.address(container, port));
    holdfast::store::open(&store_url(&text, Path::new("/")).unwrap()).unwrap()
}

/// The emulator, where there is one and the proxy was built.
fn started() -> Option<Azurite> {
    Proxy::built().then(|| Azurite::start(false, &[]))?
}

async fn made(azurite: &Azurite) -> String {
    let container = container();
    let url = store_url(&azurite.address(&container, azurite.port), Path::new("/")).unwrap();
    holdfast::store::create(&url).await.unwrap();
    container
}

fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

/// A run without faults: what it leaves, and how many requests it takes. The machine was claimed
/// `claims` times before.
async fn calm(azurite: &Azurite, claims: u64) -> (Outcome, u64) {
    let proxy = Proxy::start(azurite.port);
    let container = made(azurite).await;
    let rig = Rig::new(opened(azurite, &container, proxy.port), Arc::new(Scaled(FASTER)));
    for _ in 0..claims {
        rig.claim().await;
    }
    rig.run().await;
    let (requests, _) = proxy.counts(&container);
    (rig.outcome(&opened(azurite, &container, azurite.port)).await, requests)
}

/// One case: requests that were made, and faults that happened.
async fn case(azurite: &Azurite, proxy: &Proxy, calm: &[(Outcome, u64)], seed: u64) -> (u64, u64) {
    let container = made(azurite).await;
    let draw = mixed(seed);
    let calm_requests = calm[0].1;
    let mut plan = HashMap::from([(draw % calm_requests, Fault::of(seed))]);
    if draw.is_multiple_of(4) {
        plan.insert((draw >> 32) % calm_requests, Fault::of(draw >> 8));
    }
    let told = format!("seed {seed}: {plan:?}");
    proxy.plan(&container, plan);
    let rig = Rig::new(opened(azurite, &container, proxy.port), Arc::new(Scaled(FASTER)));
    rig.run().await;
    proxy.deliver_all(&container);
    let found = rig.outcome(&opened(azurite, &container, azurite.port)).await;
    let expected = calm.iter().find(|(calm, _)| calm.generation == found.generation);
    assert!(Some(&found) == expected.map(|(calm, _)| calm), "{told}: {found:?}");
    proxy.counts(&container)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_what_a_run_without_faults_leaves() {
    let cases = std::env::var("HOLDFAST_FAULT_CASES").map_or(CASES, |text| text.parse().unwrap());
    let (mut requests, mut fired, mut calm_requests) = (0, 0, 0);
    // The emulator gets slower with every container that it ever had.
    for first in (0..cases).step_by(BATCH) {
        let Some(azurite) = started() else { return };
        let calm = [calm(&azurite, 0).await, calm(&azurite, 1).await, calm(&azurite, 2).await];
        calm_requests = calm[0].1;
        let proxy = Proxy::start(azurite.port);
        let seeds = first..cases.min(first + BATCH as u64);
        let running = seeds.map(|seed| case(&azurite, &proxy, &calm, seed));
        let counts: Vec<_> = stream::iter(running).buffer_unordered(AT_ONCE).collect().await;
        requests += counts.iter().map(|(requests, _)| requests).sum::<u64>();
        fired += counts.iter().map(|(_, fired)| fired).sum::<u64>();
    }
    let ratio = requests as f64 / (calm_requests * cases) as f64;
    println!(
        "{cases} cases, {fired} faults, {calm_requests} requests without faults, × {ratio:.3}"
    );
    assert!(fired * 10 >= cases * 9, "only {fired} faults happened");
    assert!(ratio <= 1.3, "{ratio} times the requests");
}

/// Twelve hours without the store: nothing is lost, and nobody storms it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_twelve_hours() {
    const TIMES: u32 = 10_000;
    const OUTAGE: Duration = Duration::from_secs(12 * 3600);
    let Some(azurite) = started() else { return };
    let proxy = Proxy::start(azurite.port);
    let container = made(&azurite).await;
    let clock = Arc::new(Scaled(TIMES));
    let rig = Rig::new(opened(&azurite, &container, proxy.port), Arc::clone(&clock) as _);
    rig.enroll().await;
    let (before, _) = proxy.counts(&container);
    proxy.away(&container, true);
    let back = async {
        clock.sleep(OUTAGE).await;
        proxy.away(&container, false);
        proxy.counts(&container).0
    };
    let ((), during) = tokio::join!(rig.upload(), back);
    let probes = during - before;
    println!("{probes} probes in twelve hours");
    // At most every 60 s with full jitter: 30 s apart on average.
    assert!((20..=OUTAGE.as_secs() / 30 * 3 / 2).contains(&probes), "{probes} probes");
    rig.apply().await;
    let found = rig.outcome(&opened(&azurite, &container, azurite.port)).await;
    let (expected, _) = calm(&azurite, 0).await;
    assert!(found == expected, "{found:?}");
}

/// The largest disk of which a page blob holds the VHD: making it, writing its first and last bytes
/// and two snapshots take the requests that a disk of 1 MiB takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sparse_disk_of_eight_tib_costs_what_a_small_one_does() {
    const LARGEST: u64 = (8 << 40) - (1 << 20);
    let Some(azurite) = started() else { return };
    let proxy = Proxy::start(azurite.port);
    let mut requests = Vec::new();
    for disk_bytes in [rig::DISK_BYTES, LARGEST] {
        let container = made(&azurite).await;
        let store = opened(&azurite, &container, proxy.port);
        let rig = Rig::new(Arc::clone(&store), Arc::new(Scaled(FASTER))).sized(disk_bytes);
        rig.run().await;
        requests.push(proxy.counts(&container).0);
        let seed = store.list("seed/").await.unwrap().remove(0);
        assert_eq!(seed.length, disk_bytes + 512);
        assert_eq!(store.list_snapshots(&seed.name).await.unwrap().len(), 2);
        // First and last writes and the footer: 8 KiB, 8 KiB, 512 bytes.
        let written = store.page_ranges(&seed.name, None, 0, seed.length).await.unwrap();
        let bytes: u64 = written.iter().map(|range| range.end - range.start).sum();
        assert_eq!(bytes, (16 << 10) + 512, "only written pages exist: {written:?}");
    }
    println!("{requests:?} requests");
    assert_eq!(requests[0], requests[1]);
}
