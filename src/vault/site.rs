//! The installation that owns the store, and its process servers.

use super::{ServerDocument, SiteDocument, Vault, VaultError};
use crate::format::names;
use crate::model::{ServerId, SiteId, Timestamp};

impl Vault {
    /// Makes the store this site's, or finds that it is.
    ///
    /// # Errors
    /// `OtherSite` when another installation uses it; `Altered` when that one has another key.
    pub async fn claim_site(&self, site: &SiteId, now: Timestamp) -> Result<(), VaultError> {
        let document = SiteDocument { site: site.clone(), created: now };
        match self.create(&names::site_document(), &document).await {
            Ok(_) => Ok(()),
            Err(VaultError::Exists { .. }) => self.expect_site(site).await,
            Err(error) => Err(error),
        }
    }

    /// Finds that the store is this site's.
    ///
    /// # Errors
    /// `OtherSite`; `Missing` when no site claimed it yet.
    pub async fn expect_site(&self, site: &SiteId) -> Result<(), VaultError> {
        let name = names::site_document();
        match self.read::<SiteDocument>(&name).await? {
            Some((found, _)) if found.site == *site => Ok(()),
            Some((found, _)) => {
                Err(VaultError::OtherSite { found: found.site, expected: site.clone() })
            }
            None => Err(VaultError::Missing { name: name.to_string() }),
        }
    }

    /// Records where a process server can be reached; called when it starts.
    ///
    /// # Errors
    /// The store's error.
    pub async fn record_server(&self, document: &ServerDocument) -> Result<(), VaultError> {
        let name = names::server_document(&document.server);
        self.replace(&name, document).await?;
        Ok(())
    }

    /// A process server; `None` when it never started.
    ///
    /// # Errors
    /// When its document was altered or the store does not answer.
    pub async fn server(&self, server: &ServerId) -> Result<Option<ServerDocument>, VaultError> {
        let read = self.read(&names::server_document(server)).await?;
        Ok(read.map(|(document, _)| document))
    }

    /// All process servers by name.
    ///
    /// # Errors
    /// When a document was altered or the store does not answer.
    pub async fn servers(&self) -> Result<Vec<ServerDocument>, VaultError> {
        let mut servers = Vec::new();
        for name in self.list(names::SERVERS).await? {
            let Ok(server) = name.parse() else { continue };
            servers.extend(self.server(&server).await?);
        }
        Ok(servers)
    }
}
