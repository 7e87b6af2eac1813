//! A directory that did not sync shows names that a loss of power may take away: nothing is read
//! or written any more until the store is opened anew, which syncs first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast::store::{Class, Condition, Dir, Step, Store, StoreError, Watch};

use crate::fixture::{Hands, fast_directory, name};

/// Fails the next sync of a directory, as a disk does: once.
#[derive(Default)]
struct FailsOnce(AtomicBool);

impl Watch for FailsOnce {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        match step {
            Step::SyncDirectory { .. } if self.0.swap(false, Ordering::Relaxed) => {
                Err(io::Error::other("the disk is failing"))
            }
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn after_a_directory_did_not_sync_its_names_are_not_believed() {
    let directory = fast_directory();
    let watch = Arc::new(FailsOnce::default());
    let open = || Dir::open_watched(directory.path(), Hands::new() as _, Arc::clone(&watch) as _);
    let store = open().unwrap();
    let manifest = name("machines/web-1/manifest");
    let etag = store.put(&manifest, vec![1].into(), Condition::Absent).await.unwrap();
    watch.0.store(true, Ordering::Relaxed);
    let replaced = store.put(&manifest, vec![2].into(), Condition::Matches(etag)).await;
    assert!(matches!(&replaced, Err(StoreError::Io { .. })), "{replaced:?}");
    // The new content can be read; whoever looks whether the write happened must not believe it.
    let seen = store.read(&manifest).await.unwrap_err();
    assert_eq!(seen.class(), Class::Retry);
    let text = format!("{seen}: {}", std::error::Error::source(&seen).unwrap());
    assert!(text.contains("did not sync") && text.contains("start anew"), "{text}");
    assert!(store.put(&name("other"), vec![3].into(), Condition::Absent).await.is_err());
    assert!(store.list("machines/").await.is_err());
    drop(store);
    let staged = std::fs::read_dir(directory.path().join(".staging")).unwrap().count();
    assert_eq!(staged, 1, "what tells the next open to sync before it believes anything");
    let store = open().unwrap();
    assert_eq!(store.read(&manifest).await.unwrap().0[..], [2]);
}
