//! Damage that lies in the log for long: once it is dealt with, it costs nothing more.
//!
//! Everywhere machine 0 holds the first segment with its one record, and machine 1 goes on behind it.

use super::history::{Step, World};
use crate::cache::damage::Finding;
use crate::format::segment::SEGMENT_HEADER_BYTES;

/// Bytes of a record here.
const RECORD: usize = 640;

fn records(machine: u8, count: usize) -> Vec<(u8, u8)> {
    vec![(machine, 1); count]
}

fn run(world: &mut World, steps: impl IntoIterator<Item = Step>) {
    for step in steps {
        world.step(&step).unwrap();
    }
}

/// Four segments; of the second everything is published, the third one's header rots.
fn until_a_header_rots() -> World {
    let mut world = World::new(1);
    world.start().unwrap();
    let first = [records(0, 1), records(1, 8)].concat();
    run(
        &mut world,
        [
            Step::Append(first),
            Step::Append(records(1, 9)),
            Step::Append(records(2, 9)),
            Step::Append(records(1, 3)),
            Step::Publish(1, 17),
            Step::Rot(3, 20),
        ],
    );
    world
}

#[test]
fn a_segment_that_is_set_aside_keeps_nothing_back_that_comes_later() {
    let mut world = until_a_header_rots();
    run(&mut world, [Step::Kill]);
    assert_eq!(world.acked(1), 17, "what follows may be behind what was lost");
    let path = world.damage[0].path.clone();
    assert!(matches!(world.damage[0].finding, Finding::Header(_)));
    assert_eq!(path.to_str(), Some("/model/00000002.damaged"), "where it lies now");
    // The agent sends it again.
    run(&mut world, [Step::Append(records(1, 3))]);
    for _ in 0..3 {
        run(&mut world, [Step::Kill]);
        assert_eq!(world.acked(1), 20);
        let told: Vec<_> = world.damage.iter().map(|one| (&one.path, &one.finding)).collect();
        assert_eq!(told, [(&path, &Finding::Aside)], "somebody has to see to it");
    }
    // It takes no place among the segments, and its name is no other's.
    run(&mut world, (0..5).map(|_| Step::Append(records(2, 9))));
    assert_eq!(world.acked(2), 18, "three of six segments are in use, one is in reserve");
}

#[test]
fn a_power_cut_anywhere_while_a_segment_is_set_aside_changes_nothing() {
    let mut cuts = 0;
    for operations in 0..40 {
        let mut world = until_a_header_rots();
        run(&mut world, [Step::Fuse(operations), Step::Kill]);
        cuts += u32::from(world.computer.lock().fuse.take().is_none());
        assert_eq!(world.acked(1), 17);
        run(&mut world, [Step::Append(records(1, 3)), Step::PowerCut, Step::PowerCut]);
        assert_eq!(world.acked(1), 20, "{operations}");
    }
    assert!((5..40).contains(&cuts), "the power went at every operation of it: {cuts}");
}

/// Whether or not there was more of the machine behind it when it was found.
#[test]
fn damaged_records_keep_nothing_back_that_comes_later() {
    for behind in [0, 3] {
        let mut world = World::new(1);
        world.start().unwrap();
        let first = [records(0, 1), records(1, 4), records(2, 4)].concat();
        run(&mut world, [Step::Append(first), Step::Append(records(1, 9))]);
        run(&mut world, [Step::Append(records(2, 9))]);
        run(&mut world, (behind > 0).then(|| Step::Append(records(1, behind))));
        let place = SEGMENT_HEADER_BYTES as usize + 5 * RECORD + 100;
        run(&mut world, [Step::Publish(1, 13), Step::Rot(1, place), Step::Kill]);
        assert_eq!(world.acked(1), 13);
        run(&mut world, [Step::Append(records(1, 3))]);
        for _ in 0..3 {
            run(&mut world, [Step::Kill]);
            assert_eq!(world.acked(1), 16, "{behind}");
            assert!(matches!(world.damage[0].finding, Finding::Records));
        }
    }
}

/// A record that was there when the void record was written, and rots later, was not recycled.
#[test]
fn rot_before_a_void_record_costs_nothing_that_stands_before_it() {
    let mut world = World::new(1);
    world.start().unwrap();
    let first = [records(1, 3), records(0, 1), records(1, 5)].concat();
    run(&mut world, [Step::Append(first), Step::Append(records(1, 2))]);
    let place = |record| SEGMENT_HEADER_BYTES as usize + record * RECORD + 100;
    run(&mut world, [Step::Rot(1, place(3)), Step::Kill]);
    assert_eq!((world.acked(0), world.acked(1)), (0, 10), "only machine 0 lost something");
    run(&mut world, [Step::Rot(1, place(5)), Step::Kill]);
    for _ in 0..2 {
        assert_eq!(world.acked(1), 4, "what stands before the damage is served");
        run(&mut world, [Step::Kill]);
    }
    run(&mut world, [Step::Append(records(1, 6)), Step::Kill]);
    assert_eq!(world.acked(1), 10);
}

/// Machine 1's 7 to 15 are published and do not count (row K): that they stand behind the damage is what tells
/// that 25 is not missing its predecessor because of it.
#[test]
fn what_shows_that_a_gap_is_none_stays_as_long_as_the_gap() {
    let mut world = World::new(1);
    world.start().unwrap();
    let first = [vec![(0, 1), (2, 1)], records(1, 6), records(2, 1)].concat();
    let place = |record| SEGMENT_HEADER_BYTES as usize + record * RECORD + 100;
    run(
        &mut world,
        [
            Step::Append(first),
            Step::Append(records(1, 9)),
            Step::Publish(2, 2),
            // Machine 1 has nothing before it; segments go in log order from now on.
            Step::Rot(1, place(1)),
            Step::Kill,
            Step::Append(records(1, 9)),
            Step::Append(records(1, 3)),
            Step::Publish(1, 24), // only the segment of 16 to 24 is recycled
            Step::Rot(1, place(8)),
            Step::Kill,
        ],
    );
    for _ in 0..3 {
        assert_eq!(world.acked(1), 27);
        run(&mut world, [Step::Kill]);
    }
}
