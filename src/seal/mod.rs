//! `Durable` → `Batch` → `Sealed` and back: coalesce, compress, encrypt, open.
