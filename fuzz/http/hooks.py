"""What schemathesis is told beyond the server's own description: how streams are judged, which requests would wait for
ever, and what makes requests get past the door. Loaded by schemathesis (`hooks` in schemathesis.toml)."""

import atexit
import base64
import collections
import json
import os
import pathlib
import re
import zlib

import schemathesis
from hypothesis import strategies as st

SAMPLES = pathlib.Path(__file__).resolve().parents[2] / "models/digits/samples"
IMAGES = [path.read_bytes() for path in sorted(SAMPLES.glob("*.png"))]

JSON_BYTES = "inference-header-content-length"
ORDERS = ("stage", "promote", "rollback", "settle")

# What may follow what, on the same version or the same rollout: the lives of rollouts, in an order that by chance alone
# would hardly come about.
SAME = {"ref": "$request.path.ref"}
ROLLOUT = [
    ("get", "/admin/rollouts/{id}", {"id": "$response.body#/id"}),
    ("post", "/admin/rollouts/{id}/abort", {"id": "$response.body#/id"}),
]
STAGED = [("post", "/models/{ref}/promote", SAME), ("delete", "/models/{ref}", SAME), ("post", "/models/{ref}/infer", SAME)]
SWITCHED = [("post", "/admin/rollback", {}), ("post", "/admin/settle", {}), ("get", "/models/{ref}", SAME)]
LINKS = {
    ("post", "/models/{ref}/stage", "200"): STAGED,
    ("post", "/models/{ref}/stage", "202"): STAGED + ROLLOUT,
    ("post", "/models/{ref}/promote", "200"): SWITCHED,
    ("post", "/models/{ref}/promote", "202"): SWITCHED + ROLLOUT,
    ("delete", "/models/{ref}", "200"): [("post", "/models/{ref}/stage", SAME), ("get", "/models/{ref}", SAME)],
}

