//! A server that dies at any of its requests, before or after its effect, and another that goes on.

use std::sync::Arc;

use super::hostile::Hostile;
use super::rig::Rig;

const RECORDS: u64 = 45;

/// Runs a server that stops for ever at request `at`; says whether it came that far, and what it
/// had acknowledged as published.
async fn until(rig: &Rig, at: u32) -> (bool, u64) {
    let store = Hostile::stop_at(&rig.memory, at);
    let context = rig.context(Arc::clone(&store) as _, 1);
    let mut acknowledged = 0;
    let dead = {
        let note = |p: crate::upload::Published| acknowledged = p.through().0;
        let serve = rig.serve(&context, "ps-a", RECORDS, note);
        tokio::select! {
            biased;
            ended = serve => { ended.unwrap(); false }
            () = store.stopped.notified() => true,
        }
    };
    (dead, acknowledged)
}

#[tokio::test]
async fn a_crash_at_each_request_leaves_no_gap_and_nothing_twice() {
    let mut at = 0;
    loop {
        let rig = Rig::new(u64::from(at) % 7);
        let (dead, acknowledged) = until(&rig, at).await;
        if rig.plain().log.manifest().await.unwrap().is_some() {
            rig.audit().await;
            let published = rig.manifest().await.published.0;
            assert!(published >= acknowledged, "acknowledged {acknowledged}, has {published}");
        }
        // The next one has the cache's records, or the agent's, and goes on from the manifest.
        let mut through = Vec::new();
        let note = |p: crate::upload::Published| through.push(p.through().0);
        rig.serve(&rig.plain(), "ps-b", RECORDS, note).await.unwrap();
        let entries = rig.audit().await;
        assert_eq!(entries.last().unwrap().last.0, RECORDS);
        assert!(through.iter().all(|t| *t > acknowledged), "nothing is published twice");
        if !dead {
            assert!(at > 30, "only {at} requests were tried");
            return;
        }
        at += 1;
    }
}
