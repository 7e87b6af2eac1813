//! The installation that owns the store.

use super::{SiteDocument, Vault, VaultError};
use crate::format::names;
use crate::model::{SiteId, Timestamp};

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
}
