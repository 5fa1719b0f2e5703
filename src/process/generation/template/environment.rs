//! The environment that transformers gives its chat templates, on minijinja.
//!
//! Source: transformers, `utils/chat_template_utils.py`, `_compile_jinja_template`. It must not know messages.

use std::fmt::Write as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::super::control::unmark;
use super::json::tojson;
use crate::ledger::date_of_day;

/// Steps of one rendering (64 bytes of text made are one too). A chat of ten thousand messages takes about a million.
const FUEL: u64 = 4_000_000;

/// What a template says by `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(method);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
        Err(error.with_source(Raised(message.to_owned())))
    });
    Ok(environment)
}

/// `strftime_now` at a moment, in seconds since 1970 in UTC.
pub(super) fn strftime_at(now: i64) -> Value {
    Value::from_function(move |format: &str| strftime(format, now))
}

/// Python's methods of strings, lists and dictionaries.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), args) {
        // Python's white space has four separators that Rust's does not.
        match method {
            "strip" => return Ok(text.trim_matches(is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(is_space).into()),
            _ => {}
        }
    }
    unknown_method_callback(state, value, method, args)
}

/// The filter: `str.strip`, of anything that can be written.
fn trim(value: &Value, what: Option<String>) -> Value {
    let text = value.to_string();
    match what {
        Some(what) => Value::from(text.trim_matches(|c| what.contains(c))),
        None => Value::from(text.trim_matches(is_space)),
    }
}

/// The filter: of a string without its marks.
fn length(value: &Value) -> Result<usize, Error> {
    let length = match value.as_str() {
        Some(text) => Some(unmark(text).0.chars().count()),
        None if value.is_undefined() => Some(0),
        None => value.len(),
    };
    let kind = value.kind();
    length.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("a value of the type {kind} has no length")))
}

/// Python's `str.isspace`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `datetime.strftime` in the C locale, for the directives that name parts of a date and a time of day.
fn strftime(format: &str, now: i64) -> Result<String, Error> {
    let (day, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, date) = date_of_day(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS[(month - 1) as usize % 12];
    let day_name = DAYS[day.rem_euclid(7) as usize];
    let half_day = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        // writing to a string cannot fail
        let _ = match directive {
            Some('Y') => write!(out, "{year:04}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{date:02}"),
            Some('e') => write!(out, "{date:2}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{half_day:02}"),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('F') => write!(out, "{year:04}-{month:02}-{date:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => write!(out, "%"),
            other => {
                let directive = other.map_or(String::new(), String::from);
                let message = format!("strftime_now does not know the directive '%{directive}'");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(out)
}

/// `{% generation %}` marks what an assistant said, for training: here it is a block that changes nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(length) = rest[at..].find("%}") else { break };
        let tag = &rest[at + 2..at + length];
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let plain = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        out.push_str(&rest[..at + 2]);
        if plain == name {
            out.push_str(tag);
        } else {
            out.push_str(&tag.replacen(name, &format!(" {plain} "), 1));
        }
        out.push_str("%}");
        rest = &rest[at + length + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // `datetime.datetime.utcfromtimestamp(1709214123).strftime(...)`
        let now = 1_709_214_123;
        for (format, text) in [
            ("%d %b %Y", "29 Feb 2024"),
            ("%A, %B %d, %y at %I:%M:%S %p", "Thursday, February 29, 24 at 01:42:03 PM"),
            ("%F %T %a %H %m %%", "2024-02-29 13:42:03 Thu 13 02 %"),
        ] {
            assert_eq!(strftime(format, now).unwrap(), text);
        }
        assert_eq!(strftime("%Y-%m-%d %I %p %A", 0).unwrap(), "1970-01-01 12 AM Thursday");
        let error = strftime("%Q", 0).unwrap_err().to_string();
        assert!(error.contains("does not know the directive '%Q'"), "{error}");
        assert!(strftime("100%", 0).is_err());
    }

    #[test]
    fn generation_tags_become_blocks_that_change_nothing() {
        for (source, plain) in [
            ("a{% generation %}b{% endgeneration %}", "a{%  if true  %}b{%  endif  %}"),
            ("{%- generation -%}b{%-endgeneration-%}{{ '{%' }}", "{%-  if true  -%}b{%- endif -%}{{ '{%' }}"),
            ("{% if add_generation_prompt %}{% endif %}", "{% if add_generation_prompt %}{% endif %}"),
        ] {
            assert_eq!(without_generation_tags(source), plain);
        }
    }
}
