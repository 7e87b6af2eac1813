//! A store that does to requests what networks and other servers do.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use super::rig::Rig;
use crate::store::{
    BlockId, Condition, ETag, LeaseId, Listed, Memory, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, Store, StoreError,
};
use crate::upload::UploadContext;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done and answered.
    Done,
    /// It is refused before anything happened.
    Refused,
    /// The store is full.
    Full,
    /// It never arrives and no answer comes.
    LostBefore,
    /// It is done, and the answer is lost.
    LostAfter,
    /// No answer comes, and it arrives after so many other requests.
    Late(u32),
    /// It is done and answered, and arrives once more after so many other requests.
    Twice(u32),
    /// Somebody of the same ownership rewrites the manifest just before it.
    Crossed,
}

/// Something that changes the store.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Stage(ObjectName, BlockId, Bytes),
    Commit(ObjectName, Vec<BlockId>, Condition),
    Put(ObjectName, Bytes, Condition),
    Delete(ObjectName, Condition),
}

/// Decides over requests by their number and name (`None`: a read).
type Plan = Box<dyn FnMut(u32, Option<&Request>) -> Fate + Send>;

pub(super) struct Hostile {
    pub(super) inner: Arc<Memory>,
    state: Mutex<State>,
    /// Told when the request at which to stop arrived.
    pub(super) stopped: Notify,
    /// Told to let it go on.
    pub(super) go: Notify,
    stop_at: Option<u32>,
    crossing: Option<UploadContext>,
}

struct State {
    plan: Plan,
    requests: u32,
    late: Vec<(u32, Request)>,
}

impl Hostile {
    pub(super) fn new(inner: &Arc<Memory>, plan: Plan) -> Arc<Self> {
        Arc::new(Self::stopping(inner, plan, None))
    }

    /// Every request is done; number `at` waits until [`Hostile::go`] (for ever, in a crash).
    pub(super) fn stop_at(inner: &Arc<Memory>, at: u32) -> Arc<Self> {
        Arc::new(Self::stopping(inner, Box::new(|_, _| Fate::Done), Some(at)))
    }

    fn stopping(inner: &Arc<Memory>, plan: Plan, stop_at: Option<u32>) -> Self {
        Self {
            inner: Arc::clone(inner),
            state: Mutex::new(State { plan, requests: 0, late: Vec::new() }),
            stopped: Notify::new(),
            go: Notify::new(),
            stop_at,
            crossing: None,
        }
    }

    /// Random fates by a seed, at most `most` of them bad, so that every run ends.
    /// `crossing` is who rewrites the manifest now and then.
    pub(super) fn random(crossing: UploadContext, rig: &Rig, seed: u64, most: u32) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut left = most;
        let plan = move |_, request: Option<&Request>| {
            let dice = random.next_u32();
            if left == 0 || dice % 3 != 0 {
                return Fate::Done;
            }
            left -= 1;
            let later = 1 + random.next_u32() % 6;
            match (request, dice / 3 % 8) {
                (None, 0..4) => Fate::Refused,
                (None, _) | (_, 0) => Fate::LostBefore,
                (_, 1 | 2) => Fate::LostAfter,
                (_, 3) => Fate::Late(later),
                (_, 4) => Fate::Twice(later),
                (_, 5) => Fate::Full,
                (_, 6) => Fate::Crossed,
                _ => Fate::Refused,
            }
        };
        let mut store = Self::stopping(&rig.memory, Box::new(plan), None);
        store.crossing = Some(crossing);
        Arc::new(store)
    }

    async fn cross(&self) {
        let Some(context) = &self.crossing else {
            return;
        };
        if let Some((mut manifest, etag)) = context.log.manifest().await.unwrap() {
            manifest.version += 1;
            let entropy = context.entropy.as_ref();
            context.log.replace(&manifest, Some(&etag), entropy).await.unwrap();
        }
    }

    /// Everything that is still on its way arrives.
    pub(super) async fn settle(&self) {
        let late = std::mem::take(&mut self.state.lock().unwrap().late);
        for (_, request) in late {
            drop(self.apply(request).await);
        }
    }

    async fn fate(&self, request: Option<&Request>) -> Fate {
        let (number, fate, due) = {
            let mut state = self.state.lock().unwrap();
            let number = state.requests;
            state.requests += 1;
            let fate = (state.plan)(number, request);
            let (due, late) = std::mem::take(&mut state.late)
                .into_iter()
                .partition::<Vec<_>, _>(|(at, _)| *at <= number);
            state.late = late;
            (number, fate, due)
        };
        for (_, request) in due {
            drop(self.apply(request).await);
        }
        if self.stop_at == Some(number) {
            self.stopped.notify_one();
            self.go.notified().await;
        }
        tokio::task::yield_now().await; // requests of one machine overtake each other here
        fate
    }

    async fn apply(&self, request: Request) -> Result<Option<ETag>> {
        match request {
            Request::Stage(name, block, body) => {
                self.inner.stage_block(&name, block, body).await.map(|()| None)
            }
            Request::Commit(name, blocks, condition) => {
                self.inner.commit_blocks(&name, &blocks, condition).await.map(Some)
            }
            Request::Put(name, body, condition) => {
                self.inner.put(&name, body, condition).await.map(Some)
            }
            Request::Delete(name, condition) => {
                self.inner.delete(&name, condition).await.map(|()| None)
            }
        }
    }

    async fn change(&self, request: Request) -> Result<Option<ETag>> {
        let name = match &request {
            Request::Stage(name, ..)
            | Request::Commit(name, ..)
            | Request::Put(name, ..)
            | Request::Delete(name, _) => name.clone(),
        };
        let fate = self.fate(Some(&request)).await;
        let postpone = |by: u32, request: Request| {
            let mut state = self.state.lock().unwrap();
            let at = state.requests + by;
            state.late.push((at, request));
        };
        match fate {
            Fate::Done => self.apply(request).await,
            Fate::Refused => Err(transient(&name)),
            Fate::Full => Err(full(&name)),
            Fate::LostBefore => Err(lost(&name)),
            Fate::LostAfter => {
                drop(self.apply(request).await);
                Err(lost(&name))
            }
            Fate::Late(by) => {
                postpone(by, request);
                Err(lost(&name))
            }
            Fate::Crossed => {
                self.cross().await;
                self.apply(request).await
            }
            Fate::Twice(by) => {
                postpone(by, request.clone());
                self.apply(request).await
            }
        }
    }

    async fn reading(&self, name: &str) -> Result<()> {
        let name = ObjectName::new(name.trim_end_matches('/')).unwrap();
        match self.fate(None).await {
            Fate::Done => Ok(()),
            Fate::Refused => Err(transient(&name)),
            _ => Err(lost(&name)),
        }
    }
}

