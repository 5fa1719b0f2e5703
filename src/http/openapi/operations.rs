//! Every operation: what it takes, what it answers, and how it is refused.

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{KnownFormat, SchemaFormat};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, ObjectBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, Type};

use crate::error::Kind::{self, *};
use crate::http::Dialect;
use crate::http::reply;
use crate::http::routes::Mounted;

pub(super) const TOKEN: &str = "Asked for where the server was started with an admin token";
pub(super) const KEY: &str =
    "Asked for where the server was started with API keys; as a bearer token, or in `x-api-key`";

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// What may go wrong with every inference.
const ASKING: &[Kind] = &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, Overloaded, NotServing, Deadline];
/// With every order that a rollout follows.
const ORDERING: &[Kind] = &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, Refused, NotServing, NoRoom];

pub(super) fn all() -> Vec<(Mounted, Operation)> {
    [inference(), tei(), oip(), lists(), orders(), history(), health()].concat()
}

fn inference() -> Vec<(Mounted, Operation)> {
    let infer = Described::new("infer", "Ask a model")
        .keyed()
        .named("ref")
        .body(
            RequestBodyBuilder::new()
                .content(JSON, Content::new(Some(reference("InferRequest"))))
                .content("image/*", Content::new(Some(binary())))
                .description(Some("Inputs, or one image file as it is"))
                .required(Some(Required::True)),
        )
        .stamped("200", "One output for each input, in their order", "InferResponse");
    let embeddings = Described::new("openai", "Embed texts, as OpenAI's clients ask for it")
        .keyed()
        .json_body("EmbeddingsRequest", Required::True)
        .stamped("200", "One embedding for each input, in their order", "Embeddings");
    vec![
        (("POST", "/models/{ref}/infer"), infer.refused(Dialect::Native, ASKING)),
        (("POST", "/v1/embeddings"), embeddings.refused(Dialect::OpenAi, ASKING)),
    ]
}

/// No status but these has two kinds, so that none hides another.
fn tei() -> Vec<(Mounted, Operation)> {
    let tei = |what: &str, request: &str, answer: &str| {
        Described::new("text-embeddings-inference", what)
            .keyed()
            .json_body(request, Required::True)
            .stamped("200", "An answer for each input", answer)
            .content("400", "There is no input, or an empty one", JSON, reference("TeiError"))
            .refused(Dialect::Tei, ASKING)
    };
    let info = || {
        Described::new("text-embeddings-inference", "The model that `/` asks")
            .keyed()
            .stamped("200", "The model", "TeiInfo")
            .refused(Dialect::Tei, &[NotFound, Conflict, NotServing])
    };
    vec![
        (("POST", "/"), tei("Ask the model, whatever its task", "TeiRequest", "TeiAnswer")),
        (("POST", "/embed"), tei("Embed texts", "EmbedRequest", "TeiEmbeddings")),
        (("POST", "/predict"), tei("Classify texts", "PredictRequest", "TeiPredictions")),
        (("POST", "/rerank"), tei("Order texts by how well they fit a query", "RerankRequest", "TeiRanks")),
        (("GET", "/info"), info()),
        (("POST", "/info"), info()),
    ]
}

