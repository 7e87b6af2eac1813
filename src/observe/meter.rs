//! CPU time of asynchronous work, counted to the stage that it is done for.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use super::{CpuTimer, Metrics, Stage};

tokio::task_local! {
    /// For whom the present task works.
    static METER: Meter;
}

/// Counts CPU time to one stage.
#[derive(Clone, Debug)]
pub struct Meter {
    metrics: Arc<Metrics>,
    stage: Stage,
}

impl Meter {
    /// Of `stage` in `metrics`.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>, stage: Stage) -> Self {
        Self { metrics: Arc::clone(metrics), stage }
    }

    /// Counts every poll of `future`, and the work that it hands to other threads by
    /// [`Meter::carry`].
    pub async fn run<T>(self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(METER.scope(self.clone(), future));
        poll_fn(|context| self.time(|| future.as_mut().poll(context))).await
    }

    /// `work`, counted to the caller's stage on whatever thread it runs.
    pub fn carry<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
        let meter = METER.try_with(Clone::clone).ok();
        move || match meter {
            Some(meter) => meter.time(work),
            None => work(),
        }
    }

    fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let timer = CpuTimer::start();
        let result = work();
        self.metrics.cpu(self.stage, timer.spent());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burn() {
        let timer = CpuTimer::start();
        while timer.spent().as_millis() < 5 {
            std::hint::spin_loop();
        }
    }

    fn seconds(metrics: &Metrics, stage: Stage) -> f64 {
        metrics.stage(stage).2
    }

    #[tokio::test]
    async fn work_is_counted_to_its_stage_on_whatever_thread() {
        let metrics = Arc::new(Metrics::default());
        let work = async {
            burn();
            tokio::task::yield_now().await;
            tokio::task::spawn_blocking(Meter::carry(burn)).await.unwrap();
        };
        Meter::new(&metrics, Stage::Upload).run(work).await;
        tokio::task::spawn_blocking(Meter::carry(burn)).await.unwrap(); // for nobody
        let spent = seconds(&metrics, Stage::Upload);
        assert!((0.010..0.015).contains(&spent), "{spent}");
        assert!(Stage::ALL.into_iter().filter(|s| seconds(&metrics, *s) > 0.0).count() == 1);
    }
}
