//! What no derive writes of requests: unions whose members have limits of their own, and numbers with theirs.

use utoipa::PartialSchema as _;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, SchemaType};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};

use crate::http::openai::MOST_INPUTS;

pub(in crate::http) fn openai_input() -> RefOr<Schema> {
    texts_or_tokens("Texts, or texts as token ids: one or several", Some(MOST_INPUTS))
}

/// How many there may be is the model's to say.
pub(in crate::http) fn tei_embed_inputs() -> RefOr<Schema> {
    texts_or_tokens("Texts, or texts as token ids, which are taken literally: one or several", None)
}

pub(in crate::http) fn tei_predict_inputs() -> RefOr<Schema> {
    let pair = || ArrayBuilder::new().items(String::schema()).min_items(Some(2)).max_items(Some(2));
    let sequence = || OneOfBuilder::new().item(list(text(), Some(1))).item(pair());
    let inputs = OneOfBuilder::new().item(text()).item(sequence()).item(list(sequence().into(), None));
    let what = "A text, a list of one text or of the two of a pair, or a batch of such lists";
    inputs.description(Some(what)).into()
}

fn texts_or_tokens(what: &str, most: Option<usize>) -> RefOr<Schema> {
    let tokens = || list(token(), None);
    let inputs = OneOfBuilder::new().item(text()).item(list(text(), most)).item(tokens()).item(list(tokens(), most));
    inputs.description(Some(what)).into()
}

/// The largest number has to be said: formats of numbers this large are not known everywhere.
pub(in crate::http) fn deadline() -> RefOr<Schema> {
    let number = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::Integer, Type::Null]));
    number.minimum(Some(0)).maximum(Some(u64::MAX)).description(Some("Milliseconds")).into()
}

/// Percentages below 100, or nothing; each is more than the one before.
pub(in crate::http) fn percentages() -> RefOr<Schema> {
    let percent =
        ObjectBuilder::new().schema_type(Type::Number).exclusive_minimum(Some(0)).exclusive_maximum(Some(100));
    let several =
        ArrayBuilder::new().schema_type(SchemaType::from_iter([Type::Array, Type::Null])).items(percent.build());
    several.description(Some("Percent of requests, step by step; each more than the one before")).into()
}

/// How many elements a tensor has in each dimension.
pub(super) fn shape() -> RefOr<Schema> {
    let size = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(i64::MAX)).build();
    ArrayBuilder::new().items(size).into()
}

/// A text at which an answer ends, or several.
pub(in crate::http) fn openai_stop() -> RefOr<Schema> {
    let null = ObjectBuilder::new().schema_type(Type::Null).build();
    OneOfBuilder::new().item(text()).item(list(text(), None)).item(null).into()
}

/// Prompts.
pub(in crate::http) fn openai_prompt() -> RefOr<Schema> {
    let tokens = || list(token(), None);
    let prompt = OneOfBuilder::new().item(text()).item(list(text(), None)).item(tokens()).item(list(tokens(), None));
    prompt.description(Some("A text, or one as token ids, or several of either")).into()
}

/// A chat so far.
pub(in crate::http) fn openai_messages() -> RefOr<Schema> {
    messages().into()
}

/// The same, or something else is given.
pub(in crate::http) fn openai_messages_or_null() -> RefOr<Schema> {
    messages().schema_type(SchemaType::from_iter([Type::Array, Type::Null])).into()
}

fn messages() -> ArrayBuilder {
    // The last alternative: whatever else a chat template names.
    let roles = "^(system|developer|user|assistant|tool|function|[A-Za-z0-9_.-]{1,64})$";
    let what = "One of OpenAI's, or one that the model's chat template names";
    let role = ObjectBuilder::new().schema_type(Type::String).pattern(Some(roles)).description(Some(what));
    let message =
        ObjectBuilder::new().property("role", role).property("content", text()).required("role").required("content");
    ArrayBuilder::new().items(message).min_items(Some(1)).description(Some("What was said so far"))
}

/// Tokens by their ids.
pub(in crate::http) fn openai_tokens() -> RefOr<Schema> {
    ArrayBuilder::new().items(token()).into()
}

/// What is not supported, and so may be null at most.
pub(in crate::http) fn nothing() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Null).description(Some("Not supported yet, and refused")).into()
}

/// An object of which nothing is supported.
pub(in crate::http) fn nothings() -> RefOr<Schema> {
    let fields = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::Object, Type::Null]));
    let what = "What Hugging Face's own service takes. Refused unless it is empty";
    let nothing = ObjectBuilder::new().schema_type(Type::Null).build();
    fields.additional_properties(Some(Schema::from(nothing))).description(Some(what)).into()
}

/// A token's id.
pub(super) fn token() -> RefOr<Schema> {
    let id = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
    id.into()
}

/// Not the empty one.
fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).into()
}

/// Not the empty one either.
fn list(items: RefOr<Schema>, most: Option<usize>) -> RefOr<Schema> {
    ArrayBuilder::new().items(items).min_items(Some(1)).max_items(most).into()
}
