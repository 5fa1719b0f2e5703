//! One operation, as it is being described: what all of them say in the same words, their headers and their refusals.
//!
//! It must not know any one operation; those are `operations`.

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{KnownFormat, SchemaFormat};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, ObjectBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, Type};

use crate::error::Kind::{self, *};
use crate::http::{Dialect, reply};

pub(super) const TOKEN: &str = "Asked for where the server was started with an admin token";
pub(super) const KEY: &str =
    "Asked for where the server was started with API keys; as a bearer token, or in `x-api-key`";

/// Names of the ways in.
pub(super) const ADMIN_TOKEN: &str = "admin-token";
pub(super) const API_KEY: &str = "api-key";
pub(super) const X_API_KEY: &str = "x-api-key";

pub(super) const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// An operation that is being described.
pub(super) struct Described {
    operation: OperationBuilder,
    /// A key or a token is asked for where there is one.
    guarded: bool,
    /// Errors carry the generation's stamp once it is known.
    stamps: bool,
}

impl Described {
    pub(super) fn new(tag: &str, summary: &str) -> Self {
        let operation = OperationBuilder::new().tag(tag).summary(Some(summary));
        Described { operation, guarded: false, stamps: false }
    }

    fn with(mut self, change: impl FnOnce(OperationBuilder) -> OperationBuilder) -> Self {
        self.operation = change(self.operation);
        self
    }

    pub(super) fn admin(self) -> Self {
        self.asks(&[ADMIN_TOKEN])
    }

    pub(super) fn keyed(self) -> Self {
        self.asks(&[API_KEY, X_API_KEY])
    }

    /// One of these ways in, or none: where the server was started without (`Asks`).
    pub(super) fn asks(mut self, schemes: &[&str]) -> Self {
        self.guarded = true;
        let ways = schemes.iter().map(|scheme| SecurityRequirement::new(*scheme, Vec::<String>::new()));
        let ways: Vec<_> = ways.chain([SecurityRequirement::default()]).collect();
        self.with(|operation| operation.securities(Some(ways)))
    }

    pub(super) fn named(self, name: &str) -> Self {
        let what = match name {
            "ref" => "`model@version`, a model, or a version alone where only one model has it",
            "model" => "A model, or `model@version`",
            "version" => "A version of it that is resident",
            "file" => "The file's name",
            _ => "The rollout's id",
        };
        self.part(name, what, text())
    }

    /// Two parts of a path: a model, and a version of it.
    pub(super) fn versioned(self) -> Self {
        // Names hold no `@`, which parts the one from the other in a reference.
        let model = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[^@]*$"));
        self.part("model", "A model", model.into()).named("version")
    }

    fn part(self, name: &str, what: &str, of: RefOr<Schema>) -> Self {
        let path = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        self.with(|operation| operation.parameter(path.description(Some(what)).schema(Some(of))))
    }

    pub(super) fn query(self, name: &str, what: &str, of: RefOr<Schema>) -> Self {
        self.parameter(ParameterIn::Query, name, what, of)
    }