# What is valid by its schema and refused all the same, since no schema can say it. Anything else that is refused so is
# a rule that the description does not tell of.
BEYOND_SCHEMAS = [
    # Shares that grow, and weights that add up, of versions that there are.
    r"canary: .*, expected percentages",
    r"weights: ",
    # Which task the model has that a path or a body names, and what its version is made of.
    r"this model's task is",
    r"does not embed: its task is",
    r"does not write text: its task is",
    r"either prompt or messages is needed",
    r"best_of is -?\d+; only as many",
    r"top_logprobs needs logprobs to be true",
    r"echo is not supported together with logprobs",
    # What a tokenizer, a template and a context make of a prompt, and rules of sampling that are no ranges.
    r"this model writes text: ask it",
    r"this model continues texts; an input is",
    r"a text that is to be continued is not cut",
    r"\w+ is for models that write",
    r"context is \d+ tokens",
    r"the prompt (has no tokens|is)",
    r"message \d+:",
    r"continue_final_message",
    r"\w+ is \S+; (it must be|at most|0 or more|1 or more)",
    r"logit_bias has",
    r"logit_bias: more than 1024",
    r"number of (JSON values|tokens) is \d+, the limit is",
    r"several models|chat template",
    r"only none and auto are supported",
    r"response_format is not supported",
    r"is missing; the model takes",
    r"is unknown; there is",
    r"only embeddings can be",
    r"embeddings have no scores",
    r"this version normalises its embeddings itself",
    r"dimensions is \d+, expected 1 to",
    r"is not in the vocabulary of",
    r"missing field `(inputs|query)`",
    r"number of inputs( or answers)? is \d+, the limit is",
    # How many models there are, and versions of one.
    r"several models are serving; name one of",
    r"which version of \w+\?",
    r"a name, and one only",
    r"as the path says, found",
    # How many tokens a text comes to.
    r"tokens long, this version takes",
    # What is in an image, or in base64.
    r"is not valid base64",
    r"in JSON, files are base64",
    r"the image (cannot be decoded|is an? \w|is neither)",
    r"the longer side of the image in pixels is \d+, the limit is",
    # A shape and its data belong together, and so do a length and its body.
    r"its shape is of \d+ elements",
    r"BYTES in JSON are strings",
    r"has (neither data nor|both data and)",
    r"left behind the JSON",
    r"is no shape",
    # Names of tensors differ; a schema can only say that whole items do.
    r"is there twice",
    r"is \d+, the body has",
    # How long several units are together, and how large a number may be, of those that are ignored.
    r"is too long, expected at most 365d",
    r"a number is too large in",
    r"number out of range",
    r"floating point `\d\.\d+e\+\d+`, expected u64",
    # What one route answers as a model's name, another takes in its path only without a version.
    r"names a version, and so does the path",
    # What a version is worth shows when it is loaded.
    r"the gate refused",
    r"digits/broken/",
]
# The same, of one path or one kind of body.
BEYOND_ALONE = {
    # It takes what its model's task takes.
    "/": [r"inputs(\[\d+\])*: invalid (type|value)", r"`inputs` cannot be empty"],
    # Bytes need a header that says how many of them are JSON, and then that JSON; the header needs such a body.
    "application/octet-stream": [r"the body is not", r": invalid type", r"a text that is not UTF-8"],
    JSON_BYTES: [r"the body is not", r"a body without JSON is for models with one input"],
}


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Says what the description says in words, so that it is held to: OpenAPI 3.1 knows no schema for an event, and the
    library that writes the description no header that must be there."""
    for path, item in raw_schema["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                if example := known(path, parameter["name"]):
                    parameter["examples"] = {"known": {"value": example}}
            for status, response in operation["responses"].items():
                promise_headers(status, response.get("headers", {}))
                stream = response.get("content", {}).get("text/event-stream")
                if stream is not None:
                    streams = {"/admin/events": event("Event"), "/admin/live": overview()}
                    stream["schema"] = streams.get(path) or progress()
    schemas = raw_schema["components"]["schemas"]
    schemas["EmbeddingsRequest"]["properties"]["model"]["examples"] = ["tiny"]
    for request in ("ChatRequest", "CompletionRequest", "TokenizeRequest", "DetokenizeRequest"):
        schemas[request]["properties"]["model"]["examples"] = ["writer"]
    schemas["DetokenizeRequest"]["properties"]["tokens"]["examples"] = [[1, 2]]
    schemas["Order"]["properties"]["model"]["examples"] = ["digits"]
    schemas["RepositoryOrder"]["properties"]["parameters"]["examples"] = [{"version": "one"}]
    for (method, path, status), following in LINKS.items():
        links = raw_schema["paths"][path][method]["responses"][status].setdefault("links", {})
        for method, path, parameters in following:
            reference = "#/paths/" + path.replace("/", "~1") + f"/{method}"
            links[f"{method} {path}"] = {"operationRef": reference, "parameters": parameters}


def known(path, name):
    """What is here, so that a body that is wrong is refused for what it is and not for the model that it asks."""
    if name == "ref":
        return "digits@v2" if path.endswith(("stage", "promote")) else "tiny"
    return {"model": "tiny", "version": "one"}.get(name)


def promise_headers(status, headers):
    for name, header in headers.items():
        # Which generation it was is not known of every failure; nor does every answer carry bytes behind its JSON.
        is_stamp = name.startswith("x-cutover-")
        header["required"] = status == "200" if is_stamp else name != JSON_BYTES


def event(schema, *names):
    """One event, whose data is JSON of this schema."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{schema}"},
    }
    name = {"enum": list(names)} if names else {"type": "string"}
    return {"type": "object", "required": ["event", "data"], "properties": {"event": name, "data": data}}


def overview():
    """Its data is described in words."""
    data = {"type": "string", "contentMediaType": "application/json"}
    return {"type": "object", "required": ["event", "data"], "properties": {"event": {"enum": ["overview"]}, "data": data}}


