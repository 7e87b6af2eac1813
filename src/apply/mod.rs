//! `Published` → `Applied` → `RecoveryPoint`: the cloud log onto the seed disks, snapshots, retention.
