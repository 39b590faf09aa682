//! Firecracker's API.
