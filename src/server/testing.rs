//! What this room's tests share: a clock that the test moves, settings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::clock::{Clock, System};
use crate::model::{MachineId, ServerId, Timestamp};
use crate::observe::Metrics;
use crate::settings::{RateSchedule, ServerSettings, StreamBounds, load_server};
use crate::store::LeaseId;
use crate::upload::Uplink;
use crate::vault::{ServerDocument, Vault};

use super::peers::reach::Reach;
use super::peers::{Peers, PeersSetup, name};

/// Polls that everything takes to come to rest: no task waits for anything but the clock then.
const SETTLED: usize = 200;

/// Time stands still while anybody works.
#[derive(Default)]
pub(super) struct Hands {
    now: Mutex<Duration>,
    sleepers: Mutex<BTreeMap<(Duration, u64), oneshot::Sender<()>>>,
}

#[async_trait]
impl Clock for Hands {
    fn wall(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000).plus_seconds(self.monotonic().as_secs() as i64)
    }
    fn monotonic(&self) -> Duration {
        *self.now.lock().unwrap()
    }
    async fn sleep(&self, duration: Duration) {
        let at = self.monotonic() + duration;
        let (wake, woken) = oneshot::channel();
        {
            let mut sleepers = self.sleepers.lock().unwrap();
            let nth = sleepers.last_key_value().map_or(0, |((_, nth), _)| *nth) + 1;
            let nth = (nth..).find(|nth| !sleepers.contains_key(&(at, *nth))).unwrap();
            sleepers.insert((at, nth), wake);
        }
        drop(woken.await);
    }
}

impl Hands {
    pub(super) async fn advance(&self, by: Duration) {
        let end = self.monotonic() + by;
        loop {
            for _ in 0..SETTLED {
                tokio::task::yield_now().await;
            }
            let next = {
                let mut sleepers = self.sleepers.lock().unwrap();
                sleepers.retain(|_, sleeper| !sleeper.is_closed());
                let first = sleepers.first_entry().filter(|first| first.key().0 <= end);
                first.map(|first| first.remove_entry())
            };
            let Some(((at, _), sleeper)) = next else { break };
            *self.now.lock().unwrap() = at;
            let _ = sleeper.send(());
        }
        *self.now.lock().unwrap() = end;
    }
}

/// The network between process servers: everybody answers but those that are down.
#[derive(Default)]
pub(super) struct Network {
    pub(super) down: Mutex<BTreeSet<String>>,
    /// Machine, whom it was asked of, for whom.
    pub(super) asked: Mutex<Vec<(MachineId, String, ServerId)>>,
}

#[async_trait]
impl Reach for Network {
    async fn dial(&self, address: &str) -> Result<(), String> {
        match self.down.lock().unwrap().contains(address) {
            true => Err("connection refused".to_owned()),
            false => Ok(()),
        }
    }

    async fn ask_for(
        &self,
        address: &str,
        machine: &MachineId,
        to: &ServerId,
    ) -> Result<(), String> {
        let asked = (machine.clone(), address.to_owned(), to.clone());
        self.asked.lock().unwrap().push(asked);
        Ok(())
    }
}

/// A process server of this name, at `<name>:9443`.
pub(super) fn server_document(server: &str, cache: u8) -> ServerDocument {
    ServerDocument {
        server: server.parse().unwrap(),
        address: format!("{server}:9443"),
        started: Timestamp(0),
        incarnation: "1".repeat(32),
        version: "1".to_owned(),
        cache: hex::encode([cache; 16]),
        leaving: false,
        load: Default::default(),
    }
}

/// That server with its name taken.
pub(super) async fn peers(
    server: &str,
    vault: Vault,
    clock: &Arc<Hands>,
    metrics: &Arc<Metrics>,
    network: &Arc<Network>,
) -> Arc<Peers> {
    let cache = server.bytes().fold(0, u8::wrapping_add);
    let (document, lease) = (server_document(server, cache), LeaseId([cache; 16]));
    name::take(&vault, &document, lease, false).await.unwrap();
    let (clock, metrics) = (Arc::clone(clock) as _, Arc::clone(metrics));
    let reach = Arc::clone(network) as _;
    Peers::new(PeersSetup { vault, clock, metrics, reach, document, lease })
}

/// The defaults.
pub(super) fn settings() -> ServerSettings {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "site = \"s\"\nserver = \"ps-1\"\nstore = \"dir:x\"\nadvertise = \"ps-1:9443\"";
    std::fs::write(file.path(), text).unwrap();
    load_server(file.path()).unwrap()
}

/// Four streams and no limit.
pub(super) fn uplink(clock: &Arc<Hands>, metrics: &Arc<Metrics>) -> Arc<Uplink> {
    let bounds = StreamBounds { min: 4, max: 4 };
    let (clock, entropy) = (Arc::clone(clock) as _, System::entropy());
    Uplink::new(bounds, RateSchedule::default(), clock, entropy, Arc::clone(metrics))
}
