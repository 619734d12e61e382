//! The vocabulary of Berth's API: what a client sends and what it gets back.
//!
//! Everything here is inert data with serde on it. No I/O, no behaviour beyond parsing a value from
//! text and naming it again. Units are in the field names (`_mb`, `_seconds`); one MB is 2^20 bytes, as
//! in Harbor's task format. Unknown fields are refused on everything that a client sends, so that a
//! mistyped limit can never be dropped in silence.
//!
//! Start reading at [`sandbox::CreateSandbox`], [`exec::ExecRequest`] and [`error::ApiError`].

pub mod error;
pub mod exec;
pub mod files;
pub mod image;
pub mod progress;
pub mod sandbox;
pub mod ssh;
pub mod system;
pub mod unique;

/// Version of the HTTP API that this crate describes; the first path segment of every route.
pub const API_VERSION: &str = "v1";