fn why() -> std::io::Error {
    std::io::Error::other("injected")
}

fn transient(name: &ObjectName) -> StoreError {
    StoreError::Transient {
        store: "hostile".into(),
        name: name.to_string(),
        source: Arc::new(why()),
    }
}

fn lost(name: &ObjectName) -> StoreError {
    StoreError::Ambiguous {
        store: "hostile".into(),
        name: name.to_string(),
        source: Arc::new(why()),
    }
}

fn full(name: &ObjectName) -> StoreError {
    StoreError::Full { store: "hostile".into(), name: name.to_string(), source: Arc::new(why()) }
}

#[async_trait]
impl Store for Hostile {
    fn describe(&self) -> String {
        "hostile".to_owned()
    }
    async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
        let request = Request::Stage(name.clone(), block, body);
        self.change(request).await.map(|_| ())
    }
    async fn commit_blocks(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag> {
        let request = Request::Commit(name.clone(), blocks.to_vec(), condition);
        self.change(request).await.map(Option::unwrap)
    }
    async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
        let request = Request::Put(name.clone(), body, condition);
        self.change(request).await.map(Option::unwrap)
    }
    // Nothing of this room is leased: straight through.
    async fn put_leased(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: Condition,
        lease: LeaseId,
    ) -> Result<ETag> {
        self.inner.put_leased(name, body, condition, lease).await
    }
    async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        self.reading(name.as_str()).await?;
        self.inner.read(name).await
    }
    async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        self.reading(name.as_str()).await?;
        self.inner.read_range(name, offset, length).await
    }
    async fn properties(&self, name: &ObjectName) -> Result<Properties> {
        self.reading(name.as_str()).await?;
        self.inner.properties(name).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.reading(prefix).await?;
        self.inner.list(prefix).await
    }
    async fn delete(&self, name: &ObjectName, condition: Condition) -> Result<()> {
        let request = Request::Delete(name.clone(), condition);
        self.change(request).await.map(|_| ())
    }

    // Page blobs are not this room's: straight through.
    async fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        self.inner.create_pages(name, size).await
    }
    async fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        self.inner.write_pages(name, writes, guard).await
    }
    async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
        self.inner.flush_pages(name, guard).await
    }
    async fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        self.inner.snapshot(name, label, guard).await
    }
    async fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        self.inner.list_snapshots(name).await
    }
    async fn read_pages(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        self.inner.read_pages(name, snapshot, offset, length).await
    }
    async fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>> {
        self.inner.page_ranges(name, snapshot, offset, length).await
    }
    async fn page_properties(&self, name: &ObjectName) -> Result<Properties> {
        self.inner.page_properties(name).await
    }
    async fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()> {
        self.inner.delete_snapshot(name, snapshot).await
    }
    async fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        self.inner.delete_pages(name, lease).await
    }
    async fn raise_sequence_number(
        &self,
        name: &ObjectName,
        number: u64,
        lease: LeaseId,
    ) -> Result<()> {
        self.inner.raise_sequence_number(name, number, lease).await
    }
    async fn acquire_lease(&self, name: &ObjectName, lease: LeaseId, seconds: u32) -> Result<()> {
        self.inner.acquire_lease(name, lease, seconds).await
    }
    async fn renew_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        self.inner.renew_lease(name, lease).await
    }
    async fn break_lease(&self, name: &ObjectName) -> Result<()> {
        self.inner.break_lease(name).await
    }
    async fn release_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        self.inner.release_lease(name, lease).await
    }
}
