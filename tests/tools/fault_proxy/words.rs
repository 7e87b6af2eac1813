//! What the proxy can do, and how it is told: one JSON document a line.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// 500, and no effect.
    FailedBefore,
    /// 500, and the effect.
    FailedAfter,
    /// 503 with Retry-After.
    Busy,
    /// The connection is reset; no effect.
    ResetBefore,
    /// The connection is reset after the effect.
    ResetAfter,
    /// Silence until the client gives up; no effect.
    SilentBefore,
    /// Silence after the effect.
    SilentAfter,
    /// Answered, and delivered once more after so many further requests.
    Again(u64),
    /// The connection is reset at once, and the request delivered after so many further ones.
    Late(u64),
    /// 503 of a gateway that has passed the request on: it is delivered after so many further ones.
    Gateway(u64),
}

/// What the proxy is told on its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Command {
    /// The n-th request (from 0) of a container fails so.
    Plan {
        container: String,
        faults: HashMap<u64, Fault>,
    },
    /// An outage begins or ends: every request is reset.
    Away {
        container: String,
        away: bool,
    },
    Counts {
        container: String,
    },
    /// Delivers what is still on its way.
    Deliver {
        container: String,
    },
}

/// What it answers on its standard output.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Once, at the beginning: where it listens on loopback.
    Listens {
        port: u16,
    },
    Done,
    /// Requests that came, and faults that happened.
    Counts {
        requests: u64,
        fired: u64,
    },
    Delivered {
        requests: usize,
    },
}
