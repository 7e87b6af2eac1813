//! Asking, keys and frames: live on a terminal, or once on paper.

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::crossterm::event::Event;

use super::TopError;
use super::draw::{draw, paper};
use super::fetch::Source;
use super::model::Model;
use super::reading::Reading;
use super::terminal::Screen;
use super::view::View;

/// Shows what `source` says, every `interval`, until somebody leaves. The terminal is as it was
/// afterwards, also when this is dropped on its way.
///
/// # Errors
/// When there is no terminal, or it cannot be used. A server that does not answer is no error: the
/// screen says so, and goes on when it answers again.
pub async fn live(source: Source, interval: Duration) -> Result<(), TopError> {
    if !std::io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let clock = &source.clock;
    let mut model = Model::new(source.address.clone(), clock.wall());
    let mut view = View::default();
    let (mut screen, mut events) = Screen::open()?;
    let mut asking = Box::pin(asked(&source, Duration::ZERO));
    loop {
        view.seen = screen.draw(|buf| draw(&model, &view, clock.wall(), buf))?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Key(key)) => if view.key(key) { return Ok(()) },
                Some(_) => {} // another size: drawn again
                None => return Ok(()), // the terminal is gone
            },
            answer = &mut asking => {
                match answer {
                    Ok(reading) => model.take(reading, clock.monotonic(), clock.wall()),
                    Err(error) => model.lose(error.cause()),
                }
                asking = Box::pin(asked(&source, interval));
            }
        }
    }
}

async fn asked(source: &Source, pause: Duration) -> Result<Reading, TopError> {
    source.clock.sleep(pause).await;
    source.reading().await
}

/// One frame as plain text, from two readings `interval` apart: rates need two.
///
/// # Errors
/// When the server does not answer, or not with metrics.
pub async fn once(source: Source, interval: Duration) -> Result<String, TopError> {
    let clock = &source.clock;
    let mut model = Model::new(source.address.clone(), clock.wall());
    for pause in [Duration::ZERO, interval] {
        let reading = asked(&source, pause).await?;
        model.take(reading, clock.monotonic(), clock.wall());
    }
    Ok(paper(&model, clock.wall()))
}
