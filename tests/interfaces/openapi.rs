//! `/openapi.json` against a real server: every answer that is seen here is as the document says it is, and every field
//! of it is one that the document names.

mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use crate::common::inputs::digit;
use crate::common::{Server, Site, fixture, root};
use jsonschema::Validator;
use reqwest::{Method, Response};
use serde_json::{Value, json};

/// How much of a body is JSON, in the Open Inference Protocol.
const JSON_BYTES: &str = "inference-header-content-length";

/// A server that is asked, and what it says of itself.
struct Told {
    server: Server,
    document: Value,
    /// What was asked of which route, and how it was answered.
    seen: BTreeSet<(String, String, u16)>,
}

/// The bundled digits with a version that cannot be loaded, and a model of each task for texts.
fn site() -> Site {
    let site = Site::digits();
    let broken = site.models().join("digits/broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("config.json"), "{}").unwrap();
    site.model("tiny", "task = 'embed'\nlive = 'one'\n");
    site.version("tiny", "one", &fixture("bert-embed-mean"));
    site.model("mood", "task = 'classify'\nlive = 'one'\n");
    site.version("mood", "one", &fixture("bert-classify"));
    site.model("order", "task = 'rerank'\nlive = 'one'\n");
    site.version("order", "one", &fixture("bert-rerank"));
    site.add_writer("writer");
    site.config("[tei]\nmodel = 'tiny'\n[[alerts]]\nkind = 'json'\nurl = 'http://127.0.0.1:9/nobody'\n")
}

impl Told {
    async fn by(server: Server) -> Told {
        let document = server.get("/openapi.json").await.expect(200).body;
        Told { server, document, seen: BTreeSet::new() }
    }

    /// Asks a route, and holds the answer against what the document says of it.
    async fn ask(&mut self, method: Method, path: &str, body: Ask<'_>) -> (u16, Value) {
        let request = self.server.request(method.clone(), path);
        let operation = self.operation(method.as_str(), path);
        let (request, sent) = match body {
            Ask::Nothing => (request, None),
            Ask::Json(body) => (request.json(&body), Some(body)),
            Ask::Text(body) => (request.header("content-type", "application/json").body(body.to_owned()), None),
            Ask::Image(bytes) => (request.header("content-type", "image/png").body(bytes), None),
            Ask::As(name, value) => (request.header(name, value), None),
        };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        if let Some(sent) = sent {
            let schema = operation.spec["requestBody"]["content"]["application/json"]["schema"].clone();
            let errors = self.errors(&schema, &sent);
            // What is not as the document says is refused. (The reverse need not hold: not every rule is a schema's.)
            assert!(
                errors.is_empty() || matches!(status, 400 | 422),
                "{method} {path} took what its schema refuses: {errors:?}"
            );
        }
        let body = self.judge(&operation, status, response).await;
        self.seen.insert((operation.method, operation.path, status));
        (status, body)
    }

    async fn judge(&self, operation: &Operation, status: u16, response: Response) -> Value {
        let at = format!("{} {} {status}", operation.method, operation.path);
        let spec = &operation.spec["responses"][status.to_string()];
        assert!(spec.is_object(), "{at} is not described: {}", response.text().await.unwrap());
        let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap());
        let has_bytes = kind == "application/octet-stream";
        for name in spec["headers"].as_object().unwrap().keys() {
            // Which generation it was is not known of every failure; and where no bytes follow the JSON, all of it is JSON.
            let may_lack = name.starts_with("x-cutover-") && status != 200 || name == JSON_BYTES && !has_bytes;
            assert!(may_lack || response.headers().contains_key(name), "{at} lacks the header {name}");
        }
        let stamps = response.headers().keys().filter(|name| name.as_str().starts_with("x-cutover-"));
        for stamp in stamps {
            assert!(spec["headers"][stamp.as_str()].is_object(), "{at} has a header {stamp} that is not described");
        }
        if spec.get("content").is_none() {
            assert_eq!(response.text().await.unwrap(), "", "{at} has a body, which is not described");
            return Value::Null;
        }
        let kind = response.headers()["content-type"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let schema = spec["content"][&kind]["schema"].clone();
        assert!(schema.is_object(), "{at} is {kind}, which is not described");
        if kind != "application/json" {
            return Value::String(response.text().await.unwrap());
        }
        let body: Value = response.json().await.unwrap();
        let errors = self.errors(&schema, &body);
        assert!(errors.is_empty(), "{at}: {errors:#?}\n{body:#}");
        body
    }

    fn operation(&self, method: &str, path: &str) -> Operation {
        let asked: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == asked.len() && parts.iter().zip(&asked).all(|(p, a)| p == a || p.starts_with('{'))
        };
        let paths = self.document["paths"].as_object().unwrap();
        let (template, item) = paths
            .iter()
            .find(|(template, item)| fits(template) && item.get(method.to_lowercase()).is_some())
            .unwrap_or_else(|| panic!("{method} {path} is not described"));
        let spec = item[method.to_lowercase()].clone();
        Operation { method: method.to_owned(), path: template.clone(), spec }
    }

    /// Where a value is not what its schema says, with no field allowed that the schema does not name.
    fn errors(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut schema = schema.clone();
        schema["components"] = json!({ "schemas": closed(&self.document["components"]["schemas"]) });
        let validator: Validator = jsonschema::draft202012::new(&schema).unwrap();
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    async fn get(&mut self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, Ask::Nothing).await
    }

    async fn post(&mut self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Ask::Json(body)).await
    }
}