fn oip() -> Vec<(Mounted, Operation)> {
    let oip = |what: &str| Described::new("open inference protocol", what);
    let told = |what: &str, answer: &str| oip(what).keyed().stamped("200", what, answer);
    let absent: &[Kind] = &[BadRequest, NotFound, Conflict, NotServing];
    let of = |path: &'static str, describe: &dyn Fn() -> Described, kinds: &[Kind]| -> (Mounted, Operation) {
        let described = describe().named("model");
        let described = if path.contains("{version}") { described.named("version") } else { described };
        (("GET", path), described.refused(Dialect::Oip, kinds))
    };
    let metadata = || told("The tensors of a model", "OipModel");
    let config = || told("A model, as Triton's configuration tells it", "OipConfig");
    let statistics = || told("What a version has answered", "OipStatistics");
    let ready = || oip("Whether a model answers").keyed().answers("200", "It does", "OipReady");
    let infer = || {
        oip("Ask a model with tensors")
            .keyed()
            .body(
                RequestBodyBuilder::new()
                    .content(JSON, Content::new(Some(reference("OipRequest"))))
                    .content("application/octet-stream", Content::new(Some(binary())))
                    .description(Some("Tensors as JSON, or JSON and the bytes of tensors behind it"))
                    .required(Some(Required::True)),
            )
            .stamped(
                "200",
                "The outputs that were asked for; their bytes follow the JSON where that was asked",
                "OipResponse",
            )
            .named("model")
    };
    let order = |what: &str| {
        oip(what)
            .admin()
            .json_body("RepositoryOrder", Required::False)
            .named("model")
            .response("200", response("It is done"))
    };
    let index = oip("Every version, and whether it answers").keyed().json_body("IndexOrder", Required::False);
    let index = index.answers("200", "The versions", "OipIndex");
    vec![
        (("GET", "/v2"), oip("This server").keyed().answers("200", "It", "OipServer").refused(Dialect::Oip, &[])),
        (
            ("GET", "/v2/models"),
            oip("Every model").keyed().answers("200", "Their names", "OipModels").refused(Dialect::Oip, &[]),
        ),
        of("/v2/models/{model}", &metadata, absent),
        of("/v2/models/{model}/versions/{version}", &metadata, absent),
        of("/v2/models/{model}/config", &config, absent),
        of("/v2/models/{model}/versions/{version}/config", &config, absent),
        of("/v2/models/{model}/ready", &ready, absent),
        of("/v2/models/{model}/versions/{version}/ready", &ready, absent),
        of("/v2/models/{model}/stats", &statistics, absent),
        of("/v2/models/{model}/versions/{version}/stats", &statistics, absent),
        (
            ("GET", "/v2/models/stats"),
            oip("What all have answered").keyed().answers("200", "It", "OipStatistics").refused(Dialect::Oip, &[]),
        ),
        (("POST", "/v2/models/{model}/infer"), infer().refused(Dialect::Oip, ASKING)),
        (
            ("POST", "/v2/models/{model}/versions/{version}/infer"),
            infer().named("version").refused(Dialect::Oip, ASKING),
        ),
        (("POST", "/v2/repository/index"), index.refused(Dialect::Oip, &[BadRequest, Unsupported, TooLarge])),
        (
            ("POST", "/v2/repository/models/{model}/load"),
            order("Load, prove and promote a version").refused(Dialect::Oip, ORDERING),
        ),
        (
            ("POST", "/v2/repository/models/{model}/unload"),
            order("Drop a version that is not live").refused(Dialect::Oip, ORDERING),
        ),
    ]
}

fn lists() -> Vec<(Mounted, Operation)> {
    let list = |what: &str| Described::new("models", what).asks(&["api-key", "admin-token"]);
    let models = list("Every model").answers("200", "The models", "Models");
    let model = list("One model").named("ref").answers("200", "The model", "Model");
    let openai = |what: &str| Described::new("openai", what).keyed();
    let cards = openai("Every model, as OpenAI lists them").answers("200", "The models", "OpenAiModels");
    let card = openai("One model, as OpenAI tells it").named("ref").answers("200", "The model", "OpenAiModel");
    vec![
        (("GET", "/models"), models.refused(Dialect::Native, &[])),
        (("GET", "/models/{ref}"), model.refused(Dialect::Native, &[BadRequest, NotFound, Conflict])),
        (("GET", "/v1/models"), cards.refused(Dialect::OpenAi, &[])),
        (("GET", "/v1/models/{ref}"), card.refused(Dialect::OpenAi, &[BadRequest, NotFound, Conflict])),
    ]
}

