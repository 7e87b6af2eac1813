//! What this room's tests share: a clock that the test moves, settings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::clock::{Clock, System};
use crate::model::Timestamp;
use crate::observe::Metrics;
use crate::settings::{RateSchedule, ServerSettings, StreamBounds, load_server};
use crate::upload::Uplink;

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
