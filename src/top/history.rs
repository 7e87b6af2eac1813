//! The last values of a figure, for its sparkline: bounded, gaps kept.

use std::collections::VecDeque;

/// Values kept: no terminal is wider than is worth more.
pub(super) const VALUES_MAX: usize = 512;

/// The last values, oldest first; `None` where there was none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History(VecDeque<Option<f64>>);

impl History {
    /// Adds the newest, and forgets the oldest when there are too many.
    pub(super) fn push(&mut self, value: Option<f64>) {
        if self.0.len() == VALUES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(value.filter(|value| value.is_finite() && *value >= 0.0));
    }

    /// The newest `count`, oldest first, with gaps before the first.
    pub(super) fn last(&self, count: usize) -> Vec<Option<f64>> {
        let known = self.0.len().min(count);
        let before = std::iter::repeat_n(None, count - known);
        before.chain(self.0.iter().skip(self.0.len() - known).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_the_newest_stay() {
        let mut history = History::default();
        assert_eq!(history.last(2), [None, None]);
        for value in 0..2 * VALUES_MAX {
            history.push(Some(value as f64));
            assert!(history.0.len() <= VALUES_MAX);
        }
        history.push(None);
        history.push(Some(f64::NAN));
        let newest = Some((2 * VALUES_MAX - 1) as f64);
        assert_eq!(history.last(3), [newest, None, None]);
        assert_eq!(history.last(VALUES_MAX + 1)[0], None, "no more than are kept");
    }
}
