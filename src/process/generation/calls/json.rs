//! The JSON of calls, its arguments as the model wrote them.
//!
//! Parsed and written again, numbers would change (`1e5`, those of more than 64 bits) and keys that come twice would be one.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Map, Value};

use super::Call;

/// Where a JSON value ends whose characters come one by one. Whether it is one is not its affair.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Nesting {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Nesting {
    /// Takes the next character; whether it is a part of the structure, not of a string.
    pub(super) fn take(&mut self, c: char) -> bool {
        if self.quoted {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.quoted = false,
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.quoted = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        c != '"'
    }

    /// Whether an object or a list that began is closed.
    pub(super) fn is_over(&self) -> bool {
        self.depth == 0 && !self.quoted
    }
}

/// Without white space between its parts.
pub(super) fn compact(text: &str) -> String {
    let mut nesting = Nesting::default();
    text.chars().filter(|c| !nesting.take(*c) || !c.is_ascii_whitespace()).collect()
}

/// The call that a compact object is: a name, and arguments that are an object, that one as text, or not there.
pub(super) fn call(object: &str) -> Option<Call> {
    let fields: Map<String, Value> = serde_json::from_str(object).ok()?;
    let name = fields.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let written = member(object, "arguments").or_else(|| member(object, "parameters")).unwrap_or("null");
    let arguments = match written.chars().next()? {
        '{' => written.to_owned(),
        'n' => "{}".to_owned(),
        _ => {
            let text: String = serde_json::from_str(written).ok()?;
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            compact(&text)
        }
    };
    Some(Call { name: name.to_owned(), arguments })
}

/// The calls that a compact list holds; nothing where any of it is none.
pub(super) fn calls(list: &str) -> Option<Vec<Call>> {
    serde_json::from_str::<IgnoredAny>(list).ok()?;
    parts(list).into_iter().map(call).collect()
}

/// A field of a compact object as it is written; the last of that name.
fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let of_name = |part: &&str| {
        let mut keys = Deserializer::from_str(part).into_iter::<String>();
        matches!(keys.next(), Some(Ok(key)) if key == name)
    };
    let part = parts(object).into_iter().rev().find(of_name)?;
    let mut keys = Deserializer::from_str(part).into_iter::<String>();
    keys.next()?.ok()?;
    part.get(keys.byte_offset() + 1..)
}

/// What stands between the commas of a compact object or list.
fn parts(whole: &str) -> Vec<&str> {
    let (mut nesting, mut begins, mut parts) = (Nesting::default(), 1, Vec::new());
    for (at, c) in whole.char_indices() {
        let outside = nesting.take(c);
        if outside && (c == ',' && nesting.depth == 1 || nesting.depth == 0) {
            parts.extend(whole.get(begins..at));
            begins = at + 1;
        }
    }
    parts
}
