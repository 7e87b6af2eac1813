//! A machine in the store as the library sees it, beside whatever processes work on it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use holdfast::cloud_log::LogStore;
use holdfast::format::manifest::{DeltaEntry, Manifest};
use holdfast::format::names;
use holdfast::model::{DeltaId, Generation, MachineId, Sequence};
use holdfast::recover::{CACHE_BYTES, DiskReader, PointSpec, Recovery};
use holdfast::store::Condition;
use holdfast::vault::{PointsDocument, Policy, PolicyBounds};

use super::Site;

pub struct Library {
    site: holdfast::cli::site::Site,
    machine: MachineId,
    runtime: tokio::runtime::Runtime,
}

impl Library {
    pub fn open(site: &Site, machine: &str) -> Self {
        let site = holdfast::cli::site::Site::open(&site.config()).ok().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { site, machine: machine.parse().unwrap(), runtime }
    }

    /// The points document, as whoever applies left it; `None` before the first applier.
    pub fn points(&self) -> Option<PointsDocument> {
        let read = self.site.sources.vault.points(&self.machine);
        self.runtime.block_on(read).unwrap().map(|(document, _)| document)
    }

    pub fn set_policy(&self, policy: Policy) {
        let bounds = PolicyBounds { snapshot_interval_min_s: 1 };
        let vault = &self.site.sources.vault;
        self.runtime.block_on(vault.update_policy(&self.machine, policy, bounds)).unwrap();
    }

    /// A delta that an ownership before the first would have left.
    pub fn plant_orphan(&self) {
        let (generation, id) = (Generation(0), DeltaId([7; 16]));
        let name = names::delta(&self.machine, generation, Sequence(1), Sequence(1), id);
        let store = self.site.sources.vault.store();
        let put = store.put(&name, bytes::Bytes::from_static(b"left"), Condition::Absent);
        self.runtime.block_on(put).unwrap();
    }

    fn log(&self) -> LogStore {
        let vault = &self.site.sources.vault;
        let document = self.runtime.block_on(vault.machine(&self.machine)).unwrap().unwrap();
        let keys = holdfast::seal::KeyRing::unwrap(&self.site.sources.kek, &document).unwrap();
        LogStore::new(Arc::clone(vault.store()), self.machine.clone(), keys)
    }

    pub fn manifest(&self) -> Manifest {
        self.runtime.block_on(self.log().manifest()).unwrap().unwrap().0
    }

    /// Everything that the manifest names.
    pub fn entries(&self) -> Vec<DeltaEntry> {
        let (log, manifest) = (self.log(), self.manifest());
        self.runtime.block_on(log.entries(&manifest, manifest.truncated)).unwrap()
    }

    /// The published watermark and the names of all deltas that the manifest names.
    pub fn published(&self) -> (u64, Vec<String>) {
        let (log, manifest) = (self.log(), self.manifest());
        let entries = log.entries(&manifest, manifest.truncated);
        let entries = self.runtime.block_on(entries).unwrap();
        let name = |e: &DeltaEntry| {
            names::delta(&self.machine, e.generation, e.first, e.last, e.id).to_string()
        };
        (manifest.published.0, entries.iter().map(name).collect())
    }

    /// The first `length` bytes of each disk at a point.
    pub fn read(&self, disks: &[&str], point: &str, length: u64) -> Result<Vec<Vec<u8>>, String> {
        let spec: PointSpec = point.parse().unwrap();
        let read = async {
            let store = Arc::clone(self.site.sources.vault.store());
            let recovery = Recovery::open(store, &self.site.sources.kek, &self.machine).await?;
            let point = recovery.resolve(&spec).await?;
            let mut all = Vec::new();
            for disk in disks {
                let disk = disk.parse().unwrap();
                let reader = DiskReader::open(&recovery, &point, &disk, CACHE_BYTES).await?;
                all.push(reader.read(0, length).await?.to_vec());
            }
            Ok(all)
        };
        let read: Result<_, holdfast::recover::RecoverError> = self.runtime.block_on(read);
        read.map_err(|error| error.line())
    }
}

/// Ids of the snapshots that have files beside a seed disk of a `dir:` store.
pub fn snapshot_files(store: &Path, seed_disk: &str) -> BTreeSet<String> {
    let beside = super::files(&store.join(".pages/seed").join(seed_disk));
    let ours = |path: &Path| path.extension().is_some_and(|end| end == "pages" || end == "map");
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    beside.iter().filter(|path| ours(path)).map(|path| stem(path)).collect()
}

/// Processes that have temporary files in a `dir:` store.
pub fn staging_owners(store: &Path) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(store.join(".staging")).into_iter().flatten().flatten();
    let owner = |name: &str| name.split('-').next().unwrap().parse().unwrap();
    entries.map(|entry| owner(entry.file_name().to_str().unwrap())).collect()
}
