//! Where a value was said: in which file under which key, or in which argument.

use crate::error::Error;

/// Where a value stands, for whoever finds out later that it does not do.
#[derive(Debug, Clone, Default)]
pub struct Place {
    file: String,
    key: String,
}

/// Of what only shows itself to be wrong when it is used.
#[derive(Debug, Clone)]
pub struct Places {
    pub device: Place,
    pub log_filter: Place,
    pub listen: Place,
    pub admin_listen: Place,
    pub grpc_listen: Place,
}

impl Place {
    pub(super) fn new(file: &str, key: &str) -> Self {
        Place { file: file.into(), key: key.into() }
    }

    pub(super) fn argument(key: &str) -> Self {
        Place::new("command line", key)
    }

    pub fn wrong(&self, reason: String) -> Error {
        Error::Config { file: self.file.clone(), key: self.key.clone(), reason }
    }

    /// A configuration's error as one of this place.
    pub fn blame(&self, error: Error) -> Error {
        match error {
            Error::Config { reason, .. } => self.wrong(reason),
            other => other,
        }
    }
}
