//! A flipped bit anywhere is found and named, never served.

use super::*;

/// The failures of one point, which must be bad.
async fn failures(world: &World, spec: &str) -> Vec<Failure> {
    let report = world.verify(Some(spec)).await.unwrap();
    assert!(!report.good(), "{spec} passed");
    assert!(report.points.iter().all(|point| !point.good), "{:?}", report.points);
    report.failures
}

#[tokio::test]
async fn a_whole_machine_passes() {
    let world = World::after(&story()).await;
    world.snapshot(7).await;
    let report = world.verify(None).await.unwrap();
    assert!(report.good(), "{:?}", report.failures);
    let points: Vec<_> = report.points.iter().map(|point| (point.sequence, point.good)).collect();
    assert_eq!(points, [(4, true), (7, true), (12, true), (16, true)]);
    assert_eq!(report.snapshots, 2);
    assert!(report.frames > 4 && report.delta_bytes > 0 && report.snapshot_bytes > 0);
}

#[tokio::test]
async fn every_byte_of_a_delta_counts() {
    let world = World::after(&story()).await;
    let entry = world.entries().await[1].clone();
    let name = delta_name(&world.machine, &entry);
    let length = entry.object_bytes as usize;
    for at in (0..length).step_by(7).chain(length - 41..length) {
        world.flip(&name, at).await;
        let failures = failures(&world, "seq:7").await;
        assert_eq!(failures.len(), 1, "byte {at}: {failures:?}");
        assert_eq!(failures[0].object, name.to_string());
        let part = ["header", "frame 0", "frame 1", "index", "trailer"];
        let named = part.iter().any(|part| failures[0].reason.contains(part));
        assert!(named, "byte {at}: {}", failures[0].reason);
        world.flip(&name, at).await;
    }
    assert!(world.verify(None).await.unwrap().good());
}

#[tokio::test]
async fn damage_spoils_the_points_that_need_it_and_no_other() {
    let world = World::after(&story()).await;
    let entries = world.entries().await;
    let middle = entries.iter().find(|entry| entry.first == Sequence(8)).unwrap();
    let name = delta_name(&world.machine, middle);
    world.flip(&name, 200).await;
    let report = world.verify(None).await.unwrap();
    let points: Vec<_> = report.points.iter().map(|point| (point.sequence, point.good)).collect();
    assert_eq!(points, [(4, true), (7, true), (12, false), (16, true)]);
    assert_eq!(report.failures.len(), 1);
    assert!(report.failures[0].reason.contains("frame 0"), "{:?}", report.failures);
    assert_eq!(world.read("seq:7").await.unwrap(), world.states[7].disks);
    let error = world.read("seq:12").await.unwrap_err().line();
    assert!(error.contains(name.as_str()) && error.contains("frame 0"), "{error}");

    world.store.delete(&name, Condition::Always).await.unwrap();
    let failures = failures(&world, "seq:12").await;
    assert!(failures[0].reason.contains("does not exist"), "{failures:?}");
}

#[tokio::test]
async fn a_delta_in_the_place_of_another_is_refused() {
    let world = World::after(&story()).await;
    let entries = world.entries().await;
    let names: Vec<_> = entries.iter().map(|entry| delta_name(&world.machine, entry)).collect();
    let (other, _) = world.store.read(&names[1]).await.unwrap();
    world.store.put(&names[2], other, Condition::Always).await.unwrap();
    let failures = failures(&world, "seq:12").await;
    assert_eq!(failures[0].object, names[2].to_string());
}

#[tokio::test]
async fn a_delta_that_names_another_before_it_is_refused() {
    let mut world = World::after(&[Op::Epoch, write(0, 0, 8), bookmark("")]).await;
    world.broken_chain = true;
    world.publish(&[write(0, 8, 8), bookmark("")]).await;
    let found = failures(&world, "seq:5").await;
    assert!(found[0].reason.contains("previous"), "{found:?}");
    let error = world.read("seq:5").await.unwrap_err().line();
    assert!(error.contains("previous"), "{error}");
    assert!(world.read("seq:3").await.is_ok());

    let mut world = World::new().await;
    world.broken_chain = true;
    world.publish(&[Op::Epoch, bookmark("")]).await;
    let found = failures(&world, "latest").await;
    assert!(found[0].reason.contains("previous of the first delta"), "{found:?}");
}