struct Operation {
    method: String,
    path: String,
    spec: Value,
}

enum Ask<'a> {
    Nothing,
    Json(Value),
    Text(&'a str),
    Image(Vec<u8>),
    /// With a header.
    As(&'static str, &'a str),
}

/// The same schemas, whose objects have no other fields than those that they name.
fn closed(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut map: serde_json::Map<String, Value> = map.iter().map(|(k, v)| (k.clone(), closed(v))).collect();
            let is_object = map.get("type").is_some_and(|kind| kind == "object") && map.contains_key("properties");
            if is_object && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".into(), json!(false));
            }
            Value::Object(map)
        }
        Value::Array(list) => list.iter().map(closed).collect(),
        other => other.clone(),
    }
}

static SEVEN: LazyLock<Vec<u8>> = LazyLock::new(|| fs::read(root().join("models/digits/samples/7.png")).unwrap());

fn seven() -> Value {
    use base64::Engine as _;
    json!({ "image": base64::engine::general_purpose::STANDARD.encode(&*SEVEN) })
}

#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let site = site();
    let mut server = Told::by(site.start().await).await;
    models::inference(&mut server).await;
    models::refused_inference(&mut server).await;
    models::openai(&mut server).await;
    models::writing(&mut server).await;
    models::tei(&mut server).await;
    models::oip(&mut server).await;
    models::health(&mut server).await;
    rollouts(&mut server).await;
    comparing(&mut server).await;
    refused_orders(&mut server).await;
    history(&mut server).await;
    everything_was_seen(&server);
}

