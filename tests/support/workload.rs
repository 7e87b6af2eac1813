//! A workload on a machine's disks: numbered writes through NBD, each acknowledged before the
//! next, going on over restarts of the agent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use holdfast::nbd::Client;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::oracle::{History, SECTOR, Write};

/// Writes until stopped. `history` gets a write before it is issued; `acknowledged` rises after.
pub struct Workload {
    stop: Arc<AtomicBool>,
    held: Arc<Mutex<()>>,
    waiting: Arc<AtomicU64>,
    pub history: Arc<Mutex<History>>,
    pub acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// One disk of a workload.
#[derive(Clone)]
pub struct Target {
    pub name: &'static str,
    pub socket: PathBuf,
    /// Only these first sectors are written.
    pub sectors: u64,
}

impl Workload {
    pub fn start(seed: u64, targets: Vec<Target>) -> Self {
        Self::start_paced(seed, targets, 1) // a busy machine, not a flood
    }

    /// With so many milliseconds between writes.
    pub fn start_paced(seed: u64, targets: Vec<Target>, pause_ms: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let held = Arc::new(Mutex::new(()));
        let waiting = Arc::new(AtomicU64::new(0));
        let history = Arc::new(Mutex::new(History::default()));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writer = Writer {
            random: StdRng::seed_from_u64(seed),
            clients: targets.iter().map(|_| None).collect(),
            targets,
            stop: Arc::clone(&stop),
        };
        let thread = {
            let (stop, held) = (Arc::clone(&stop), Arc::clone(&held));
            let waiting = Arc::clone(&waiting);
            let (history, acknowledged) = (Arc::clone(&history), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Acquire) {
                    if waiting.load(Ordering::Acquire) > 0 {
                        std::thread::yield_now(); // std's mutex is not fair
                        continue;
                    }
                    let turn = held.lock().unwrap();
                    number += 1;
                    let write = writer.choose(number);
                    history.lock().unwrap().writes.push(write);
                    let again = || history.lock().unwrap().interrupted.insert(number);
                    if writer.issue(&write, again) {
                        acknowledged.store(number, Ordering::Release);
                    }
                    drop(turn);
                    super::pause(pause_ms);
                }
            })
        };
        Self { stop, held, waiting, history, acknowledged, thread: Some(thread) }
    }

    /// Runs `action` while no write is in flight.
    pub fn held<T>(&self, action: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _turn = self.held.lock().unwrap();
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        action()
    }

    /// Number of the last acknowledged write.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Number of the last write that was issued.
    pub fn issued(&self) -> u64 {
        self.history.lock().unwrap().writes.last().map_or(0, |write| write.number)
    }

    /// Stops after the write in flight and gives the history.
    pub fn finish(mut self) -> History {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.history.lock().unwrap().clone()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

struct Writer {
    random: StdRng,
    targets: Vec<Target>,
    clients: Vec<Option<Client>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn choose(&mut self, number: u64) -> Write {
        let disk = self.random.random_range(0..self.targets.len());
        let limit = self.targets[disk].sectors;
        let sectors = self.random.random_range(1..=32_u64).min(limit);
        let first_sector = self.random.random_range(0..=limit - sectors);
        let zero = self.random.next_u32().is_multiple_of(10);
        Write { number, disk: disk as u16, first_sector, sectors, zero }
    }

    /// Tries until it is acknowledged: the agent may be killed and started again meanwhile.
    fn issue(&mut self, write: &Write, interrupted: impl Fn() -> bool) -> bool {
        let disk = usize::from(write.disk);
        while !self.stop.load(Ordering::Acquire) {
            if self.clients[disk].is_none() {
                let target = &self.targets[disk];
                self.clients[disk] = Client::connect(&target.socket, target.name).ok();
            }
            let Some(client) = self.clients[disk].as_mut() else {
                super::pause(5);
                continue;
            };
            let offset = write.first_sector * SECTOR;
            let done = if write.zero {
                client.zero(offset, write.sectors * SECTOR)
            } else {
                client.write(offset, &write.payload(), write.number.is_multiple_of(64))
            };
            match done {
                Ok(()) => return true,
                Err(_) => {
                    interrupted();
                    self.clients[disk] = None;
                }
            }
        }
        false
    }
}
