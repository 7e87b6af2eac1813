//! How much a bench works on: `cargo bench` measures, `cargo test --benches` only runs it once, in a
//! build that is not optimised.
#![allow(dead_code, reason = "each bench uses its part")]

/// Whether this is `cargo bench`: otherwise figures mean nothing and are not printed.
pub(crate) fn measured() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// `large` under `cargo bench`, otherwise `small`.
pub(crate) fn scaled<T>(large: T, small: T) -> T {
    if measured() { large } else { small }
}
