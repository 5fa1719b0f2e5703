//! The processor of a version that writes text: prompts to token ids, token ids to text, and what its files say of drawing
//! and of ending.
//!
//! `generation` and `sampling` do the work, from plain values; here these are read off a version's files.

use std::sync::Arc;

use serde_json::{Value, json};

use super::generation::{
    Around, CallForm, CallReader, CallRules, ChatTemplate, Detokenizer, EndSources, Message, PromptEncoder,
    PromptLimits, Reading, RenderOptions, Specials, TemplateSource, TextDecoder,
};
use super::sampling::SamplingOptions;
use super::settings::{Settings, label};
use super::text;
use crate::error::{Error, Result};
use crate::model::{Input, Tokens};
use crate::repository::{Limits, Spec};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// What is to be continued, as a client gave it.
#[derive(Debug, Clone)]
pub enum RawPrompt {
    Text(String),
    /// Taken as they are.
    Tokens(Vec<u32>),
    Chat {
        messages: Vec<Message>,
        options: RenderOptions,
    },
}

#[derive(Debug)]
pub struct Writer {
    encoder: PromptEncoder,
    decoder: Arc<TextDecoder>,
    template: Option<ChatTemplate>,
    calls: Option<CallForm>,
    /// The special tokens that a call is marked with.
    call_marks: Arc<[u32]>,
    ends: Arc<[u32]>,
    defaults: SamplingOptions,
    vocabulary: usize,
    /// Of the whole tokenizer, however it is written down.
    digest: String,
}

