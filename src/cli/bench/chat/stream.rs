//! One streamed answer as its reader sees it: when each piece came, and whether it is whole and of one version. Pure.
//!
//! Source: OpenAI API reference, "Chat completions: streaming".

use serde_json::Value;

use super::super::super::sse;

/// Reads one answer.
#[derive(Debug, Default)]
pub(super) struct Reader {
    parser: sse::Parser,
    read: Read,
    error: Option<String>,
    done: bool,
}

/// What was read.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Read {
    /// When each piece of text came, in nanoseconds of the run.
    pub(super) pieces: Vec<u64>,
    pub(super) text: String,
    /// Every fingerprint that the pieces bore, in order.
    pub(super) fingerprints: Vec<String>,
    pub(super) reason: Option<String>,
    /// Of the answer, as the server counted them.
    pub(super) tokens: u64,
    pub(super) prompt_tokens: u64,
}

impl Reader {
    /// Takes what came at a moment.
    ///
    /// # Errors
    /// It is no stream of a chat.
    pub(super) fn push(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        self.parser.push(bytes)?;
        while let Some(event) = self.parser.next() {
            if self.done {
                return Err("something comes after the end".to_owned());
            }
            if event.data == "[DONE]" {
                self.done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(&event.data).map_err(|e| format!("not JSON: {e}"))?;
            self.chunk(at, &chunk);
        }
        Ok(())
    }

    fn chunk(&mut self, at: u64, chunk: &Value) {
        if let Some(error) = chunk.get("error") {
            self.error = Some(error["message"].as_str().unwrap_or("an error without a message").to_owned());
            return;
        }
        let read = &mut self.read;
        if let Some(fingerprint) = chunk["system_fingerprint"].as_str()
            && read.fingerprints.last().is_none_or(|last| last != fingerprint)
        {
            read.fingerprints.push(fingerprint.to_owned());
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            read.pieces.push(at);
            read.text.push_str(text);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            read.reason = Some(reason.to_owned());
        }
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            read.tokens = tokens;
            read.prompt_tokens = chunk["usage"]["prompt_tokens"].as_u64().unwrap_or_default();
        }
    }

    /// The stream has ended: what was read, and what is wrong with it, where something is. `stamped`: `model@version` as the
    /// headers have it.
    pub(super) fn end(self, stamped: Option<&str>) -> (Read, Option<String>) {
        let Reader { read, error, done, .. } = self;
        let wrong = match (error, &read.reason) {
            (Some(error), _) => Some(format!("the answer broke off: {error}")),
            (None, None) => Some("the stream ended without a finish_reason".to_owned()),
            (None, Some(_)) if !done => Some("the stream ended without [DONE]".to_owned()),
            (None, Some(reason)) if reason != "stop" && reason != "length" => {
                Some(format!("it ended with the finish_reason {reason:?}"))
            }
            _ => match &read.fingerprints[..] {
                [one] if stamped.is_none_or(|stamped| stamped == one) => None,
                others => {
                    Some(format!("pieces of {} under the header of {}", others.join(", "), stamped.unwrap_or("none")))
                }
            },
        };
        (read, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(version: &str, text: &str, reason: &str) -> String {
        let reason = if reason.is_empty() { "null".to_owned() } else { format!("{reason:?}") };
        format!(
            "data: {{\"system_fingerprint\":\"m@{version}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text:?}}},\"finish_reason\":{reason}}}]}}\n\n"
        )
    }

    const USAGE: &str = "data: {\"system_fingerprint\":\"m@a\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn read(parts: &[&str]) -> (Read, Option<String>) {
        let mut reader = Reader::default();
        for (at, part) in (1..).zip(parts) {
            // Bytes may come cut anywhere.
            let (head, tail) = part.as_bytes().split_at(part.len() / 2);
            reader.push(at * 10, head).unwrap();
            reader.push(at * 10 + 1, tail).unwrap();
        }
        reader.end(Some("m@a"))
    }

    #[test]
    fn pieces_have_their_times_and_what_says_nothing_is_none() {
        let (opening, one, two, end) =
            (chunk("a", "", ""), chunk("a", "x", ""), chunk("a", "yz", ""), chunk("a", "", "length"));
        let (read, wrong) = read(&[&opening, ": a comment\n\n", &one, &two, &end, USAGE, DONE]);
        assert_eq!(wrong, None);
        assert_eq!((&read.pieces[..], read.text.as_str()), (&[31, 41][..], "xyz"));
        assert_eq!((read.tokens, read.prompt_tokens, read.reason.as_deref()), (2, 5, Some("length")));
    }

    #[test]
    fn whatever_is_not_whole_and_of_one_version_is_told() {
        let (one, other, end) = (chunk("a", "x", ""), chunk("b", "y", ""), chunk("a", "", "stop"));
        let error = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
        for (parts, what) in [
            (vec![one.as_str(), error, DONE], "broke off: gone"),
            (vec![&one, DONE], "without a finish_reason"),
            (vec![&one, &end], "without [DONE]"),
            (vec![&one, &other, &end, DONE], "pieces of m@a, m@b, m@a"),
            (vec![&one, &chunk("a", "", "tool_calls"), DONE], "finish_reason \"tool_calls\""),
            (vec![&other, &chunk("b", "", "stop"), DONE], "under the header of m@a"),
            (vec![], "without a finish_reason"),
        ] {
            let (_, wrong) = read(&parts);
            assert!(wrong.as_ref().is_some_and(|wrong| wrong.contains(what)), "{what}: {wrong:?}");
        }
        let mut reader = Reader::default();
        assert!(reader.push(1, b"data: no JSON\n\n").is_err());
        let mut reader = Reader::default();
        assert!(reader.push(1, format!("{DONE}{one}").as_bytes()).is_err());
    }
}
