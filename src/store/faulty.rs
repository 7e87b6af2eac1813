//! A store that fails on purpose, for tests of everything that uses one.
//!
//! Wraps any store. [`Rule`]s say which calls fail and how; [`Faulty::shake`] adds faults at
//! random, reproducibly: whether a call fails depends only on the seed, its kind, its object and
//! how often that was called before, never on how calls of several tasks interleave.
//!
//! ```ignore
//! let store = Faulty::new(memory);
//! store.add(Rule::on(Op::CommitBlocks, Fault::AnswerLost).times(1));
//! store.add(Rule::on(Op::Put, Fault::Full).named("/manifest").after(3));
//! ```

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{
    BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, Store, StoreError,
};

/// One kind of call.
#[allow(missing_docs, reason = "named as the trait's methods")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    StageBlock,
    CommitBlocks,
    Put,
    Read,
    ReadRange,
    Properties,
    List,
    Delete,
    CreatePages,
    WritePages,
    FlushPages,
    Snapshot,
    ListSnapshots,
    ReadPages,
    PageRanges,
    PageProperties,
    DeleteSnapshot,
    DeletePages,
    RaiseSequenceNumber,
    AcquireLease,
    RenewLease,
    BreakLease,
    ReleaseLease,
}

/// How a call fails.
#[derive(Clone, Debug)]
pub enum Fault {
    /// `Transient`: no effect.
    Unreachable,
    /// `Ambiguous`, and the effect did not happen.
    RequestLost,
    /// `Ambiguous`, and the effect did happen. A call that fails by itself fails as it does.
    AnswerLost,
    /// `Full`: no effect.
    Full,
    /// `Io`: no effect.
    Io,
    /// `Throttled` with this `Retry-After`: no effect.
    Throttled(Option<Duration>),
    /// The call waits at the gate before it has its effect, then goes on.
    Hold(Gate),
}

/// Holds calls until it is opened: a paused owner, a late request.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<(u64, bool)>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new((0, false))))
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody pass, from now on.
    pub fn open(&self) {
        self.0.send_modify(|(_, open)| *open = true);
    }

    /// Waits until `count` calls have come to the gate.
    pub async fn arrived(&self, count: u64) {
        self.wait(|(arrived, _)| *arrived >= count).await;
    }

    async fn pass(&self) {
        self.0.send_modify(|(arrived, _)| *arrived += 1);
        self.wait(|(_, open)| *open).await;
    }

    async fn wait(&self, until: impl FnMut(&(u64, bool)) -> bool) {
        let waited = self.0.subscribe().wait_for(until).await.is_ok();
        assert!(waited, "the sender lives as long as this gate");
    }
}

/// Which calls fail, and how. The first rule that matches a call decides.
#[derive(Clone, Debug)]
pub struct Rule {
    op: Option<Op>,
    part: String,
    skip: u64,
    left: u64,
    fault: Fault,
}

impl Rule {
    /// Every call of one kind.
    #[must_use]
    pub fn on(op: Op, fault: Fault) -> Self {
        Self { op: Some(op), ..Self::any(fault) }
    }

    /// Every call.
    #[must_use]
    pub fn any(fault: Fault) -> Self {
        Self { op: None, part: String::new(), skip: 0, left: u64::MAX, fault }
    }

    /// Only of objects whose name contains `part` (for a listing: its prefix).
    #[must_use]
    pub fn named(mut self, part: &str) -> Self {
        part.clone_into(&mut self.part);
        self
    }

    /// The first `count` matching calls succeed.
    #[must_use]
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// At most `count` calls fail.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.left = count;
        self
    }

    /// Whether this call fails; counts it.
    fn fires(&mut self, op: Op, name: &str) -> bool {
        if self.op.is_some_and(|wanted| wanted != op) || !name.contains(&self.part) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let fires = self.left > 0;
        self.left = self.left.saturating_sub(1);
        fires
    }
}

/// The wrapper.
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    shake: Option<(u64, u16)>,
    calls: HashMap<(Op, String), u64>,
}

