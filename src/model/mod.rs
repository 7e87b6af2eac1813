//! Plain values of the domain: no I/O, no async, no clock, nothing imported from above.

mod change;
mod checksum;
mod extent;
mod extent_map;
mod ids;
mod name;
mod object_name;
mod payload;
mod time;
mod watermarks;

pub use change::{
    Bookmark, BookmarkKind, CaptureMode, CatchUp, Change, DiskSpec, EpochBegin, Record,
    TrackingMode,
};
pub use checksum::Checksum;
pub use extent::{Extent, ExtentError, SECTOR_BYTES};
pub use extent_map::{ExtentMap, Slice};
pub use ids::{
    BookmarkId, DeltaId, DiskIndex, Epoch, Generation, Incarnation, MachineKey, Sequence,
};
pub use name::{DiskName, MachineId, NameError, ServerId, SiteId};
pub use object_name::ObjectName;
pub use payload::{Fragments, Payload};
pub use time::{TimeError, Timestamp};
pub use watermarks::Watermarks;

/// Largest payload of one write record, bytes. A longer source write is split by the agent.
pub const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Largest extent of one zero record, bytes.
pub const ZERO_BYTES_MAX: u32 = 1 << 30;
/// Most disks of one machine.
pub const DISKS_MAX: usize = 64;
/// Largest disk, bytes: an 8 TiB page blob less its VHD footer, rounded down to 1 MiB.
pub const DISK_BYTES_MAX: u64 = (8 << 40) - (1 << 20);

const _: () = assert!(WRITE_BYTES_MAX.is_multiple_of(SECTOR_BYTES as u32));
const _: () = assert!(ZERO_BYTES_MAX >= WRITE_BYTES_MAX);
