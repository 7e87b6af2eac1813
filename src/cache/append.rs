//! Appends through io_uring, on the shard's own runtime.

use std::io;
use std::mem;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use tokio_uring::fs::File;

use super::file::Appender;

/// A segment's file on the runtime of this thread.
pub(super) struct UringAppender {
    file: File,
    in_flight: InFlight,
}

/// What the kernel reads from at this moment. The runtime drops the buffers of unfinished
/// operations when it is torn down; these are given up instead if that happens, so that the kernel
/// never reads freed memory.
#[derive(Default)]
struct InFlight(Vec<Bytes>);

impl Drop for InFlight {
    fn drop(&mut self) {
        mem::forget(mem::take(&mut self.0));
    }
}

impl UringAppender {
    pub(super) fn of(file: std::fs::File) -> Self {
        Self { file: File::from_std(file), in_flight: InFlight::default() }
    }
}

#[async_trait(?Send)]
impl Appender for UringAppender {
    // `File::writev_at_all` of tokio-uring 0.5 panics on a write that ends inside a buffer.
    async fn append(&mut self, mut buffers: Vec<Bytes>, mut offset: u64) -> io::Result<()> {
        self.in_flight.0.clone_from(&buffers);
        while !buffers.is_empty() {
            let (written, back) = self.file.writev_at(buffers, offset).await;
            buffers = back;
            match written {
                Ok(0) => return self.done(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    offset += written as u64;
                    advance(&mut buffers, written);
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return self.done(Err(cause)),
            }
        }
        self.done(Ok(()))
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data().await
    }
}

impl UringAppender {
    fn done(&mut self, result: io::Result<()>) -> io::Result<()> {
        self.in_flight.0.clear();
        result
    }
}

/// Takes `written` bytes off the front.
fn advance(buffers: &mut Vec<Bytes>, mut written: usize) {
    let whole = buffers.iter().take_while(|buffer| {
        let is_written = buffer.len() <= written;
        if is_written {
            written -= buffer.len();
        }
        is_written
    });
    let whole = whole.count();
    buffers.drain(..whole);
    if let Some(first) = buffers.first_mut() {
        first.advance(written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_write_goes_on_where_it_ended() {
        let all = || -> Vec<Bytes> { vec!["ab".into(), "cde".into(), "f".into()] };
        for written in 0..=6 {
            let mut buffers = all();
            advance(&mut buffers, written);
            assert_eq!(buffers.concat(), &b"abcdef"[written..]);
            assert!(buffers.iter().all(|buffer| !buffer.is_empty()));
        }
    }
}
