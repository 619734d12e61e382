//! Harbor's task format, run natively.
pub mod task;
