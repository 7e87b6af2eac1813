//! The checker is not blind: with a bug planted below the log, or in what it is given, it goes red.

use std::sync::Arc;

use proptest::prelude::any;
use proptest::test_runner::{Config, TestRng, TestRunner};

use super::history::{World, steps};
use crate::clock::Entropy;

/// Runs histories until one breaks a promise; the broken promise.
fn broken(world: impl Fn(u64) -> World) -> String {
    let config =
        Config { cases: 2000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, random);
    let result = runner.run(&(any::<u64>(), steps(false)), |(seed, steps)| {
        let promise = world(seed).run(&steps);
        promise.map_err(proptest::test_runner::TestCaseError::fail)
    });
    result.expect_err("the planted bug was not found").to_string()
}

#[test]
fn an_ack_before_the_sync_is_found() {
    let broken = broken(|seed| {
        let world = World::new(seed);
        world.computer.lock().lying_sync = true;
        world
    });
    assert!(broken.contains("lost"), "{broken}");
}

struct Same;
impl Entropy for Same {
    fn fill(&self, target: &mut [u8]) {
        target.fill(7);
    }
}

#[test]
fn records_of_an_earlier_life_are_found() {
    broken(|seed| World::with(seed, Arc::new(Same)));
}
