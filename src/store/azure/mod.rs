//! An Azure storage account: block blobs, page blobs, snapshots, leases. `docs/azure.md`.
//!
//! Owns: requests to one container, what their answers mean, and Azure's rules before Azure (or an
//! emulator that does not know them) is asked. Does not own: retries, but of a page write that surely had
//! no effect. Azure's client would go on for longer than a lease lives, and ignore what a try has done.
//!
//! * An [`ETag`] is Azure's: every write makes another one, also of equal content.
//! * Blobs lie flat: an object's name may be the path to others here. No name of this product is.
//! * Staged blocks belong to one open store, as in a directory: their ids carry a random part.
//! * A [`Store::write_pages`] that fails may have written some of its pieces.

mod answer;
mod blocks;
mod call;
mod config;
mod genuine;
mod identity;
mod leases;
mod listing;
mod objects;
mod pace;
mod pages;
mod read;
mod resend;
mod sizes;
mod snapshots;
mod trait_impl;
mod transport;

use std::sync::Arc;

use azure_core::http::{ClientOptions, RetryOptions};
use azure_storage_blob::{BlobContainerClient, BlobContainerClientOptions};

use self::answer::{Asked, Effect};
use self::config::ConfigError;
use super::{
    BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageBody, PageGuard, PageRange,
    PageWrite, Properties, Result, SnapshotId, SnapshotInfo, Store, StoreError,
};
use crate::clock::{Clock, Entropy};
use crate::settings::AzureUrl;

/// The version of Azure's protocol that the tables in `docs/azure.md` were made with.
const API_VERSION: &str = "2025-11-05";

/// A container.
pub struct Azure {
    store: String,
    container: BlobContainerClient,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    staging: blocks::Staging,
    pace: pace::Pace,
    sizes: sizes::Sizes,
}

impl Azure {
    /// Reads what `url` names. Asks nobody yet.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn open(url: &AzureUrl, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let refuse = |error: ConfigError| StoreError::Denied {
            store: url.to_string(),
            name: url.container.clone(),
            detail: crate::observe::error_chain(&error),
        };
        Self::connect(url, clock, entropy).map_err(refuse)
    }

    fn connect(
        url: &AzureUrl,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> std::result::Result<Self, ConfigError> {
        let transport = transport::transport(url)?;
        let identity = identity::identity(url, &transport, &clock)?;
        let client_options = ClientOptions {
            per_try_policies: genuine::ask(identity.policies),
            retry: RetryOptions::none(),
            transport: Some(transport),
            ..ClientOptions::default()
        };
        let options =
            BlobContainerClientOptions { client_options, version: API_VERSION.to_owned() };
        let container = BlobContainerClient::new(identity.container, identity.token, Some(options))
            .map_err(|source| ConfigError::Credential { source })?;
        Ok(Self {
            store: format!("azure:{}/{}", identity.account, url.container),
            container,
            pace: pace::Pace::new(Arc::clone(&clock), url.requests_per_second, url.mib_per_second),
            clock,
            entropy,
            staging: blocks::Staging::default(),
            sizes: sizes::Sizes::default(),
        })
    }

    /// Makes the container unless it is there.
    ///
    /// # Errors
    /// When Azure does not let us.
    pub async fn create_container(&self) -> Result<()> {
        let name = ObjectName::new("container").expect("lower-case letters are a name");
        // Who may use a container need not be allowed to make one: first see whether it is there.
        if matches!(self.see(&name, None).await, Ok(_) | Err(StoreError::NotFound { .. })) {
            return Ok(());
        }
        let made = self.container.create(None).await;
        match made.map_err(|error| self.asked(&name, Effect::Changes).judge(error)) {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
