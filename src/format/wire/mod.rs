//! Messages between agent and process server. Layout: `docs/formats/wire.md`.

mod message;

pub use message::{
    Ack, BookmarkOutcome, BookmarkReply, BookmarkRequest, FromAgent, FromServer, Hello, Progress,
    Refusal, Refuse, Welcome,
};

/// Spoken version; the first field of [`Hello`].
pub const VERSION: u16 = 1;
/// Value of the `Upgrade` header and of QUIC's ALPN.
pub const PROTOCOL: &str = "holdfast/1";
/// Bytes of a wire frame's header.
pub const HEADER_BYTES: usize = 40;
/// Largest payload of a wire frame, checked before anything is allocated.
pub const PAYLOAD_BYTES_MAX: u32 = crate::model::WRITE_BYTES_MAX;
