//! Who this process is towards Azure, and how its requests prove it.

mod certificate;
mod connection_string;
mod made;
mod patience;
mod renewed;
mod sas;
mod shared_key;

pub(super) use self::made::identity;
use super::{answer, call, config};
