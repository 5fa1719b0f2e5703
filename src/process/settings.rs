//! Reading single settings out of a version's small JSON files, with errors that name the file and the key.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::repository::Spec;

/// The name by which errors call a file of a version: relative to the repository.
pub(super) fn label(spec: &Spec, file: &str) -> String {
    format!("{}/{}/{file}", spec.model, spec.version)
}

/// One JSON object and the file it came from. A key that is absent or null reads as `None`.
pub(super) struct Settings<'a> {
    pub(super) file: String,
    object: &'a Value,
}

impl<'a> Settings<'a> {
    pub(super) fn new(spec: &Spec, file: &str, object: &'a Value) -> Self {
        Settings { file: label(spec, file), object }
    }

    pub(super) fn config(spec: &'a Spec) -> Self {
        Settings::new(spec, "config.json", &spec.config)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A finite number.
    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// `value` is `None` where the setting is not what it should be.
    fn read<T>(&self, key: &str, expected: &str, value: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(found) => value(found).map(Some).ok_or_else(|| self.wrong(key, expected)),
        }
    }

    pub(super) fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> Error {
        let found = self.object.get(key).unwrap_or(&Value::Null);
        Error::unloadable(&self.file, format!("'{key}' is {found}, expected {expected}"))
    }
}