    pub(super) fn required_query(self, name: &str, what: &str, of: RefOr<Schema>) -> Self {
        let query = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query).required(Required::True);
        self.with(|operation| operation.parameter(query.description(Some(what)).schema(Some(of))))
    }

    pub(super) fn header(self, name: &str, what: &str, of: RefOr<Schema>) -> Self {
        self.parameter(ParameterIn::Header, name, what, of)
    }

    fn parameter(self, place: ParameterIn, name: &str, what: &str, of: RefOr<Schema>) -> Self {
        let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(Required::False);
        self.with(|operation| operation.parameter(parameter.description(Some(what)).schema(Some(of))))
    }

    pub(super) fn body(self, body: RequestBodyBuilder) -> Self {
        self.with(|operation| operation.request_body(Some(body.build())))
    }

    pub(super) fn json_body(self, schema: &str, required: Required) -> Self {
        let content = Content::new(Some(reference(schema)));
        self.body(RequestBodyBuilder::new().content(JSON, content).required(Some(required)))
    }

    pub(super) fn answers(self, status: &str, what: &str, schema: &str) -> Self {
        self.content(status, what, JSON, reference(schema))
    }

    pub(super) fn content(self, status: &str, what: &str, kind: &str, schema: RefOr<Schema>) -> Self {
        self.response(status, response(what).content(kind, Content::new(Some(schema))))
    }

    pub(super) fn events(self, what: &str) -> Self {
        self.content("200", what, EVENTS, text())
    }

    pub(super) fn response(self, status: &str, response: ResponseBuilder) -> Self {
        self.with(|operation| operation.response(status, response))
    }

    /// An answer that says which generation made it.
    pub(super) fn stamped(self, status: &str, what: &str, schema: &str) -> Self {
        let response = stamp(response(what)).content(JSON, Content::new(Some(reference(schema))));
        self.stamping().response(status, response)
    }

    /// Its errors say which generation it was, too.
    pub(super) fn stamping(self) -> Self {
        Described { stamps: true, ..self }
    }

    /// The three ways in which a rollout is told.
    pub(super) fn follows(self) -> Self {
        self.follows_to("Outcome", "Rollout")
    }

    /// The same where what comes of it, and what has begun, are other schemas.
    pub(super) fn follows_to(self, outcome: &str, begun: &str) -> Self {
        let done = "What was waited for has come about, or nothing had to change. As a stream for a client that accepts \
                    one: `progress` and `done` events carry what an answer would, an `error` event a `StreamedError`";
        let started = response("It has begun (`\"wait\": \"none\"`)")
            .header("location", header("Where to look at the rollout, or at memory"))
            .content(JSON, Content::new(Some(reference(begun))));
        let told = response(done)
            .content(JSON, Content::new(Some(reference(outcome))))
            .content(EVENTS, Content::new(Some(text())));
        self.response("200", told).response("202", started)
    }

    /// How it is refused, beside what can happen on every route.
    pub(super) fn refused(mut self, dialect: Dialect, kinds: &[Kind]) -> Operation {
        let schema = match dialect {
            Dialect::Native => "Error",
            Dialect::OpenAi => "OpenAiError",
            Dialect::Tei => "TeiError",
            // gRPC is described by its own service, not here.
            Dialect::Oip | Dialect::Grpc => "OipError",
        };
        let token: &[Kind] = if self.guarded { &[Unauthorised] } else { &[] };
        for kind in kinds.iter().chain(token).chain(&[Forbidden, Internal]) {
            let mut response = response(words(*kind)).content(JSON, Content::new(Some(reference(schema))));
            if matches!(kind, Overloaded | NotServing) {
                response = response.header("retry-after", counted(1, "Seconds to wait before asking again"));
            }
            if *kind == Unsupported {
                response = response.header("accept-encoding", header("`identity`"));
            }
            if *kind == Unauthorised {
                response = response.header("www-authenticate", header("`Bearer`"));
            }
            // Who may come in is asked before anything is known of a model.
            if self.stamps && !matches!(kind, Forbidden | Unauthorised) {
                response = stamp(response);
            }
            self = self.response(reply::status(dialect, *kind).as_str(), response);
        }
        self.operation.build()
    }
}

fn words(kind: Kind) -> &'static str {
    match kind {
        BadRequest => "The request is not what was expected",
        Unsupported => "The body is compressed, which is not taken here",
        Unauthorised => "The API key or the admin token is missing or wrong",
        Forbidden => "The request may come from a foreign web page",
        NotFound => "There is nothing of that name; the details say what there is",
        Conflict => "The name is ambiguous, or another rollout or the state of this one does not allow it",
        TooLarge => "The request is larger than the limit",
        Refused => "The gate refused the version, or it cannot be loaded; the details say why, case by case",
        Overloaded => "Too many requests wait already",
        NotServing => "The model serves nothing at the moment, or the server is stopping",
        Deadline => "The answer took longer than it may",
        NoRoom => "The version does not fit; the details hold the sum",
        Internal => "Something went wrong inside; the log has it under the request's id",
    }
}

pub(super) fn response(what: &str) -> ResponseBuilder {
    ResponseBuilder::new().description(what).header("x-request-id", header("The request's id"))
}

pub(super) fn stamp(response: ResponseBuilder) -> ResponseBuilder {
    response
        .header("x-cutover-model", header("The model that was asked, once it is known"))
        .header("x-cutover-version", header("Its version"))
        .header("x-cutover-generation", counted(0, "The version's generation"))
}

fn header(what: &str) -> Header {
    HeaderBuilder::new().schema(Some(text())).description(Some(what)).build()
}

/// A header that is a whole number.
pub(super) fn counted(least: i64, what: &str) -> Header {
    HeaderBuilder::new().schema(Some(whole(least, i64::MAX))).description(Some(what)).build()
}

pub(super) fn reference(schema: &str) -> RefOr<Schema> {
    Ref::from_schema_name(schema).into()
}

pub(super) fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).build().into()
}

/// A whole number from `least` to `most`.
pub(super) fn whole(least: i64, most: i64) -> RefOr<Schema> {
    let number =
        ObjectBuilder::new().schema_type(Type::Integer).format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
    number.minimum(Some(least)).maximum(Some(most)).build().into()
}

pub(super) fn binary() -> RefOr<Schema> {
    let format = Some(SchemaFormat::KnownFormat(KnownFormat::Binary));
    ObjectBuilder::new().schema_type(Type::String).format(format).build().into()
}
