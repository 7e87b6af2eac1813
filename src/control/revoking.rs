//! A machine's certificates: which there are, and which are refused from now on.
//!
//! Owns: which of them an order means. Does not own: refusing (process servers read the document at each
//! connection, and within the hour while one lasts).

use serde::Serialize;

use super::ControlError;
use super::sources::Sources;
use crate::model::{MachineId, Timestamp};
use crate::vault::{CertificateEntry, MachineDocument};

/// Digits of a fingerprint that name a certificate, at least.
const DIGITS_MIN: usize = 8;

/// Which certificates to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// The one whose fingerprint begins so.
    One(String),
    /// All but the one that was issued last.
    ButNewest,
}

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It speaks for the machine.
    Good,
    /// Its life is over.
    Expired,
    /// It is refused.
    Revoked,
}

/// One certificate, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateView {
    /// SHA-256 of its DER form, hex.
    pub fingerprint: String,
    /// End of its life.
    pub not_after: Timestamp,
    /// How it stands.
    pub state: Standing,
    /// Whether this order revoked it.
    pub revoked_now: bool,
}

/// All certificates of a machine in the order in which they were issued.
///
/// # Errors
/// When the machine is not enrolled, or its document cannot be read.
pub async fn certificates(
    sources: &Sources,
    machine: &MachineId,
    now: Timestamp,
) -> Result<Vec<CertificateView>, ControlError> {
    Ok(views(&sources.document(machine).await?, &[], now))
}

/// Revokes certificates, and says how all of them stand then. One that is revoked already stays so.
///
/// # Errors
/// When the machine is not enrolled, the fingerprint is none of its certificates or not clear, or the store
/// does not answer.
pub async fn revoke(
    sources: &Sources,
    machine: &MachineId,
    which: &Revoke,
    now: Timestamp,
) -> Result<Vec<CertificateView>, ControlError> {
    let document = sources.document(machine).await?;
    // Certificates are added and never taken away: what this one has can be relied on.
    let one = match which {
        Revoke::One(digits) => Some(named(&document, digits)?),
        Revoke::ButNewest => None,
    };
    let mut fallen = Vec::new();
    let changed = sources.vault.update_machine(machine, |mut document| {
        // Anew each time: somebody may have enrolled the machine meanwhile.
        let chosen =
            one.clone().map_or_else(|| but_newest(&document.certificates), |one| vec![one]);
        fallen.clear();
        for entry in document.certificates.iter_mut().filter(|entry| !entry.revoked) {
            if chosen.contains(&entry.fingerprint) {
                entry.revoked = true;
                fallen.push(entry.fingerprint.clone());
            }
        }
        Ok(document)
    });
    Ok(views(&changed.await?, &fallen, now))
}

fn views(document: &MachineDocument, fallen: &[String], now: Timestamp) -> Vec<CertificateView> {
    let view = |entry: &CertificateEntry| CertificateView {
        fingerprint: entry.fingerprint.clone(),
        not_after: entry.not_after,
        state: match () {
            () if entry.revoked => Standing::Revoked,
            () if entry.not_after <= now => Standing::Expired,
            () => Standing::Good,
        },
        revoked_now: fallen.contains(&entry.fingerprint),
    };
    document.certificates.iter().map(view).collect()
}

/// The fingerprint that begins with these digits.
fn named(document: &MachineDocument, digits: &str) -> Result<String, ControlError> {
    let digits = digits.to_ascii_lowercase();
    let clear = digits.len() >= DIGITS_MIN;
    let begins = |entry: &&CertificateEntry| clear && entry.fingerprint.starts_with(&digits);
    let mut found = document.certificates.iter().filter(begins);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.fingerprint.clone()),
        (None | Some(_), _) => {
            let machine = document.machine.clone();
            Err(ControlError::UnknownCertificate { machine, fingerprint: digits })
        }
    }
}

/// All but the last one that is not revoked.
fn but_newest(certificates: &[CertificateEntry]) -> Vec<String> {
    let newest = certificates.iter().rposition(|entry| !entry.revoked);
    let others = certificates.iter().enumerate().filter(|(at, _)| Some(*at) != newest);
    others.map(|(_, entry)| entry.fingerprint.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::*;
    use crate::clock::System;
    use crate::seal::KeyEncryptionKey;
    use crate::store::Memory;
    use crate::vault::{Policy, Vault};

    const NOW: Timestamp = Timestamp(1_000);

    async fn enrolled(certificates: &[&str]) -> (Sources, MachineId) {
        let kek = KeyEncryptionKey::of(Zeroizing::new([7; 32]));
        let store = Arc::new(Memory::new(System::clock()));
        let vault = Vault::new(store, kek.derive("vault"));
        let machine: MachineId = "web-1".parse().unwrap();
        let entry = |fingerprint: &&str| CertificateEntry {
            fingerprint: (*fingerprint).to_owned(),
            not_after: Timestamp(if fingerprint.starts_with("01") { 1 } else { 2_000 }),
            revoked: false,
        };
        let document = MachineDocument {
            machine: machine.clone(),
            created: Timestamp(0),
            data_keys: Vec::new(),
            certificates: certificates.iter().map(entry).collect(),
            policy: Policy::default(),
        };
        vault.create_machine(&document).await.unwrap();
        (Sources { vault, kek: Arc::new(kek) }, machine)
    }

    fn shown(views: &[CertificateView]) -> Vec<(&str, Standing, bool)> {
        let views = views.iter();
        views.map(|view| (&view.fingerprint[..2], view.state, view.revoked_now)).collect()
    }

    #[tokio::test]
    async fn one_is_revoked_by_the_beginning_of_its_fingerprint() {
        let (sources, machine) = enrolled(&["aabbccdd11", "aabbccdd22", "0123456789"]).await;
        for unclear in ["aabbccdd", "aabbcc", "", "ffffffff"] {
            let refused = revoke(&sources, &machine, &Revoke::One(unclear.to_owned()), NOW).await;
            let said = refused.unwrap_err().to_string();
            assert!(said.contains(unclear) && said.contains("holdfast revoke web-1"), "{said}");
        }
        let second = Revoke::One("AABBCCDD2".to_owned());
        let (good, gone, old) = (Standing::Good, Standing::Revoked, Standing::Expired);
        let views = revoke(&sources, &machine, &second, NOW).await.unwrap();
        assert_eq!(shown(&views), [("aa", good, false), ("aa", gone, true), ("01", old, false)]);
        let views = revoke(&sources, &machine, &second, NOW).await.unwrap();
        assert_eq!(shown(&views)[1], ("aa", gone, false), "it was already");
        assert_eq!(views, certificates(&sources, &machine, NOW).await.unwrap());
    }

    #[tokio::test]
    async fn all_go_but_the_one_that_was_issued_last() {
        let (sources, machine) = enrolled(&["0123456789", "aa23456789", "bb23456789"]).await;
        let (good, gone) = (Standing::Good, Standing::Revoked);
        let views = revoke(&sources, &machine, &Revoke::ButNewest, NOW).await.unwrap();
        assert_eq!(shown(&views), [("01", gone, true), ("aa", gone, true), ("bb", good, false)]);
        let views = revoke(&sources, &machine, &Revoke::ButNewest, NOW).await.unwrap();
        assert_eq!(shown(&views), [("01", gone, false), ("aa", gone, false), ("bb", good, false)]);
        let unknown = revoke(&sources, &"web-2".parse().unwrap(), &Revoke::ButNewest, NOW).await;
        assert!(unknown.unwrap_err().to_string().contains("holdfast enroll web-2"));
    }
}