impl Plan {
    fn decide(&mut self, op: Op, name: &str) -> Option<Fault> {
        let count = self.calls.entry((op, name.to_owned())).or_default();
        *count += 1;
        let nth = *count;
        if let Some(rule) = self.rules.iter_mut().find_map(|rule| {
            let fires = rule.fires(op, name);
            fires.then(|| rule.fault.clone())
        }) {
            return Some(rule);
        }
        let (seed, per_mille) = self.shake?;
        let mut hasher = std::hash::DefaultHasher::new(); // fixed keys: the same in every run
        (seed, op, name, nth).hash(&mut hasher);
        let drawn = hasher.finish();
        (drawn % 1000 < u64::from(per_mille)).then(|| match (drawn / 1000) % 3 {
            0 => Fault::Unreachable,
            1 => Fault::RequestLost,
            _ => Fault::AnswerLost,
        })
    }
}

impl Faulty {
    /// A wrapper that does not fail yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let plan = Mutex::default();
        Self { inner, plan }
    }

    /// Adds a rule after those there are.
    pub fn add(&self, rule: Rule) {
        self.plan().rules.push(rule);
    }

    /// From now on `per_mille` of all calls fail: unreachable, request lost or answer lost.
    pub fn shake(&self, seed: u64, per_mille: u16) {
        self.plan().shake = Some((seed, per_mille));
    }

    /// No more faults. Calls that wait at a gate still wait.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.rules.clear();
        plan.shake = None;
    }

    /// How many calls of this kind there were on objects whose name contains `part`.
    #[must_use]
    pub fn calls(&self, op: Op, part: &str) -> u64 {
        let plan = self.plan();
        let matching = plan.calls.iter().filter(|((of, name), _)| *of == op && name.contains(part));
        matching.map(|(_, count)| count).sum()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `call` with the fault that the plan has for it. `call` does nothing until awaited.
    async fn around<T>(
        &self,
        op: Op,
        name: &str,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let decided = self.plan().decide(op, name);
        let (store, name) = (self.describe(), name.to_owned());
        let cause = |kind, text: &str| Arc::new(Error::new(kind, format!("injected: {text}")));
        match decided {
            None => call.await,
            Some(Fault::Hold(gate)) => {
                gate.pass().await;
                call.await
            }
            Some(Fault::Unreachable) => Err(StoreError::Transient {
                store,
                name,
                source: cause(ErrorKind::ConnectionRefused, "unreachable"),
            }),
            Some(Fault::RequestLost) => Err(StoreError::Ambiguous {
                store,
                name,
                source: cause(ErrorKind::TimedOut, "request lost"),
            }),
            Some(Fault::AnswerLost) => {
                call.await?;
                Err(StoreError::Ambiguous {
                    store,
                    name,
                    source: cause(ErrorKind::TimedOut, "answer lost"),
                })
            }
            Some(Fault::Full) => Err(StoreError::Full {
                store,
                name,
                source: cause(ErrorKind::StorageFull, "no space"),
            }),
            Some(Fault::Throttled(retry_after)) => {
                Err(StoreError::Throttled { store, name, retry_after })
            }
            Some(Fault::Io) => Err(StoreError::Io {
                store,
                name,
                action: "doing what a test forbids",
                source: cause(ErrorKind::Other, "input/output error"),
            }),
        }
    }
}

/// Every method: the same call on the inner store, through the plan.
macro_rules! forward {
    ($($op:ident $method:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        #[async_trait]
        impl Store for Faulty {
            fn describe(&self) -> String {
                format!("faulty {}", self.inner.describe())
            }

            async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
                self.around(Op::List, prefix, self.inner.list(prefix)).await
            }

            $(async fn $method(&self, name: &ObjectName, $($arg: $kind),*) -> Result<$out> {
                let call = self.inner.$method(name, $($arg),*);
                self.around(Op::$op, name.as_str(), call).await
            })*
        }
    };
}

