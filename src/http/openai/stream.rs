//! How answers are sent: whole, or as server-sent events while they are written.
//!
//! Source: OpenAI API reference, "Streaming". Nothing is sent before the first token is there, so that a request that cannot be
//! answered has a status that says so, and one that failed over before it began has the stamp of who answers it. After that
//! an error is an event, and the last.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tracing::Span;

use super::calls;
use super::spelled::{Characters, Spelled};
use crate::error::Error;
use crate::generation::Stamp;
use crate::http::reply::{self, Dialect, Failure, put_stamp};
use crate::http::{App, request};
use crate::process::{Call, CallForm, Choice};
use crate::slot::{Answers, Event};

/// The bodies of a route, where it differs from the other.
pub(super) struct Form {
    pub(super) id: &'static str,
    pub(super) whole: &'static str,
    pub(super) chunk: &'static str,
    /// Index, text, logprobs, reason.
    pub(super) choice: fn(usize, &str, Value, &str) -> Value,
    /// What a stream of an answer begins with.
    pub(super) opening: Option<fn(usize) -> Value>,
    /// Index, text, logprobs.
    pub(super) delta: fn(usize, &str, Value) -> Value,
    pub(super) closing: fn(usize, &str) -> Value,
    /// Of these tokens, which follow others.
    pub(super) logprobs: fn(&[Spelled], &mut Characters) -> Value,
}

/// How a request wants its answers.
pub(super) struct Manner {
    pub(super) streams: bool,
    pub(super) tells_usage: bool,
    pub(super) tells_logprobs: bool,
    /// By prompt, what its answers begin with; none where they begin with nothing.
    pub(super) echoes: Vec<String>,
    /// How calls of tools were read, where they may be called.
    pub(super) calls: Option<CallForm>,
}

/// What all bodies of a response share.
struct Envelope {
    form: &'static Form,
    /// By answer, where there are any.
    echoes: Vec<String>,
    id: String,
    created: u64,
    stamp: Stamp,
    tells_logprobs: bool,
    /// Streams have the field in every chunk then.
    tells_usage: bool,
    prompt_tokens: usize,
    calls: Option<CallForm>,
}

impl Envelope {
    fn body(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": &*self.stamp.model,
            "system_fingerprint": format!("{}@{}", self.stamp.model, self.stamp.version), "choices": choices,
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut body = self.body(self.form.chunk, choices);
        if self.tells_usage {
            body["usage"] = Value::Null;
        }
        body
    }

    /// What an answer begins with.
    fn echo(&self, at: usize) -> &str {
        self.echoes.get(at).map_or("", String::as_str)
    }

