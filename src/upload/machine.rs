//! The driver of one machine: takes sealed deltas in, uploads them side by side, publishes them in
//! order.
//!
//! Owns: what is in flight, and the claim. Does not own: sealing; what happens to records that
//! could not be published (they come back to the caller).

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::claim::Claim;
use super::context::UploadContext;
use super::error::UploadError;
use super::publish::{self, Outcome, Published};
use super::queue::{Queue, Waiting};
use super::stream;
use crate::format::names;
use crate::model::{Generation, Sequence};
use crate::seal::Sealed;
use crate::store::ObjectName;

/// Deltas of one machine whose bytes are held at once, uploading or waiting for a stream.
const IN_FLIGHT_MAX: usize = 8;

/// Uploads and publishes one machine's deltas under one claim.
pub struct Upload {
    context: UploadContext,
    generation: Generation,
    claim: Option<Claim>, // away while a publish holds it
    published: Sequence,
    queue: Queue,
    refused: Option<Sealed>,
}

/// Why a run ended early, and everything that is durable here and not published.
#[derive(Debug, thiserror::Error)]
#[error("upload stopped")]
pub struct Stopped {
    /// The reason; its class says whether a new claim makes sense.
    #[source]
    pub error: UploadError,
    /// In order. Dropping them gives up the only copy that this server holds.
    pub unpublished: Vec<Sealed>,
}

type Uploading<'a> = Pin<Box<dyn Future<Output = (Sequence, Result<(), UploadError>)> + Send + 'a>>;
type Publishing = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What happened next.
enum Event {
    Published(Outcome),
    Uploaded(Sequence, Result<(), UploadError>),
    Sealed(Box<Sealed>),
    IntakeClosed,
}

impl Upload {
    /// Goes on where `claim` stands.
    #[must_use]
    pub fn new(context: UploadContext, claim: Claim) -> Self {
        Self {
            context,
            generation: claim.manifest.generation,
            published: claim.manifest.published,
            claim: Some(claim),
            queue: Queue::default(),
            refused: None,
        }
    }

    /// Runs until `sealed` is closed and all of it is published, and gives the claim back. Deltas
    /// may come in any order. `on_published` is called in chain order, after the manifest named
    /// them and their records were let go.
    ///
    /// Dropping the future before its end drops records that are only durable: stop the cache's
    /// recycling first, or do it only when the process ends.
    ///
    /// # Errors
    /// When something happened that waiting does not cure; what is left in `sealed` stays there.
    pub async fn run(
        mut self,
        sealed: &mut mpsc::Receiver<Sealed>,
        mut on_published: impl FnMut(Published) + Send,
    ) -> Result<Claim, Stopped> {
        let context = self.context.clone();
        let mut uploads = FuturesUnordered::<Uploading<'_>>::new();
        let mut publishing: Option<Publishing> = None;
        let mut open = true;
        loop {
            if publishing.is_none() {
                publishing = self.retire();
            }
            if publishing.is_none() && uploads.is_empty() && !open {
                return self.finish();
            }
            let event = tokio::select! {
                biased;
                outcome = ready(&mut publishing), if publishing.is_some() => Event::Published(outcome),
                Some((first, done)) = uploads.next() => Event::Uploaded(first, done),
                next = sealed.recv(), if open && uploads.len() < IN_FLIGHT_MAX => match next {
                    Some(next) => Event::Sealed(Box::new(next)),
                    None => Event::IntakeClosed,
                },
            };
            let step = match event {
                Event::IntakeClosed => {
                    open = false;
                    Ok(())
                }
                Event::Uploaded(first, done) => done.map(|()| self.queue.uploaded(first)),
                Event::Sealed(next) => self.accept(*next).map(|upload| {
                    let context = &context;
                    uploads.push(Box::pin(async move {
                        let done = stream::upload(context, &upload.name, &upload.body).await;
                        (upload.first, done)
                    }));
                }),
                Event::Published(outcome) => {
                    publishing = None;
                    self.published(outcome).map(&mut on_published)
                }
            };
            if let Err(error) = step {
                uploads.clear(); // unpolled they would keep streams from other machines
                // A publish under way is waited for: it may be succeeding at this moment, and
                // what it published must be acknowledged and not handed back.
                if let Some(last) = publishing.take()
                    && let Ok(published) = self.published(last.await)
                {
                    on_published(published);
                }
                return Err(self.stopped(error));
            }
        }
    }

    /// Takes a delta in. Its bytes go to the upload and are dropped with it; its records stay.
    fn accept(&mut self, sealed: Sealed) -> Result<Object, UploadError> {
        let machine = self.context.log.machine().clone();
        let entry = sealed.entry();
        let (id, generation) = (entry.id, entry.generation);
        let (first, last) = (entry.first, entry.last);
        let object = Object {
            name: names::delta(&machine, generation, first, last, id),
            first,
            body: sealed.object().clone(),
        };
        // An object of an older generation is an orphan to whoever tidies up: never name one.
        if generation != self.generation {
            self.refused = Some(sealed);
            return Err(UploadError::Generation {
                machine,
                id,
                found: generation,
                ours: self.generation,
            });
        }
        let delta =
            Waiting { sealed, uploaded: false, accepted_at: self.context.clock.monotonic() };
        let admitted = match first > self.published {
            true => self.queue.admit(delta),
            false => Err(Box::new(delta)),
        };
        if let Err(delta) = admitted {
            self.refused = Some(delta.sealed);
            return Err(self.out_of_place(first, last));
        }
        Ok(object)
    }

    /// Starts a publish of everything that may go now.
    fn retire(&mut self) -> Option<Publishing> {
        let claim = self.claim.take()?;
        let run = self.queue.retire(self.published);
        if run.is_empty() {
            self.claim = Some(claim);
            return None;
        }
        Some(Box::pin(publish::publish(self.context.clone(), claim, run)))
    }

    fn published(&mut self, outcome: Outcome) -> Result<Published, UploadError> {
        match outcome {
            Ok((claim, published)) => {
                self.published = published.through();
                self.claim = Some(claim);
                Ok(published)
            }
            Err((error, run)) => {
                self.queue.put_back(run);
                Err(error)
            }
        }
    }

    /// Nothing more comes: all is published, or something is missing in between.
    fn finish(mut self) -> Result<Claim, Stopped> {
        if let Some(place) = self.queue.first() {
            let error = self.out_of_place(place.first, place.last);
            return Err(self.stopped(error));
        }
        let claim = self.claim.take();
        Ok(claim.expect("no publish is under way, so nobody else holds it"))
    }

    fn stopped(self, error: UploadError) -> Stopped {
        let mut unpublished = self.queue.into_sealed();
        unpublished.extend(self.refused);
        unpublished.sort_by_key(|sealed| sealed.entry().first);
        Stopped { error, unpublished }
    }

    fn out_of_place(&self, first: Sequence, last: Sequence) -> UploadError {
        UploadError::Place {
            machine: self.context.log.machine().clone(),
            first,
            last,
            expected: self.published,
        }
    }
}

/// What travels; the records do not.
struct Object {
    name: ObjectName,
    first: Sequence,
    body: Bytes,
}

async fn ready(publishing: &mut Option<Publishing>) -> Outcome {
    match publishing {
        Some(publishing) => publishing.await,
        None => std::future::pending().await,
    }
}
