//! `holdfast gc`: what dead generations left in the store, found and removed. Process servers do the
//! same by themselves for the machines that they apply.

use std::sync::Arc;

use super::error::ServerError;
use super::process::open_vault;
use crate::clock::{Clock, Entropy};
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::model::MachineId;
use crate::observe::{Metrics, error_chain};
use crate::seal::{KeyEncryptionKey, KeyRing};
use crate::settings::ServerSettings;
use crate::store::Listed;
use crate::upload::{self, Removal, Uplink, UploadContext, remove_orphans};

/// What was found of one machine.
#[derive(Debug)]
pub struct Garbage {
    /// Which machine.
    pub machine: MachineId,
    /// Objects that no manifest names and none ever will, older than `upload.orphan_grace_s`.
    pub objects: Vec<Listed>,
    /// Why it could not be looked at, or not be finished.
    pub trouble: Option<String>,
}

/// Looks at these machines, or all; removes what is found unless this is a dry run. Whoever owns a
/// machine goes on meanwhile.
///
/// # Errors
/// When the key or the store cannot be opened. What concerns one machine stands in its row.
pub async fn collect_garbage(
    settings: &ServerSettings,
    machine: Option<MachineId>,
    removal: Removal,
    time: (Arc<dyn Clock>, Arc<dyn Entropy>),
) -> Result<Vec<Garbage>, ServerError> {
    let (clock, entropy) = time;
    let kek = KeyEncryptionKey::load(&settings.key_file)?;
    let metrics = Arc::new(Metrics::default());
    let vault = open_vault(settings, &kek, &metrics).await?;
    let machines = match machine {
        Some(machine) => vec![machine],
        None => vault.machines().await?,
    };
    let uplink = Uplink::new(
        settings.upload.streams,
        settings.upload.rate.clone(),
        Arc::clone(&clock),
        Arc::clone(&entropy),
        Arc::clone(&metrics),
    );
    let mut found = Vec::new();
    for machine in machines {
        let Some(document) = vault.machine(&machine).await? else {
            let trouble = Some("is not enrolled".to_owned());
            found.push(Garbage { machine, objects: Vec::new(), trouble });
            continue;
        };
        let keys = KeyRing::unwrap(&kek, &document)?;
        let context = UploadContext {
            log: Arc::new(LogStore::new(Arc::clone(vault.store()), machine.clone(), keys)),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            metrics: Arc::clone(&metrics),
            uplink: Arc::clone(&uplink),
            block_bytes: Arc::new(settings.upload.block_bytes.into()),
            entries_max: ENTRIES_MAX,
        };
        let looked = async {
            let Some(claim) = upload::look(&context).await? else { return Ok(Vec::new()) };
            let generation = claim.manifest.generation;
            remove_orphans(&context, generation, settings.upload.orphan_grace, removal).await
        };
        let (objects, trouble) = match looked.await {
            Ok(objects) => (objects, None),
            Err(error) => (Vec::new(), Some(error_chain(&error))),
        };
        found.push(Garbage { machine, objects, trouble });
    }
    Ok(found)
}
