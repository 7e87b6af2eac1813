//! Shards, limits, drain and the wiring of all stages.
