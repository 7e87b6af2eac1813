//! What an agent does by the clock: the policy's bookmarks, rounds of clearing, the status file, the
//! bound of mode sync.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{BookmarkKind, Sequence, TrackingMode};
use crate::settings::AgentMode;

use super::beats::returned;
use super::clearing::Round;
use super::run::Shared;
use super::session::new_bookmark;
use super::status::AgentStatus;

/// Pause between two looks at a round of clearing that waits.
const LOOK: Duration = Duration::from_millis(500);
/// Pause between the end of a round and the next: a chunk written at least that often stays set,
/// and so costs no sync of the bitmap.
const REST: Duration = Duration::from_secs(5);
/// Pause between two status files.
const TELL: Duration = Duration::from_secs(1);
/// Longest wait of a write in mode sync without any progress of the durable position.
const SYNC_STALL_MAX: Duration = Duration::from_secs(5);

/// Places the policy's bookmarks, unless nothing was written since the last one. Whether a server is
/// there does not matter: what stands in the stream in order is a point once it is published, so a
/// server that is lost leaves no gap between points.
pub(super) async fn mark(shared: Arc<Shared>) {
    let mut marked_at = shared.clock.monotonic();
    loop {
        let now = shared.clock.monotonic();
        let due = marked_at + shared.mark_interval();
        if now < due {
            tokio::select! {
                () = shared.clock.sleep(due - now) => {}
                () = shared.mark_changed.notified() => {}
            }
            continue;
        }
        marked_at = now;
        if shared.stream.lock().bookmark_due {
            let bookmark = new_bookmark(&shared, BookmarkKind::CrashConsistent, "");
            if let Err(why) = shared.stream.bookmark_soon(bookmark).await {
                tracing::debug!(why, "no bookmark of the policy");
            }
        }
    }
}

/// Clears bits, for as long as the agent lives.
pub(super) async fn clear(shared: Arc<Shared>) {
    loop {
        let stream = Arc::clone(&shared.stream);
        let outcome = tokio::task::spawn_blocking(move || stream.clear_step()).await;
        let Some(outcome) = returned(outcome) else { return };
        let pause = match outcome {
            Ok(Round::Waits) => LOOK,
            Ok(Round::Idle) => REST,
            Ok(Round::Cleared(bytes)) => {
                tracing::debug!(bytes, "published and synced");
                REST
            }
            Err(error) => {
                tracing::error!(%error, "the bitmap cannot be written; writes to clear chunks fail until the agent restarts");
                let directory = shared.settings.state_directory.display();
                let words = format!("{directory}: the bitmap cannot be written: {error}");
                shared.stream.note_trouble(Some(words));
                REST
            }
        };
        shared.clock.sleep(pause).await;
    }
}

/// Writes the status file about every second and when the mode changes, and ends the wait of
/// writers in mode sync when the server makes no progress.
pub(super) async fn tell(shared: Arc<Shared>) {
    let clock = &shared.clock;
    let (mut seen_at, mut seen_bytes, mut rate) = (clock.monotonic(), 0, 0.0);
    let (mut moved_at, mut moved) = (clock.monotonic(), Sequence::ZERO);
    loop {
        let now = clock.monotonic();
        let elapsed = now.saturating_sub(seen_at);
        if elapsed >= TELL {
            let bytes = shared.stream.lock().repaired_bytes;
            let latest = (bytes - seen_bytes) as f64 / elapsed.as_secs_f64();
            rate = if rate == 0.0 { latest } else { 0.7 * rate + 0.3 * latest };
            (seen_at, seen_bytes) = (now, bytes);
        }
        let (durable, waits) = {
            let core = shared.stream.lock();
            let waits = core.waiters > 0 && core.mode != TrackingMode::Bitmap;
            (core.durable, waits)
        };
        if durable != moved || !waits {
            (moved_at, moved) = (now, durable);
        } else if shared.settings.mode == AgentMode::Sync && now - moved_at > SYNC_STALL_MAX {
            let why = "sync is suspended: the server acknowledged nothing for 5 s";
            tracing::warn!(why, "writes are acknowledged when they are on the source disk");
            shared.stream.give_up_order(why);
        }
        let (stream, status) = (&shared.stream, AgentStatus::of(&shared, rate));
        let directory = shared.settings.state_directory.clone();
        let written = tokio::task::spawn_blocking(move || status.write(&directory)).await;
        if let Ok(Err(error)) = written {
            let directory = shared.settings.state_directory.display();
            tracing::warn!(%error, %directory, "status file");
        }
        tokio::select! {
            () = clock.sleep(TELL) => {}
            () = stream.to_tell.notified() => {}
        }
    }
}
