//! eBPF capture at its edges: a database over two disks, devices that fail or hold writes back,
//! partitions, bytes that cannot be copied, a file system that is frozen, fio over two disks, and kernels and settings that it must refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

#[path = "../support/mod.rs"]
mod support;

mod database;
mod devices;
mod frozen;
mod numbered;
mod places;
mod refusals;