#[tokio::test]
async fn an_epoch_that_begins_otherwise_than_the_manifest_says_is_refused() {
    let world = World::after(&story()).await;
    world.rewrite(|manifest| manifest.epochs[1].disks[0].size_bytes += 512).await;
    let found = failures(&world, "seq:16").await;
    assert!(found[0].reason.contains("first record of the epoch"), "{found:?}");
    assert!(world.read("seq:16").await.is_err());
    assert!(world.read("seq:12").await.is_ok());
}

#[tokio::test]
async fn damaged_manifest_and_page_are_named() {
    let mut world = World::after(&story()).await;
    let manifest = names::manifest(&world.machine);
    for at in [0, 20, 60, 200] {
        world.flip(&manifest, at).await;
        let report = world.verify(None).await.unwrap();
        assert_eq!(report.failures[0].object, manifest.to_string());
        assert!(world.read("latest").await.is_err());
        world.flip(&manifest, at).await;
    }
    for _ in 0..8 {
        world.publish(&[write(0, 1, 1), bookmark("")]).await;
    }
    let page = world.manifest().await.pages[0].clone();
    let page = names::manifest_page(&world.machine, page.id);
    world.flip(&page, 100).await;
    let report = world.verify(None).await.unwrap();
    assert!(report.failures[0].reason.contains(page.as_str()), "{:?}", report.failures);
}

/// The story and many more bookmarks, so that the log has several pages; and the second of them.
async fn paged() -> (World, crate::format::manifest::PageEntry) {
    let mut world = World::after(&story()).await;
    for n in 0..14 {
        world.publish(&[write(0, n, 1), bookmark("")]).await;
    }
    let pages = world.manifest().await.pages;
    assert!(pages.len() >= 3, "one of them has a page before it and one behind");
    (world, pages[1].clone())
}

/// Sequences of points, and whether each is good.
fn judged(report: &VerifyReport) -> Vec<(u64, bool)> {
    report.points.iter().map(|point| (point.sequence, point.good)).collect()
}

#[tokio::test]
async fn a_page_that_cannot_be_read_takes_away_what_needs_it_alone() {
    let (world, page) = paged().await;
    let (first, last) = (page.first.0, page.last.0);
    let behind =
        |world: &World, n: usize| *world.bookmarks.iter().filter(|at| **at > last).nth(n).unwrap();
    let (next, based) = (behind(&world, 0), behind(&world, 1));
    world.snapshot(7).await;
    world.snapshot(based).await;
    let name = names::manifest_page(&world.machine, page.id);
    let (whole, _) = world.store.read(&name).await.unwrap();
    for gone in [false, true] {
        match gone {
            false => world.flip(&name, 100).await,
            true => world.store.delete(&name, Condition::Always).await.unwrap(),
        }
        let newest = *world.bookmarks.last().unwrap();
        for spec in ["latest".to_owned(), format!("seq:{based}"), "latest-processed".to_owned()] {
            let point = world.resolve(&spec).await.unwrap();
            assert_eq!(point.sequence.0, if spec == "latest" { newest } else { based });
            let expected = &world.states[point.sequence.0 as usize].disks;
            assert_eq!(world.read(&spec).await.unwrap(), *expected, "{spec}");
        }
        let known = world.bookmarks.iter().filter(|at| **at < first || **at > last);
        let known: Vec<u64> = known.copied().collect();
        for at in &known {
            let read = world.read(&format!("seq:{at}")).await;
            match *at < first || *at >= based {
                true => assert_eq!(read.unwrap(), world.states[*at as usize].disks, "{at}"),
                false => {
                    let error = read.unwrap_err();
                    assert!(matches!(error, RecoverError::Unread { .. }), "{error}");
                }
            }
        }
        for at in [first, last, next] {
            let error = world.resolve(&format!("seq:{at}")).await.unwrap_err().line();
            assert!(
                error.contains(name.as_str()) && error.contains("put the object back"),
                "{error}"
            );
        }
        let report = world.verify(None).await.unwrap();
        assert_eq!(report.failures[0].object, name.to_string());
        let expected = known.iter().map(|at| (*at, *at < first || *at >= based));
        assert_eq!(judged(&report), expected.collect::<Vec<_>>());
        assert!(world.verify(Some("latest")).await.unwrap().good(), "it needs nothing of that");
        world.store.put(&name, whole.clone(), Condition::Always).await.unwrap();
    }
    assert!(world.verify(None).await.unwrap().good());
    // What retention gave up is not missed.
    world.store.delete(&name, Condition::Always).await.unwrap();
    let give_up = |mut document: crate::vault::PointsDocument| {
        document.truncate_through = last;
        Ok(document)
    };
    world.vault.update_points(&world.machine, give_up).await.unwrap();
    assert!(world.verify(None).await.unwrap().good());
}

