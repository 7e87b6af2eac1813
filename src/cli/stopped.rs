//! When a command that runs until it is told to stop is told to.

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Completes when the process is asked to stop: SIGTERM or Ctrl-C.
///
/// # Errors
/// When signals cannot be watched.
pub async fn stopped() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
