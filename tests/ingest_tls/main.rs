//! The data port against real sockets, real TLS and real certificates: who gets in, what they may
//! do there, and what strangers can cost.
#![allow(clippy::unwrap_used, reason = "tests")]

mod agent;
mod flood;
mod inplace;
mod pki;
mod quic;
mod quic_agent;
mod quic_flood;
mod refused;
mod server;
mod stream;

use std::future::Future;
use std::time::Duration;

/// Nothing here may hang: each test has this long.
pub(crate) async fn bounded<T>(test: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(120);
    tokio::time::timeout(limit, test).await.expect("the test hangs")
}
