//! Kind codes and bodies of changes, shared by wire frames, cache records and delta marks.
