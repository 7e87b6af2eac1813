//! State that cannot be: found, named by its path, never used.

use std::path::Path;

use holdfast::clock::System;
use holdfast::store::{Class, Condition, Dir, Store, StoreError};

use crate::fixture::{bytes, data, guard, kind, lease, name};

const SIZE: u64 = 1 << 20;

async fn blob(path: &Path) -> Dir {
    let store = Dir::open(path, System::clock()).unwrap();
    let a = name("seed/a");
    store.create_pages(&a, SIZE).await.unwrap();
    store.acquire_lease(&a, lease(1), 60).await.unwrap();
    store.write_pages(&a, &[data(0, 4096, 1)], &guard(1, 0)).await.unwrap();
    store.snapshot(&a, "", &guard(1, 0)).await.unwrap();
    store.write_pages(&a, &[data(0, 4096, 2)], &guard(1, 0)).await.unwrap();
    store
}

fn damaged<T>(result: Result<T, StoreError>, path: &str) {
    let Err(error) = result else {
        panic!("{path}: damage was not found");
    };
    assert_eq!(error.class(), Class::Poison, "{error}");
    assert!(error.to_string().contains(path), "{error} does not name {path}");
}

#[tokio::test]
async fn each_damaged_file_is_named() {
    type Harm = fn(&Path);
    let flip: Harm = |path| {
        let mut content = std::fs::read(path).unwrap();
        content[20] ^= 1;
        std::fs::write(path, content).unwrap();
    };
    let cut: Harm = |path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 512).unwrap();
    };
    let remove: Harm = |path| std::fs::remove_file(path).unwrap();
    let beside = ".pages/seed/a";
    let snapshot = format!("{beside}/{:016x}", 1);
    let cases = [
        (format!("{beside}/state"), flip, false),
        ("seed/a".to_owned(), cut, false),
        (format!("{snapshot}.map"), flip, true),
        (format!("{snapshot}.map"), cut, true),
        (format!("{snapshot}.map"), remove, true),
        (format!("{snapshot}.pages"), cut, true),
        (format!("{snapshot}.pages"), remove, true),
    ];
    for (file, harm, base_is_readable) in cases {
        let directory = tempfile::tempdir().unwrap();
        let store = blob(directory.path()).await;
        let a = name("seed/a");
        let first = store.list_snapshots(&a).await.unwrap()[0].id.clone();
        harm(&directory.path().join(&file));
        damaged(store.read_pages(&a, Some(&first), 0, SIZE).await, &file);
        // Writing needs the map; it needs the snapshot's bytes only to keep more of them.
        let write = store.write_pages(&a, &[data(65536, 512, 3)], &guard(1, 0)).await;
        damaged(write, &file);
        let base = store.read_pages(&a, None, 0, SIZE).await;
        assert_eq!(base.is_ok(), base_is_readable, "{file}");
        // Others stay usable, now and after opening again.
        drop(store);
        let store = Dir::open(directory.path(), System::clock()).unwrap();
        store.put(&name("b"), bytes("x"), Condition::Absent).await.unwrap();
    }
}

/// A directory that is named like an object but holds what is not ours.
#[tokio::test]
async fn strangers_in_the_directory_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let stranger = directory.path().join("vault");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::write(stranger.join("Not Ours"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", stranger.join("link")).unwrap();
    let store = Dir::open(directory.path(), System::clock()).unwrap();
    assert!(store.list("").await.unwrap().is_empty());
    assert_ne!(kind(store.read(&name("vault/link")).await), "ok", "a link was followed");
    assert_eq!(kind(store.put(&name("vault"), bytes("x"), Condition::Always).await), "refused");
    assert!(stranger.join("Not Ours").exists());
}
