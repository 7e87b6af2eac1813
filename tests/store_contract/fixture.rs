//! Stores to test, and what the cases need around them.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock::Clock;
use holdfast::model::{ObjectName, Timestamp};
use holdfast::settings::store_url;
use holdfast::store::{Dir, LeaseId, Memory, PageBody, PageGuard, PageWrite, Store, StoreError};

use crate::azurite::Azurite;

/// A clock that stands still until it is moved.
pub(crate) struct Hands(AtomicI64);

impl Hands {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(1_800_000_000_000_000)))
    }

    pub(crate) fn move_seconds(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl Clock for Hands {
    fn wall(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst) as u64)
    }
    async fn sleep(&self, _: Duration) {
        unreachable!("no store sleeps")
    }
}

/// One store, alone, for one case.
pub(crate) struct Bench {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<Hands>,
    /// A store with a clock of its own, over a network: fewer rounds, and real leases.
    pub(crate) remote: bool,
    _directory: Option<tempfile::TempDir>,
}

impl Bench {
    /// Until the lease on `name` has run out by the store's clock.
    pub(crate) async fn lapse(&self, name: &ObjectName) {
        self.clock.move_seconds(60);
        while self.store.properties(name).await.unwrap().leased {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// How often something is done: `rounds`, a tenth of it over a network.
    pub(crate) fn rounds(&self, rounds: u32) -> u32 {
        if self.remote { rounds / 10 } else { rounds }
    }
}

fn local(store: Arc<dyn Store>, clock: Arc<Hands>, directory: Option<tempfile::TempDir>) -> Bench {
    Bench { store, clock, remote: false, _directory: directory }
}

pub(crate) async fn memory() -> Option<Bench> {
    let clock = Hands::new();
    Some(local(Arc::new(Memory::new(Arc::clone(&clock) as _)), clock, None))
}

pub(crate) async fn dir() -> Option<Bench> {
    let clock = Hands::new();
    let directory = tempfile::tempdir().unwrap();
    Some(local(open(directory.path(), &clock), clock, Some(directory)))
}

/// A container of its own on an emulator that all cases share.
pub(crate) async fn azure() -> Option<Bench> {
    static PLAIN: OnceLock<Option<Azurite>> = OnceLock::new();
    container(PLAIN.get_or_init(|| Azurite::start(false, &[])).as_ref()?).await
}

pub(crate) async fn azure_tls() -> Option<Bench> {
    static TLS: OnceLock<Option<Azurite>> = OnceLock::new();
    container(TLS.get_or_init(|| Azurite::start(true, &[])).as_ref()?).await
}

async fn container(azurite: &Azurite) -> Option<Bench> {
    static NUMBER: AtomicI64 = AtomicI64::new(0);
    let name = format!("case-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let url = store_url(&azurite.address(&name, azurite.port), Path::new("/")).unwrap();
    holdfast::store::create(&url).await.unwrap();
    let store = holdfast::store::open(&url).unwrap();
    Some(Bench { store, clock: Hands::new(), remote: true, _directory: None })
}

/// A store in a directory that somebody else removes.
pub(crate) fn within(path: &Path) -> Bench {
    let clock = Hands::new();
    local(open(path, &clock), clock, None)
}

pub(crate) fn open(path: &Path, clock: &Arc<Hands>) -> Arc<dyn Store> {
    Arc::new(Dir::open(path, Arc::clone(clock) as _).unwrap())
}

/// A directory in memory where there is one: the tests that make thousands of syncs need no disk.
pub(crate) fn fast_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

pub(crate) fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) fn lease(number: u8) -> LeaseId {
    LeaseId([number; 16])
}

pub(crate) fn guard(number: u8, sequence_number: u64) -> PageGuard {
    PageGuard { lease: lease(number), sequence_number }
}

pub(crate) fn data(offset: u64, length: usize, fill: u8) -> PageWrite {
    let body = PageBody::Data(Bytes::from(vec![fill; length]));
    PageWrite { offset, body }
}

pub(crate) fn clear(offset: u64, length: u64) -> PageWrite {
    let body = PageBody::Clear(length);
    PageWrite { offset, body }
}

/// A page blob owned by lease 1 with sequence number 0.
pub(crate) async fn owned(bench: &Bench, text: &str, size: u64) -> ObjectName {
    let name = name(text);
    bench.store.create_pages(&name, size).await.unwrap();
    // No longer than needed where it takes its time to run out.
    let seconds = if bench.remote { 15 } else { 60 };
    bench.store.acquire_lease(&name, lease(1), seconds).await.unwrap();
    name
}

/// The variant of an error, for tables.
pub(crate) fn kind<T>(result: Result<T, StoreError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(StoreError::NotFound { .. }) => "not found",
        Err(StoreError::AlreadyExists { .. }) => "already exists",
        Err(StoreError::Precondition { .. }) => "precondition",
        Err(StoreError::Fenced { .. }) => "fenced",
        Err(StoreError::OutOfRange { .. }) => "out of range",
        Err(StoreError::Full { .. }) => "full",
        Err(StoreError::Transient { .. }) => "transient",
        Err(StoreError::Ambiguous { .. }) => "ambiguous",
        Err(StoreError::Damaged { .. }) => "damaged",
        Err(StoreError::Refused { .. }) => "refused",
        Err(StoreError::Io { .. }) => "io",
        Err(StoreError::Throttled { .. }) => "throttled",
        Err(StoreError::Denied { .. }) => "denied",
    }
}

/// Numbers that follow from a seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
