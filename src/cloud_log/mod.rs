//! The cloud log as it is read: manifest, its pages, deltas. Shared by upload, apply and recover.
