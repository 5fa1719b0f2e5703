//! Placeholder for the model room: its owner's file replaces this one at merge.

pub mod input;
