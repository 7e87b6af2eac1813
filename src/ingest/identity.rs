//! Who a peer is: the one URI in its certificate's subject alternative name.
//!
//! Owns: `spiffe://<site>/machine/<machine>` and `spiffe://<site>/operator`, nothing else. Does not
//! own: whether the certificate is genuine (TLS) and whether it was revoked (the machine's
//! document). Names inside frames are claims that are checked against this.

use std::fmt;

use sha2::Digest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::machines::Fingerprint;
use crate::model::{MachineId, SiteId};

/// Whom a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The agent of one machine.
    Machine(MachineId),
    /// The command line and the sidecar.
    Operator,
}

/// A verified peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whom it speaks for.
    pub role: Role,
    /// With which certificate.
    pub certificate: Fingerprint,
}

/// A certificate that names nobody here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// TLS gave us none, although it must.
    #[error("the peer has no certificate")]
    Absent,
    /// No X.509, or a damaged extension.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// Not exactly one URI.
    #[error("the peer's certificate carries {found} URIs as names, one is expected")]
    Count {
        /// How many.
        found: usize,
    },
    /// A URI that is not the one way to write a role of this site.
    #[error("{uri:?} is neither spiffe://{site}/machine/<machine> nor spiffe://{site}/operator")]
    Uri {
        /// What stands there.
        uri: String,
        /// This site.
        site: SiteId,
    },
}

impl Identity {
    /// The identity in a verified certificate.
    ///
    /// # Errors
    /// When it names nobody of this site.
    pub fn of(certificate: &[u8], site: &SiteId) -> Result<Self, IdentityError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
        let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let names = names.map(|names| names.value.general_names.as_slice());
        let mut uris = names.unwrap_or_default().iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            let found = names.unwrap_or_default();
            let found = found.iter().filter(|name| matches!(name, GeneralName::URI(_))).count();
            return Err(IdentityError::Count { found });
        };
        let digest = sha2::Sha256::digest(certificate);
        Ok(Self { role: Role::parse(uri, site)?, certificate: Fingerprint(digest.into()) })
    }
}

impl Role {
    /// The role that a URI names. There is one way to write each: what does not come back the same
    /// is refused, so no second spelling of a name can slip past a comparison.
    ///
    /// # Errors
    /// When it is not that of a role of `site`.
    pub fn parse(uri: &str, site: &SiteId) -> Result<Self, IdentityError> {
        let machine = uri.rsplit('/').next().and_then(|name| name.parse().ok());
        let roles = [Some(Self::Operator), machine.map(Self::Machine)];
        roles.into_iter().flatten().find(|role| role.uri(site) == uri).ok_or_else(|| {
            IdentityError::Uri { uri: uri.chars().take(200).collect(), site: site.clone() }
        })
    }

    /// The URI of this role on a site.
    #[must_use]
    pub fn uri(&self, site: &SiteId) -> String {
        match self {
            Self::Machine(machine) => format!("spiffe://{site}/machine/{machine}"),
            Self::Operator => format!("spiffe://{site}/operator"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(machine) => write!(f, "machine {machine}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_of_each_role_and_no_other() {
        let site: SiteId = "lab".parse().unwrap();
        let role = |uri| Role::parse(uri, &site);
        let machine = Role::Machine("web-1".parse().unwrap());
        assert_eq!(role("spiffe://lab/machine/web-1"), Ok(machine));
        assert_eq!(role("spiffe://lab/operator"), Ok(Role::Operator));
        for bad in [
            "",
            "spiffe://lab/machine/",
            "spiffe://lab/machine/web-1/",
            "spiffe://lab/machine/../machine/web-1",
            "spiffe://lab/machine//web-1",
            "spiffe://lab/machine/Web-1",
            "spiffe://lab/machine/web%2d1",
            "SPIFFE://lab/machine/web-1",
            "spiffe://lab:443/machine/web-1",
            "spiffe://other/machine/web-1",
            "spiffe://other/operator",
            "spiffe://lab/operator/",
            "spiffe://lab/machine/web-1?x",
            "web-1",
        ] {
            assert!(role(bad).is_err(), "{bad}");
        }
    }
}
