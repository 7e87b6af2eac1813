//! A path for datagrams that can be lost, late, or come from another address than before.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Looks whether it is over this often.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct Relay {
    pub(crate) port: u16,
    path: Arc<Path>,
    threads: Vec<JoinHandle<()>>,
}

struct Path {
    near: UdpSocket,
    target: SocketAddr,
    /// Where we speak to the server from.
    far: Mutex<Arc<UdpSocket>>,
    client: Mutex<Option<SocketAddr>>,
    /// Of a thousand datagrams in either direction, so many are lost.
    loss: AtomicU64,
    passed: AtomicU64,
    over: AtomicBool,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    socket
}

impl Relay {
    /// To the server's port on this machine.
    pub(crate) fn to(server: u16) -> Self {
        let near = socket();
        let port = near.local_addr().unwrap().port();
        let path = Arc::new(Path {
            near,
            target: ([127, 0, 0, 1], server).into(),
            far: Mutex::new(Arc::new(socket())),
            client: Mutex::default(),
            loss: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let (out, back) = (Arc::clone(&path), Arc::clone(&path));
        let threads = vec![
            std::thread::spawn(move || out.outward()),
            std::thread::spawn(move || back.back()),
        ];
        Self { port, path, threads }
    }

    pub(crate) fn lose(&self, of_a_thousand: u64) {
        self.path.loss.store(of_a_thousand, Ordering::Relaxed);
    }

    pub(crate) fn passed(&self) -> u64 {
        self.path.passed.load(Ordering::Relaxed)
    }

    /// From now on the server sees another address; what it sends to the old one is lost.
    pub(crate) fn move_away(&self) {
        *self.path.far.lock().unwrap() = Arc::new(socket());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.path.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

impl Path {
    fn outward(&self) {
        let (mut random, mut datagram) = (StdRng::seed_from_u64(1), vec![0; 65536]);
        while !self.over.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.near.recv_from(&mut datagram) else { continue };
            *self.client.lock().unwrap() = Some(from);
            if self.passes(&mut random) {
                let far = Arc::clone(&self.far.lock().unwrap());
                let _ = far.send_to(&datagram[..length], self.target);
            }
        }
    }

    fn back(&self) {
        let (mut random, mut datagram) = (StdRng::seed_from_u64(2), vec![0; 65536]);
        while !self.over.load(Ordering::Relaxed) {
            let far = Arc::clone(&self.far.lock().unwrap());
            let Ok((length, _)) = far.recv_from(&mut datagram) else { continue };
            let client = *self.client.lock().unwrap();
            if let Some(client) = client.filter(|_| self.passes(&mut random)) {
                let _ = self.near.send_to(&datagram[..length], client);
            }
        }
    }

    fn passes(&self, random: &mut StdRng) -> bool {
        let passes = random.random_range(0..1000) >= self.loss.load(Ordering::Relaxed);
        self.passed.fetch_add(u64::from(passes), Ordering::Relaxed);
        passes
    }
}