impl Writer {
    pub(super) fn load(spec: &Spec, limits: &Limits) -> Result<Writer> {
        let wrong = |file: &'static str| move |reason: String| Error::unloadable(label(spec, file), reason);
        let none = Value::Object(serde_json::Map::new());
        let object = |file: &'static str| -> Result<Value> {
            let read = spec.read_file(file)?.map(|bytes| text::parse(spec, file, &bytes)).transpose()?;
            Ok(read.unwrap_or_else(|| none.clone()))
        };
        let (config, generation) = (object(TOKENIZER_CONFIG)?, object(GENERATION_CONFIG)?);
        let settings = Settings::new(spec, TOKENIZER_CONFIG, &config);
        let tokenizer = text::read_tokenizer(spec, &settings)?;
        let vocabulary = spec.usize("vocab_size")?;
        let positions = spec.context()?.unwrap_or(2048);
        let context = limits.max_tokens.map_or(positions, |most| most.min(positions));
        let id_of = |name: &str| spelled(&config, name).and_then(|token| tokenizer.token_to_id(&token));
        let around = Around {
            add_bos: settings.bool("add_bos_token")?,
            add_eos: settings.bool("add_eos_token")?,
            bos: id_of("bos_token"),
            eos: id_of("eos_token"),
        };
        let sources = EndSources {
            generation_config: Some(&generation),
            config: Some(&spec.config),
            tokenizer_config: Some(&config),
        };
        let ends = sources.ends(|token| tokenizer.token_to_id(token), vocabulary);
        let ends = ends.map_err(|(file, why)| Error::unloadable(label(spec, file), why))?;
        let file = spec.read_file(TEMPLATE)?.map(String::from_utf8).transpose();
        let file = file.map_err(|_| Error::unloadable(label(spec, TEMPLATE), "it is not UTF-8"))?;
        let mut source = TemplateSource::from_config(config.as_object().unwrap_or(&Default::default()), file)
            .map_err(wrong(TOKENIZER_CONFIG))?;
        source.spellings = specials_of(&tokenizer);
        let template = ChatTemplate::new(source).map_err(wrong(TOKENIZER_CONFIG))?;
        let decoder = Arc::new(TextDecoder::new(&tokenizer).map_err(wrong(TOKENIZER))?);
        let calls = template.as_ref().and_then(ChatTemplate::calls);
        let marks = calls.into_iter().flat_map(CallForm::marks).filter_map(|mark| tokenizer.token_to_id(mark));
        let call_marks = marks.filter(|id| decoder.is_special(*id)).collect();
        let whole = tokenizer.to_string(false).map_err(|e| Error::unloadable(label(spec, TOKENIZER), e))?;
        let digest = blake3::hash(whole.as_bytes()).to_hex().to_string();
        let prompts = PromptLimits { vocabulary, context, text_bytes: limits.max_text_bytes };
        let encoder = PromptEncoder::new(tokenizer, &around, prompts).map_err(wrong(TOKENIZER))?;
        let defaults = defaults(&Settings::new(spec, GENERATION_CONFIG, &generation))?;
        defaults.validate(vocabulary).map_err(|e| Error::unloadable(label(spec, GENERATION_CONFIG), e))?;
        let ends = ends.into();
        Ok(Writer { encoder, decoder, template, calls, call_marks, ends, defaults, vocabulary, digest })
    }

    /// # Errors
    /// `BadRequest`: what [`Writer::tokens`] refuses, no token, more than the context.
    pub fn encode(&self, prompt: &RawPrompt) -> Result<Vec<u32>> {
        self.encoder.fitting(self.tokens(prompt)?)
    }

    /// A prompt's tokens, however many.
    ///
    /// # Errors
    /// `BadRequest`: what cannot be tokenized, ids that there are not, a chat where the version has no template for it or which the
    /// template refuses.
    pub fn tokens(&self, prompt: &RawPrompt) -> Result<Vec<u32>> {
        match prompt {
            RawPrompt::Text(text) => self.encoder.text(text, Reading::Prompt),
            RawPrompt::Tokens(ids) => self.encoder.literal(ids),
            RawPrompt::Chat { messages, options } => {
                let missing =
                    || Error::bad_param("messages", "this version has no chat template; ask for a completion");
                let template = self.template.as_ref().ok_or_else(missing)?;
                if options.may_call() && !template.knows_tools() {
                    let message = "the chat template of this version knows no tools: they would have no effect";
                    return Err(Error::bad_param("tools", message));
                }
                self.encoder.chat(&template.render_calls(&template.known_roles(messages)?, options)?)
            }
        }
    }

    /// Which chats are taken, by name: a question alone, one with an answer before it, one after a system's word, and with tools
    /// whose calls are read.
    pub(super) fn chats(&self) -> Vec<String> {
        let said = |role: &str| json!({ "role": role, "content": "Good morning." });
        let taken = |roles: &[&str]| {
            let messages: Vec<Value> = roles.iter().map(|role| said(role)).collect();
            let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
            // What clients write is read in the same way.
            let messages = serde_json::from_value(Value::Array(messages));
            messages.is_ok_and(|messages| self.encode(&RawPrompt::Chat { messages, options }).is_ok())
        };
        let tools = self.calls.is_some() && self.template.as_ref().is_some_and(ChatTemplate::knows_tools);
        let chats = [
            ("user", taken(&["user"])),
            ("turns", taken(&["user", "assistant", "user"])),
            ("system", taken(&["system", "user"])),
            ("tools", tools),
        ];
        chats.into_iter().filter(|(_, taken)| *taken).map(|(name, _)| name.to_owned()).collect()
    }

    /// A text and nothing else: no token is added, and no spelling is a special token.
    pub fn tokens_bare(&self, text: &str) -> Result<Vec<u32>> {
        self.encoder.text(text, Reading::Text)
    }

    /// A prompt, and what is to stand after it: of type 0 and 1.
    pub(super) fn pair(&self, prompt: &str, after: &str) -> Result<Input> {
        let prompt = self.encoder.text(prompt, Reading::Prompt)?;
        let (mut ids, after) = (self.encoder.fitting(prompt)?, self.tokens_bare(after)?);
        if after.is_empty() {
            return Err(Error::bad_request("the text after the prompt has no tokens"));
        }
        let mut type_ids = vec![0; ids.len()];
        type_ids.resize(ids.len() + after.len(), 1);
        ids.extend(after);
        Ok(Input::Tokens(Tokens { ids: self.encoder.fitting(ids)?, type_ids }))
    }

    /// A text, to be judged as a whole.
    pub(super) fn scored(&self, prompt: &RawPrompt) -> Result<Input> {
        let ids = self.encode(prompt)?;
        let type_ids = vec![0; ids.len()];
        Ok(Input::Tokens(Tokens { ids, type_ids }))
    }

    /// The text that tokens stand for, special ones spelled out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            let message = format!("token id {id} is not in the vocabulary of {}", self.vocabulary);
            return Err(Error::bad_param("tokens", message));
        }
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.decoder), Specials::Keep);
        let mut text: String = ids.iter().filter_map(|id| detokenizer.push(*id)).collect();
        text.extend(detokenizer.finish());
        Ok(text)
    }

    /// For the tokens that follow a prompt.
    pub fn detokenizer(&self, prompt: &RawPrompt, ids: &[u32], specials: Specials) -> Detokenizer {
        match prompt {
            RawPrompt::Chat { options, .. } if !options.continue_final_message => {
                Detokenizer::new(Arc::clone(&self.decoder), specials)
            }
            _ => Detokenizer::after(Arc::clone(&self.decoder), specials, ids),
        }
    }

    /// For the answer to a chat in which tools may be called; `None` where there are none.
    ///
    /// # Errors
    /// `BadRequest`: calls would not be told from content, since they are in none of the forms that are read.
    pub fn call_reader(&self, options: &RenderOptions, only_first: bool) -> Result<Option<CallReader>> {
        let knows_tools = self.template.as_ref().is_some_and(ChatTemplate::knows_tools);
        let (true, true, Some(tools)) = (options.may_call(), knows_tools, &options.tools) else { return Ok(None) };
        let unread = || {
            let message = "the chat template of this version has tools called in a form that is not read; read are";
            Error::bad_param("tools", format!("{message} {}", CallForm::ALL))
        };
        let form = self.calls.ok_or_else(unread)?;
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        let tools = tools.iter().filter_map(name).collect();
        Ok(Some(CallReader::new(CallRules { form, tools, only_first })))
    }

    /// The special tokens that calls are marked with, and read by.
    pub fn call_marks(&self) -> Arc<[u32]> {
        Arc::clone(&self.call_marks)
    }

    /// A token as it is written.
    pub fn spelling(&self, id: u32) -> String {
        String::from_utf8_lossy(self.decoder.letters_of(id)).into_owned()
    }

    /// How many tokens may follow a prompt ([`PromptEncoder::room`]).
    pub fn room(&self, prompt: usize, asked: Option<(&'static str, usize)>) -> Result<usize> {
        self.encoder.room(prompt, asked)
    }

    pub fn decoder(&self) -> &Arc<TextDecoder> {
        &self.decoder
    }

    pub fn ends(&self) -> Arc<[u32]> {
        Arc::clone(&self.ends)
    }

    /// How tokens are drawn where a request does not say.
    pub fn defaults(&self) -> &SamplingOptions {
        &self.defaults
    }

    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens of a prompt and what follows it.
    pub fn context(&self) -> usize {
        self.encoder.context()
    }

    pub(super) fn shorten(&mut self, longest: usize) {
        self.encoder.shorten(longest);
    }

    pub(super) fn tokenizer(&self) -> &tokenizers::Tokenizer {
        self.encoder.tokenizer()
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }
}

