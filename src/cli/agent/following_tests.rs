//! Which life of an agent is believed, with an agent that is no more than a lock and a status.

use std::fs::{self, File};
use std::pin::pin;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::following::{FollowError, News, follow, goes_on_without};
use crate::agent;
use crate::cli::Failure;
use crate::clock::{Clock, System};
use crate::model::DiskName;
use crate::settings::{AgentSettings, load_agent};

struct Fake {
    directory: tempfile::TempDir,
    settings: AgentSettings,
    lock: File,
}

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        let disk = "[[disk]]\nname = \"data\"\npath = \"x\"\n";
        fs::write(&path, format!("machine = \"m\"\nservers = [\"h:9443\"]\n{disk}")).unwrap();
        let settings = load_agent(&path).unwrap();
        let lock = File::create(directory.path().join("lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        Self { directory, settings, lock }
    }

    /// In its life `life` with these disks, all mirrored in order.
    fn says(&self, life: &str, disks: &[&str], trouble: Option<&str>) {
        let disk = |name: &&str| json!({ "name": name, "capture": "ordered", "size_bytes": 1, "dirty_bytes": 0 });
        let disks: Vec<Value> = disks.iter().map(disk).collect();
        let status = json!({
            "incarnation": life, "time": "2999-01-01T00:00:00Z", // news, as to that
            "mode": "ordered", "trouble": trouble, "disks": disks,
        });
        let unfinished = self.directory.path().join("status.json.new");
        fs::write(&unfinished, status.to_string()).unwrap();
        fs::rename(unfinished, self.directory.path().join("status.json")).unwrap();
    }
}

fn root() -> DiskName {
    "root".parse().unwrap()
}

/// Waits while nothing may come of it, and then for what comes.
async fn still_waits<T>(
    work: impl Future<Output = Result<T, Failure>>,
    then: impl FnOnce(),
) -> Result<T, Failure> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        () = System.sleep(Duration::from_millis(50)) => {}
        _ = &mut work => panic!("a life that ends was believed"),
    }
    then();
    work.await
}

fn error(failure: Failure) -> FollowError {
    let Failure::Failed(error) = failure else { panic!("{failure:?}") };
    *error.downcast().unwrap()
}

/// It goes on saying what it said while it stops.
#[tokio::test]
async fn trouble_of_a_life_that_ends_says_nothing_about_the_next() {
    let fake = Fake::new();
    fake.says("a", &["data"], Some(agent::NOT_TAKEN));
    let (settings, disk) = (&fake.settings, root());
    let news = News::of_the_next_life(settings).await;
    let followed = follow(settings, &disk, &news, true);
    still_waits(followed, || fake.says("b", &["data", "root"], None)).await.unwrap();

    fake.says("b", &["data", "root"], Some(agent::NOT_TAKEN));
    let news = News::of_the_next_life(settings).await;
    let gone = goes_on_without(settings, &disk, &news);
    still_waits(gone, || fake.says("c", &["data"], None)).await.unwrap();
}

#[tokio::test]
async fn a_next_life_in_trouble_did_not_take_the_change() {
    let fake = Fake::new();
    let why = format!("{}: no device vdb", agent::NOT_TAKEN);
    fake.says("a", &["data"], None);
    let (settings, disk) = (&fake.settings, root());
    let news = News::of_the_next_life(settings).await;
    let followed = follow(settings, &disk, &news, true);
    let failed = still_waits(followed, || fake.says("b", &["data"], Some(&why))).await;
    let told = error(failed.unwrap_err());
    assert!(matches!(&told, FollowError::NotTaken { why, .. } if why.contains("vdb")), "{told}");

    fake.says("b", &["data", "root"], None);
    let news = News::of_the_next_life(settings).await;
    let gone = goes_on_without(settings, &disk, &news);
    let failed = still_waits(gone, || fake.says("c", &["data", "root"], Some(&why))).await;
    let told = error(failed.unwrap_err());
    assert!(matches!(&told, FollowError::Kept { why, .. } if why.contains("vdb")), "{told}");
}

/// Nobody waits for an agent that is gone, nor for one that never begins anew.
#[tokio::test]
async fn an_agent_that_ends_or_stays_is_not_waited_for_without_end() {
    let fake = Fake::new();
    fake.says("a", &["data", "root"], None);
    let (settings, disk) = (&fake.settings, root());
    let news = News::of_the_next_life(settings).await;
    let told = error(goes_on_without(settings, &disk, &news).await.unwrap_err());
    assert!(matches!(&told, FollowError::Kept { why, .. } if why.contains("anew")), "{told}");
    assert!(agent::runs(settings).unwrap());
    drop(fake.lock);
    let told = error(follow(settings, &disk, &news, true).await.unwrap_err());
    assert!(matches!(told, FollowError::Ended { .. }), "{told}");
    goes_on_without(settings, &disk, &news).await.unwrap();
    assert!(!agent::runs(settings).unwrap());
}