#[tokio::test]
async fn an_older_point_never_passes_for_one_that_a_page_may_hide() {
    let (world, page) = paged().await;
    let (first, last) = (page.first.0, page.last.0);
    let before = world.bookmarks.iter().filter(|at| **at < first).max().copied().unwrap();
    world.snapshot(7).await;
    let name = names::manifest_page(&world.machine, page.id);
    world.flip(&name, 100).await;
    // Nothing behind the page can be rebuilt: said, and not replaced by what can.
    let error = world.resolve("latest").await.unwrap_err();
    assert!(matches!(error, RecoverError::Unread { .. }), "{error}");
    let time = |at: u64, tenth: u64| format!("time:1970-01-01T00:00:{at:02}.{tenth}Z");
    let hidden = ["latest-app".to_owned(), "name:none".to_owned(), time(last, 5)];
    for spec in hidden {
        let error = world.resolve(&spec).await.unwrap_err();
        assert!(matches!(error, RecoverError::Hidden { .. }), "{spec}: {error}");
        let line = error.line();
        assert!(line.contains(name.as_str()) && line.contains(&spec), "{line}");
    }
    let error = world.resolve("latest-app").await.unwrap_err().line();
    assert!(error.contains("the newest that is known is seq:7"), "{error}");
    for (spec, at) in [("latest-processed".to_owned(), 7), (time(6, 0), 4), (time(4, 0), 4)] {
        assert_eq!(world.resolve(&spec).await.unwrap().sequence.0, at, "{spec}");
    }
    let report = world.verify(None).await.unwrap();
    let good = report.points.iter().filter(|point| point.good).map(|point| point.sequence);
    assert_eq!(good.max(), Some(before), "{:?}", report.points);
    assert!(report.points.iter().any(|point| !point.good && point.sequence > last));
}

#[tokio::test]
async fn an_altered_points_document_is_not_believed() {
    let world = World::after(&story()).await;
    world.snapshot(7).await;
    let name = names::points_document(&world.machine);
    let (bytes, _) = world.store.read(&name).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let moved = text.replace("\\\"sequence\\\":7", "\\\"sequence\\\":4");
    let moved = moved.replace("\"sequence\":7", "\"sequence\":4");
    assert_ne!(text, moved, "{text}");
    world.store.put(&name, moved.into(), Condition::Always).await.unwrap();
    let report = world.verify(None).await.unwrap();
    assert!(report.failures[0].reason.contains(name.as_str()), "{:?}", report.failures);
    assert!(world.read("seq:7").await.is_err());
}

