//! What is taken for a hang, and what is not.

use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use async_trait::async_trait;

use super::beats::Beats;
use super::catchup;
use super::stream_tests::{CHUNK, Machine, ordered};
use super::watchdog::Watch;
use crate::clock::Clock;
use crate::model::{DiskIndex, Timestamp};
use crate::nbd::Export;

/// Four looks without a move are too many.
const PAUSE: Duration = Duration::from_secs(1);
const MANY: u32 = 20;

/// Every sleep ends at the next poll.
struct Polled;

#[async_trait]
impl Clock for Polled {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    async fn sleep(&self, _: Duration) {
        tokio::task::yield_now().await;
    }
}

/// Many looks, each behind the return of the probe; the first thing that was found to hang.
fn looks(watch: &mut Watch, machine: &Machine, beats: &Beats) -> Option<String> {
    (0..MANY).find_map(|_| {
        while !watch.is_home() {
            std::thread::yield_now();
        }
        watch.look(&machine.stream.disks, beats, String::new)
    })
}

#[tokio::test]
async fn whoever_waits_for_a_disk_does_not_hang_and_whoever_waits_for_us_does() {
    let (machine, beats, mut watch) = (ordered(1 << 20), Beats::default(), Watch::new(PAUSE));
    assert_eq!(looks(&mut watch, &machine, &beats), None, "nothing is asked for");
    let write = |offset| machine.exports[0].write(offset, vec![7; 1024].into(), false);
    let waiting = |count| {
        while machine.stream.disks[0].locks.ranges().len() < count {
            std::thread::yield_now();
        }
    };
    let (begun, begins) = channel();
    let (answer, answered) = channel::<()>();
    let hook = Box::new(move || {
        begun.send(()).unwrap();
        answered.recv().unwrap();
    });
    *machine.sources[0].hook.lock().unwrap() = Some(hook);
    std::thread::scope(|scope| {
        let answer = answer; // gone with a failure, so that nobody waits for it
        scope.spawn(|| write(0).unwrap());
        begins.recv().unwrap();
        assert_eq!(looks(&mut watch, &machine, &beats), None, "the disk has not answered");
        scope.spawn(|| write(512).unwrap());
        waiting(2);
        assert_eq!(looks(&mut watch, &machine, &beats), None, "it waits for the same");
        answer.send(()).unwrap();
    });
    let held = machine.stream.disks[0].locks.hold(0..512);
    std::thread::scope(|scope| {
        let held = held;
        scope.spawn(|| write(0).unwrap());
        waiting(2);
        let hung = looks(&mut watch, &machine, &beats);
        assert_eq!(hung.as_deref(), Some("a request to disk d0"), "for nobody outside");
        drop(held);
    });
    assert_eq!(looks(&mut watch, &machine, &beats), None);
}

#[tokio::test]
async fn a_lock_that_is_never_given_back_is_a_hang() {
    let (machine, beats, mut watch) = (ordered(1 << 20), Beats::default(), Watch::new(PAUSE));
    let disks = &machine.stream.disks;
    let lock = Arc::new(Mutex::new(()));
    let probe = || {
        let lock = Arc::clone(&lock);
        move || format!("{:?}", lock.lock().unwrap())
    };
    let held = lock.lock().unwrap();
    let hung = (0..MANY).find_map(|_| watch.look(disks, &beats, probe()));
    assert_eq!(hung.as_deref(), Some("a lock"));
    // Excused while a disk does not answer: the lock may be held until it does.
    let asking = disks[1].turnover.asking();
    assert_eq!(watch.look(disks, &beats, probe()), hung, "it has only just been asked");
    for _ in 0..MANY {
        assert_eq!(watch.look(disks, &beats, probe()), None);
    }
    drop(asking);
    drop(held);
    assert_eq!(looks(&mut watch, &machine, &beats), None);
}

#[tokio::test]
async fn a_task_that_does_not_come_back_from_a_call_hangs_and_one_that_awaits_does_not() {
    let (machine, beats, mut watch) = (ordered(1 << 20), Beats::default(), Watch::new(PAUSE));
    let clock: Arc<dyn Clock> = Arc::new(Polled);
    let mut context = Context::from_waker(Waker::noop());
    {
        let mut awaits = pin!(beats.of("awaits", &clock, pending::<()>()));
        for _ in 0..MANY {
            assert!(awaits.as_mut().poll(&mut context).is_pending());
            assert_eq!(watch.look(&[], &beats, String::new), None);
            while !watch.is_home() {
                std::thread::yield_now();
            }
        }
        // Not polled: the call of its runtime does not come back.
        let hung = looks(&mut watch, &machine, &beats);
        assert_eq!(hung.as_deref(), Some("the task awaits"));
    }
    for (panics, hung) in [(true, Some("the task ends")), (false, None)] {
        let (beats, mut watch) = (Beats::default(), Watch::new(PAUSE));
        let work = async { assert!(!panics, "planned") };
        let mut ends = pin!(beats.of("ends", &clock, work));
        let polled = catch_unwind(AssertUnwindSafe(|| ends.as_mut().poll(&mut context)));
        assert_eq!(polled.is_err(), panics);
        assert_eq!(looks(&mut watch, &machine, &beats).as_deref(), hung);
    }
}

#[tokio::test]
async fn a_task_whose_call_panicked_has_not_ended_as_it_may() {
    let (machine, beats, mut watch) = (ordered(1 << 20), Beats::default(), Watch::new(PAUSE));
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DiskIndex(0), 0..CHUNK, "to be read").unwrap();
    // In the middle of the read.
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(|| panic!("planned")));
    let clock: Arc<dyn Clock> = Arc::new(Polled);
    let run = catchup::run(Arc::clone(&machine.stream), Arc::clone(&clock));
    let ended = tokio::spawn(beats.of("catch-up", &clock, run)).await;
    assert!(ended.is_err_and(|error| error.is_panic()));
    let hung = looks(&mut watch, &machine, &beats);
    assert_eq!(hung.as_deref(), Some("the task catch-up"));
}