    fn usage(&self, written: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({ "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written })
    }

    fn logprobs(&self, spelled: &[Spelled], characters: &mut Characters) -> Value {
        match self.tells_logprobs {
            true => (self.form.logprobs)(spelled, characters),
            false => Value::Null,
        }
    }
}

/// What is not told because its task did not survive.
fn lost() -> Error {
    Error::internal("an answer ended without a word")
}

pub(super) async fn respond(app: &App, mut answers: Answers, form: &'static Form, manner: Manner) -> Response {
    let Manner { streams, tells_usage, tells_logprobs, echoes, calls } = manner;
    let each = answers.count / echoes.len().max(1);
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut envelope = Envelope {
        form,
        echoes: echoes.into_iter().flat_map(|echo| std::iter::repeat_n(echo, each)).collect(),
        id: format!("{}{}", form.id, request::fresh()),
        created,
        stamp: answers.stamp.clone(),
        tells_logprobs,
        tells_usage,
        prompt_tokens: answers.prompt_tokens,
        calls,
    };
    let mut begun = Vec::new();
    // What comes first decides whether there is an answer.
    loop {
        match answers.events.recv().await {
            Some((_, Event::Moved(stamp))) => {
                app.metrics.failed_over(&stamp.model);
                envelope.stamp = stamp;
            }
            Some((_, Event::Failed(error))) => return failed(error, envelope.stamp),
            None => return failed(lost(), envelope.stamp),
            Some(event) => {
                begun.push(event);
                break;
            }
        }
    }
    let stamp = envelope.stamp.clone();
    let whole = match streams {
        true => {
            let chunks = Chunks::new(envelope, answers, begun);
            let events =
                stream::unfold(chunks, |mut chunks| async { chunks.next().await.map(|event| (event, chunks)) });
            Ok((Sse::new(events).keep_alive(KeepAlive::default()).into_response(), stamp))
        }
        false => whole(app, envelope, answers, begun).await,
    };
    match whole {
        Ok((mut response, stamp)) => {
            put_stamp(&mut response, &stamp);
            response
        }
        Err((error, stamp)) => failed(error, stamp),
    }
}

fn failed(error: Error, stamp: Stamp) -> Response {
    Failure { error, dialect: Dialect::OpenAi, stamp: Some(stamp) }.into_response()
}

/// One answer, so far.
#[derive(Default)]
pub(in crate::http) struct Text {
    pub(in crate::http) text: String,
    calls: Vec<Call>,
    choices: Vec<Choice>,
    /// Why it ended, and its tokens.
    pub(in crate::http) ended: Option<(&'static str, usize)>,
}

/// Waits for all of all answers; `stamp` is of who writes them, until another goes on.
pub(in crate::http) async fn collect(
    app: &App,
    answers: &mut Answers,
    (begun, mut stamp): (Vec<(usize, Event)>, Stamp),
) -> Result<(Vec<Text>, Stamp), (Error, Stamp)> {
    let mut texts: Vec<Text> = (0..answers.count).map(|_| Text::default()).collect();
    let mut begun = VecDeque::from(begun);
    while texts.iter().any(|text| text.ended.is_none()) {
        let event = match begun.pop_front() {
            Some(event) => Some(event),
            None => answers.events.recv().await,
        };
        let Some((at, event)) = event else { return Err((lost(), stamp)) };
        match event {
            Event::Wrote { text, calls, choices } => {
                texts[at].text.push_str(&text);
                texts[at].calls.extend(calls);
                texts[at].choices.extend(choices);
            }
            Event::Moved(to) => {
                app.metrics.failed_over(&to.model);
                stamp = to;
            }
            Event::Ended(ended) => {
                let word = calls::word(ended.reason, !texts[at].calls.is_empty());
                texts[at].ended = Some((word, ended.tokens));
            }
            Event::Failed(error) => return Err((error, stamp)),
        }
    }
    Ok((texts, stamp))
}

/// The answer that tells all of them.
async fn whole(
    app: &App,
    mut envelope: Envelope,
    mut answers: Answers,
    begun: Vec<(usize, Event)>,
) -> Result<(Response, Stamp), (Error, Stamp)> {
    let (texts, stamp) = collect(app, &mut answers, (begun, envelope.stamp.clone())).await?;
    envelope.stamp = stamp;
    let written = texts.iter().filter_map(|text| text.ended).map(|(_, tokens)| tokens).sum();
    let choices = texts.iter().enumerate().map(|(at, text)| {
        let spelled: Vec<Spelled> = text.choices.iter().map(|choice| Spelled::of(choice, &answers.decoder)).collect();
        let reason = text.ended.map_or("stop", |(reason, _)| reason);
        let logprobs = envelope.logprobs(&spelled, &mut Characters::default());
        let mut choice = (envelope.form.choice)(at, &(envelope.echo(at).to_owned() + &text.text), logprobs, reason);
        calls::add(&mut choice, &text.calls, envelope.calls);
        choice
    });
    let mut body = envelope.body(envelope.form.whole, choices.collect());
    body["usage"] = envelope.usage(written);
    Ok((Json(body).into_response(), envelope.stamp))
}

/// The events of a stream.
struct Chunks {
    envelope: Envelope,
    answers: Answers,
    /// What came and was not sent yet.
    waiting: VecDeque<(usize, Event)>,
    ready: VecDeque<String>,
    opened: Vec<bool>,
    /// Calls of each, so far.
    called: Vec<usize>,
    /// Of each, so far.
    characters: Vec<Characters>,
    open: usize,
    written: usize,
    /// The request's: what comes is sent when its handler has returned.
    span: Span,
}

impl Chunks {
    fn new(envelope: Envelope, answers: Answers, begun: Vec<(usize, Event)>) -> Chunks {
        let count = answers.count;
        Chunks {
            envelope,
            answers,
            waiting: begun.into(),
            ready: VecDeque::new(),
            opened: vec![false; count],
            called: vec![0; count],
            characters: (0..count).map(|_| Characters::default()).collect(),
            open: count,
            written: 0,
            span: Span::current(),
        }
    }

    async fn next(&mut self) -> Option<Result<SseEvent, Infallible>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(Ok(SseEvent::default().data(data)));
            }
            if self.open == 0 {
                return None;
            }
            let event = match self.waiting.pop_front() {
                Some(event) => Some(event),
                None => self.answers.events.recv().await,
            };
            match event {
                Some((at, event)) => {
                    let event = self.gather(at, event);
                    self.take(at, event);
                }
                None => self.fail(&lost()),
            }
        }
    }

