//! Reading small files of the repository: capped, never blocking on what is not a file, and every
//! error saying which file and key is wrong.
//!
//! It knows text and JSON. It must not know what any file means.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The largest JSON file that is read whole. Shard indexes and label tables stay far below it.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a regular file of at most `cap` bytes; `None` when there is none of that name.
///
/// A pipe or device in its place is refused before it is opened, because opening one can block for ever.
pub(super) fn read_text(path: &Path, cap: u64) -> Result<Option<String>, String> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > cap {
        return Err(format!("is larger than {cap} bytes"));
    }
    String::from_utf8(bytes).map(Some).map_err(|e| format!("is not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
}

/// Opens a regular file, through links; `None` when there is none of that name.
pub(super) fn open(path: &Path) -> Result<Option<File>, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err("is not a regular file".to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot be read: {e}")),
    }
    File::open(path).map(Some).map_err(|e| format!("cannot be opened: {e}"))
}

/// A relative path that stays inside its folder, from a file that somebody else wrote.
pub fn safe_relative(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if text.is_empty() || text.contains('\0') || !inside {
        return Err(format!("{text:?} is not a path inside the folder"));
    }
    Ok(path.to_owned())
}

/// A version folder and what errors call it (`minilm/f32`).
pub(super) struct Folder<'a> {
    pub(super) dir: &'a Path,
    pub(super) label: String,
}

impl Folder<'_> {
    pub(super) fn file_label(&self, relative: &str) -> String {
        format!("{}/{relative}", self.label)
    }

    pub(super) fn error(&self, relative: &str, reason: impl std::fmt::Display) -> Error {
        Error::unloadable(self.file_label(relative), reason)
    }

    pub(super) fn has(&self, relative: &str) -> bool {
        self.dir.join(relative).is_file()
    }

    /// A JSON file of the folder; `None` when there is none of that name.
    pub(super) fn json(&self, relative: &str) -> Result<Option<Value>> {
        let text = read_text(&self.dir.join(relative), MAX_JSON_BYTES).map_err(|why| self.error(relative, why))?;
        let Some(text) = text else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| self.error(relative, format!("not valid JSON: {e}")))
    }

    /// A JSON file that must be there and hold an object.
    pub(super) fn object(&self, relative: &str) -> Result<Map<String, Value>> {
        self.optional_object(relative)?.ok_or_else(|| self.error(relative, "is missing"))
    }

    /// A JSON file that must hold an object when it is there.
    pub(super) fn optional_object(&self, relative: &str) -> Result<Option<Map<String, Value>>> {
        match self.json(relative)? {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.error(relative, format!("expected an object, found {}", kind_of(&other)))),
        }
    }
}

/// The keys of one JSON object, read with errors that name the file, the key and what was expected.
/// A key whose value is `null` counts as absent, as it does for the libraries that write these files.
pub(super) struct Fields<'a> {
    pub(super) file: String,
    pub(super) object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::unloadable(&self.file, format!("{key}: {reason}"))
    }

    pub(super) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(super) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The same look-up for a key that must be there.
    pub(super) fn required<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.error(key, "is missing"))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.error(key, format!("expected {expected}, found {}", shown(value)))),
            },
        }
    }
}

/// A value for an error message, never long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind_of(value).to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        other => other.to_string(),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_its_folder_is_refused() {
        for bad in ["", "..", "../x", "a/../../x", "/etc/passwd", "a/..", "./a", "a\0"] {
            assert!(safe_relative(bad).is_err(), "{bad:?}");
        }
        assert_eq!(safe_relative("1_Pooling"), Ok(PathBuf::from("1_Pooling")));
        assert_eq!(safe_relative("a/b..c"), Ok(PathBuf::from("a/b..c")));
    }

    #[test]
    fn a_file_over_its_cap_or_not_utf8_or_not_a_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read_text(&path, 4), Ok(None));
        fs::write(&path, "1234").unwrap();
        assert_eq!(read_text(&path, 4), Ok(Some("1234".to_owned())));
        fs::write(&path, "12345").unwrap();
        assert!(read_text(&path, 4).unwrap_err().contains("larger than 4"));
        fs::write(&path, b"a\xff").unwrap();
        assert!(read_text(&path, 4).unwrap_err().contains("UTF-8 at byte 1"));
        assert!(read_text(dir.path(), 4).unwrap_err().contains("not a regular file"));
    }

    #[test]
    fn a_missing_parent_is_a_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_text(&dir.path().join("a/b"), 4), Ok(None));
    }
}
