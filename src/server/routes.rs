//! The way of durable records from the shards' logs to their machines' pipelines.
//!
//! Owns: which machine has a pipeline, and that a record is handed to it before its agent hears of
//! it. Does not own: links and pipelines (`machines`). It must hold no link, or no log would ever
//! close.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use tokio::sync::mpsc;

use crate::cache::Durable;
use crate::ingest::MachineLink;
use crate::model::MachineKey;
use crate::observe::MachineMetrics;

/// Where a machine's durable records go.
pub(super) struct Route {
    pub(super) link: Weak<MachineLink>,
    pub(super) pipeline: mpsc::UnboundedSender<Durable>,
    pub(super) metrics: Arc<MachineMetrics>,
}

/// The routes of all machines. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Routes(Arc<RwLock<HashMap<MachineKey, Route>>>);

impl Routes {
    /// From now on this machine's records go there.
    pub(super) fn add(&self, machine: MachineKey, route: Route) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(machine, route);
    }

    /// Closes the queue of a machine's pipeline, if it is `link`'s.
    pub(super) fn remove(&self, machine: MachineKey, link: &Arc<MachineLink>) {
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if routes.get(&machine).is_some_and(|route| route.link.as_ptr() == Arc::as_ptr(link)) {
            routes.remove(&machine);
        }
    }

    /// Closes the pipelines' queues.
    pub(super) fn clear(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Hands records on, in order, then lets the agents know. Mostly many of one machine follow each
    /// other: what is asked is asked once for each such run.
    pub(super) fn durable(&self, records: Vec<Durable>) {
        let routes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut newest = Vec::new();
        let mut records = records.into_iter();
        while let Some((machine, length, bytes)) = run(records.as_slice()) {
            let last = records.as_slice()[length - 1].through();
            let run = records.by_ref().take(length);
            let Some(route) = routes.get(&machine) else {
                run.for_each(drop);
                continue;
            };
            // A pipeline takes records until its route is removed, also one that was fenced or is stuck:
            // this one was torn down, and what nobody holds must not be acknowledged.
            if route.pipeline.is_closed() {
                tracing::error!(?machine, ?last, "the pipeline is gone: not acknowledged");
                run.for_each(drop);
                continue;
            }
            route.metrics.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
            let mut held = true; // each is sent: what is left of a run would be taken for the next one
            for record in run {
                held &= route.pipeline.send(record).is_ok();
            }
            if held {
                newest.push((route, last));
            }
        }
        // The newest first: after it an older one of the same machine is no news.
        for (route, last) in newest.into_iter().rev() {
            if let Some(link) = route.link.upgrade() {
                link.made_durable(last);
            }
        }
    }
}

/// The machine of the first record, how many in a row are its, and their bytes.
fn run(records: &[Durable]) -> Option<(MachineKey, usize, u64)> {
    let machine = records.first()?.machine();
    let run = records.iter().take_while(|record| record.machine() == machine);
    let (length, bytes) =
        run.fold((0, 0), |(length, bytes), record| (length + 1, bytes + record.payload_bytes()));
    Some((machine, length, bytes))
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