    /// A client that reads slowly gets what has been written meanwhile at once.
    fn gather(&mut self, at: usize, event: Event) -> Event {
        let Event::Wrote { mut text, mut calls, mut choices } = event else { return event };
        while self.waiting.is_empty() {
            match self.answers.events.try_recv() {
                Ok((same, Event::Wrote { text: more, calls: called, choices: others })) if same == at => {
                    text.push_str(&more);
                    calls.extend(called);
                    choices.extend(others);
                }
                Ok(other) => self.waiting.push_back(other),
                // Nothing there, or nothing more to come.
                Err(_) => break,
            }
        }
        Event::Wrote { text, calls, choices }
    }

    fn take(&mut self, at: usize, event: Event) {
        let form = self.envelope.form;
        if !std::mem::replace(&mut self.opened[at], true) {
            if let Some(opening) = form.opening {
                self.say(self.envelope.chunk(vec![opening(at)]));
            }
            let echo = self.envelope.echo(at);
            if !echo.is_empty() {
                self.say(self.envelope.chunk(vec![(form.delta)(at, echo, Value::Null)]));
            }
        }
        match event {
            Event::Wrote { text, calls, choices } => {
                if !text.is_empty() || self.envelope.tells_logprobs && !choices.is_empty() {
                    let spelled: Vec<Spelled> =
                        choices.iter().map(|choice| Spelled::of(choice, &self.answers.decoder)).collect();
                    let logprobs = self.envelope.logprobs(&spelled, &mut self.characters[at]);
                    self.say(self.envelope.chunk(vec![(form.delta)(at, &text, logprobs)]));
                }
                if !calls.is_empty() {
                    let delta = calls::delta(at, self.called[at], &calls, self.envelope.calls);
                    self.called[at] += calls.len();
                    self.say(self.envelope.chunk(vec![delta]));
                }
            }
            // The fingerprint of what follows says so.
            Event::Moved(stamp) => self.envelope.stamp = stamp,
            Event::Ended(ended) => {
                self.say(self.envelope.chunk(vec![(form.closing)(at, calls::word(ended.reason, self.called[at] > 0))]));
                self.written += ended.tokens;
                self.open -= 1;
                if self.open == 0 {
                    if self.envelope.tells_usage {
                        let mut last = self.envelope.body(form.chunk, Vec::new());
                        last["usage"] = self.envelope.usage(self.written);
                        self.say(last);
                    }
                    self.ready.push_back("[DONE]".to_owned());
                }
            }
            Event::Failed(error) => self.fail(&error),
        }
    }

    fn say(&mut self, body: Value) {
        self.ready.push_back(body.to_string());
    }

    /// The answers that are not complete yet will not be.
    fn fail(&mut self, error: &Error) {
        let (kind, message, details) = self.span.in_scope(|| reply::told(error));
        self.say(reply::body(Dialect::OpenAi, kind, &message, details));
        self.open = 0;
        self.answers.events.close();
    }
}
