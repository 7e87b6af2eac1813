//! Messages between agent and process server. Layout: `docs/formats/wire.md`.

mod frame;
mod message;
mod payload;
#[cfg(test)]
mod tests;

pub use frame::{Frame, FrameHeader, FrameKind};
pub use message::{
    Ack, BookmarkOutcome, BookmarkReply, BookmarkRequest, Capture, FromAgent, FromServer, Hello,
    Progress, Redirect, Refusal, Refuse, Welcome,
};
pub use payload::{
    decode_from_agent, decode_from_server, encode_from_agent, encode_from_server, spoken_version,
};

/// Spoken version; the first field of [`Hello`].
pub const VERSION: u16 = 1;
/// Value of the `Upgrade` header and of QUIC's ALPN.
pub const PROTOCOL: &str = "holdfast/1";
/// First bytes of every frame, "HF".
pub const MAGIC: u16 = u16::from_le_bytes(*b"HF");
/// Bytes of a wire frame's header.
pub const HEADER_BYTES: usize = 40;
/// Largest payload of a wire frame, checked before anything is allocated.
pub const PAYLOAD_BYTES_MAX: u32 = crate::model::WRITE_BYTES_MAX;
/// Largest payload of a frame that is no write.
pub const CONTROL_BYTES_MAX: u32 = 4096;
/// Longest sentence for people in a refusal or redirect, bytes.
pub const SENTENCE_BYTES_MAX: usize = 512;
/// Most addresses in a redirect.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address in a redirect, bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;

const _: () = assert!(CONTROL_BYTES_MAX as usize >= crate::format::change::MARK_BYTES_MAX);
const _: () = assert!(
    CONTROL_BYTES_MAX as usize
        >= 1 + ADDRESSES_MAX * (2 + ADDRESS_BYTES_MAX) + 2 + SENTENCE_BYTES_MAX
);
