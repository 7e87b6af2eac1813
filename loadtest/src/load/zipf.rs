//! Ranks after Zipf's law: few blocks get most writes.
//!
//! Rejection-inversion (W. Hörmann and G. Derflinger, 1996): no table, so any number of blocks costs
//! the same, and exponents above 1 are allowed.

use rand::{Rng, RngExt};

/// Draws ranks 1 to `n` with probability proportional to `rank^-exponent`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    n: f64,
    exponent: f64,
    /// Integral of the hull up to the first rank, and up to the last.
    first: f64,
    last: f64,
}

impl Zipf {
    /// `n` ≥ 1; an exponent other than 1, larger than 0.
    pub(crate) fn new(n: u64, exponent: f64) -> Self {
        let n = n.max(1) as f64;
        let mut zipf = Self { n, exponent, first: 0.0, last: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(n + 0.5);
        zipf
    }

    /// Integral of x^-exponent, less a constant.
    fn integral(&self, x: f64) -> f64 {
        x.powf(1.0 - self.exponent) / (1.0 - self.exponent)
    }

    fn inverse(&self, area: f64) -> f64 {
        (area * (1.0 - self.exponent)).powf(1.0 / (1.0 - self.exponent))
    }

    /// A rank, from 0.
    pub(crate) fn draw(&self, random: &mut impl Rng) -> u64 {
        loop {
            let area = self.last + random.random::<f64>() * (self.first - self.last);
            let x = self.inverse(area);
            let rank = x.round().clamp(1.0, self.n);
            if area >= self.integral(rank + 0.5) - rank.powf(-self.exponent) {
                return rank as u64 - 1;
            }
        }
    }
}

/// Spreads neighbouring ranks over all of `n` places, each rank to its own: hot blocks are not
/// neighbours on a disk.
pub(crate) fn spread(rank: u64, n: u64) -> u64 {
    // A step that shares no divisor with n visits every place once.
    let mut step = (n as f64 * 0.618_034) as u64 | 1;
    while greatest_divisor(step, n) != 1 {
        step += 2;
    }
    (u128::from(rank) * u128::from(step) % u128::from(n.max(1))) as u64
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn frequencies_follow_the_law() {
        let (n, exponent, draws) = (1000, 1.1, 400_000);
        let zipf = Zipf::new(n, exponent);
        let mut random = StdRng::seed_from_u64(5);
        let mut seen = vec![0u32; n as usize];
        for _ in 0..draws {
            seen[zipf.draw(&mut random) as usize] += 1;
        }
        let all: f64 = (1..=n).map(|rank| (rank as f64).powf(-exponent)).sum();
        for rank in [1u64, 2, 3, 10, 100] {
            let expected = f64::from(draws) * (rank as f64).powf(-exponent) / all;
            let found = f64::from(seen[rank as usize - 1]);
            let spread = 5.0 * expected.sqrt();
            assert!((found - expected).abs() < spread, "rank {rank}: {found}, not {expected}");
        }
    }

    #[test]
    fn a_single_place_and_the_ends_are_drawn() {
        let mut random = StdRng::seed_from_u64(6);
        assert_eq!(Zipf::new(1, 1.1).draw(&mut random), 0);
        let two = Zipf::new(2, 0.5);
        let ones = (0..10_000).filter(|_| two.draw(&mut random) == 1).count();
        assert!((3_500..5_000).contains(&ones), "{ones}"); // 41 %
    }

    #[test]
    fn every_rank_has_its_own_place() {
        for n in [1u64, 2, 3, 10, 4096, 9973, 65_535] {
            let mut seen = vec![false; n as usize];
            for rank in 0..n {
                assert!(!std::mem::replace(&mut seen[spread(rank, n) as usize], true), "{n}");
            }
        }
    }
}
