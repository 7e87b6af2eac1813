//! A note to retention that a point is being read, renewed while it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::RecoverError;
use super::point::PointSpec;
use super::recovery::Recovery;
use super::resolve::ResolvedPoint;
use crate::clock::{Clock, Entropy, random16};
use crate::model::MachineId;
use crate::vault::{PinDocument, Vault, VaultError};

/// Life of a pin that is not renewed: what a killed recovery keeps retention waiting, once an applier
/// looks at it.
const LIFE: Duration = Duration::from_secs(600);
/// Three tries before it ends.
const RENEW_AFTER: Duration = Duration::from_secs(200);
/// How often a point may move while it is being pinned.
const TRIES: u32 = 5;

/// Keeps retention from removing what a point needs. Release it at the end; one that is only
/// dropped ends by itself after ten minutes.
#[derive(Debug)]
pub struct Pin {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    vault: Vault,
    machine: MachineId,
    id: String,
    renewing: JoinHandle<()>,
}

impl Pin {
    /// Finds a point and pins it, in an order in which nothing it needs can be removed in between:
    /// the pin is written, then the points document is written again as it is, then the point is
    /// looked for once more. Retention reads that document, then the pins, and records what it gives
    /// up only on the version that it read: so it saw the pin, or it must decide anew, or what it
    /// gave up shows in the second look and the point is built on something else or refused.
    ///
    /// On a store that cannot be written the point is only found, and a warning logged: retention
    /// elsewhere may then remove what it needs, and reading fails with an error that says so.
    ///
    /// # Errors
    /// As [`Recovery::resolve`].
    pub async fn take(
        recovery: &Recovery,
        spec: &PointSpec,
        clock: &Arc<dyn Clock>,
        entropy: &dyn Entropy,
    ) -> Result<(ResolvedPoint, Self), RecoverError> {
        let (vault, machine) = (recovery.vault(), recovery.machine());
        let id = hex::encode(random16(entropy));
        let mut point = recovery.resolve(spec).await?;
        for _ in 0..TRIES {
            let document = document(&point, clock.as_ref());
            if let Err(error) = announce(vault, machine, &id, &document).await {
                tracing::warn!(%machine, %error, "recovering without a pin: retention may interfere");
                return Ok((point, Self { held: None }));
            }
            let again = match recovery.resolve(&PointSpec::Sequence(point.sequence)).await {
                Err(RecoverError::NoPoint { .. } | RecoverError::NotAPoint { .. }) => {
                    recovery.resolve(spec).await // it went meanwhile: what is there now?
                }
                found => found,
            };
            let same = again.as_ref().is_ok_and(|again| document_of(again) == document_of(&point));
            match again {
                Ok(again) if same => {
                    let pin = Self::hold(vault.clone(), machine.clone(), id, &again, clock);
                    return Ok((again, pin));
                }
                Ok(moved) => point = moved,
                Err(error) => {
                    forget(vault, machine, &id).await;
                    return Err(error);
                }
            }
        }
        tracing::warn!(%machine, "the point's base changed at every look: recovering without a pin");
        forget(vault, machine, &id).await;
        Ok((point, Self { held: None }))
    }

    fn hold(
        vault: Vault,
        machine: MachineId,
        id: String,
        point: &ResolvedPoint,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let (point, clock) = (document_of(point), Arc::clone(clock));
        let (for_task, named, pin) = (vault.clone(), machine.clone(), id.clone());
        let renewing = tokio::spawn(async move {
            loop {
                clock.sleep(RENEW_AFTER).await;
                let document = with_life(point, clock.as_ref());
                if let Err(error) = for_task.write_pin(&named, &pin, &document).await {
                    tracing::warn!(machine = %named, %error, "the recovery's pin was not renewed");
                }
            }
        });
        Self { held: Some(Held { vault, machine, id, renewing }) }
    }

    /// Whether retention knows of this recovery.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Removes the pin.
    pub async fn release(mut self) {
        if let Some(held) = self.held.take() {
            held.renewing.abort();
            forget(&held.vault, &held.machine, &held.id).await;
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.renewing.abort();
        }
    }
}

/// The pin, and then a new version of the document that retention decides on.
async fn announce(
    vault: &Vault,
    machine: &MachineId,
    id: &str,
    pin: &PinDocument,
) -> Result<(), VaultError> {
    vault.write_pin(machine, id, pin).await?;
    vault.touch_points(machine).await?;
    Ok(())
}

async fn forget(vault: &Vault, machine: &MachineId, id: &str) {
    if let Err(error) = vault.remove_pin(machine, id).await {
        tracing::warn!(%machine, %error, "the recovery's pin stays until it expires");
    }
}

/// Sequence and base.
fn document_of(point: &ResolvedPoint) -> (u64, u64) {
    let base = point.base.as_ref().map_or(0, |base| base.sequence);
    (point.sequence.0, base)
}

fn document(point: &ResolvedPoint, clock: &dyn Clock) -> PinDocument {
    with_life(document_of(point), clock)
}

fn with_life((sequence, base): (u64, u64), clock: &dyn Clock) -> PinDocument {
    PinDocument { sequence, base, expires: clock.wall().plus_seconds(LIFE.as_secs() as i64) }
}
