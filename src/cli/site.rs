//! What most commands begin with: settings, store, key, vault.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use crate::clock::System;
use crate::control::ca::CertificateAuthority;
use crate::control::{Client, ControlError, Registrar, Sources};
use crate::model::MachineId;
use crate::recover::Recovery;
use crate::seal::KeyEncryptionKey;
use crate::settings::{ServerSettings, load_server};
use crate::store::Store;
use crate::vault::Vault;

/// Purpose of the key under which the vault's documents are authenticated.
const VAULT_KEY: &str = "holdfast vault 1";
/// Time that a process server has to answer a question of the command line.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which settings file.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Settings of the site
    #[arg(long, value_name = "FILE", default_value = "holdfast.toml")]
    pub config: PathBuf,
}

/// An opened site.
#[derive(Debug)]
pub struct Site {
    /// Its settings.
    pub settings: ServerSettings,
    /// Vault and key.
    pub sources: Sources,
}

impl Site {
    /// Reads the settings, opens the store and the key.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn open(config: &Path) -> Result<Self, Failure> {
        let settings = load_server(config)?;
        let kek = KeyEncryptionKey::load(&settings.key_file)?;
        let store = crate::store::open(&settings.store)?;
        Ok(Self::of(settings, store, kek))
    }

    /// From parts that are open already.
    #[must_use]
    pub fn of(settings: ServerSettings, store: Arc<dyn Store>, kek: KeyEncryptionKey) -> Self {
        let sources =
            Sources { vault: Vault::new(store, kek.derive(VAULT_KEY)), kek: Arc::new(kek) };
        Self { settings, sources }
    }

    /// The recovery side of a machine: needs only the store and the key.
    ///
    /// # Errors
    /// When the machine is unknown or its keys cannot be unwrapped.
    pub async fn recovery(&self, machine: &MachineId) -> Result<Recovery, Failure> {
        let store = Arc::clone(self.sources.vault.store());
        Ok(Recovery::open(store, &self.sources.kek, machine).await?)
    }

    /// Asks process servers as the operator.
    ///
    /// # Errors
    /// When the operator's certificate cannot be used.
    pub fn client(&self) -> Result<Client, ControlError> {
        Client::operator(&self.settings.tls, System::clock(), PATIENCE)
    }

    /// Enrols machines.
    ///
    /// # Errors
    /// When the authority's files cannot be used.
    pub fn registrar(&self) -> Result<Registrar, Failure> {
        let settings = &self.settings;
        Ok(Registrar {
            vault: self.sources.vault.clone(),
            kek: Arc::clone(&self.sources.kek),
            ca: CertificateAuthority::load(&settings.tls, &settings.site)?,
            certificate_ttl: settings.sidecar.certificate_ttl,
            advertise: settings.advertise.clone(),
            clock: System::clock(),
            entropy: System::entropy(),
        })
    }
}
