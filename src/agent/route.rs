//! Which process server is tried next, and after which pause. Sans-io; lengths of time and random
//! numbers are arguments.
//!
//! Owns: the order of servers, redirects, back-off. Does not own: connecting ([`super::connection`])
//! and what is said there ([`super::session`]).
//!
//! Every server of a site can say who owns the machine, so which one is asked is no question of
//! correctness. It is one of time (the first attempt follows at once) and of kindness: thousands of
//! agents lose the same server in one moment and must not arrive at the next one in step.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{Entropy, back_off};

/// Ceiling of the first pause, and of a whole round through all servers.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Highest ceiling of a whole round.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A session that lasted this long ended a search; a shorter one is part of it, or two servers that
/// send an agent to each other would do so for ever at full speed.
const STEADY: Duration = Duration::from_secs(5);
/// Redirects in a row that are followed at once: a stale answer leads to a fresh one, no further.
const FREE_HOPS: u32 = 3;

/// The way through the servers.
#[derive(Debug)]
pub(super) struct Route {
    /// As in the settings: in order of preference.
    servers: Vec<String>,
    /// Which of them is next.
    next: usize,
    /// What the last redirect named and was not tried yet.
    detour: VecDeque<String>,
    /// Attempts in vain in a row, except the first.
    vain: u32,
    /// Redirects in a row.
    hops: u32,
}

impl Route {
    /// Begins with the first server.
    pub(super) fn new(servers: &[String]) -> Self {
        let servers = servers.to_vec();
        Self { servers, next: 0, detour: VecDeque::new(), vain: 0, hops: 0 }
    }

    /// The server to try now.
    pub(super) fn server(&self) -> &str {
        self.detour.front().unwrap_or(&self.servers[self.next])
    }

    /// The attempt ended. `lasted` is how long it was welcome, `redirected` the servers that it named
    /// as better ones.
    pub(super) fn ended(&mut self, lasted: Option<Duration>, redirected: Option<Vec<String>>) {
        let steady = lasted.is_some_and(|lasted| lasted >= STEADY);
        if steady {
            (self.vain, self.hops) = (0, 0);
        }
        let tried = self.server().to_owned();
        self.detour.pop_front();
        if let Some(at) = self.servers.iter().position(|server| *server == tried) {
            self.next = (at + 1) % self.servers.len();
        }
        match redirected {
            Some(servers) => {
                self.detour = servers.into();
                self.hops += 1;
                self.vain = self.vain.saturating_add(u32::from(self.hops > FREE_HOPS));
            }
            None => self.vain = self.vain.saturating_add(u32::from(!steady)),
        }
    }

