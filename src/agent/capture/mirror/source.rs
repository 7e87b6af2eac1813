//! The guest's disk as the agent reads it: through an NBD export of QEMU's own node.
//!
//! Owns: that connection. Does not own: whether the export is there.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::agent::medium::Medium;
use crate::nbd::{Client, NbdError};

/// Longest wait for a part of a reply: a guest's storage that takes longer counts as gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest's disk.
pub(in crate::agent) struct GuestDisk {
    socket: PathBuf,
    export: String,
    client: Mutex<Option<Client>>,
}

impl GuestDisk {
    pub(super) fn new(socket: PathBuf, export: String) -> Self {
        Self { socket, export, client: Mutex::default() }
    }

    /// A client that gave an error may be out of step, or its export was made anew: once more with
    /// another one.
    fn ask<T>(&self, mut ask: impl FnMut(&mut Client) -> Result<T, NbdError>) -> io::Result<T> {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut client) = held.take()
            && let Ok(answer) = ask(&mut client)
        {
            *held = Some(client);
            return Ok(answer);
        }
        let mut client = Client::connect(&self.socket, &self.export).map_err(io::Error::other)?;
        client.within(PATIENCE).map_err(io::Error::other)?;
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
