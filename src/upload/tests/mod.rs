//! The upload room against stores that lose answers, servers that fight, and crashes at each step.

mod crash;
mod faults;
mod fight;
mod fleet;
mod hostile;
mod reading;
mod rig;
mod single;
mod tidy;
mod virtual_time;
