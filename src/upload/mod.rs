//! `Sealed` → `Published`: parallel upload, ordered retirement, the manifest's compare-and-swap.
