//! Which zstd level the next batch gets: as much ratio as the CPU has to spare. Sans-io.
//!
//! Looked at once a second. When uploads wait and the CPU idles, the line is the bottleneck: better
//! ratio is more throughput, and costs nobody anything. When batches wait for a sealing thread and
//! no upload waits, the CPU is: less ratio is more throughput. A step needs several looks in a row,
//! so that one burst changes nothing; levels above the usual one are given up at once when the CPU
//! is wanted.

use crate::settings::LevelBounds;

/// Levels in order of their cost. 0 is left out: to zstd it means 3.
const LADDER: [i32; 17] = [-7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 9, 12, 15, 19];
/// Looks in a row before a step up, a step down, a step back to the usual level.
const UP: u32 = 3;
const DOWN: u32 = 2;
const BACK: u32 = 10;
/// Idle share of the CPU that is worth spending, and the one below which it is wanted elsewhere.
const SPARE: f64 = 0.25;
const WANTED: f64 = 0.1;

/// What is seen at one look.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Batches that wait for a sealing thread.
    pub seals_waiting: usize,
    /// Sealed objects that wait for a stream.
    pub uploads_waiting: usize,
    /// Idle share of the CPU, 0 to 1.
    pub idle: f64,
}

/// The controller.
#[derive(Debug)]
pub struct LevelControl {
    usual: i32,
    bounds: LevelBounds,
    threads: usize,
    at: usize,
    leaning: Option<(Lean, u32)>, // for how many looks
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lean {
    Up,
    Down,
    Back,
}

impl LevelControl {
    /// Begins at the usual level, or at the bound next to it.
    #[must_use]
    pub fn new(usual: i32, bounds: LevelBounds, threads: usize) -> Self {
        let mut control = Self { usual, bounds, threads, at: 0, leaning: None };
        control.at = control.rest();
        control
    }

    /// Takes changed settings over.
    pub fn follow(&mut self, usual: i32, bounds: LevelBounds) {
        (self.usual, self.bounds) = (usual, bounds);
        let (low, high) = self.ends();
        self.at = self.at.clamp(low, high);
    }

    /// The level for now.
    #[must_use]
    pub fn level(&self) -> i32 {
        let rest = self.rest();
        // A usual level between two steps is kept as it was set.
        if self.at == rest {
            self.usual.clamp(self.bounds.min, self.bounds.max)
        } else {
            LADDER[self.at]
        }
    }

    /// One look; the level for the next second.
    pub fn look(&mut self, load: Load) -> i32 {
        let (low, high) = self.ends();
        let rest = self.rest();
        if self.at > rest && (load.idle < WANTED || load.seals_waiting > self.threads) {
            self.at -= 1;
            self.leaning = None;
            return self.level();
        }
        let lean = match (load.seals_waiting > self.threads, load.uploads_waiting > 0) {
            (true, false) => Some((Lean::Down, DOWN)),
            (false, true) if load.idle >= SPARE => Some((Lean::Up, UP)),
            (false, false) => Some((Lean::Back, BACK)),
            (true, true) | (false, true) => None,
        };
        let Some((lean, needed)) = lean else {
            self.leaning = None;
            return self.level();
        };
        let looks = match self.leaning {
            Some((before, looks)) if before == lean => looks + 1,
            _ => 1,
        };
        self.leaning = Some((lean, looks));
        if looks >= needed {
            self.leaning = None;
            self.at = match lean {
                Lean::Up => self.at + 1,
                Lean::Down => self.at.saturating_sub(1),
                Lean::Back if self.at > rest => self.at - 1,
                Lean::Back if self.at < rest => self.at + 1,
                Lean::Back => rest,
            }
            .clamp(low, high);
        }
        self.level()
    }

    fn ends(&self) -> (usize, usize) {
        let low = LADDER.iter().position(|level| *level >= self.bounds.min).unwrap_or(0);
        let high = LADDER.iter().rposition(|level| *level <= self.bounds.max).unwrap_or(0);
        (low, high.max(low))
    }

    fn rest(&self) -> usize {
        let (low, high) = self.ends();
        let rest = LADDER.iter().rposition(|level| *level <= self.usual).unwrap_or(0);
        rest.clamp(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: LevelBounds = LevelBounds { min: -5, max: 6 };
    const CALM: Load = Load { seals_waiting: 0, uploads_waiting: 0, idle: 0.5 };
    const LINE_SHORT: Load = Load { uploads_waiting: 3, ..CALM };
    const CPU_SHORT: Load = Load { seals_waiting: 5, uploads_waiting: 0, idle: 0.0 };

    fn control() -> LevelControl {
        LevelControl::new(1, BOUNDS, 2)
    }

    fn levels(control: &mut LevelControl, load: Load, looks: usize) -> Vec<i32> {
        (0..looks).map(|_| control.look(load)).collect()
    }

    #[test]
    fn spare_cpu_buys_ratio_while_the_line_is_short() {
        let mut control = control();
        assert_eq!(levels(&mut control, LINE_SHORT, 7), [1, 1, 2, 2, 2, 3, 3]);
        levels(&mut control, LINE_SHORT, 100);
        assert_eq!(control.level(), 6, "never above its bound");
        assert_eq!(levels(&mut control, CPU_SHORT, 3), [5, 4, 3], "given up at once");
        let busy = Load { idle: 0.05, ..LINE_SHORT };
        assert_eq!(levels(&mut control, busy, 4), [2, 1, 1, 1], "others want the CPU");
    }

    #[test]
    fn a_short_cpu_spends_less_down_to_the_bound_and_comes_back() {
        let mut control = control();
        assert_eq!(levels(&mut control, CPU_SHORT, 6), [1, -1, -1, -2, -2, -3]);
        levels(&mut control, CPU_SHORT, 100);
        assert_eq!(control.level(), -5);
        levels(&mut control, CALM, 49);
        assert_eq!(control.level(), -1);
        levels(&mut control, CALM, 100);
        assert_eq!(control.level(), 1);
    }

    #[test]
    fn bursts_and_a_line_that_holds_the_cpu_up_change_nothing() {
        let mut control = control();
        for _ in 0..100 {
            control.look(LINE_SHORT);
            control.look(LINE_SHORT);
            control.look(CPU_SHORT);
            control.look(CALM);
        }
        assert_eq!(control.level(), 1);
        let both = Load { seals_waiting: 9, ..LINE_SHORT };
        levels(&mut control, both, 100);
        assert_eq!(control.level(), 1, "sealing faster would only wait longer");
    }

    #[test]
    fn bounds_hold_at_once_and_equal_bounds_fix_the_level() {
        let mut control = control();
        levels(&mut control, LINE_SHORT, 100);
        control.follow(1, LevelBounds { min: 1, max: 3 });
        assert_eq!(control.level(), 3);
        let mut fixed = LevelControl::new(7, LevelBounds { min: 7, max: 7 }, 1);
        for load in [CPU_SHORT, LINE_SHORT, CALM] {
            levels(&mut fixed, load, 50);
            assert_eq!(fixed.level(), 7, "also one between two steps");
        }
        assert!(!LADDER.contains(&0) && LADDER.is_sorted());
    }
}