/// A token that `tokenizer_config.json` names, by itself or as an object.
fn spelled(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.get("content").unwrap_or(token).as_str().map(str::to_owned)
}

fn specials_of(tokenizer: &tokenizers::Tokenizer) -> Vec<String> {
    let added = tokenizer.get_added_tokens_decoder();
    added.into_values().filter(|token| token.special).map(|token| token.content).collect()
}

/// As transformers and vLLM take them from `generation_config.json`: `do_sample` false is greedy, and what else is there is
/// for requests that say how warm.
fn defaults(config: &Settings<'_>) -> Result<SamplingOptions> {
    let mut options = SamplingOptions::default();
    let number = |key: &str| Ok::<_, Error>(config.f64(key)?.map(|value| value as f32));
    options.temperature = match config.bool("do_sample")? {
        Some(false) => 0.0,
        _ => number("temperature")?.unwrap_or(options.temperature),
    };
    options.top_p = number("top_p")?.unwrap_or(options.top_p);
    options.min_p = number("min_p")?.unwrap_or(options.min_p);
    options.repetition_penalty = number("repetition_penalty")?.unwrap_or(options.repetition_penalty);
    options.top_k = config.usize("top_k")?.map_or(options.top_k, |k| i64::try_from(k).unwrap_or(i64::MAX));
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::spec;

    /// A request that says how warm has the rest of the file.
    #[test]
    fn a_greedy_version_keeps_its_penalties() {
        let spec = spec("bert-classify");
        let of = |file: Value| defaults(&Settings::new(&spec, GENERATION_CONFIG, &file)).unwrap();
        let file = serde_json::json!({"do_sample": false, "temperature": 0.7, "repetition_penalty": 1.1, "top_k": 20});
        let greedy = of(file.clone());
        assert_eq!((greedy.temperature, greedy.repetition_penalty, greedy.top_k), (0.0, 1.1, 20));
        let mut sampled = file;
        sampled["do_sample"] = true.into();
        assert_eq!(of(sampled), SamplingOptions { temperature: 0.7, ..greedy });
        assert_eq!(of(serde_json::json!({})), SamplingOptions::default());
    }
}
