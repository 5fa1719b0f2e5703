//! Placeholder for the owner's room: only `duration`, which the command line needs, copied as it is.
pub mod duration;