async fn rollouts(server: &mut Told) {
    let order = json!({ "observe": "10m", "reason": "a test", "actor": "somebody" });
    let (status, staged) = server.post("/models/digits@v2/stage", order.clone()).await;
    assert_eq!((status, &staged["phase"]), (200, &json!("ready")));
    assert!(!staged["gate"].as_array().unwrap().is_empty());
    let (_, model) = server.get("/models/digits").await;
    assert_eq!(model["candidate"]["version"], "v2");
    let (status, second) = server.post("/models/digits@v3/stage", json!({})).await;
    assert_eq!((status, &second["error"]["kind"]), (409, &json!("conflict")));
    let (status, promoted) = server.post("/models/digits@v2/promote", order).await;
    assert_eq!((status, &promoted["phase"]), (200, &json!("observing")));
    let (_, model) = server.get("/models/digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]["version"]), (&json!("v2"), &json!("v1")));
    let (status, same) = server.post("/models/digits@v2/promote", json!({})).await;
    assert_eq!(status, 200, "{same}");
    let (status, back) = server.post("/admin/rollback", json!({ "model": "digits" })).await;
    assert_eq!((status, &back["kind"]), (200, &json!("instant")));
    let id = back["id"].as_str().unwrap().to_owned();
    assert_eq!(server.get(&format!("/admin/rollouts/{id}")).await.0, 200);
    assert_eq!(server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.0, 409);

    // As a stream, and then settled.
    let events = server.ask(Method::POST, "/models/digits@v2/promote", Ask::As("accept", "text/event-stream")).await.1;
    let told = server.told("Outcome", events.as_str().unwrap());
    assert!(told.contains_key("progress") && told.contains_key("done"), "{told:?}");
    let (status, settled) = server.post("/admin/settle", json!({ "model": "digits" })).await;
    assert_eq!((status, &settled["phase"]), (200, &json!("settled")));

    // At once, and then stopped.
    let (status, begun) = server.post("/models/digits@v1/stage", json!({ "wait": "none" })).await;
    assert_eq!(status, 202);
    let abort = format!("/admin/rollouts/{}/abort", begun["id"].as_str().unwrap());
    let (status, aborted) = server.post(&abort, json!({})).await;
    assert_eq!((status, &aborted["phase"]), (200, &json!("aborted")));

    server.post("/models/digits@v1/stage", json!({})).await;
    let (status, released) = server.ask(Method::DELETE, "/models/digits@v1", Ask::Nothing).await;
    assert_eq!((status, &released["phase"]), (200, &json!("aborted")), "{released}");
    let (status, again) = server.ask(Method::DELETE, "/models/digits@v1", Ask::Nothing).await;
    assert_eq!((status, &again["resident"]), (200, &json!(false)));
    let (status, live) = server.ask(Method::DELETE, "/models/digits@v2", Ask::Nothing).await;
    assert_eq!(status, 409, "{live}");
}

/// `digits@v2` is live.
async fn comparing(server: &mut Told) {
    let (_, staged) = server.post("/models/digits@v1/stage", json!({ "shadow": 1.0 })).await;
    let shadow = format!("/admin/rollouts/{}/shadow", staged["id"].as_str().unwrap());
    server.ask(Method::POST, "/models/digits/infer", Ask::Image(digit(3).to_vec())).await;
    crate::common::until("the shadow has seen it", async || {
        let seen = server.server.get(&shadow).await.expect(200).body;
        (seen["samples"] == 1).then_some(())
    })
    .await;
    assert_eq!(server.get(&shadow).await.1["worst"][0]["agreement"].as_f64().map(|value| value > 0.0), Some(true));
    let plot = format!("/admin/plots/agreement?rollout={}", staged["id"].as_str().unwrap());
    crate::common::until("the record has it too", async || {
        (server.server.get(&plot).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(server.get(&plot).await.0, 200);
    assert_eq!(server.get("/admin/rollouts/nothing/shadow").await.0, 404);

    let order =
        json!({ "name": "tone", "model": "digits", "weights": { "v1": 50, "v2": 50 }, "sticky": "header:x-user" });
    let (status, begun) = server.post("/admin/experiments", order.clone()).await;
    assert_eq!((status, &begun["phase"]), (200, &json!("experiment")));
    assert_eq!(server.post("/admin/experiments", order).await.0, 409);
    let order = json!({ "name": "pitch", "model": "digits", "weights": { "v1": 50, "v2": 5 } });
    assert_eq!(server.post("/admin/experiments", order).await.0, 400);
    let asked = server.server.request(Method::POST, "/models/digits/infer").header("x-request-id", "mine");
    asked.header("content-type", "image/png").body(digit(4).to_vec()).send().await.unwrap();
    let said = json!({ "request_id": "mine", "score": 0.5 });
    assert_eq!(server.post("/v1/feedback", said).await, (200, json!({ "model": "digits", "counted": true })));
    assert_eq!(server.post("/v1/feedback", json!({ "request_id": "other", "score": 1 })).await.0, 404);
    assert_eq!(server.post("/v1/feedback", json!({ "request_id": "other" })).await.0, 400);
    assert_eq!(server.get("/admin/experiments").await.1["experiments"][0]["arms"].as_array().map(Vec::len), Some(2));
    let (status, stopped) = server.ask(Method::DELETE, "/admin/experiments/tone", Ask::Nothing).await;
    assert_eq!((status, &stopped["phase"]), (200, &json!("ready")));
    assert_eq!(server.ask(Method::DELETE, "/admin/experiments/tone", Ask::Nothing).await.0, 404);
    server.ask(Method::DELETE, "/models/digits@v1", Ask::Nothing).await;
}

impl Told {
    /// The events of a stream by name, each of them held against a schema.
    fn told(&self, schema: &str, stream: &str) -> BTreeMap<String, usize> {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        let mut told = BTreeMap::new();
        for event in stream.split("\n\n").filter(|event| event.contains("data:")) {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let data: Value = serde_json::from_str(field("data:").unwrap()).unwrap();
            let errors = self.errors(&schema, &data);
            assert!(errors.is_empty(), "{errors:#?}\n{data:#}");
            *told.entry(field("event:").unwrap().to_owned()).or_default() += 1;
        }
        told
    }
}

async fn refused_orders(server: &mut Told) {
    let (status, refused) = server.post("/models/digits@v3/promote", json!({})).await;
    assert_eq!((status, &refused["error"]["kind"]), (422, &json!("refused")));
    let failed =
        refused["error"]["details"]["gate"].as_array().unwrap().iter().filter(|check| check["passed"] == false);
    assert!(failed.count() > 0);
    assert_eq!(server.post("/models/digits@broken/promote", json!({})).await.0, 422);
    let events = server.ask(Method::POST, "/models/digits@v3/promote", Ask::As("accept", "text/event-stream")).await.1;
    let (progress, error) = events.as_str().unwrap().split_once("event: error").unwrap();
    server.told("Outcome", progress);
    assert_eq!(server.told("StreamedError", &format!("event: error{error}"))["error"], 1);

    for (path, body) in [
        ("/models/digits@v1/promote", json!({ "observe": "soon" })),
        ("/models/digits@v1/promote", json!({ "wait": "for ever" })),
        ("/models/digits@v1/stage", json!({ "more": 1 })),
        ("/models/digits@v1/stage", json!({ "park": "attic" })),
        ("/models/digits@v1/promote", json!({ "park": "host" })),
        ("/admin/rollback", json!([])),
        ("/admin/rollback", json!({})),
        ("/admin/settle", json!({ "model": 7 })),
        ("/admin/settle", json!({ "model": "digits", "observe": "soon" })),
    ] {
        assert_eq!(server.post(path, body.clone()).await.0, 400, "{path} {body}");
    }
    for path in ["/models/digits@v9/promote", "/models/nothing/stage", "/admin/rollouts/nothing/abort"] {
        assert_eq!(server.post(path, json!({})).await.0, 404, "{path}");
    }
    assert_eq!(server.ask(Method::DELETE, "/models/digits@v9", Ask::Nothing).await.0, 404);
    assert_eq!(server.post("/admin/settle", json!({ "model": "tiny" })).await.1["unchanged"], true);
    assert_eq!(server.post("/admin/rollback", json!({ "model": "tiny" })).await.0, 409);
    let long = json!({ "reason": "x".repeat(100_000) });
    assert_eq!(server.post("/models/digits@v1/stage", long).await.0, 413);
}

async fn history(server: &mut Told) {
    assert_eq!(server.get("/models").await.1["models"].as_array().unwrap().len(), 5);
    assert_eq!(server.get("/models/nothing").await.0, 404);
    let (_, all) = server.get("/admin/rollouts").await;
    assert!(all["rollouts"].as_array().unwrap().len() > 5 && all["figures"]["downtime_ms"].is_object());
    assert_eq!(server.get("/admin/rollouts?model=tiny&limit=1").await.0, 200);
    assert_eq!(server.get("/admin/rollouts?limit=many").await.0, 400);
    assert_eq!(server.get("/admin/rollouts/nothing").await.0, 404);
    assert_eq!(server.get("/admin/events?after=first").await.0, 400);
    let (status, diff) = server.get("/models/digits@v1/diff?against=digits@v2").await;
    assert!(status == 200 && diff["differences"].as_array().is_some_and(|all| !all.is_empty()), "{diff:#}");
    assert_eq!(server.get("/models/digits@v3/diff?against=v2").await.0, 200);
    assert_eq!(server.get("/models/tiny@one/diff?against=mood@one").await.1["compatible"], false);
    assert_eq!(server.get("/models/digits@broken/diff").await.0, 422);
    assert_eq!(server.get("/models/digits@v9/diff").await.0, 404);
    let (status, tested) = server.post("/admin/alerts/test", json!({})).await;
    assert_eq!((status, &tested["alerts"][0]["delivered"]), (200, &json!(false)), "{tested:#}");
    assert_eq!(server.post("/admin/alerts/test", json!({ "target": "nobody" })).await.0, 400);
    assert_eq!(server.get("/admin/plots/latency?model=digits").await.0, 200);
    assert_eq!(server.get("/admin/plots/latency").await.0, 400);
    assert_eq!(server.get("/admin/plots/latency?model=nothing").await.0, 404);
    assert_eq!(server.get("/admin/plots/agreement?rollout=nothing").await.0, 404);
    let (_, memory) = server.get("/admin/memory").await;
    assert!(!memory["generations"].as_array().unwrap().is_empty());
    assert!(memory["last_reclaims"]["digits"].is_object(), "{memory:#}");
    some_events(server).await;
}

/// The stream of events has no end, so it is read until it has told enough.
async fn some_events(server: &mut Told) {
    let mut response = server.server.request(Method::GET, "/admin/events?after=0").send().await.unwrap();
    let mut text = String::new();
    // The first says only where it begins.
    while text.matches("\n\n").count() < 21 {
        text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    let whole = &text[..text.rfind("\n\n").unwrap()];
    assert!(server.told("Event", whole).values().sum::<usize>() >= 20);
    server.seen.insert(("GET".into(), "/admin/events".into(), 200));
    let mut live = crate::common::Events::open(server.server.request(Method::GET, "/admin/live")).await;
    let overview = live.next().await.unwrap();
    assert_eq!(overview.name, "overview");
    let models = json!({ "models": overview.data["models"] });
    assert_eq!(models["models"].as_array().unwrap().len(), 5, "{models:#}");
    let errors = server.errors(&json!({ "$ref": "#/components/schemas/Memory" }), &overview.data["memory"]);
    assert!(errors.is_empty(), "{errors:#?}");
    server.seen.insert(("GET".into(), "/admin/live".into(), 200));
}

/// No route is left out, and no kind of refusal that can be brought about here.
fn everything_was_seen(server: &Told) {
    for (path, item) in server.document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let seen = server.seen.contains(&(method.clone(), path.clone(), 200));
            assert!(seen, "{method} {path} was never answered with 200");
        }
    }
    let statuses: BTreeSet<u16> = server.seen.iter().map(|(.., status)| *status).collect();
    assert_eq!(statuses, [200, 202, 400, 403, 404, 409, 413, 422, 504].into());
}
