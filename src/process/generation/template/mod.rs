//! Chat templates: messages to the one text that a model was trained on.
//!
//! As transformers' `apply_chat_template` renders them, to the byte, with the client's strings told apart from the
//! template's own (`control`). It must not know token ids.

mod environment;
mod json;
mod message;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error as _;

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use self::environment::{Raised, environment, is_space, strftime_at, without_generation_tags};
use super::calls::CallForm;
use super::control::{Spellings, is_mark, unmark};
use crate::error::{Error, Result};

use message::Arguments;
pub use message::{Content, Message, Part};

/// The template that is taken where none is asked for, and the one for chats with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const SYSTEM: &str = "system";
const DEVELOPER: &str = "developer";
/// Of OpenAI's interface.
const ROLES: [&str; 6] = [SYSTEM, DEVELOPER, "user", "assistant", "tool", "function"];
/// What the template is given itself; a client's variables cannot be called so.
const RESERVED: [&str; 5] = ["messages", "tools", "documents", "add_generation_prompt", "strftime_now"];
/// Stands at the end of a message that is to be continued, to find it again (transformers' own choice of words).
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The chat templates of one version, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and their like: variables of every template.
    special: Map<String, Value>,
    spellings: Spellings,
}

/// What the templates of a version are made from.
#[derive(Debug, Clone, Default)]
pub struct TemplateSource {
    /// Name and text. One alone may have any name.
    pub templates: Vec<(String, String)>,
    /// What templates call the special tokens by: `bos_token` and so on, to their spellings.
    pub special: Map<String, Value>,
    /// The spellings of all special tokens: what a client's text cannot be.
    pub spellings: Vec<String>,
}

/// How a chat is to be rendered.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Ends with what begins an answer.
    pub add_generation_prompt: bool,
    /// Ends within the last message, which the model goes on with.
    pub continue_final_message: bool,
    pub tools: Option<Vec<Value>>,
    /// They are not to be called: a template that knows no tools leaves nothing out.
    pub tools_rest: bool,
    /// More variables for the template (`enable_thinking`).
    pub variables: Map<String, Value>,
    /// Seconds since 1970, for `strftime_now` (in UTC).
    pub now: i64,
}

impl RenderOptions {
    /// Whether there are tools, and they may be called.
    pub fn may_call(&self) -> bool {
        !self.tools_rest && self.tools.as_ref().is_some_and(|tools| !tools.is_empty())
    }
}

/// A chat as its template wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    foreign: Vec<usize>,
}

impl Rendered {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of the text at which something begins that is spelled like a special token, or like the part of one, and
    /// was written by the client. A special token with such a byte in it is not one.
    pub(super) fn foreign(&self) -> &[usize] {
        &self.foreign
    }
}

impl TemplateSource {
    /// What `tokenizer_config.json` says: `chat_template` (a text, or a list of named ones) and the special tokens. The
    /// text of `chat_template.jinja`, where there is one, is taken instead.
    ///
    /// # Errors
    /// Says which setting is not what it should be.
    pub fn from_config(config: &Map<String, Value>, file: Option<String>) -> Result<TemplateSource, String> {
        let mut source = TemplateSource { special: special_tokens(config)?, ..TemplateSource::default() };
        source.templates = match (file, config.get("chat_template")) {
            (Some(text), _) => vec![(DEFAULT.to_owned(), text)],
            (None, None | Some(Value::Null)) => Vec::new(),
            (None, Some(Value::String(text))) => vec![(DEFAULT.to_owned(), text.clone())],
            (None, Some(Value::Array(list))) => list.iter().map(named).collect::<Option<_>>().ok_or_else(|| {
                "'chat_template' is a list, but not of objects with a 'name' and a 'template'".to_owned()
            })?,
            (None, Some(_)) => return Err("'chat_template' is neither a text nor a list of named ones".to_owned()),
        };
        Ok(source)
    }
}

fn named(entry: &Value) -> Option<(String, String)> {
    Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.as_str()?.to_owned()))
}

/// `SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES` of transformers: each a text, or an object with its `content`.
fn special_tokens(config: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let spelled = |key: &str, token: &Value| match token.get("content").unwrap_or(token) {
        Value::String(text) => Ok(Value::String(text.clone())),
        other => Err(format!("'{key}' is {other}, expected a token")),
    };
    let mut special = Map::new();
    for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
        let key = format!("{name}_token");
        match config.get(&key) {
            None | Some(Value::Null) => {}
            Some(token) => drop(special.insert(key.clone(), spelled(&key, token)?)),
        }
    }
    let more = "additional_special_tokens";
    if let Some(Value::Array(list)) = config.get(more) {
        let list = list.iter().map(|token| spelled(more, token)).collect::<Result<_, _>>()?;
        special.insert(more.to_owned(), Value::Array(list));
    }
    Ok(special)
}

