//! :9443 → `Admitted`. Listener, TLS, identity, the sans-io session, admission, acks.

mod admission;

pub use admission::Admitted;
