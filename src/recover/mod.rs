//! A point → a disk: extent map, reader, NBD mount, export, verify. Needs only store and key.