impl ChatTemplate {
    /// Compiles the templates; `None` where the version has none.
    ///
    /// # Errors
    /// A reason for which the version cannot be loaded: a template that cannot be compiled, with its line; several with
    /// none called `default`.
    pub fn new(source: TemplateSource) -> Result<Option<ChatTemplate>, String> {
        let TemplateSource { mut templates, special, spellings } = source;
        if templates.is_empty() {
            return Ok(None);
        }
        if let [(name, _)] = &mut templates[..] {
            *name = DEFAULT.to_owned();
        }
        if !templates.iter().any(|(name, _)| name == DEFAULT) {
            let names: Vec<String> = templates.into_iter().map(|(name, _)| name).collect();
            return Err(format!("none of its chat templates is called 'default': {}", names.join(", ")));
        }
        let mut environment = environment().map_err(|e| e.to_string())?;
        for (name, text) in templates {
            if text.contains(is_mark) {
                return Err(format!("its chat template '{name}' holds the noncharacters U+FDD0 to U+FDD2"));
            }
            let wrong = |e| format!("its chat template '{name}' cannot be compiled: {}", told(&e));
            environment.add_template_owned(name.clone(), without_generation_tags(&text)).map_err(wrong)?;
        }
        Ok(Some(ChatTemplate { environment, special, spellings: Spellings::new(&spellings)? }))
    }

    /// Messages of roles that OpenAI's interface has or that the templates name; others are likelier a slip than a wish, and most
    /// templates would write them down as they come. `developer`, the newer name of `system`, is that one where no template knows it.
    ///
    /// # Errors
    /// `BadRequest` for any other role, with the place of its message.
    pub fn known_roles<'a>(&self, messages: &'a [Message]) -> Result<Cow<'a, [Message]>> {
        let unknown = |message: &Message| !ROLES.contains(&message.role.as_str()) && !self.names(&message.role);
        if let Some(at) = messages.iter().position(unknown) {
            return Err(messages[at].unknown_role(at, &ROLES));
        }
        if !messages.iter().any(|message| message.role == DEVELOPER) || self.names(DEVELOPER) {
            return Ok(Cow::Borrowed(messages));
        }
        let mut renamed = messages.to_vec();
        for message in renamed.iter_mut().filter(|message| message.role == DEVELOPER) {
            SYSTEM.clone_into(&mut message.role);
        }
        Ok(Cow::Owned(renamed))
    }

    /// Whether any of the templates says something of the tools that may be called.
    pub fn knows_tools(&self) -> bool {
        self.environment.templates().any(|(_, template)| template.source().contains("tools"))
    }

    /// In which form a model whose chats have tools writes its calls, where that is one of those that are read.
    pub fn calls(&self) -> Option<CallForm> {
        let template = self.environment.get_template(TOOL_USE).or_else(|_| self.environment.get_template(DEFAULT));
        CallForm::of(template.ok()?.source())
    }

    /// Whether a template spells a role, as a string of its own.
    fn names(&self, role: &str) -> bool {
        let spelled = ["'", "\""].map(|quote| format!("{quote}{role}{quote}"));
        self.environment.templates().any(|(_, template)| spelled.iter().any(|word| template.source().contains(word)))
    }

    /// As `render`, where a template knows messages that only call tools, and arguments that are objects. Many do not, and add the
    /// content or the arguments to a string all the same: for these such a message says an empty text, as in vLLM, and arguments are
    /// the text that came.
    ///
    /// # Errors
    /// As `render`'s.
    pub fn render_calls(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        self.render(messages, options).or_else(|error| {
            let silent = !options.continue_final_message && messages.iter().any(Message::only_calls);
            let written = messages.iter().any(Message::writes_arguments);
            let spoken: Vec<Message> = messages.iter().map(Message::spoken).collect();
            let ways = [
                (silent, spoken.as_slice(), Arguments::Opened),
                (written, messages, Arguments::Written),
                (silent && written, spoken.as_slice(), Arguments::Written),
            ];
            let mut tried = ways.into_iter().filter(|(apart, ..)| *apart);
            let rendered = tried.find_map(|(_, messages, arguments)| self.rendered(messages, options, arguments).ok());
            rendered.ok_or(error)
        })
    }

    /// What transformers renders.
    ///
    /// # Errors
    /// `BadRequest`: no messages; a message that has no content or content that is not text; options that exclude each
    /// other; what the template itself raises, in its words; a template that fails or goes on for ever, with its line.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        self.rendered(messages, options, Arguments::Opened)
    }

    fn rendered(&self, messages: &[Message], options: &RenderOptions, arguments: Arguments) -> Result<Rendered> {
        if messages.is_empty() {
            return Err(Error::bad_param("messages", "messages is empty"));
        }
        let mut marked = Vec::with_capacity(messages.len());
        for (at, message) in messages.iter().enumerate() {
            marked.push(message.marked(at, &self.spellings, arguments)?);
        }
        let continued =
            if options.continue_final_message { Some(begin_continuing(&mut marked, options)?) } else { None };
        let name = match &options.tools {
            Some(_) if self.environment.get_template(TOOL_USE).is_ok() => TOOL_USE,
            _ => DEFAULT,
        };
        let variables = self.variables(marked, options)?;
        let template = self.environment.get_template(name).map_err(|e| Error::internal(told(&e)))?;
        let mut text = template.render(variables).map_err(|e| failed(&e))?;
        if let Some(last) = continued {
            text = end_continuing(text, &last)?;
        }
        let (text, foreign) = unmark(&text);
        Ok(Rendered { text, foreign })
    }

    fn variables(&self, messages: Vec<Map<String, Value>>, options: &RenderOptions) -> Result<minijinja::Value> {
        if let Some(name) = options.variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
            let message = format!("the template's variable '{name}' cannot be set");
            return Err(Error::bad_param("chat_template_kwargs", message));
        }
        let tools = options.tools.as_ref().map(|tools| tools.iter().map(|tool| self.spellings.mark_value(tool)));
        let given = options.variables.iter().map(|(name, value)| (name.clone(), self.spellings.mark_value(value)));
        let mut all = self.special.clone();
        all.extend(given);
        all.insert("messages".to_owned(), messages.into_iter().map(Value::Object).collect());
        all.insert("tools".to_owned(), tools.map_or(Value::Null, Iterator::collect));
        all.insert("documents".to_owned(), Value::Null);
        all.insert("add_generation_prompt".to_owned(), Value::Bool(options.add_generation_prompt));
        let plain = all.into_iter().map(|(name, value)| (name, minijinja::Value::from(Serde(value))));
        let clock = ("strftime_now".to_owned(), strftime_at(options.now));
        Ok(minijinja::Value::from_pairs(plain.chain([clock])))
    }
}