fn orders() -> Vec<(Mounted, Operation)> {
    let order = |what: &str| Described::new("changes", what).admin();
    let rollout = |what: &str| order(what).json_body("Order", Required::False).follows();
    let ended = "The rollout, ended; or that nothing had to change";
    let release = order(
        "Free the memory of a version that is not live, or forget a model that serves nothing and whose folder is gone; \
         files stay",
    )
        .named("ref")
        .answers("200", "What became of it", "Released")
        .refused(Dialect::Native, &[BadRequest, NotFound, Conflict, NotServing]);
    let abort = order("Stop a rollout before its switch")
        .named("id")
        .json_body("Order", Required::False)
        .answers("200", ended, "Outcome")
        .refused(Dialect::Native, &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, NotServing]);
    let stage = rollout("Load and prove a version beside the live one").named("ref");
    let promote = rollout("Make a version live: staged first when it is not staged yet").named("ref");
    let rollback = rollout("Go back to the previous version");
    let settle = rollout("End the window, and give back the previous version's memory");
    vec![
        (("POST", "/models/{ref}/stage"), stage.refused(Dialect::Native, ORDERING)),
        (("POST", "/models/{ref}/promote"), promote.refused(Dialect::Native, ORDERING)),
        (("DELETE", "/models/{ref}"), release),
        (("POST", "/admin/rollback"), rollback.refused(Dialect::Native, ORDERING)),
        (("POST", "/admin/settle"), settle.refused(Dialect::Native, ORDERING)),
        (("POST", "/admin/rollouts/{id}/abort"), abort),
    ]
}

fn history() -> Vec<(Mounted, Operation)> {
    let history = |what: &str| Described::new("history", what).admin();
    let rollouts = history("Past and present rollouts, the newest first, and how deployments have gone")
        .query("model", "Only of this model", Type::String)
        .query("limit", "At most so many: 50, where it is not said, and 1000 at most", Type::Integer)
        .answers("200", "The rollouts, and figures over all that are kept", "Rollouts");
    let events = history("Events as they happen; those that were missed come first")
        .query("after", "The number of the last event that is known; `Last-Event-ID` does the same", Type::Integer)
        .events("Each event's name is its kind, its id its number, its data an `Event` (see the schemas)");
    let rollout = history("One rollout").named("id").answers("200", "The rollout", "Rollout");
    let memory = history("What is promised of the device's memory, and held").answers("200", "The sum", "Memory");
    vec![
        (("GET", "/admin/rollouts"), rollouts.refused(Dialect::Native, &[BadRequest])),
        (("GET", "/admin/rollouts/{id}"), rollout.refused(Dialect::Native, &[BadRequest, NotFound])),
        (("GET", "/admin/events"), events.refused(Dialect::Native, &[BadRequest])),
        (("GET", "/admin/memory"), memory.refused(Dialect::Native, &[])),
    ]
}

fn health() -> Vec<(Mounted, Operation)> {
    let health = |what: &str| Described::new("health", what);
    let live = || health("Whether the process answers").answers("200", "It does", "Live").refused(Dialect::Native, &[]);
    let ready = || {
        health("Whether every model that has a version serves; loading a candidate changes nothing")
            .answers("200", "It does", "Ready")
            .answers("503", "It does not: with the reasons", "Ready")
            .refused(Dialect::Native, &[])
    };
    let metrics = health("Metrics, for Prometheus: `cutover_…`, and those of any process under their usual names")
        .content("200", "The metrics", "application/openmetrics-text", text())
        .refused(Dialect::Native, &[]);
    let document = health("This description")
        .content("200", "An OpenAPI document", JSON, ObjectBuilder::new().build().into())
        .refused(Dialect::Native, &[]);
    vec![
        (("GET", "/health"), live()),
        (("GET", "/v2/health/live"), live()),
        (("GET", "/ready"), ready()),
        (("GET", "/v2/health/ready"), ready()),
        (("GET", "/metrics"), metrics),
        (("GET", "/openapi.json"), document),
    ]
}

/// An operation that is being described.
struct Described {
    operation: OperationBuilder,
    /// A key or a token is asked for where there is one.
    guarded: bool,
    /// Errors carry the generation's stamp once it is known.
    stamps: bool,
}

impl Described {
    fn new(tag: &str, summary: &str) -> Self {
        let operation = OperationBuilder::new().tag(tag).summary(Some(summary));
        Described { operation, guarded: false, stamps: false }
    }

    fn with(mut self, change: impl FnOnce(OperationBuilder) -> OperationBuilder) -> Self {
        self.operation = change(self.operation);
        self
    }

    fn admin(self) -> Self {
        self.asks(&["admin-token"])
    }

