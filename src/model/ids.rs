//! Numbers and random ids, each its own type so that they cannot be confused.

use std::fmt;

use crate::model::MachineId;

/// Position in one machine's write stream, all its disks together. Gapless, given by the agent,
/// never reset. The first record has sequence 1; `Sequence::ZERO` means "nothing yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before the first record.
    pub const ZERO: Self = Self(0);

    /// The position that follows this one. Saturates: 2^64 writes do not happen, and a peer that
    /// claims so must not be able to wrap the stream.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One unbroken life of tracking on a machine; a resync begins the next. Starts at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// One ownership of a machine's manifest (or of its seed disks by an applier); fences the older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// A disk's number within its machine; its name stands in the stream's `EpochBegin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskIndex(pub u16);

macro_rules! number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
number!(Sequence, Epoch, Generation, DiskIndex);

macro_rules! id16 {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Parses 32 lower-case hexadecimal digits; `None` for anything else.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                (hex::encode(bytes) == text).then_some(Self(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.0))
            }
        }
    )*};
}
id16!(
    /// Names one delta; random, so that two owners can never collide.
    DeltaId,
    /// Names one bookmark over all machines of its consistency group.
    BookmarkId,
    /// Names one life of something that is reused: a cache segment, an agent process.
    Incarnation,
    /// A machine in binary formats: the first 16 bytes of SHA-256 over its [`MachineId`].
    MachineKey,
);

impl MachineKey {
    /// The key of a machine.
    #[must_use]
    pub fn of(machine: &MachineId) -> Self {
        use sha2::Digest;
        let digest: [u8; 32] = sha2::Sha256::digest(machine.as_str().as_bytes()).into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }
}
