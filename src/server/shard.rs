//! A shard: one thread with a tokio-uring runtime, one cache log, its share of the data port.
//!
//! The log's future is never dropped before it has finished: the thread ends when the listener has
//! drained and the log has closed. Where the system has no io_uring for us, nothing is started:
//! [`probe`] says so before anything is listened on.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::error::ServerError;
use super::routes::Routes;
use crate::cache::{CacheError, Writer};
use crate::ingest::{Admitted, Ingest};
use crate::places::{Place, reached};

/// What a shard's thread is given.
pub(super) struct Shard {
    pub(super) number: u16,
    pub(super) writer: Writer,
    pub(super) admitted: mpsc::Receiver<Admitted>,
    pub(super) routes: Routes,
    pub(super) ingest: Arc<Ingest>,
    pub(super) listener: std::net::TcpListener,
    /// Told when the log has ended, however it did.
    pub(super) ended: oneshot::Sender<Result<(), CacheError>>,
}

/// Whether this system can run a shard: makes a runtime and drops it. Blocks for a moment; not to be
/// called on a runtime's thread.
pub(super) fn probe() -> Result<(), ServerError> {
    checked(runtime()).map(drop)
}

fn runtime() -> io::Result<tokio_uring::Runtime> {
    tokio_uring::Runtime::new(&tokio_uring::builder())
}

fn checked<T>(made: io::Result<T>) -> Result<T, ServerError> {
    made.map_err(|source| ServerError::Uring { cure: cure(&source), source })
}

/// What helps, by what the system said to io_uring_setup(2).
fn cure(cause: &io::Error) -> &'static str {
    let errno = cause.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    match errno {
        Some(rustix::io::Errno::NOSYS) => {
            "this kernel has none: run Linux 5.11 or later, with CONFIG_IO_URING"
        }
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            "it is forbidden here: set sysctl kernel.io_uring_disabled = 0, and in a container \
             allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
        }
        Some(rustix::io::Errno::NOMEM) => {
            "it may lock no memory: raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= of the unit), \
             or lower `shards`"
        }
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "there are no file descriptors left: raise RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE= of \
             the unit)"
        }
        _ => "run Linux 5.11 or later, with io_uring allowed to this process",
    }
}

impl Shard {
    /// Starts the thread.
    pub(super) fn start(self) -> Result<JoinHandle<()>, ServerError> {
        let number = self.number;
        let (made, begun) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("shard-{number}"))
            .spawn(move || match checked(runtime()) {
                Ok(runtime) => {
                    drop(made.send(Ok(())));
                    runtime.block_on(self.run());
                }
                Err(error) => drop(made.send(Err(error))),
            })
            .map_err(|source| ServerError::Io {
                path: format!("shard-{number}").into(),
                action: "starting its thread",
                source,
            })?;
        begun.recv().map_err(|_| ServerError::Shard { shard: number })??;
        Ok(thread)
    }

    async fn run(self) {
        let Self { writer, admitted, routes, ingest, listener, ended, .. } = self;
        let port = tokio_uring::spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => ingest.serve(listener).await,
                Err(error) => tracing::error!(%error, "the data port cannot be listened on"),
            }
        });
        let hand_on = |records| {
            reached(Place::Durable);
            routes.durable(records);
        };
        let written = writer.run(admitted, hand_on).await;
        // The routes hold the pipelines' queues: they close with this.
        drop(routes);
        drop(ended.send(written));
        drop(port.await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::error_chain;

    #[test]
    fn a_system_without_io_uring_is_told_what_to_change() {
        use rustix::io::Errno;
        for (errno, cure) in [
            (Errno::NOSYS, "Linux 5.11"),
            (Errno::PERM, "kernel.io_uring_disabled"),
            (Errno::PERM, "seccomp"),
            (Errno::NOMEM, "RLIMIT_MEMLOCK"),
            (Errno::MFILE, "RLIMIT_NOFILE"),
            (Errno::INVAL, "io_uring"),
        ] {
            let refused = checked::<()>(Err(errno.into())).unwrap_err();
            let said = error_chain(&refused);
            assert!(said.contains("io_uring") && said.contains(cure), "{errno:?}: {said}");
        }
        probe().unwrap();
    }
}
