//! Places of the log that are not as they were written.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use crate::format::bytes::FormatError;
use crate::model::{MachineKey, Sequence};

/// One damaged place, or records that are kept back because of one. Nothing of it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub path: PathBuf,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// What is wrong with them.
    pub finding: Finding,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// No valid header: the segment is set aside, all its records are lost to this log.
    Header(FormatError),
    /// It was set aside at an earlier start, and lies there yet.
    Aside,
    /// The disk cannot read them.
    Unreadable,
    /// Records that were on the disk are not valid any more. Whose they were cannot be known.
    Records,
    /// A valid record whose body means nothing.
    Body {
        /// Whose.
        machine: MachineKey,
        /// Which.
        sequence: Sequence,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// Valid records of a machine that follow a gap which damage may have torn.
    AfterGap {
        /// Whose.
        machine: MachineKey,
        /// The first one missing.
        missing: Sequence,
        /// The first one kept back.
        first: Sequence,
        /// The last one kept back.
        last: Sequence,
        /// How many were kept back.
        records: u64,
    },
}

/// What becomes of a segment that was set aside.
const REMOVE: &str =
    "nothing reads it any more; keep a copy if you want to look into it, then remove it";

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, range) = (self.path.display(), &self.range);
        write!(f, "{path}, bytes {} to {}: ", range.start, range.end)?;
        match &self.finding {
            Finding::Header(reason) => {
                write!(f, "damaged segment header: {reason}; the segment is set aside, {REMOVE}")
            }
            Finding::Aside => {
                write!(f, "a damaged segment, set aside at an earlier start: {REMOVE}")
            }
            Finding::Unreadable => f.write_str("the disk cannot read them"),
            Finding::Records => f.write_str("damaged records"),
            Finding::Body { machine, sequence, reason } => {
                write!(f, "record {sequence} of machine {machine}: {reason}")
            }
            Finding::AfterGap { machine, missing, first, last, records } => write!(
                f,
                "machine {machine}: record {missing} is missing, so {records} later records \
                 ({first} to {last}) are not served"
            ),
        }
    }
}