def progress():
    return {"oneOf": [event("Outcome", "progress", "done"), event("StreamedError", "error")]}


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Keeps what is a finding."""
    kind = type(failure).__name__
    if kind in ("ServerError", "ContentTypeServerError"):
        # A client that gives no time gets no answer.
        return response.status_code != 504 or not gives_a_deadline(case)
    if kind == "AcceptedNegativeData":
        # Then the body is a text, whatever it is: none is the empty one.
        return sent(response, JSON_BYTES) != "0"
    if kind != "RejectedPositiveData":
        return True
    facts = [case.media_type, case.path, JSON_BYTES if sent(response, JSON_BYTES) else None]
    reasons = BEYOND_SCHEMAS + [reason for fact in facts for reason in BEYOND_ALONE.get(fact, [])]
    return not any(re.search(reason, response.text) for reason in reasons)


def sent(response, name):
    return response.request.headers.get(name)


def gives_a_deadline(case):
    body = case.body if isinstance(case.body, dict) else {}
    parameters = body.get("parameters")
    # OpenAI's routes have it among their fields.
    return "deadline_ms" in body or isinstance(parameters, dict) and ("deadline_ms" in parameters or "timeout" in parameters)


def damaged(image, at, byte):
    at %= len(image)
    return image[:at] + bytes([byte]) + image[at + 1 :]


# Real files, files that broke on the way, and what is none.
images = st.sampled_from(IMAGES)
broken = st.builds(damaged, images, st.integers(0, 1 << 16), st.integers(0, 255))
schemathesis.openapi.media_type("image/*", st.one_of(images, broken, st.binary(max_size=64)))


@schemathesis.hook
def before_call(context, case, kwargs):
    order = case.path.rsplit("/", 1)[-1]
    if case.method.upper() != "POST":
        return
    if case.meta.generation.mode.is_positive:
        if isinstance(case.body, (dict, list)):
            case.body = whole(case.body)
        if order == "infer" and case.path.startswith("/v2/"):
            add_up(case)
    if order in ORDERS:
        # Every third order is followed as a stream, by what it says, so that a seed always sends the same.
        streams = chance(case) % 3 == 0
        if streams:
            case.headers = {**(case.headers or {}), "Accept": "text/event-stream"}
        end_waits(case, order, streams)


seen = collections.Counter()


@schemathesis.hook
def after_call(context, case, response):
    seen[f"{case.operation.label} {response.status_code}"] += 1


@atexit.register
def tell_seen():
    """How often which route was answered how, for whoever started this."""
    if path := os.environ.get("FUZZ_SEEN"):
        pathlib.Path(path).write_text(json.dumps(seen, sort_keys=True, indent=1))


def chance(case):
    return zlib.crc32(json.dumps([case.path_parameters, case.body], default=repr, sort_keys=True).encode())


def whole(value):
    """To JSON Schema 7.0 is an integer; here an integer is written as one."""
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def end_waits(case, order, streams):
    """A request that waits for what only another request brings about never ends, as it should be: a stage that waits
    for its switch, the stream of one that waits for nothing (it tells all there is), and the end of a window of hours.
    They become ones that wait for the gate alone, and a window that passes."""
    body = case.body
    if not isinstance(body, dict):
        return
    wait, observe = body.get("wait"), body.get("observe")
    if order == "stage" and wait in (("switched", "settled", "none") if streams else ("switched", "settled")):
        case.body = {**body, "wait": "ready"}
    elif wait == "settled" and (observe is None or isinstance(observe, str)):
        case.body = {**body, "observe": "50ms"}
    if isinstance(body.get("canary"), list) and body["canary"]:
        # Steps of a minute, or of requests that nobody sends.
        case.body = {**case.body, "canary_step": "5ms", "canary_requests": None}


def add_up(case):
    """Tensors by chance almost never have as many elements as their shape says, and no model would ever be asked. Two
    of three are made to; the rest stay as they are. Bytes alone become the one element of the only input."""
    body = case.body
    tensors = body.get("inputs") if isinstance(body, dict) else None
    if chance(case) % 3 == 0:
        return
    image = IMAGES[chance(case) % len(IMAGES)]
    model = str(case.path_parameters.get("model", "")).split("@")[0]
    if case.media_type == "application/octet-stream":
        case.headers = {**(case.headers or {}), JSON_BYTES: "0"}
        case.body = image if model == "digits" else b"a text"
    if not isinstance(tensors, list) or not tensors:
        return
    names = {"order": ["query", "text"], "digits": ["image"]}.get(model, ["text"])
    given = {"tiny": ["embedding"], "order": ["score"]}.get(model, ["label", "score"])
    image = base64.b64encode(image).decode()
    texts = [str(value) for tensor in tensors for value in tensor.get("data") or []] or [""]
    data = [image] if names == ["image"] else texts
    tensor = {"shape": [len(data)], "datatype": "BYTES", "data": data}
    case.body = {**body, "inputs": [{"name": name, **tensor} for name in names]}
    if isinstance(body.get("outputs"), list):
        case.body["outputs"] = [{**wanted, "name": name} for wanted, name in zip(body["outputs"], given)]
    if isinstance(body.get("parameters"), dict) and chance(case) % 2 == 0:
        case.body["parameters"] = {**body["parameters"], "binary_data_output": True}
    case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != JSON_BYTES}
