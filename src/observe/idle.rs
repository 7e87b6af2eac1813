//! How much of the machine's CPU is idle, from `/proc/stat`.

/// Remembers the last look; the share is that of the time between two.
#[derive(Debug, Default)]
pub struct IdleMeter {
    last: Option<(u64, u64)>,
}

impl IdleMeter {
    /// Idle share since the last look, 0 to 1; `None` at the first, and where it is not told.
    pub fn look(&mut self) -> Option<f64> {
        self.since_last(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn since_last(&mut self, text: &str) -> Option<f64> {
        let now = ticks(text)?;
        let (idle, all) = self.last.replace(now)?;
        let (idle, all) = (now.0.saturating_sub(idle), now.1.saturating_sub(all));
        (all > 0).then(|| idle as f64 / all as f64)
    }
}

/// Idle ticks (with those of waiting for disks) and all ticks of the first line, proc(5). Guest
/// time, from the ninth number on, is in the first two already.
fn ticks(text: &str) -> Option<(u64, u64)> {
    let mut words = text.lines().next()?.split_ascii_whitespace();
    let ticks: Vec<u64> =
        (words.next()? == "cpu").then(|| words.take(8).map_while(|w| w.parse().ok()).collect())?;
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_between_two_looks() {
        let mut meter = IdleMeter::default();
        assert_eq!(meter.since_last("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\n"), None);
        let share = meter.since_last("cpu  160 0 110 720 110 0 0 0 99 0\n").unwrap();
        assert!((share - 0.3).abs() < 1e-9, "{share}");
        assert_eq!(meter.since_last("cpu  160 0 110 720 110 0 0 0 99 0\n"), None, "no time passed");
        assert_eq!(meter.since_last("intr 5\n"), None);
    }
}
