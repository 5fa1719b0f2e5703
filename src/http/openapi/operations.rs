//! Every operation: what it takes, what it answers, and how it is refused.

use utoipa::openapi::path::Operation;
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{Content, ObjectBuilder, Required};

use super::describe::{
    ADMIN_TOKEN, API_KEY, Described, JSON, X_API_KEY, binary, counted, reference, response, stamp, text, whole,
};
use crate::error::Kind::{self, *};
use crate::http::Dialect;
use crate::http::routes::Mounted;

/// Of the Open Inference Protocol's binary tensor data.
const JSON_BYTES: &str = "inference-header-content-length";

/// What may go wrong with every inference.
const ASKING: &[Kind] = &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, Overloaded, NotServing, Deadline];
/// With every order that a rollout follows.
const ORDERING: &[Kind] = &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, Refused, NotServing, NoRoom];

pub(super) fn all() -> Vec<(Mounted, Operation)> {
    [inference(), writing(), tei(), oip(), lists(), orders(), experiments(), history(), page(), health()].concat()
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

/// What models that write are asked.
fn writing() -> Vec<(Mounted, Operation)> {
    let asked = |what: &str, request: &str, told: &str, answer: &str| {
        Described::new("openai", what).keyed().json_body(request, Required::True).stamped("200", told, answer)
    };
    let chat = asked("Continue a chat", "ChatRequest", "The answers, whole or as they are written", "ChatCompletion");
    let text = asked("Continue a text", "CompletionRequest", "The same of a text", "Completion");
    let tokens = asked("A prompt's tokens", "TokenizeRequest", "Their ids", "Tokenized");
    let spelled = asked("The text of tokens", "DetokenizeRequest", "The text", "Detokenized");
    vec![
        (("POST", "/v1/chat/completions"), chat.refused(Dialect::OpenAi, ASKING)),
        (("POST", "/v1/completions"), text.refused(Dialect::OpenAi, ASKING)),
        (("POST", "/tokenize"), tokens.refused(Dialect::OpenAi, ASKING)),
        (("POST", "/detokenize"), spelled.refused(Dialect::OpenAi, ASKING)),
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
        let described = match path.contains("{version}") {
            true => describe().versioned(),
            false => describe().named("model"),
        };
        (("GET", path), described.refused(Dialect::Oip, kinds))
    };
    let metadata = || told("The tensors of a model", "OipModel");
    let config = || told("A model, as Triton's configuration tells it", "OipConfig");
    let statistics = || told("What a version has answered", "OipStatistics");
    let ready = || oip("Whether a model answers").keyed().answers("200", "It does", "OipReady");
    let answer = || {
        let what = "The outputs that were asked for; their bytes follow the JSON where that was asked";
        stamp(response(what))
            .header(JSON_BYTES, counted(0, "Bytes of the body that are JSON, where others follow them"))
            .content(JSON, Content::new(Some(reference("OipResponse"))))
            .content("application/octet-stream", Content::new(Some(binary())))
    };
    let infer = || {
        oip("Ask a model with tensors")
            .keyed()
            .stamping()
            .body(
                RequestBodyBuilder::new()
                    .content(JSON, Content::new(Some(reference("OipRequest"))))
                    .content("application/octet-stream", Content::new(Some(binary())))
                    .description(Some("Tensors as JSON, or JSON and the bytes of tensors behind it"))
                    .required(Some(Required::True)),
            )
            .header(
                JSON_BYTES,
                "Bytes of the body that are JSON; 0: the body is the only input's one element",
                whole(0, i64::MAX),
            )
            .response("200", answer())
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
        (("POST", "/v2/models/{model}/infer"), infer().named("model").refused(Dialect::Oip, ASKING)),
        (("POST", "/v2/models/{model}/versions/{version}/infer"), infer().versioned().refused(Dialect::Oip, ASKING)),
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
    let list = |what: &str| Described::new("models", what).asks(&[API_KEY, X_API_KEY, ADMIN_TOKEN]);
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
        "Free the memory of a version that is not live, host memory too; or have a model whose folder is gone, named by itself, \
         served no more and forgotten. Files stay",
    )
        .named("ref")
        .answers("200", "What became of it", "Released")
        .refused(Dialect::Native, &[BadRequest, NotFound, Conflict, NotServing]);
    let abort = order("Stop a rollout before its switch")
        .named("id")
        .json_body("Order", Required::False)
        .answers("200", ended, "Outcome")
        .refused(Dialect::Native, &[BadRequest, Unsupported, NotFound, Conflict, TooLarge, NotServing]);
    let stage = order("Load and prove a version beside the live one, or read it ahead into host memory")
        .json_body("StageOrder", Required::False)
        .follows_to("Staged", "Begun")
        .named("ref");
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

fn experiments() -> Vec<(Mounted, Operation)> {
    let of = |what: &str| Described::new("experiments", what).admin();
    let running = of("Experiments that go on").answers("200", "What each says so far", "Experiments");
    let start = of("Have two versions share a model's requests, for as long as is wanted")
        .json_body("ExperimentOrder", Required::True)
        .answers("200", "The rollout of the version that is not live", "Rollout");
    let stop = of("End an experiment; its version stays staged").named("name").answers(
        "200",
        "The rollout of the version that is not live",
        "Rollout",
    );
    let feedback = Described::new("experiments", "Say how good an answer was")
        .keyed()
        .json_body("Feedback", Required::True)
        .answers("200", "It is counted", "Counted");
    let absent: &[Kind] = &[BadRequest, NotFound, Conflict, NotServing];
    vec![
        (("GET", "/admin/experiments"), running.refused(Dialect::Native, &[])),
        (("POST", "/admin/experiments"), start.refused(Dialect::Native, ORDERING)),
        (("DELETE", "/admin/experiments/{name}"), stop.refused(Dialect::Native, absent)),
        (("POST", "/v1/feedback"), feedback.refused(Dialect::OpenAi, &[BadRequest, Unsupported, NotFound, TooLarge])),
    ]
}

fn history() -> Vec<(Mounted, Operation)> {
    let history = |what: &str| Described::new("history", what).admin();
    let rollouts = history("Past and present rollouts, the newest first, and how deployments have gone")
        .query("model", "Only of this model", text())
        .query("limit", "At most so many: 50, where it is not said, and 1000 at most", whole(0, u32::MAX.into()))
        .answers("200", "The rollouts, and figures over all that are kept", "Rollouts");
    let events = history("Events as they happen; those that were missed come first")
        .query(
            "after",
            "The number of the last event that is known; `Last-Event-ID` does the same, and wins over it",
            whole(i64::MIN, i64::MAX),
        )
        .events("Each event's name is its kind, its id its number, its data an `Event` (see the schemas)");
    let live = history("Everything at one moment: at once, then each second and after each event").events(
        "`overview` events: `at_ms`, `ready`, `models` (each as in `Models`, with `generations` and their counters, and its last \
         `rollout`), `memory` (as in `Memory`; null while the engine is too busy to tell)",
    );
    let rollout = history("One rollout").named("id").answers("200", "The rollout", "Rollout");
    let diff = history("In what a version differs from another, and whether it could take its place")
        .named("ref")
        .query(
            "against",
            "The version that it is compared with: the live one of its model, where it is not said",
            text(),
        )
        .answers("200", "Every difference, the gravest first", "Comparison");
    let alerts = history("Tell the receivers of alerts that nothing has happened, and what each of them answers")
        .json_body("TestOrder", Required::False)
        .answers("200", "What came of it", "TestedAlerts");
    let shadow =
        history("What a rollout's shadow has seen and, of the model's last one in this process, what agreed least")
            .named("id")
            .answers("200", "The distribution, and the worst cases", "Shadow");
    let memory = history("What is promised of the device's memory, and held").answers("200", "The sum", "Memory");
    vec![
        (("GET", "/admin/rollouts"), rollouts.refused(Dialect::Native, &[BadRequest])),
        (("GET", "/admin/rollouts/{id}"), rollout.refused(Dialect::Native, &[BadRequest, NotFound])),
        (("GET", "/models/{ref}/diff"), diff.refused(Dialect::Native, &[BadRequest, NotFound, Conflict, Refused])),
        (("GET", "/admin/rollouts/{id}/shadow"), shadow.refused(Dialect::Native, &[BadRequest, NotFound])),
        (("GET", "/admin/events"), events.refused(Dialect::Native, &[BadRequest])),
        (
            ("POST", "/admin/alerts/test"),
            alerts.refused(Dialect::Native, &[BadRequest, Unsupported, Conflict, TooLarge]),
        ),
        (("GET", "/admin/live"), live.refused(Dialect::Native, &[])),
        (("GET", "/admin/memory"), memory.refused(Dialect::Native, &[])),
    ]
}

/// What people look at.
fn page() -> Vec<(Mounted, Operation)> {
    let page = |what: &str| Described::new("page", what).response("304", response("The client has it already"));
    let kinds = ["text/css", "text/javascript", "image/svg+xml"];
    let file =
        kinds.into_iter().fold(response("The file"), |file, kind| file.content(kind, Content::new(Some(text()))));
    let plot = |what: &str, of: &str, whose: &str| {
        let width = "Pixels from side to side: 720, where it is not said, 280 at least and 1440 at most";
        let plot = Described::new("page", what).admin().required_query(of, whose, text());
        let plot = plot.query("width", width, whole(0, u32::MAX.into()));
        plot.content("200", "The plot", "image/svg+xml", text())
    };
    let latency = plot("A model's latencies over the last ten minutes", "model", "A model");
    let agreement = plot("How much the answers of a rollout's two versions agreed", "rollout", "The rollout's id");
    vec![
        (
            ("GET", "/"),
            page("The page for people").content("200", "The page", "text/html", text()).refused(Dialect::Tei, &[]),
        ),
        (
            ("GET", "/page/{file}"),
            page("A file of the page")
                .named("file")
                .response("200", file)
                .refused(Dialect::Native, &[BadRequest, NotFound]),
        ),
        (("GET", "/admin/plots/latency"), latency.refused(Dialect::Native, &[BadRequest, NotFound, Conflict])),
        (("GET", "/admin/plots/agreement"), agreement.refused(Dialect::Native, &[BadRequest, NotFound])),
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
