//! The guest's disk as the agent reads it: through an NBD export of QEMU's own node.
//!
//! Owns: that connection. Does not own: whether the export is there, and when it is connected to.

use std::io;
use std::sync::{Mutex, PoisonError, TryLockError};

use crate::agent::medium::Medium;
use crate::nbd::{Client, NbdError, Peer};

use super::reach::PATIENCE;

/// A guest's disk.
pub(in crate::agent) struct GuestDisk {
    server: Peer,
    export: String,
    client: Mutex<Option<Client>>,
}

impl GuestDisk {
    pub(super) fn new(server: Peer, export: String) -> Self {
        Self { server, export, client: Mutex::default() }
    }

    /// A client that gave an error may be out of step, so it is used no more. Whoever watches the guest
    /// connects again: see [`Medium::connect`].
    fn ask<T>(&self, ask: impl FnOnce(&mut Client) -> Result<T, NbdError>) -> io::Result<T> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut client) = held.take() else {
            let what = format!("the connection to QEMU's disk at {} is broken", self.server);
            return Err(io::Error::new(io::ErrorKind::NotConnected, what));
        };
        let answer = ask(&mut client).map_err(io::Error::other)?;
        *held = Some(client);
        Ok(answer)
    }
}

impl Medium for GuestDisk {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.ask(|client| client.read(offset, target))
    }

    /// The guest's write is on its disk before QEMU sends it here.
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    /// As with a write.
    fn zero_at(&self, _offset: u64, _length: u64, _release: bool) -> io::Result<()> {
        Ok(())
    }

    /// A loss of power ends QEMU, too, and with it the dirty bitmap in its memory: then everything is
    /// read again, so no bit of ours rests on what the guest's storage has synced.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// For the thread that gives QEMU its commands, between two of them: a client that comes while QEMU
    /// waits for all requests to end makes it wait for ever, and its guest with it (seen with 10.0).
    fn connect(&self, anew: bool) -> io::Result<()> {
        let mut held = match self.client.try_lock() {
            Ok(held) => held,
            // Somebody reads, so it is connected.
            Err(TryLockError::WouldBlock) if !anew => return Ok(()),
            Err(_) => self.client.lock().unwrap_or_else(PoisonError::into_inner),
        };
        if held.is_some() && !anew {
            return Ok(());
        }
        *held = None;
        let mut client =
            Client::connect_to(&self.server, &self.export).map_err(io::Error::other)?;
        client.within(PATIENCE).map_err(io::Error::other)?;
        *held = Some(client);
        Ok(())
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64> {
        if offset >= end {
            return Ok(end);
        }
        let first = self.ask(|client| client.first_status(offset, end - offset))?;
        Ok(if first.zero { offset + first.length } else { offset })
    }

    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        if offset >= end {
            return Ok(end);
        }
        let first = self.ask(|client| client.first_status(offset, end - offset))?;
        Ok(if first.zero { offset } else { offset + first.length })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::nbd::{BlockStatus, Export, Server};

    struct Zeros;

    impl Export for Zeros {
        fn size_bytes(&self) -> u64 {
            1 << 20
        }
        fn read_only(&self) -> bool {
            true
        }
        fn read(&self, _offset: u64, target: &mut [u8]) -> io::Result<()> {
            target.fill(0);
            Ok(())
        }
        fn write(&self, _offset: u64, _payload: Bytes, _fua: bool) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, _offset: u64, _length: u64, _trim: bool, _fua: bool) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn block_status(&self, _offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
            Ok(vec![BlockStatus { length, hole: false, zero: false }])
        }
    }

    #[test]
    fn a_read_never_connects_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qemu");
        let serve = || Server::bind(&socket, "reads", Arc::new(Zeros)).unwrap();
        let disk = GuestDisk::new(Peer::Socket(socket.clone()), "reads".to_owned());
        let read = || disk.read_at(0, &mut [0; 512]).map_err(|error| error.kind());
        let server = serve();
        assert_eq!(read(), Err(io::ErrorKind::NotConnected));
        disk.connect(false).unwrap();
        assert_eq!((read(), server.connections()), (Ok(()), 1));
        drop(server);
        let server = serve();
        assert!(read().is_err(), "its connection is gone");
        assert_eq!((read(), server.connections()), (Err(io::ErrorKind::NotConnected), 0));
        disk.connect(false).unwrap();
        assert_eq!(read(), Ok(()));
    }
}
