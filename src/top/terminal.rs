//! The terminal: taken, drawn on, and given back whatever happens.
//!
//! Owns: raw mode and the alternate screen, until it is dropped; the thread that waits for keys. Does
//! not own: what is drawn.

use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event};
use tokio::sync::mpsc;

use super::TopError;

/// Events that may wait: more are not typed between two frames.
const EVENTS_WAITING: usize = 64;

/// A terminal that is drawn on.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal; what is typed, and changes of its size, come through the channel. It
    /// closes when the terminal is gone.
    pub(super) fn open() -> Result<(Self, mpsc::Receiver<Event>), TopError> {
        // Its panic hook gives the terminal back before the panic is told.
        let terminal = ratatui::try_init().map_err(|error| {
            ratatui::restore();
            TopError::Terminal(error)
        })?;
        let screen = Self { terminal };
        let (send, events) = mpsc::channel(EVENTS_WAITING);
        // Never joined: it waits for a key until the process ends.
        let waiting =
            move || while event::read().is_ok_and(|event| send.blocking_send(event).is_ok()) {};
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(waiting)
            .map_err(TopError::Terminal)?;
        Ok((screen, events))
    }

    /// Shows what `draw` makes of an empty buffer of the terminal's size.
    pub(super) fn draw<T>(&mut self, draw: impl FnOnce(&mut Buffer) -> T) -> Result<T, TopError> {
        let mut drawn = None;
        self.terminal
            .draw(|frame| drawn = Some(draw(frame.buffer_mut())))
            .map_err(TopError::Terminal)?;
        Ok(drawn.expect("a frame is drawn when drawing succeeds"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic the hook did it: once more would put the cursor over what the panic said.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}