forward! {
    StageBlock stage_block(block: BlockId, body: Bytes) -> ();
    CommitBlocks commit_blocks(blocks: &[BlockId], condition: Condition) -> ETag;
    Put put(body: Bytes, condition: Condition) -> ETag;
    Put put_leased(body: Bytes, condition: Condition, lease: LeaseId) -> ETag;
    Read read() -> (Bytes, ETag);
    ReadRange read_range(offset: u64, length: u64) -> Bytes;
    Properties properties() -> Properties;
    Delete delete(condition: Condition) -> ();
    CreatePages create_pages(size: u64) -> ();
    WritePages write_pages(writes: &[PageWrite], guard: &PageGuard) -> ();
    FlushPages flush_pages(guard: &PageGuard) -> ();
    Snapshot snapshot(label: &str, guard: &PageGuard) -> SnapshotId;
    ListSnapshots list_snapshots() -> Vec<SnapshotInfo>;
    ReadPages read_pages(snapshot: Option<&SnapshotId>, offset: u64, length: u64) -> Bytes;
    PageRanges page_ranges(snapshot: Option<&SnapshotId>, offset: u64, length: u64) -> Vec<PageRange>;
    PageProperties page_properties() -> Properties;
    DeleteSnapshot delete_snapshot(snapshot: &SnapshotId) -> ();
    DeletePages delete_pages(lease: Option<LeaseId>) -> ();
    RaiseSequenceNumber raise_sequence_number(number: u64, lease: LeaseId) -> ();
    AcquireLease acquire_lease(lease: LeaseId, seconds: u32) -> ();
    RenewLease renew_lease(lease: LeaseId) -> ();
    BreakLease break_lease() -> ();
    ReleaseLease release_lease(lease: LeaseId) -> ();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::System;
    use crate::store::{Class, Memory};

    fn faulty() -> (Faulty, ObjectName) {
        let memory = Arc::new(Memory::new(System::clock()));
        (Faulty::new(memory), ObjectName::new("a/b").unwrap())
    }

    #[tokio::test]
    async fn rules_fail_the_calls_they_name() {
        let (store, name) = faulty();
        let put = || store.put(&name, Bytes::from_static(b"x"), Condition::Absent);
        store.add(Rule::on(Op::Put, Fault::Full).named("other"));
        store.add(Rule::on(Op::Put, Fault::RequestLost).times(1));
        store.add(Rule::on(Op::Put, Fault::AnswerLost).times(1));
        store.add(Rule::on(Op::Read, Fault::Unreachable).after(1));
        assert!(matches!(put().await, Err(StoreError::Ambiguous { .. })));
        assert!(store.read(&name).await.is_err(), "the request was lost");
        assert!(matches!(put().await, Err(StoreError::Ambiguous { .. })));
        assert!(matches!(put().await, Err(StoreError::AlreadyExists { .. })));
        let class = store.read(&name).await.map_err(|error| error.class());
        assert_eq!(class, Err(Class::Retry));
        store.heal();
        assert_eq!(store.read(&name).await.unwrap().0, "x");
        assert_eq!((store.calls(Op::Put, ""), store.calls(Op::Read, "b")), (3, 3));
    }

    #[tokio::test]
    async fn a_held_call_has_its_effect_when_the_gate_opens() {
        let (store, name) = faulty();
        let gate = Gate::new();
        store.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).times(1));
        let held = store.put(&name, Bytes::from_static(b"late"), Condition::Always);
        let others = async {
            gate.arrived(1).await;
            let early = Bytes::from_static(b"early");
            store.put(&name, early, Condition::Always).await.unwrap();
            gate.open();
        };
        let (held, ()) = tokio::join!(held, others);
        held.unwrap();
        assert_eq!(store.read(&name).await.unwrap().0, "late");
    }

    #[tokio::test]
    async fn the_same_seed_shakes_the_same_calls() {
        let run = async |seed| {
            let (store, name) = faulty();
            store.shake(seed, 300);
            let mut failed = Vec::new();
            for _ in 0..200 {
                failed.push(store.put(&name, Bytes::new(), Condition::Always).await.is_err());
            }
            failed
        };
        let first = run(7).await;
        assert_eq!(first, run(7).await);
        assert_ne!(first, run(8).await);
        let count = first.iter().filter(|failed| **failed).count();
        assert!((30..90).contains(&count), "{count} of 200 at 30 %");
    }
}
