//! The log is read back only as what was written.

use bytes::Bytes;

use super::rig::Rig;
use crate::cloud_log::CloudLogError;
use crate::format::manifest::Manifest;
use crate::format::names;
use crate::model::Sequence;
use crate::seal::seal_document;
use crate::store::{Class, Condition, Store};
use crate::upload::{Cut, truncate};

async fn published(seed: u64) -> Rig {
    let rig = Rig::new(seed);
    rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
    rig
}

#[tokio::test]
async fn entries_after_any_record_are_exactly_those() {
    let rig = published(1).await;
    let (manifest, log) = (rig.manifest().await, rig.plain().log);
    assert!(manifest.pages.len() >= 2 && !manifest.entries.is_empty());
    let all = rig.audit().await;
    for after in 0..=46 {
        let found = log.entries(&manifest, Sequence(after)).await.unwrap();
        assert!(found.iter().eq(all.iter().filter(|entry| entry.last.0 > after)));
    }
    let cut = Cut {
        generation: manifest.generation,
        through: Sequence(20),
        epochs_from: crate::model::Epoch(1),
    };
    let through = truncate(&rig.plain(), cut).await.unwrap().through;
    let manifest = rig.manifest().await;
    assert!(through.0 > 0);
    assert!(log.entries(&manifest, through).await.is_ok());
    let gone = log.entries(&manifest, Sequence(through.0 - 1)).await.unwrap_err();
    assert!(matches!(gone, CloudLogError::Truncated { .. }));
}

#[tokio::test]
async fn a_flipped_bit_is_found_and_named() {
    let rig = published(2).await;
    let log = rig.plain().log;
    let manifest = rig.manifest().await;
    let page = names::manifest_page(&rig.machine, manifest.pages[0].id);
    for name in [names::manifest(&rig.machine), page] {
        let (good, _) = rig.memory.read(&name).await.unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            rig.memory.put(&name, bad.into(), Condition::Always).await.unwrap();
            let read = match log.manifest().await {
                Ok(Some((manifest, _))) => log.entries(&manifest, Sequence::ZERO).await.map(drop),
                Ok(None) => panic!("it is there"),
                Err(error) => Err(error),
            };
            let error = read.unwrap_err();
            assert_eq!(error.class(), Class::Poison);
            assert!(error.to_string().contains(name.as_str()), "{error}");
        }
        rig.memory.put(&name, good, Condition::Always).await.unwrap();
    }
    rig.audit().await;
}

#[tokio::test]
async fn a_page_swapped_for_another_is_found() {
    let rig = published(3).await;
    let log = rig.plain().log;
    let manifest = rig.manifest().await;
    let name = |at: usize| names::manifest_page(&rig.machine, manifest.pages[at].id);
    let (second, _) = rig.memory.read(&name(1)).await.unwrap();
    rig.memory.put(&name(0), second, Condition::Always).await.unwrap();
    let error = log.entries(&manifest, Sequence::ZERO).await.unwrap_err();
    let CloudLogError::Mismatch { field, .. } = &error else { panic!("{error}") };
    assert_eq!(*field, "SHA-256");
}

/// Properly sealed, and of another machine or no manifest at all.
#[tokio::test]
async fn what_opens_is_still_checked() {
    let rig = published(4).await;
    let log = rig.plain().log;
    let name = names::manifest(&rig.machine);
    let entropy = super::rig::Seeded::new(9);
    let stranger = Manifest::first("other".parse().unwrap(), "ps-a".parse().unwrap());
    let put = async |plain: &[u8]| {
        let key = rig.keys.newest();
        let sealed = seal_document("manifest", &rig.machine, key, entropy.as_ref(), plain);
        rig.memory.put(&name, Bytes::from(sealed), Condition::Always).await.unwrap();
        log.manifest().await.unwrap_err()
    };
    let error = put(&stranger.encode().unwrap()).await;
    assert!(matches!(error, CloudLogError::Mismatch { field: "machine", .. }), "{error}");
    let error = put(b"HFMANIF").await;
    assert!(matches!(error, CloudLogError::Format { .. }), "{error}");
    let (present, _) = (rig.memory.read(&name).await.unwrap().0, ());
    assert!(!present.is_empty());
    let error = log.replace(&stranger, None, entropy.as_ref()).await.unwrap_err();
    assert!(matches!(error, CloudLogError::Mismatch { .. }), "another machine is never written");
}
