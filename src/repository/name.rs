//! What a model or a version may be called.
//!
//! Names are free text, taken literally: no case folding, no Unicode normalisation.

/// Whether `name` can be the name of a model or version folder; the reason when it cannot.
///
/// `/` and `@` are the syntax of references and routes, a leading `.` marks folders that are still
/// being written, and control characters would forge lines of logs.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("an empty name".to_owned());
    }
    if name.starts_with('.') {
        return Err(format!("the name {name:?} begins with '.'"));
    }
    match name.chars().find(|c| matches!(c, '/' | '@') || c.is_control()) {
        Some(bad) => Err(format!("the name {name:?} holds {bad:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_text_is_a_name() {
        for name in
            ["v1", "f32", "2024-05-01 rc", "версия", "模型", "🦀", "e\u{301}", "a..b", "v1.", "%2F", "-x", "a\\b"]
        {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_would_leave_the_folder_or_forge_a_reference_is_not_a_name() {
        for name in ["", ".", "..", ".tmp", "a/b", "/", "../x", "a@b", "@", "a\0b", "a\nb", "a\u{85}b"] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
