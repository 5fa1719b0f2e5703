//! Which key of a TOML file stands where. It must not know what the keys mean.

use toml::de::{DeTable, DeValue};

/// The dotted key whose name or value is at this byte of the file.
///
/// The parser tells where a value is wrong, not what it is called, so the tree of spans is asked.
pub(super) fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    for (key, value) in table {
        let key_name = key.get_ref();
        if let Some(inner) = key_within(value.get_ref(), offset) {
            return Some(format!("{key_name}{inner}"));
        }
        if key.span().contains(&offset) || value.span().contains(&offset) {
            return Some(key_name.to_string());
        }
    }
    None
}

/// The same within a value: `.key` of a table, `[0].key` of one of several.
fn key_within(value: &DeValue<'_>, offset: usize) -> Option<String> {
    match value {
        DeValue::Table(inner) => key_at(inner, offset).map(|key| format!(".{key}")),
        DeValue::Array(items) => items.iter().enumerate().find_map(|(at, item)| {
            let here = || item.span().contains(&offset).then(String::new);
            key_within(item.get_ref(), offset).or_else(here).map(|key| format!("[{at}]{key}"))
        }),
        _ => None,
    }
}
