"""Asks a server for text through the official `openai` package, as its users do.

    chat_client.py URL MODEL
"""

import sys

import openai
from openai import OpenAI

url, model = sys.argv[1:3]
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
greedy = {"temperature": 0, "seed": 7}


def check(name, passed, seen=""):
    assert passed, f"{name}: {seen}"
    print(f"{name} passed")


whole = client.chat.completions.create(model=model, messages=question, max_tokens=24, **greedy)
choice = whole.choices[0]
check("an answer has a role, text and a reason", choice.message.role == "assistant" and choice.message.content
      and choice.finish_reason in ("stop", "length"), whole)
check("tokens are counted", whole.usage.completion_tokens > 0
      and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
check("the fingerprint names the version", whole.system_fingerprint.startswith(f"{model}@"), whole.system_fingerprint)

raw = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=2, **greedy)
check("the headers name the version", f"{model}@{raw.headers['x-cutover-version']}" == whole.system_fingerprint)

stream = client.chat.completions.create(model=model, messages=question, max_tokens=24, stream=True,
                                        stream_options={"include_usage": True}, **greedy)
chunks = list(stream)
first, last = chunks[0], chunks[-1]
check("a stream begins with the role", first.choices[0].delta.role == "assistant", first)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check("a stream is the same text", text == choice.message.content, (text, choice.message.content))
ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
check("only its last chunk has a reason", ends[-1] == choice.finish_reason and not any(ends[:-1]), ends)
check("usage comes last", not last.choices and last.usage == whole.usage, last)
check("chunks share an id", len({chunk.id for chunk in chunks}) == 1)

again = client.chat.completions.create(model=model, messages=question, max_tokens=24, temperature=1.0, seed=5, n=3)
same = client.chat.completions.create(model=model, messages=question, max_tokens=24, temperature=1.0, seed=5, n=3)
texts = [[choice.message.content for choice in answer.choices] for answer in (again, same)]
check("a seed gives the same answers, each its own", texts[0] == texts[1] and len(set(texts[0])) > 1, texts)
check("answers are numbered", [choice.index for choice in again.choices] == [0, 1, 2])

told = client.chat.completions.create(model=model, messages=question, max_tokens=4, logprobs=True, top_logprobs=3, **greedy)
tokens = told.choices[0].logprobs.content
spelled = b"".join(bytes(token.bytes) for token in tokens).decode()
check("logprobs spell the answer", spelled.startswith(told.choices[0].message.content), (spelled, told))
check("the likeliest is first", all(len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0
                                    for token in tokens), tokens)

prompt = "The capital of France is"
completion = client.completions.create(model=model, prompt=prompt, max_tokens=8, **greedy)
check("a completion continues", completion.choices[0].text.strip().startswith("Paris"), completion)
pieces = client.completions.create(model=model, prompt=prompt, max_tokens=8, stream=True, **greedy)
check("its stream is the same text", "".join(piece.choices[0].text for piece in pieces) == completion.choices[0].text)
stopped = client.completions.create(model=model, prompt=prompt, max_tokens=8, stop=["aris"], **greedy)
check("a stop string ends the text before it", stopped.choices[0].text == completion.choices[0].text.split("aris")[0]
      and stopped.choices[0].finish_reason == "stop", stopped)


def refused(name, status, **asked):
    try:
        client.chat.completions.create(**{"model": model, "messages": question, "max_tokens": 2, **asked})
    except openai.APIStatusError as error:
        check(name, error.status_code == status and error.body["message"], error)
    else:
        check(name, False, "it was answered")


refused("no messages", 400, messages=[])
refused("too hot", 400, temperature=2.5)
refused("too many penalties", 400, presence_penalty=-3)
refused("an answer of no tokens", 400, max_tokens=0)
refused("a context that is too long", 400, max_tokens=1_000_000)
refused("a role that is no word", 400, messages=[{"role": "no role", "content": "a"}])
refused("a picture", 400, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}])
refused("a model that is not there", 404, model="nothing")
print("all passed")
