//! What keys do: order, scrolling, help.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rows::Order;

/// How somebody looks at the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) order: Order,
    /// The first row of the table.
    pub(super) first: usize,
    /// What stands at the bottom.
    pub(super) footer: Footer,
    /// What the last frame had room for.
    pub(super) seen: Seen,
}

/// The line at the bottom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Footer {
    /// Paper has no keys.
    None,
    /// Where help is.
    #[default]
    Hint,
    /// All keys.
    Keys,
}

/// Rows of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// That there are.
    pub(super) rows: usize,
    /// That fit.
    pub(super) fit: usize,
}

impl View {
    /// Somebody pressed a key; whether they want to leave.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let page = self.seen.fit.max(1);
        match key.code {
            KeyCode::Char('c' | 'C') if control => return true,
            KeyCode::Char('q' | 'Q') | KeyCode::Esc => return true,
            KeyCode::Char('s' | 'S') => self.order = self.order.next(),
            KeyCode::Char('?') => {
                self.footer = if self.footer == Footer::Keys { Footer::Hint } else { Footer::Keys };
            }
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::PageUp => self.first = self.first.saturating_sub(page),
            KeyCode::Home => self.first = 0,
            KeyCode::Down => self.first += 1,
            KeyCode::PageDown => self.first += page,
            KeyCode::End => self.first = usize::MAX,
            _ => {}
        }
        self.first = self.first.min(self.seen.last_first());
        false
    }
}

impl Seen {
    /// The first row when the last one is at the bottom.
    pub(super) fn last_first(self) -> usize {
        self.rows.saturating_sub(self.fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_scroll_within_the_table_sort_and_leave() {
        let seen = Seen { rows: 25, fit: 10 };
        let mut view = View { seen, ..View::default() };
        let mut press = |code| {
            assert!(!view.key(KeyEvent::from(code)));
            view.first
        };
        let moves = [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 11),
            (KeyCode::PageDown, 15),
            (KeyCode::Down, 15),
            (KeyCode::PageUp, 5),
            (KeyCode::End, 15),
            (KeyCode::Home, 0),
        ];
        for (code, first) in moves {
            assert_eq!(press(code), first, "{code:?}");
        }
        view.first = 15;
        view.seen = Seen { rows: 3, fit: 10 };
        view.key(KeyEvent::from(KeyCode::Char('?')));
        assert_eq!((view.first, view.footer), (0, Footer::Keys), "machines went away");
        view.key(KeyEvent::from(KeyCode::Char('?')));
        assert_eq!(view.footer, Footer::Hint);
        let orders: Vec<_> = (0..6)
            .map(|_| {
                view.key(KeyEvent::from(KeyCode::Char('s')));
                view.order.heading()
            })
            .collect();
        assert_eq!(orders, ["state", "rpo", "backlog", "rate", "machine", "state"]);
        for key in [
            KeyEvent::from(KeyCode::Char('q')),
            KeyEvent::from(KeyCode::Esc),
            KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(view.key(key));
            assert!(!view.key(KeyEvent { kind: KeyEventKind::Release, ..key }));
        }
        assert!(!view.key(KeyEvent::from(KeyCode::Char('c'))));
    }
}