/// Puts the tag behind the last message; what that message was.
fn begin_continuing(messages: &mut [Map<String, Value>], options: &RenderOptions) -> Result<String> {
    if options.add_generation_prompt {
        let message = "continue_final_message and add_generation_prompt exclude each other";
        return Err(Error::bad_param("continue_final_message", message));
    }
    let content = messages.last_mut().and_then(|last| last.get_mut("content"));
    let Some(Value::String(text)) = content else {
        let message = "the last message has no content that could be continued";
        return Err(Error::bad_param("continue_final_message", message));
    };
    let before = text.clone();
    text.push_str(CONTINUE);
    Ok(before)
}

/// Cuts the text where the last message ends, as transformers' `render_jinja_template` does.
fn end_continuing(mut text: String, last: &str) -> Result<String> {
    let missing = || {
        let message = "the last message cannot be continued: the chat template does not show it as it is";
        Error::bad_param("continue_final_message", message)
    };
    if !text.contains(last.trim_matches(is_space)) {
        return Err(missing());
    }
    let at = text.rfind(CONTINUE.trim_end()).ok_or_else(missing)?;
    // A template that trims has taken the space of the tag, and so that of the message too.
    let trimmed = !text[at..].starts_with(CONTINUE);
    text.truncate(at);
    if trimmed {
        text.truncate(text.trim_end_matches(is_space).len());
    }
    Ok(text)
}

/// The template's own words, or what is wrong with it.
fn failed(error: &minijinja::Error) -> Error {
    let mut cause = error.source();
    while let Some(source) = cause {
        if let Some(Raised(message)) = source.downcast_ref() {
            return Error::bad_param("messages", format!("the chat template refuses it: {message}"));
        }
        cause = source.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => {
            Error::bad_param("messages", "the chat template does not come to an end with these messages")
        }
        _ => Error::bad_param("messages", format!("the chat template fails: {}", told(error))),
    }
}

fn told(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    error.line().map_or(what.clone(), |line| format!("{what} (line {line})"))
}
