//! TLS in memory.
