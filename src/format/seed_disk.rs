//! Fixed VHD: the disk's bytes, then a 512-byte footer. Layout: `docs/formats/seed-disk.md`.
