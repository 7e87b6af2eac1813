//! Requests that somebody had given up and that are carried out all the same.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast::model::ObjectName;
use holdfast::store::{
    BlockId, Condition, LeaseId, PageBody, PageGuard, PageWrite, Store, StoreError,
};

use super::azurite::Azurite;
use super::proxy::Proxy;
use super::words::Fault;
use super::{made, opened, started};

const NEVER: u64 = u64::MAX / 2;

struct Late {
    store: Arc<dyn Store>,
    proxy: Arc<Proxy>,
    container: String,
    name: ObjectName,
    _azurite: Azurite,
}

fn guard(lease: u8) -> PageGuard {
    PageGuard { lease: LeaseId([lease; 16]), sequence_number: 0 }
}

fn page(fill: u8) -> [PageWrite; 1] {
    [PageWrite { offset: 0, body: PageBody::Data(Bytes::from(vec![fill; 512])) }]
}

impl Late {
    /// A page blob under lease 1, whose first page is written.
    async fn new() -> Option<Self> {
        let azurite = started()?;
        let proxy = Proxy::start(azurite.port);
        let container = made(&azurite).await;
        let store = opened(&azurite, &container, proxy.port);
        let name = ObjectName::new("seed/a").unwrap();
        store.create_pages(&name, 1024).await.unwrap();
        store.acquire_lease(&name, guard(1).lease, 60).await.unwrap();
        store.write_pages(&name, &page(1), &guard(1)).await.unwrap();
        Some(Self { store, proxy, container, name, _azurite: azurite })
    }

    /// The request after `skip` others is carried out when [`Self::deliver`] is called.
    fn hold(&self, skip: u64) {
        self.plan(skip, Fault::Late(NEVER));
    }

    fn plan(&self, skip: u64, fault: Fault) {
        let at = self.proxy.counts(&self.container).0 + skip;
        self.proxy.plan(&self.container, HashMap::from([(at, fault)]));
    }

    async fn take(&self, lease: LeaseId) {
        self.store.break_lease(&self.name).await.unwrap();
        self.store.acquire_lease(&self.name, lease, 60).await.unwrap();
    }

    async fn deliver(&self) {
        assert_eq!(self.proxy.deliver_all(&self.container), 1, "one was held");
    }

    async fn first_byte(&self) -> u8 {
        self.store.read_pages(&self.name, None, 0, 512).await.unwrap()[0]
    }
}

fn ambiguous<T: std::fmt::Debug>(told: Result<T, StoreError>) {
    assert!(matches!(told, Err(StoreError::Ambiguous { .. })), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_page_write_is_refused_under_a_new_lease_and_only_there() {
    let Some(late) = Late::new().await else { return };
    let (reset, gateway) = (Fault::Late(NEVER), Fault::Gateway(NEVER));
    for (held, new_lease) in [(reset, false), (reset, true), (gateway, false), (gateway, true)] {
        late.plan(0, held);
        ambiguous(late.store.write_pages(&late.name, &page(2), &guard(1)).await);
        let guard = guard(if new_lease { 2 } else { 1 });
        if new_lease {
            late.take(guard.lease).await;
        }
        late.store.write_pages(&late.name, &page(3), &guard).await.unwrap();
        late.deliver().await;
        assert_eq!(late.first_byte().await, if new_lease { 3 } else { 2 }, "{held:?}");
        late.take(self::guard(1).lease).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_snapshot_holds_no_later_page() {
    let Some(late) = Late::new().await else { return };
    late.hold(1); // first the blob's version is read
    ambiguous(late.store.snapshot(&late.name, "point", &guard(1)).await);
    late.store.write_pages(&late.name, &page(2), &guard(1)).await.unwrap();
    late.deliver().await;
    assert_eq!(late.store.list_snapshots(&late.name).await.unwrap(), []);
    // Nothing was written meanwhile: then it is the snapshot that was asked for.
    late.hold(1);
    ambiguous(late.store.snapshot(&late.name, "point", &guard(1)).await);
    late.deliver().await;
    assert_eq!(late.store.list_snapshots(&late.name).await.unwrap()[0].label, "point");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_changes_of_objects_are_refused_by_their_conditions() {
    let Some(late) = Late::new().await else { return };
    let (store, name) = (&late.store, ObjectName::new("vault/a").unwrap());
    let body = Bytes::from_static;
    let first = store.put(&name, body(b"first"), Condition::Absent).await.unwrap();
    late.hold(0);
    let condition = Condition::Matches(first.clone());
    ambiguous(store.put(&name, body(b"late"), condition.clone()).await);
    store.put(&name, body(b"second"), condition).await.unwrap();
    late.deliver().await;
    assert_eq!(store.read(&name).await.unwrap().0, "second");
    // Removed, as it was meant; then another of that name: the late removal is of the first alone.
    late.hold(1);
    ambiguous(store.delete(&name, Condition::Always).await);
    store.delete(&name, Condition::Always).await.unwrap();
    store.put_new(&name, body(b"third")).await.unwrap();
    late.deliver().await;
    assert_eq!(store.read(&name).await.unwrap().0, "third");
    // A block that arrives after its upload was given up is in no later upload.
    let blocks = ObjectName::new("log/a").unwrap();
    late.hold(0);
    ambiguous(store.stage_block(&blocks, BlockId(0), body(b"old")).await);
    let gone = store.delete(&blocks, Condition::Always).await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
    store.stage_block(&blocks, BlockId(0), body(b"new")).await.unwrap();
    late.deliver().await;
    store.commit_blocks(&blocks, &[BlockId(0)], Condition::Absent).await.unwrap();
    assert_eq!(store.read(&blocks).await.unwrap().0, "new");
}
