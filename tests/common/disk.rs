//! A disk without room, for one server.
//!
//! The server's files may not grow beyond a size that a test sets and lifts while it runs (prlimit), so that no privilege is
//! needed to fill a disk.

use std::process::Command;

use super::{Server, skipped};

/// What such a server is started through: without the signal that would end it, a process whose file cannot grow sees a
/// failing write.
pub(crate) const WRAPPER: &str = "trap '' XFSZ; exec \"$@\"";

/// Whether this machine can bound a running process; says so when not.
pub(crate) fn can_be_filled() -> bool {
    let can = Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success());
    if !can {
        skipped("the tests of a full disk need prlimit (util-linux)");
    }
    can
}

/// From now on no file of the server's can grow, or all can again.
pub(crate) fn fill(server: &Server, full: bool) {
    let limit = if full { "--fsize=1:unlimited" } else { "--fsize=unlimited:unlimited" };
    let set = Command::new("prlimit").args(["--pid", &server.pid().to_string(), limit]).status().unwrap();
    assert!(set.success(), "prlimit {limit} failed");
}
