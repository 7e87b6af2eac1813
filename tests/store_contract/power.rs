//! Copy-before-write under kills and losses of power at every single step.
//!
//! [`Power`] sees every change of the file system before it happens and remembers what was there.
//! At a cut it takes back any part of what no sync had covered: single sectors of unsynced writes,
//! and the latest names that no directory sync covered. What is left is what a device may hold.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use holdfast::model::ObjectName;
use holdfast::store::{Dir, Result, SnapshotId, Step, Store, StoreError, Watch};

use crate::fixture::{Dice, Hands, clear, data, fast_directory, guard, kind, lease, name};
use crate::model::{Action, SIZE};

enum Pending {
    Bytes { path: PathBuf, offset: u64, old: Vec<u8>, old_length: u64 },
    Placed { path: PathBuf, before: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
}

#[derive(Default)]
struct Log {
    steps: u64,
    stop_at: Option<u64>,
    pending: Vec<Pending>,
    kept: u64,
}

struct Power {
    log: Mutex<Log>,
    keep: PathBuf,
}

impl Log {
    fn keep(&mut self, keep: &Path, path: &Path) -> io::Result<PathBuf> {
        self.kept += 1;
        let kept = keep.join(self.kept.to_string());
        std::fs::hard_link(path, &kept)?;
        self.moved(path, &kept);
        Ok(kept)
    }

    fn moved(&mut self, from: &Path, to: &Path) {
        for pending in &mut self.pending {
            if let Pending::Bytes { path, .. } = pending
                && path == from
            {
                *path = to.to_owned();
            }
        }
    }

    fn record(&mut self, keep: &Path, step: Step<'_>) -> io::Result<()> {
        match step {
            Step::Write { path, offset, length } => {
                let file = File::open(path)?;
                let old_length = file.metadata()?.len();
                let end = (offset + length).min(old_length);
                let mut old = vec![0; end.saturating_sub(offset) as usize];
                file.read_exact_at(&mut old, offset.min(old_length))?;
                let path = path.to_owned();
                self.pending.push(Pending::Bytes { path, offset, old, old_length });
            }
            Step::Sync { path: synced } => self.pending.retain(
                |pending| !matches!(pending, Pending::Bytes { path, .. } if path == synced),
            ),
            Step::Place { from, path } => {
                let before = match path.exists() {
                    true => Some(self.keep(keep, path)?),
                    false => None,
                };
                self.moved(from, path);
                let path = path.to_owned();
                self.pending.push(Pending::Placed { path, before });
            }
            Step::Remove { path } if path.exists() => {
                let kept = self.keep(keep, path)?;
                let path = path.to_owned();
                self.pending.push(Pending::Removed { path, kept });
            }
            Step::Remove { .. } => {}
            Step::SyncDirectory { path: directory } => {
                self.pending.retain(|pending| match pending {
                    Pending::Bytes { .. } => true,
                    Pending::Placed { path, .. } | Pending::Removed { path, .. } => {
                        path.parent() != Some(directory)
                    }
                })
            }
        }
        Ok(())
    }
}

impl Watch for Power {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        let mut log = self.log.lock().unwrap();
        if log.stop_at.is_some_and(|at| log.steps >= at) {
            return Err(io::Error::other("killed here"));
        }
        log.steps += 1;
        log.record(&self.keep, step)
    }
}

impl Power {
    fn cut(&self, dice: &mut Dice) {
        let mut log = self.log.lock().unwrap();
        let mut stays: HashSet<(PathBuf, u64)> = HashSet::new();
        let mut names_go = true;
        while let Some(pending) = log.pending.pop() {
            if !matches!(pending, Pending::Bytes { .. }) {
                names_go = names_go && !dice.one_in(3);
            }
            match pending {
                Pending::Bytes { path, offset, old, old_length } => {
                    let Ok(file) = File::options().write(true).open(&path) else {
                        continue;
                    };
                    for (index, sector) in old.chunks(512).enumerate() {
                        let at = offset + index as u64 * 512;
                        // Once a later write of a sector stays, no earlier content comes back.
                        if stays.contains(&(path.clone(), at)) || dice.one_in(2) {
                            stays.insert((path.clone(), at));
                        } else {
                            file.write_all_at(sector, at).unwrap();
                        }
                    }
                    if file.metadata().unwrap().len() > old_length {
                        file.set_len(old_length).unwrap();
                    }
                }
                Pending::Placed { path, before } if names_go => match before {
                    Some(before) => std::fs::rename(before, path).unwrap(),
                    None => std::fs::remove_file(path).unwrap(),
                },
                Pending::Removed { path, kept } if names_go => {
                    std::fs::rename(kept, path).unwrap();
                }
                Pending::Placed { .. } | Pending::Removed { .. } => {}
            }
        }
        log.stop_at = None;
    }

