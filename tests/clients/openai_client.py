"""The real `openai` package against a running Cutover.

    pip install -r requirements.txt
    python openai_client.py http://127.0.0.1:8080 minilm

BASE_URL with or without /v1; MODEL is one that embeds. Prints one line a check and ends with 1 at the first that fails.
"""

import math
import sys

import openai

TEXTS = ["The cat sleeps on the windowsill.", "A kitten naps by the window.", "Interest rates were raised."]


def check(name, good, seen=""):
    print(f"{'ok  ' if good else 'FAIL'} {name}" + (f": {seen}" if seen != "" and not good else ""), flush=True)
    if not good:
        raise SystemExit(1)


def length(vector):
    return math.sqrt(sum(v * v for v in vector))


def near(a, b, by=1e-4):
    return len(a) == len(b) and all(abs(x - y) <= by for x, y in zip(a, b))


def fails(name, kind, status, code, call):
    """The call raises exactly this exception, with this status and a body that says so."""
    try:
        call()
    except openai.APIStatusError as error:
        check(f"{name} raises {kind.__name__}", type(error) is kind, repr(error))
        check(f"{name} is {status}", error.status_code == status, error.status_code)
        body = error.body if isinstance(error.body, dict) else {}
        check(f"{name} has a message", bool(body.get("message")), error.body)
        check(f"{name} has a type", bool(error.type), error.body)
        if code is not None:
            check(f"{name} has code {code}", error.code == code, error.body)
    else:
        check(f"{name} raises {kind.__name__}", False, "it was answered")


def main():
    if len(sys.argv) != 3:
        raise SystemExit("usage: python openai_client.py BASE_URL MODEL")
    base, model = sys.argv[1].rstrip("/"), sys.argv[2]
    base = base if base.endswith("/v1") else base + "/v1"
    client = openai.OpenAI(base_url=base, api_key="not-needed", max_retries=0, timeout=60)
    create = client.embeddings.create

    listed = list(client.models.list())
    check("models.list names the model", any(m.id == model for m in listed), [m.id for m in listed])
    check("models.list gives model objects", all(m.object == "model" and m.created > 1_700_000_000 and m.owned_by for m in listed))
    check("models.retrieve", client.models.retrieve(model).id == model)

    one = create(model=model, input=TEXTS[0])
    vector = one.data[0].embedding
    check("a string gives one embedding", one.object == "list" and len(one.data) == 1 and one.data[0].index == 0)
    check("it is of floats", len(vector) > 1 and all(isinstance(v, float) and math.isfinite(v) for v in vector))
    check("the answer names the model", one.model.split("@")[0] == model.split("@")[0], one.model)
    check("usage counts tokens", one.usage.prompt_tokens > 0 and one.usage.total_tokens == one.usage.prompt_tokens, one.usage)

    many = create(model=model, input=TEXTS)
    check("a list gives as many, in order", [d.index for d in many.data] == [0, 1, 2], [d.index for d in many.data])
    check("the first of a list is as alone", near(many.data[0].embedding, vector))
    check("others are others", not near(many.data[1].embedding, many.data[2].embedding, 1e-2))
    check("usage grows with the list", many.usage.prompt_tokens > one.usage.prompt_tokens, many.usage)

    ids = create(model=model, input=[101, 7592, 2088, 102])
    check("a list of token ids is one input", len(ids.data) == 1 and len(ids.data[0].embedding) == len(vector))
    lists = create(model=model, input=[[101, 7592, 2088, 102], [101, 4937, 102]])
    check("a list of lists of token ids is several", len(lists.data) == 2)
    check("with the same embedding as alone", near(lists.data[0].embedding, ids.data[0].embedding))

    floats = create(model=model, input=TEXTS[0], encoding_format="float").data[0].embedding
    check("encoding_format float equals the default, base64", near(floats, vector, 1e-6))
    coded = create(model=model, input=TEXTS[0], encoding_format="base64").data[0].embedding
    check("encoding_format base64 is a string of 4 bytes a number", isinstance(coded, str) and len(coded) == 4 * -(-4 * len(vector) // 3))

    fewer = len(vector) // 2
    short = create(model=model, input=TEXTS[0], dimensions=fewer).data[0].embedding
    check("dimensions cuts", len(short) == fewer, len(short))
    check("and normalises again", abs(length(short) - 1) < 1e-3, length(short))
    check("the beginning of the whole", near(short, [v / length(vector[:fewer]) for v in vector[:fewer]]))

    fails("too many dimensions", openai.BadRequestError, 400, None, lambda: create(model=model, input="x", dimensions=10**6))
    fails("an unknown model", openai.NotFoundError, 404, "model_not_found", lambda: create(model="no-such-model", input="x"))
    fails("an unknown model in models.retrieve", openai.NotFoundError, 404, "model_not_found", lambda: client.models.retrieve("no-such-model"))
    fails("an empty list", openai.BadRequestError, 400, None, lambda: create(model=model, input=[]))
    fails("an empty string", openai.BadRequestError, 400, None, lambda: create(model=model, input=""))

    raw = client.embeddings.with_raw_response.create(model=model, input=TEXTS[0])
    for header in ("x-cutover-model", "x-cutover-version", "x-cutover-generation", "x-request-id"):
        check(f"header {header}", bool(raw.headers.get(header)), dict(raw.headers))
    check("the body under the headers is the same", near(raw.parse().data[0].embedding, vector))
    print("all passed")


main()
