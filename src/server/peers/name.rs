//! A process server's name on the store: taken at the start, kept by renewing, given back at the end.
//!
//! Owns: the file with the lease's id, and the proof that what a cache log kept was admitted under
//! this name by this cache directory alone. Does not own: when it is renewed.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::clock::{Entropy, random16};
use crate::server::ServerError;
use crate::store::{LeaseId, StoreError};
use crate::vault::{ServerDocument, Vault, VaultError};

/// Within the cache directory.
const FILE: &str = "lease";

/// The id under which whoever runs on this cache directory holds its name. Made once.
pub(in crate::server) fn lease_of(
    directory: &Path,
    entropy: &dyn Entropy,
) -> Result<LeaseId, ServerError> {
    let path = directory.join(FILE);
    let failed = |action| {
        let path = path.clone();
        move |source| ServerError::Io { path, action, source }
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let mut id = [0; 16];
            let good = hex::decode_to_slice(text.trim(), &mut id);
            let bad = |error: hex::FromHexError| std::io::Error::other(error);
            good.map_err(bad).map_err(failed("reading 32 hexadecimal digits"))?;
            return Ok(LeaseId(id));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading it")(error)),
    }
    let id = random16(entropy);
    let fresh = directory.join(format!("{FILE}.new"));
    let written = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(hex::encode(id).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    written().map_err(failed("writing it"))?;
    Ok(LeaseId(id))
}

/// Takes the name. `kept` says whether the cache log holds records.
pub(in crate::server) async fn take(
    vault: &Vault,
    document: &ServerDocument,
    lease: LeaseId,
    kept: bool,
) -> Result<(), ServerError> {
    let server = &document.server;
    let before = match vault.take_server(document, lease).await {
        Ok(before) => before,
        Err(VaultError::Store { source: StoreError::Fenced { .. }, .. }) => {
            let address = vault.server(server).await?.map(|other| other.address);
            let address = address.unwrap_or_default();
            return Err(ServerError::NameTaken { server: server.clone(), address });
        }
        Err(error) => return Err(error.into()),
    };
    let elsewhere = !before.cache.is_empty() && before.cache != document.cache;
    if elsewhere && kept {
        drop(vault.release_server(server, lease).await); // else it runs out by itself
        return Err(ServerError::NameMoved { server: server.clone(), started: before.started });
    }
    Ok(vault.write_server(&document.server, lease, || document.clone()).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::System;
    use crate::server::testing::{Hands, server_document};
    use crate::store::Memory;

    #[test]
    fn a_cache_directory_keeps_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let first = lease_of(directory.path(), &System).unwrap();
        assert_eq!(lease_of(directory.path(), &System).unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(lease_of(other.path(), &System).unwrap(), first);
        std::fs::write(directory.path().join(FILE), "x").unwrap();
        let refused = lease_of(directory.path(), &System).unwrap_err();
        assert!(matches!(refused, ServerError::Io { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_second_process_of_one_name_is_refused_and_the_same_one_is_not() {
        let clock = Arc::new(Hands::default());
        let store = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let vault = Vault::new(store, [1; 32]);
        let (ours, theirs) = (LeaseId([1; 16]), LeaseId([2; 16]));
        take(&vault, &server_document("ps-1", 1), ours, false).await.unwrap();
        take(&vault, &server_document("ps-1", 1), ours, true).await.unwrap();
        let refused = take(&vault, &server_document("ps-1", 2), theirs, false).await.unwrap_err();
        assert!(matches!(refused, ServerError::NameTaken { .. }), "{refused}");
        assert!(refused.to_string().contains("ps-1:9443"), "{refused}");
        clock.advance(std::time::Duration::from_secs(16)).await;
        take(&vault, &server_document("ps-1", 2), theirs, false).await.unwrap();
        let lost = vault.renew_server(&"ps-1".parse().unwrap(), ours).await.unwrap_err();
        assert!(matches!(lost, VaultError::Store { source: StoreError::Fenced { .. }, .. }));
        // And back: what the first directory kept cannot be proven any more.
        clock.advance(std::time::Duration::from_secs(16)).await;
        let refused = take(&vault, &server_document("ps-1", 1), ours, true).await.unwrap_err();
        assert!(matches!(refused, ServerError::NameMoved { .. }), "{refused}");
        take(&vault, &server_document("ps-1", 2), theirs, true).await.unwrap();
        vault.release_server(&"ps-1".parse().unwrap(), theirs).await.unwrap();
        take(&vault, &server_document("ps-1", 1), ours, false).await.unwrap();
    }
}
