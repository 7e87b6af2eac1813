//! Named places between two steps at which a test can stop the whole process (SIGSTOP), to play the
//! zombie: an owner that goes on after somebody else took over.
//!
//! Owns: the names; the table in docs/scale-out.md says what must hold behind each. Compiled to
//! nothing unless the feature `places` is on. Never inside a store's call: a `dir:` store holds its
//! locks there, and whoever takes over would wait for them.

/// Between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The manifest was looked at; the claim is not written yet.
    Claim,
    /// Records are durable; neither pipeline nor agent knows.
    Durable,
    /// A delta is sealed; its object is not uploaded yet.
    Upload,
    /// Objects stand; the manifest that names them is not written yet.
    Publish,
    /// The manifest is written; nobody was told.
    Published,
    /// The own lease is to be renewed.
    Renew,
    /// The seed disks are to be taken: older leases broken, sequence numbers raised.
    Fence,
    /// A run is announced; no page of it is written.
    Announced,
    /// A page write is to be sent.
    WritePages,
    /// Pages are written; they are not flushed yet.
    Flush,
    /// Pages are flushed; the snapshots are to be taken.
    Snapshot,
    /// The seed disks hold the run; the points document does not say so yet.
    Record,
    /// Deltas are not named any more; their objects are to be deleted.
    Cut,
    /// Orphans are known; they are to be deleted.
    Orphans,
    /// Everything is published; the machine is to be given up.
    GiveUp,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Claim,
        Self::Durable,
        Self::Upload,
        Self::Publish,
        Self::Published,
        Self::Renew,
        Self::Fence,
        Self::Announced,
        Self::WritePages,
        Self::Flush,
        Self::Snapshot,
        Self::Record,
        Self::Cut,
        Self::Orphans,
        Self::GiveUp,
    ];

    /// As `HOLDFAST_STOP_AT` and the table name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Durable => "durable",
            Self::Upload => "upload",
            Self::Publish => "publish",
            Self::Published => "published",
            Self::Renew => "renew",
            Self::Fence => "fence",
            Self::Announced => "announced",
            Self::WritePages => "write-pages",
            Self::Flush => "flush",
            Self::Snapshot => "snapshot",
            Self::Record => "record",
            Self::Cut => "cut",
            Self::Orphans => "orphans",
            Self::GiveUp => "give-up",
        }
    }
}

/// The process has come to `place`.
#[inline]
pub fn reached(place: Place) {
    #[cfg(feature = "places")]
    stop::at(place);
    #[cfg(not(feature = "places"))]
    let _ = place;
}

/// Stopping: `HOLDFAST_STOP_AT` names the place, `HOLDFAST_STOP_FILE` a file that must exist for it to
/// count, and that is removed before the process stops, once.
#[cfg(feature = "places")]
mod stop {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use super::Place;

    struct Order {
        place: String,
        file: PathBuf,
    }

    pub(super) fn at(place: Place) {
        static ORDER: OnceLock<Option<Order>> = OnceLock::new();
        let order = ORDER.get_or_init(|| {
            let place = std::env::var("HOLDFAST_STOP_AT").ok()?;
            let file = std::env::var_os("HOLDFAST_STOP_FILE")?.into();
            Some(Order { place, file })
        });
        let Some(order) = order.as_ref().filter(|order| order.place == place.name()) else {
            return;
        };
        // Who removes the file is the one that stops.
        if std::fs::remove_file(&order.file).is_ok() {
            let us = rustix::process::getpid();
            if let Err(error) = rustix::process::kill_process(us, rustix::process::Signal::STOP) {
                tracing::error!(%error, "cannot stop");
            }
        }
    }
}
