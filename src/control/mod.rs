//! The sidecar's HTTP API, the private CA and enrolment.