    /// How long to wait before the next attempt: a random time up to a ceiling that doubles with each
    /// round through all servers, and of which each server has its part.
    pub(super) fn pause(&self, entropy: &dyn Entropy) -> Duration {
        let servers = u32::try_from(self.servers.len()).unwrap_or(u32::MAX).max(1);
        match self.vain {
            0 => back_off(0, PAUSE_MIN, PAUSE_MAX, entropy),
            vain => back_off(vain / servers, PAUSE_MIN, PAUSE_MAX, entropy) / servers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Numbers of a fixed series, as an agent's own seed would give.
    struct Series(AtomicU32);

    impl Entropy for Series {
        fn fill(&self, target: &mut [u8]) {
            let state = self.0.load(Ordering::Relaxed).wrapping_mul(747_796_405) ^ 0x9e37_79b9;
            self.0.store(state, Ordering::Relaxed);
            let word = (state ^ (state >> 15)).wrapping_mul(2_246_822_519);
            target.copy_from_slice(&(word ^ (word >> 13)).to_le_bytes());
        }
    }

    /// The highest number each time.
    struct Most;

    impl Entropy for Most {
        fn fill(&self, target: &mut [u8]) {
            target.fill(255);
        }
    }

    fn servers(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("{name}:9443")).collect()
    }

    fn three() -> Route {
        Route::new(&servers(&["a", "b", "c"]))
    }

    /// What it is a part of, to the millisecond.
    fn part_of(parts: u32, part: Duration) -> Duration {
        Duration::from_millis((part * parts + Duration::from_micros(500)).as_millis() as u64)
    }

    const LONG: Option<Duration> = Some(Duration::from_secs(60));
    const SHORT: Option<Duration> = Some(Duration::from_secs(1));

    #[test]
    fn servers_are_tried_in_their_order_and_round() {
        let mut route = three();
        let mut tried = String::new();
        for _ in 0..7 {
            tried.push_str(&route.server()[..1]);
            route.ended(None, None);
        }
        assert_eq!(tried, "abcabca");
    }

    #[test]
    fn the_first_attempt_is_at_once_and_a_round_never_waits_longer_than_its_bound() {
        let mut route = three();
        route.ended(LONG, None);
        assert_eq!(route.pause(&Most), PAUSE_MIN);
        let round = |route: &mut Route| {
            let mut waited = Duration::ZERO;
            for _ in 0..3 {
                route.ended(None, None);
                waited += route.pause(&Most);
            }
            waited
        };
        let first = round(&mut route);
        assert!(first < 2 * PAUSE_MIN, "{first:?}");
        let rounds: Vec<_> = (0..8).map(|_| round(&mut route)).collect();
        assert!(rounds.windows(2).all(|pair| pair[0] <= pair[1]), "{rounds:?}");
        assert_eq!(part_of(3, rounds[7] / 3), PAUSE_MAX, "and no more: {rounds:?}");
        route.ended(SHORT, None);
        assert_eq!(part_of(3, route.pause(&Most)), PAUSE_MAX, "a moment's welcome ends no search");
        route.ended(LONG, None);
        assert_eq!(route.pause(&Most), PAUSE_MIN, "a session does");
    }

    #[test]
    fn a_redirect_is_followed_first_and_the_list_goes_on_behind_it() {
        let mut route = three();
        route.ended(LONG, Some(servers(&["x", "c"])));
        assert_eq!(route.server(), "x:9443");
        route.ended(None, None);
        assert_eq!(route.server(), "c:9443");
        route.ended(None, None);
        assert_eq!(route.server(), "a:9443", "behind the last one that the list knows");
        route.ended(None, Some(servers(&["x"])));
        route.ended(LONG, None);
        assert_eq!(route.server(), "b:9443", "a stranger has no place in the list");
    }

    #[test]
    fn two_servers_that_send_an_agent_to_each_other_slow_it_down() {
        let mut route = three();
        let mut pauses = Vec::new();
        for hop in 0..40 {
            let other = if hop % 2 == 0 { "b" } else { "a" };
            // Welcomed for a moment or not at all: the same.
            let lasted = if hop % 3 == 0 { SHORT } else { None };
            route.ended(lasted, Some(servers(&[other])));
            assert_eq!(route.server(), format!("{other}:9443"));
            pauses.push(route.pause(&Most));
        }
        assert!(pauses[..3].iter().all(|pause| *pause == PAUSE_MIN), "{pauses:?}");
        assert_eq!(part_of(3, pauses[39]), PAUSE_MAX);
        let whole: Duration = pauses.iter().sum();
        assert!(whole > Duration::from_secs(20), "forty hops in {whole:?}");
        route.ended(LONG, Some(servers(&["b"])));
        assert_eq!(route.pause(&Most), PAUSE_MIN, "after a session a redirect is free again");
    }

    #[test]
    fn ten_thousand_agents_that_lost_one_server_do_not_arrive_in_step() {
        let mut arrived = [0; 10]; // in slots of 10 ms
        for agent in 0..10_000 {
            let mut route = three();
            route.ended(LONG, None);
            let pause = route.pause(&Series(AtomicU32::new(agent)));
            assert_eq!(pause, route.pause(&Series(AtomicU32::new(agent))), "the seed decides");
            arrived[(pause.as_millis() as usize / 10).min(9)] += 1;
        }
        assert!(arrived.iter().all(|agents| (700..1400).contains(agents)), "{arrived:?}");
    }
}