#[tokio::test]
async fn a_footer_that_is_not_this_disks_is_refused() {
    let world = World::after(&story()).await;
    let disk = &specs()[0];
    let object = names::seed_disk(&world.machine, &disk.name, Epoch(1));
    world.snapshot(4).await;
    let guard = PageGuard { lease: LeaseId([1; 16]), sequence_number: 1 };
    let offset = size_on_store(disk.size_bytes) - FOOTER_BYTES as u64;
    let id = unique_id(&world.machine, &disk.name, Epoch(1));
    let right = Footer::new(virtual_bytes(disk.size_bytes), id).unwrap().encode();
    let mut flipped = right;
    flipped[70] ^= 1;
    let other = unique_id(&world.machine, &disk.name, Epoch(2));
    let foreign = Footer::new(virtual_bytes(disk.size_bytes), other).unwrap().encode();
    let smaller = Footer::new(512, id).unwrap().encode();
    for (footer, named) in [
        (flipped, "checksum"),
        (foreign, "unique id"),
        (smaller, "current size"),
        ([0; 512], "cookie"),
    ] {
        let body = PageBody::Data(footer.to_vec().into());
        world.store.write_pages(&object, &[PageWrite { offset, body }], &guard).await.unwrap();
        // A snapshot of the damaged blob, put in the place of the good one.
        let damaged = world.store.snapshot(&object, named, &guard).await.unwrap();
        let swap = |mut document: crate::vault::PointsDocument| {
            document.snapshots[0].disks[0].snapshot = damaged.clone();
            Ok(document)
        };
        world.vault.update_points(&world.machine, swap).await.unwrap();
        let failures = failures(&world, "seq:7").await;
        assert_eq!(failures[0].object, object.to_string());
        assert!(failures[0].reason.contains(named), "{failures:?}");
        let error = world.read("seq:7").await.unwrap_err();
        assert!(matches!(error, RecoverError::Footer { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_proves_nothing() {
    use crate::store::faulty::{Fault, Faulty, Op as StoreOp, Rule};
    let world = World::after(&story()).await;
    let faulty = Faulty::new(Arc::clone(&world.store) as _);
    faulty.add(Rule::on(StoreOp::ReadRange, Fault::Unreachable).named("log/"));
    let store: Arc<dyn Store> = Arc::new(faulty);
    let recovery = Recovery::open(store, &world.key, &world.machine).await.map(Arc::new).unwrap();
    let clock: Arc<dyn Clock> = System::clock();
    let error = verify(&recovery, None, &clock, &System, &|_| {}).await.unwrap_err();
    assert_eq!(error.class(), crate::store::Class::Retry);
}

/// The base of a group of points may move while it is verified.
#[tokio::test]
async fn a_snapshot_that_is_made_meanwhile_hides_no_damage() {
    use crate::store::faulty::{Fault, Faulty, Gate, Op as StoreOp, Rule};
    let world = World::after(&story()).await;
    let entries = world.entries().await;
    let name = delta_name(&world.machine, &entries[0]);
    assert!(entries[0].last <= Sequence(4));
    let gate = Gate::new();
    let faulty = Faulty::new(Arc::clone(&world.store) as _);
    faulty.add(Rule::on(StoreOp::Put, Fault::Hold(gate.clone())).named("pins/").times(1));
    let store: Arc<dyn Store> = Arc::new(faulty);
    let recovery = Arc::new(Recovery::open(store, &world.key, &world.machine).await.unwrap());
    let clock: Arc<dyn Clock> = System::clock();
    let meanwhile = async {
        gate.arrived(1).await;
        world.snapshot(7).await;
        world.flip(&name, 200).await;
        gate.open();
    };
    let verified = verify(&recovery, None, &clock, &System, &|_| {});
    let (report, ()) = tokio::join!(verified, meanwhile);
    let report = report.unwrap();
    let points: Vec<_> = report.points.iter().map(|point| (point.sequence, point.good)).collect();
    assert_eq!(points, [(4, false), (7, true), (12, true), (16, true)]);
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    assert_eq!(report.failures[0].object, name.to_string());
    assert!(world.vault.pins(&world.machine).await.unwrap().is_empty());
}
