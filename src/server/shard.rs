//! A shard: one thread with a tokio-uring runtime, one cache log, its share of the data port.
//!
//! The log's future is never dropped before it has finished: the thread ends when the listener has
//! drained and the log has closed.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::error::ServerError;
use super::machines::Routes;
use crate::cache::{CacheError, Writer};
use crate::ingest::{Admitted, Ingest};

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

impl Shard {
    /// Starts the thread.
    pub(super) fn start(self) -> Result<JoinHandle<()>, ServerError> {
        let number = self.number;
        std::thread::Builder::new()
            .name(format!("shard-{number}"))
            .spawn(move || tokio_uring::start(self.run()))
            .map_err(|source| ServerError::Io {
                path: format!("shard-{number}").into(),
                action: "starting its thread",
                source,
            })
    }

    async fn run(self) {
        let Self { writer, admitted, routes, ingest, listener, ended, .. } = self;
        let port = tokio_uring::spawn(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => ingest.serve(listener).await,
                Err(error) => tracing::error!(%error, "the data port cannot be listened on"),
            }
        });
        let written = writer.run(admitted, |records| routes.durable(records)).await;
        // The routes hold the pipelines' queues: they close with this.
        drop(routes);
        drop(ended.send(written));
        drop(port.await);
    }
}