    fn keyed(self) -> Self {
        self.asks(&["api-key"])
    }

    /// One of these ways in, or none: where the server was started without.
    fn asks(mut self, schemes: &[&str]) -> Self {
        self.guarded = true;
        let ways = schemes.iter().map(|scheme| SecurityRequirement::new(*scheme, Vec::<String>::new()));
        let ways: Vec<_> = ways.chain([SecurityRequirement::default()]).collect();
        self.with(|operation| operation.securities(Some(ways)))
    }

    fn named(self, name: &str) -> Self {
        let what = match name {
            "ref" => "`model@version`, a model, or a version alone where only one model has it",
            "model" => "A model, or `model@version`",
            "version" => "A version of it that is resident",
            _ => "The rollout's id",
        };
        let path = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        self.with(|operation| operation.parameter(path.description(Some(what)).schema(Some(text()))))
    }

    fn query(self, name: &str, what: &str, of: Type) -> Self {
        let query = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query).required(Required::False);
        let schema = ObjectBuilder::new().schema_type(of).build();
        self.with(|operation| operation.parameter(query.description(Some(what)).schema(Some(Schema::from(schema)))))
    }

    fn body(self, body: RequestBodyBuilder) -> Self {
        self.with(|operation| operation.request_body(Some(body.build())))
    }

    fn json_body(self, schema: &str, required: Required) -> Self {
        let content = Content::new(Some(reference(schema)));
        self.body(RequestBodyBuilder::new().content(JSON, content).required(Some(required)))
    }

    fn answers(self, status: &str, what: &str, schema: &str) -> Self {
        self.content(status, what, JSON, reference(schema))
    }

    fn content(self, status: &str, what: &str, kind: &str, schema: RefOr<Schema>) -> Self {
        self.response(status, response(what).content(kind, Content::new(Some(schema))))
    }

    fn events(self, what: &str) -> Self {
        self.content("200", what, EVENTS, text())
    }

    fn response(self, status: &str, response: ResponseBuilder) -> Self {
        self.with(|operation| operation.response(status, response))
    }

    /// An answer that says which generation made it.
    fn stamped(mut self, status: &str, what: &str, schema: &str) -> Self {
        self.stamps = true;
        let response = stamp(response(what)).content(JSON, Content::new(Some(reference(schema))));
        self.response(status, response)
    }

    /// The three ways in which a rollout is told.
    fn follows(self) -> Self {
        let done = "What was waited for has come about, or nothing had to change. As a stream for a client that accepts \
                    one: `progress` and `done` events carry an `Outcome`, an `error` event a `StreamedError`";
        let started = response("It has begun (`\"wait\": \"none\"`)")
            .header("location", header("Where to look at the rollout"))
            .content(JSON, Content::new(Some(reference("Rollout"))));
        let told = response(done)
            .content(JSON, Content::new(Some(reference("Outcome"))))
            .content(EVENTS, Content::new(Some(text())));
        self.response("200", told).response("202", started)
    }

    /// How it is refused, beside what can happen on every route.
    fn refused(mut self, dialect: Dialect, kinds: &[Kind]) -> Operation {
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
                response = response.header("retry-after", header("Seconds to wait before asking again"));
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

fn response(what: &str) -> ResponseBuilder {
    ResponseBuilder::new().description(what).header("x-request-id", header("The request's id"))
}

fn stamp(response: ResponseBuilder) -> ResponseBuilder {
    response
        .header("x-cutover-model", header("The model that was asked, once it is known"))
        .header("x-cutover-version", header("Its version"))
        .header("x-cutover-generation", header("The version's generation: a number"))
}

fn header(what: &str) -> utoipa::openapi::Header {
    HeaderBuilder::new().schema(Some(text())).description(Some(what)).build()
}

fn reference(schema: &str) -> RefOr<Schema> {
    Ref::from_schema_name(schema).into()
}

fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).build().into()
}

fn binary() -> RefOr<Schema> {
    let format = Some(SchemaFormat::KnownFormat(KnownFormat::Binary));
    ObjectBuilder::new().schema_type(Type::String).format(format).build().into()
}