    fn stop_at(&self, step: Option<u64>) {
        let mut log = self.log.lock().unwrap();
        log.stop_at = step;
        log.steps = 0;
    }

    fn steps(&self) -> u64 {
        self.log.lock().unwrap().steps
    }
}

/// A directory store and what must be in it.
struct World {
    directory: tempfile::TempDir,
    power: Arc<Power>,
    clock: Arc<Hands>,
    blob: ObjectName,
    /// Contents of the blob since the last flush that returned, the newest last: each sector must
    /// hold what it held in one of them.
    images: Vec<Vec<u8>>,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
    /// What was being done when it stopped.
    unanswered: Option<Action>,
    owner: u8,
}

impl World {
    async fn new() -> Self {
        let directory = fast_directory();
        let keep = directory.path().join("kept by the test");
        std::fs::create_dir(&keep).unwrap();
        let log = Mutex::default();
        let mut world = Self {
            directory,
            power: Arc::new(Power { log, keep }),
            clock: Hands::new(),
            blob: name("seed/disk"),
            images: vec![vec![0; SIZE as usize]],
            snapshots: Vec::new(),
            unanswered: None,
            owner: 0,
        };
        let store = world.open();
        store.create_pages(&world.blob, SIZE).await.unwrap();
        world.take(&store).await;
        world
    }

    fn open(&self) -> Dir {
        let watch = Arc::clone(&self.power) as _;
        let path = self.directory.path().join("store");
        Dir::open_watched(&path, Arc::clone(&self.clock) as _, watch).unwrap()
    }

    async fn take(&mut self, store: &Dir) {
        self.owner += 1;
        store.break_lease(&self.blob).await.unwrap();
        store.acquire_lease(&self.blob, lease(self.owner), 60).await.unwrap();
    }

    async fn act(&mut self, store: &Dir, action: Action) -> Result<()> {
        let (blob, by) = (&self.blob, guard(self.owner, 0));
        let mut image = self.images[self.images.len() - 1].clone();
        action.apply(&mut image);
        self.unanswered = Some(action);
        match action {
            Action::Write { at, sectors, fill } => {
                self.images.push(image);
                let write = data(at * 512, sectors as usize * 512, fill);
                store.write_pages(blob, &[write], &by).await?;
            }
            Action::Clear { at, sectors } => {
                self.images.push(image);
                store.write_pages(blob, &[clear(at * 512, sectors * 512)], &by).await?;
            }
            Action::Flush => {
                store.flush_pages(blob, &by).await?;
                self.images = vec![image];
            }
            Action::Snapshot => {
                let id = store.snapshot(blob, "", &by).await?;
                self.images = vec![image.clone()];
                self.snapshots.push((id, image));
            }
            Action::Delete(nth) if !self.snapshots.is_empty() => {
                let at = nth as usize % self.snapshots.len();
                store.delete_snapshot(blob, &self.snapshots[at].0).await?;
                self.snapshots.remove(at);
            }
            Action::Delete(_) => {}
        }
        self.unanswered = None;
        Ok(())
    }

