//! What a commit of several machines' records does to pipelines and links.

use std::sync::Mutex;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::watch;

use super::*;
use crate::ingest::{CreditTerms, LinkSetup, StreamState};
use crate::model::{Change, DiskIndex, Extent, Generation, MachineId, Record, Sequence};
use crate::observe::Metrics;

struct Machine {
    link: Arc<MachineLink>,
    queue: Arc<Mutex<mpsc::UnboundedReceiver<Durable>>>,
}

fn machine(routes: &Routes, name: &str, metrics: &Arc<Metrics>) -> Machine {
    let machine: MachineId = name.parse().unwrap();
    let (key, metrics) = (MachineKey::of(&machine), metrics.machine(&machine));
    let link = MachineLink::new(LinkSetup {
        machine,
        server: "ps-1".parse().unwrap(),
        generation: Generation(1),
        stream: StreamState::default(),
        published: Sequence::ZERO,
        bookmark_interval_ms: 0,
        appends: mpsc::channel(1).0,
        credit: watch::channel(CreditTerms::FREE).1,
        metrics: Arc::clone(&metrics),
    });
    let (pipeline, queue) = mpsc::unbounded_channel();
    routes.add(key, Route { link: Arc::downgrade(&link), pipeline, metrics });
    Machine { link, queue: Arc::new(queue.into()) }
}

fn record(machine: &str, sequence: u64) -> Durable {
    let extent = Extent::new(sequence * 512, 512, 512).unwrap();
    let payload = vec![1; 512].into();
    let change = Change::Write { disk: DiskIndex(0), extent, payload };
    let key = MachineKey::of(&machine.parse().unwrap());
    Durable::never_written(key, Record { sequence: Sequence(sequence), change })
}

/// Looks at a queue whenever it is woken.
struct Looks {
    queue: Arc<Mutex<mpsc::UnboundedReceiver<Durable>>>,
    seen: Mutex<Vec<usize>>,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let waiting = self.queue.lock().unwrap().len();
        self.seen.lock().unwrap().push(waiting);
    }
}

#[test]
fn records_are_handed_on_in_order_and_then_their_agents_hear_of_the_newest() {
    let (routes, metrics) = (Routes::default(), Arc::new(Metrics::default()));
    let [a, b] = ["a", "b"].map(|name| machine(&routes, name, &metrics));
    let looks = Arc::new(Looks { queue: Arc::clone(&a.queue), seen: Mutex::default() });
    let waker = Waker::from(Arc::clone(&looks));
    let mut heard = std::pin::pin!(a.link.durable_at(Sequence(4)));
    assert!(heard.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let records =
        [("a", 1), ("a", 2), ("b", 1), ("nobody", 1), ("a", 3), ("a", 4), ("b", 2), ("b", 3)];
    routes.durable(records.iter().map(|(machine, sequence)| record(machine, *sequence)).collect());
    assert_eq!(*looks.seen.lock().unwrap(), [4], "all four were there when it heard, once");
    assert_eq!(heard.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    for (machine, name, count) in [(&a, "a", 4), (&b, "b", 3)] {
        let mut queue = machine.queue.lock().unwrap();
        let got = std::iter::from_fn(|| queue.try_recv().ok()).map(|got| got.sequence().0);
        assert!(got.eq(1..=count), "{name}");
        let metrics = metrics.machine(&name.parse().unwrap());
        assert_eq!(metrics.watermarks().durable, Sequence(count));
        assert_eq!(metrics.backlog_bytes.load(Ordering::Relaxed), count * 512);
    }
}

#[test]
fn without_a_pipeline_nothing_is_acknowledged_and_a_link_that_is_gone_disturbs_nobody() {
    let (routes, metrics) = (Routes::default(), Arc::new(Metrics::default()));
    let [a, b] = ["a", "b"].map(|name| machine(&routes, name, &metrics));
    let (queue, link) = (a.queue, b.link);
    drop((a.link, b.queue));
    routes.durable(vec![record("b", 1), record("a", 1)]);
    assert_eq!(queue.lock().unwrap().len(), 1);
    let mut heard = std::pin::pin!(link.durable_at(Sequence(1)));
    assert!(heard.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(metrics.machine(&"b".parse().unwrap()).backlog_bytes.load(Ordering::Relaxed), 0);
    routes.clear();
    routes.durable(vec![record("a", 2)]);
    assert_eq!(queue.lock().unwrap().len(), 1, "no route, no record");
}
