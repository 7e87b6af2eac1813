//! The upload room against stores that lose answers, servers that fight, and crashes at each step.

mod crash;
mod faults;
mod fight;
mod hostile;
mod reading;
mod rig;
mod single;
mod tidy;
