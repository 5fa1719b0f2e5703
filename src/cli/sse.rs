//! Server-sent events, read from a byte stream that may break anywhere.
//!
//! As the HTML standard says (fields, comments, line endings, dispatch on an empty line), but for the
//! byte order mark. Pure: bytes in, events out.

use std::collections::VecDeque;

/// The longest event that is taken; a server that sends more is not ours.
const MAX_EVENT_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// The kind: `progress`, `done`, …; `message` when the stream does not say.
    pub event: String,
    pub data: String,
}

#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return, so a line feed now belongs to it.
    after_return: bool,
    event: String,
    data: Option<String>,
    id: Option<String>,
    ready: VecDeque<Event>,
}

impl Parser {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// An event larger than 16 MiB, or a line that is not UTF-8.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
            let closes_return = std::mem::take(&mut self.after_return) && byte == b'\n';
            match byte {
                b'\n' if closes_return => {}
                b'\n' => self.end_line()?,
                b'\r' => {
                    self.after_return = true;
                    self.end_line()?;
                }
                other => self.line.push(other),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT_BYTES {
                return Err(format!("an event is larger than {MAX_EVENT_BYTES} bytes"));
            }
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// The newest id, which an event may lack and a stream may give before its first.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn end_line(&mut self) -> Result<(), String> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| "an event is not UTF-8".to_owned())?;
        if line.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.to_owned(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" => self.id = Some(value.to_owned()),
            // Comments (an empty field), `retry` and fields to come.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let event = std::mem::take(&mut self.event);
        if let Some(data) = self.data.take() {
            let event = if event.is_empty() { "message".to_owned() } else { event };
            self.ready.push_back(Event { event, data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\r\n\r\nevent: progress\r\nid: 4\r\ndata: {\"a\":1}\r\ndata: 2\r\n\r\nevent: empty\n\ndata:x\n\n\
        event: done\rdata: grün\r\rdata: unfinished";

    fn read(chunk: usize) -> Vec<Event> {
        let mut parser = Parser::default();
        for bytes in STREAM.as_bytes().chunks(chunk) {
            parser.push(bytes).unwrap();
        }
        std::iter::from_fn(|| parser.next()).collect()
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let event = |event: &str, data: &str| Event { event: event.into(), data: data.into() };
        let expected = vec![event("progress", "{\"a\":1}\n2"), event("message", "x"), event("done", "grün")];
        for chunk in 1..=STREAM.len() {
            assert_eq!(read(chunk), expected, "in pieces of {chunk}");
        }
    }

    #[test]
    fn an_id_alone_is_no_event_and_is_gone_on_from() {
        let mut parser = Parser::default();
        parser.push(b"id: 7\n\nevent: alert\ndata: x\n\n").unwrap();
        assert_eq!((parser.next().map(|event| event.event), parser.next()), (Some("alert".into()), None));
        assert_eq!(parser.last_id(), Some("7"));
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..17).any(|_| parser.push(&piece).is_err()));
    }
}
