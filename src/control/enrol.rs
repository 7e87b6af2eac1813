//! Enrolment: a machine gets a data key, a policy and a certificate.
//!
//! Owns: the order of the steps. Does not own: who may ask (token or operator); callers found that
//! out before.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ControlError;
use super::ca::{CertificateAuthority, Issued, SigningRequest};
use crate::clock::{Clock, Entropy};
use crate::model::MachineId;
use crate::seal::KeyEncryptionKey;
use crate::vault::{MachineDocument, Policy, ServerDocument, Vault, VaultError};

/// Everything that enrolling needs.
pub struct Registrar {
    /// Where machines are recorded.
    pub vault: Vault,
    /// Wraps their data keys.
    pub kek: Arc<KeyEncryptionKey>,
    /// Signs their certificates.
    pub ca: CertificateAuthority,
    /// Life of a machine's certificate.
    pub certificate_ttl: Duration,
    /// Address that is given out while no process server has recorded its own.
    pub advertise: String,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registrar({:?})", self.vault)
    }
}

/// What a machine is given.
#[derive(Debug)]
pub struct Enrolment {
    /// Its certificate, PEM, and what the vault recorded.
    pub issued: Issued,
    /// The authority's certificate, PEM.
    pub ca_certificate: String,
    /// Process servers, `host:port`, in the order in which the machine tries them.
    pub servers: Vec<String>,
    /// Whether the machine was unknown before.
    pub first: bool,
}

/// In which order `machine` shall try the servers with these addresses: machines begin at different
/// ones of the `living`, so that those who lose the same server do not all arrive at the same next one.
fn preference(
    machine: &MachineId,
    mut living: Vec<String>,
    gone: Vec<String>,
    advertise: &str,
) -> Vec<String> {
    if !living.is_empty() {
        let first = crc32fast::hash(machine.as_str().as_bytes()) as usize % living.len();
        living.rotate_left(first);
    }
    let mut addresses: Vec<String> = Vec::new();
    for address in living.into_iter().chain(gone) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(advertise.to_owned());
    }
    addresses
}

impl Registrar {
    /// Enrols `machine` with the key of `request`. A machine that is enrolled already keeps its data
    /// keys and its policy and gets one more certificate.
    ///
    /// # Errors
    /// When the vault or the authority refuses.
    pub async fn enrol(
        &self,
        machine: &MachineId,
        request: &SigningRequest,
    ) -> Result<Enrolment, ControlError> {
        let now = self.clock.wall();
        let entropy = self.entropy.as_ref();
        let life = self.certificate_ttl;
        let issued = self.ca.issue_machine(machine, request, life, now, entropy)?;
        let first = self.register(machine, &issued).await?;
        if !first {
            let recorded = self.vault.add_certificate(machine, issued.entry.clone());
            recorded.await?;
        }
        let mut servers: Vec<_> = self.vault.servers().await?;
        servers.sort_by_key(|(server, _)| std::cmp::Reverse(server.started));
        // The living first: who is gone is tried when nobody else answers.
        let (living, gone): (Vec<_>, Vec<_>) = servers.into_iter().partition(|(_, alive)| *alive);
        let addresses = |servers: Vec<(ServerDocument, bool)>| {
            servers.into_iter().map(|(server, _)| server.address).collect::<Vec<_>>()
        };
        let servers = preference(machine, addresses(living), addresses(gone), &self.advertise);
        Ok(Enrolment { issued, ca_certificate: self.ca.certificate().to_owned(), servers, first })
    }

    /// Makes the machine's document unless there is one.
    async fn register(&self, machine: &MachineId, issued: &Issued) -> Result<bool, ControlError> {
        if self.vault.machine(machine).await?.is_some() {
            return Ok(false);
        }
        let now = self.clock.wall();
        let (_, wrapped) = self.kek.make_data_key(machine, 1, self.entropy.as_ref(), now);
        let document = MachineDocument {
            machine: machine.clone(),
            created: now,
            data_keys: vec![wrapped],
            certificates: vec![issued.entry.clone()],
            policy: Policy::default(),
        };
        match self.vault.create_machine(&document).await {
            Ok(()) => Ok(true),
            Err(VaultError::Exists { .. }) => Ok(false), // somebody else was faster: its key stays
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_knows_all_servers_and_they_do_not_begin_at_the_same_one() {
        let living = ["a:1", "b:1", "a:1", "c:1"].map(str::to_owned).to_vec();
        let gone = ["d:1", "b:1"].map(str::to_owned).to_vec();
        let mut first = std::collections::BTreeMap::new();
        for number in 0..400 {
            let machine = format!("web-{number}").parse().unwrap();
            let mut order = preference(&machine, living.clone(), gone.clone(), "z:1");
            *first.entry(order[0].clone()).or_insert(0) += 1;
            assert_eq!(order.pop().unwrap(), "d:1", "who is gone comes last");
            order.sort();
            assert_eq!(order, ["a:1", "b:1", "c:1"]);
        }
        assert!(first.values().all(|machines| *machines > 70), "{first:?}");
        let machine = "web-1".parse().unwrap();
        assert_eq!(preference(&machine, Vec::new(), Vec::new(), "z:1"), ["z:1"]);
    }
}
