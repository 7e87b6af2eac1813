//! Leases of block blobs: a file for each object that somebody leased.
//!
//! Owns `.leases/`. Does not own leases of page blobs, which stand in the blob's own state. A lease
//! file is removed before its object is, so a name never inherits the lease of an earlier object.

use serde::{Deserialize, Serialize};

use super::disk::if_found;
use super::objects::Found;
use super::root::Root;
use super::state::{sealed_line, unsealed_line};
use super::{LeaseId, ObjectName, Result};
use crate::store::lease::Ownership;
use crate::store::rules::About;

/// What stands in the file: one line of JSON and its checksum, as beside page blobs.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leased {
    name: String,
    ownership: Ownership,
}

impl Root {
    fn lease_file(&self, name: &ObjectName) -> std::path::PathBuf {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(name.as_str().as_bytes());
        self.path.join(".leases").join(hex::encode(digest))
    }

    /// Who may change the block blob `name`.
    pub(super) fn blocks_ownership(&self, name: &ObjectName) -> Result<Ownership> {
        let about = self.about(name);
        let path = self.lease_file(name);
        let read = if_found(std::fs::read(&path));
        let Some(bytes) = read.map_err(|error| about.io("reading the lease", error))? else {
            return Ok(Ownership::default());
        };
        let damaged = |why: String| about.damaged(format!("{} {why}", path.display()));
        let line = unsealed_line(&bytes).map_err(damaged)?;
        let leased: Leased =
            serde_json::from_str(line).map_err(|error| damaged(error.to_string()))?;
        if leased.name != name.as_str() {
            return Err(damaged(format!("belongs to {}", leased.name)));
        }
        Ok(leased.ownership)
    }

    fn set_blocks_ownership(&self, name: &ObjectName, ownership: Ownership) -> Result<()> {
        let path = self.lease_file(name);
        let write = || -> std::io::Result<()> {
            if ownership.lease.is_some() {
                let leased = Leased { name: name.to_string(), ownership };
                let line = serde_json::to_string(&leased).expect("plain values are always JSON");
                return self.replace(&path, &sealed_line(&line));
            }
            if if_found(self.disk.remove(&path))?.is_some() {
                self.disk.sync_directory(super::disk::parent(&path))?;
            }
            Ok(())
        };
        write().map_err(|error| self.about(name).io("writing the lease", error))
    }

    /// Before a block blob is changed, under its lock: `lease` must be the running one, if one runs.
    pub(super) fn check_change(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        let before = self.blocks_ownership(name)?;
        let mut after = before.clone();
        after.check_change(self.about(name), lease, self.clock.wall())?;
        match after == before {
            true => Ok(()),
            false => self.set_blocks_ownership(name, after),
        }
    }

    /// Changes who owns an object of either kind, durably.
    pub(super) fn change_lease(
        &self,
        name: &ObjectName,
        change: impl FnOnce(&mut Ownership, About<'_>) -> Result<()>,
    ) -> Result<()> {
        if matches!(self.find(name)?, Found::Pages) {
            return self.change_ownership(name, change);
        }
        let _lock = self.exclusive(name)?;
        match self.find(name)? {
            Found::Nothing => return Err(self.about(name).not_found()),
            Found::Pages => return Err(self.about(name).precondition()), // made just now
            Found::Blocks(_) => {}
        }
        let before = self.blocks_ownership(name)?;
        let mut after = before.clone();
        change(&mut after, self.about(name))?;
        match after == before {
            true => Ok(()),
            false => self.set_blocks_ownership(name, after),
        }
    }
}