    /// Runs a history until it ends or is stopped.
    async fn run(&mut self, store: &Dir, history: &[Action]) {
        for action in history {
            match self.act(store, *action).await {
                Ok(()) => {}
                Err(StoreError::Io { .. } | StoreError::Fenced { .. }) => return,
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Everything that must hold after a stop; takes what is found as the new start.
    async fn check(&mut self, store: &Dir, why: &str) {
        let blob = &self.blob;
        let found = store.list_snapshots(blob).await.unwrap();
        let newest = self.images[self.images.len() - 1].clone();
        for one in &found {
            let new = || self.snapshots.iter().all(|(id, _)| *id != one.id);
            if matches!(self.unanswered, Some(Action::Snapshot)) && new() {
                self.snapshots.push((one.id.clone(), newest.clone()));
            }
        }
        if let Some(Action::Delete(_)) = self.unanswered {
            let listed = |id: &SnapshotId| found.iter().any(|one| one.id == *id);
            let before = self.snapshots.len();
            self.snapshots.retain(|(id, _)| listed(id));
            assert!(before - self.snapshots.len() <= 1, "{why}: snapshots lost");
        }
        let ids: Vec<_> = self.snapshots.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, found.iter().map(|one| &one.id).collect::<Vec<_>>(), "{why}");
        for (id, image) in &self.snapshots {
            let content = store.read_pages(blob, Some(id), 0, SIZE).await;
            let content = content.unwrap_or_else(|error| panic!("{why}: {error}"));
            let differs = content.chunks(512).zip(image.chunks(512)).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{why}: sector of snapshot {id:?}");
        }
        let now = store.read_pages(blob, None, 0, SIZE).await.unwrap();
        for (at, sector) in now.chunks(512).enumerate() {
            let legal = |image: &Vec<u8>| image[at * 512..][..512] == *sector;
            assert!(self.images.iter().any(legal), "{why}: sector {at} of the blob");
        }
        self.images.push(now.to_vec());
        self.unanswered = None;
    }

    /// Nothing is left behind: each file beside the blob is named by its state.
    async fn check_leftovers(&self, store: &Dir, why: &str) {
        let snapshots = store.list_snapshots(&self.blob).await.unwrap();
        let beside = self.directory.path().join("store/.pages/seed/disk");
        let mut found: Vec<String> = std::fs::read_dir(beside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.retain(|file| {
            file != "state" && !snapshots.iter().any(|one| file.starts_with(&one.id.0))
        });
        assert!(found.is_empty(), "{why}: {found:?} left behind");
    }
}

fn history(seed: u64, count: usize) -> Vec<Action> {
    let mut dice = Dice(seed);
    (0..count).map(|_| Action::draw(&mut dice)).collect()
}

/// How many changes the history makes when nobody stops it.
async fn steps_of(history: &[Action]) -> u64 {
    let mut world = World::new().await;
    let store = world.open();
    world.power.stop_at(None);
    world.run(&store, history).await;
    world.check(&store, "undisturbed").await;
    world.power.steps()
}

#[tokio::test]
async fn power_may_be_lost_at_every_step() {
    for seed in 0..5 {
        let history = history(seed, 30);
        let steps = steps_of(&history).await;
        assert!(steps > 60, "the history does something");
        for step in 0..steps {
            let why = format!("seed {seed}, power cut at step {step}");
            let mut world = World::new().await;
            let store = world.open();
            world.power.stop_at(Some(step));
            world.run(&store, &history).await;
            drop(store);
            world.power.cut(&mut Dice(seed << 32 | step));
            let store = world.open();
            world.check(&store, &why).await;
            world.check_leftovers(&store, &why).await;
        }
    }
}

/// The page cache outlives a killed process. The next one does the same again, as redo does, and
/// finds what looks as if it were done.
#[tokio::test]
async fn what_a_killed_process_left_unsynced_is_not_trusted() {
    for seed in 100..106 {
        let history = history(seed, 24);
        for step in 0..steps_of(&history).await {
            let why = format!("seed {seed}, killed at step {step}, power cut later");
            let mut world = World::new().await;
            let store = world.open();
            world.power.stop_at(Some(step));
            world.run(&store, &history).await;
            drop(store);
            let again = world.unanswered;
            world.power.stop_at(None); // nothing is taken back yet
            let store = world.open();
            world.check(&store, &why).await;
            world.take(&store).await;
            world.run(&store, again.as_slice()).await;
            if step % 4 == 0 {
                world.run(&store, &self::history(seed << 32 | step, 12)).await;
            }
            drop(store);
            world.power.cut(&mut Dice(step));
            let store = world.open();
            world.check(&store, &why).await;
        }
    }
}

/// A sync that fails once is never believed the next time.
#[tokio::test]
async fn a_failed_flush_ends_the_lease() {
    struct FailOnce(Mutex<bool>);
    impl Watch for FailOnce {
        fn before(&self, step: Step<'_>) -> io::Result<()> {
            let base = matches!(step, Step::Sync { path } if path.ends_with("store/seed/disk"));
            match base && std::mem::take(&mut *self.0.lock().unwrap()) {
                true => Err(io::Error::from_raw_os_error(5)),
                false => Ok(()),
            }
        }
    }
    let world = World::new().await;
    let path = world.directory.path().join("store");
    let once = Arc::new(FailOnce(Mutex::new(true)));
    let store = Dir::open_watched(&path, Arc::clone(&world.clock) as _, once).unwrap();
    let (blob, by) = (&world.blob, guard(1, 0));
    store.write_pages(blob, &[data(0, 512, 1)], &by).await.unwrap();
    assert_eq!(kind(store.flush_pages(blob, &by).await), "io");
    for _ in 0..2 {
        assert_eq!(kind(store.flush_pages(blob, &by).await), "fenced");
        assert_eq!(kind(store.snapshot(blob, "", &by).await), "fenced");
        // Not even by taking the same lease again.
        let _ = store.acquire_lease(blob, lease(1), 60).await;
    }
    store.break_lease(blob).await.unwrap();
    store.acquire_lease(blob, lease(2), 60).await.unwrap();
    store.write_pages(blob, &[data(0, 512, 1)], &guard(2, 0)).await.unwrap();
    store.flush_pages(blob, &guard(2, 0)).await.unwrap();
}

/// Small objects: after a cut the old content or the new one, and the new one once it was told.
#[tokio::test]
async fn a_put_is_whole_or_absent() {
    use holdfast::store::Condition;
    let a = name("vault/deep/document");
    for create in [true, false] {
        for step in 0..64 {
            let directory = fast_directory();
            let keep = directory.path().join("kept by the test");
            std::fs::create_dir(&keep).unwrap();
            let power = Arc::new(Power { log: Mutex::default(), keep });
            let path = directory.path().join("store");
            let open = || {
                let watch = Arc::clone(&power) as _;
                Dir::open_watched(&path, Hands::new() as _, watch).unwrap()
            };
            let store = open();
            let (old, new) = (vec![1; 3000], vec![2; 5000]);
            if !create {
                store.put(&a, old.clone().into(), Condition::Absent).await.unwrap();
            }
            power.stop_at(Some(step));
            let told = store.put(&a, new.clone().into(), Condition::Always).await.is_ok();
            let done = power.steps() < step;
            drop(store);
            power.cut(&mut Dice(step));
            let found = open().read(&a).await.map(|(content, _)| content.to_vec()).ok();
            let before = (!create).then_some(old);
            let legal = found == Some(new) || (!told && found == before);
            assert!(
                legal,
                "step {step}, create {create}, told {told}: {:?}",
                found.map(|f| f.len())
            );
            if done {
                break;
            }
        }
    }
}

/// A killed process placed the object and did not sync the directory. Who is told that it exists
/// builds on it, so by then it must survive.
#[tokio::test]
async fn what_is_told_to_exist_survives() {
    use holdfast::store::Condition;
    let a = name("vault/document");
    let mut told_to_exist = 0;
    for step in 0..64 {
        let world = World::new().await;
        let store = world.open();
        store.put(&name("vault/other"), vec![0].into(), Condition::Absent).await.unwrap();
        world.power.stop_at(Some(step));
        let first = kind(store.put(&a, vec![1].into(), Condition::Absent).await);
        drop(store);
        world.power.stop_at(None);
        let store = world.open();
        let second = kind(store.put(&a, vec![2].into(), Condition::Absent).await);
        drop(store);
        world.power.cut(&mut Dice(step));
        let expected = if second == "ok" { 2 } else { 1 };
        assert_eq!(world.open().read(&a).await.unwrap().0[..], [expected], "step {step}");
        if first == "ok" {
            assert!(told_to_exist > 0, "the moment between link and sync was not met");
            return;
        }
        told_to_exist += u32::from(second == "already exists");
    }
    panic!("a put has fewer steps");
}

/// Directories on the way are made durable, up to the root, whoever made them.
#[tokio::test]
async fn new_directories_are_synced_up_to_the_root() {
    #[derive(Default)]
    struct Synced(Mutex<Vec<PathBuf>>);
    impl Watch for Synced {
        fn before(&self, step: Step<'_>) -> io::Result<()> {
            if let Step::SyncDirectory { path } = step {
                self.0.lock().unwrap().push(path.to_owned());
            }
            Ok(())
        }
    }
    let directory = fast_directory();
    let root = directory.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("vault")).unwrap(); // by a process that was killed
    let synced = Arc::new(Synced::default());
    let store = Dir::open_watched(&root, Hands::new() as _, Arc::clone(&synced) as _).unwrap();
    let condition = holdfast::store::Condition::Absent;
    store.put(&name("vault/deep/document"), vec![1].into(), condition).await.unwrap();
    let synced = synced.0.lock().unwrap();
    for expected in ["", "vault", "vault/deep"] {
        assert!(synced.contains(&root.join(expected)), "{expected:?} of {synced:?}");
    }
}
