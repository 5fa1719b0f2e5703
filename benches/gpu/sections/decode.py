"""A model of Llama 8B's shape in bf16 that writes: tokens a second of one text and of 64 at once, with CUDA graphs and without,
against what reading the weights takes and against transformers with a static cache, compiled; and the time to the first token
after a prompt of 1,000, against its products.

Clients are those of `cutover bench chat`: whole answers, streamed, prompts included. transformers comes last and is told what it
can; where it does not compile, that is said. Packages: numpy, torch, transformers.
"""

import http.client
import json
import random
import statistics
import time
import urllib.parse

import floors
import writers
from server import Server, model_folder
from told import Section

PROMPT = 1000
FIRSTS = 20
CLIENTS = 64
WITHOUT_GRAPHS = "[device]\ngraphs = false\n"


def answers(server, section, clients, how=""):
    """Tokens a second of so many clients that each read one answer after another."""
    pace = section.of(("--duration", "15s", "--warmup", "3s"), ("--duration", "1s", "--warmup", "0s"))
    told = server.bench(
        "chat", "--model", "llama", "--clients", clients, "--max-tokens", section.of(512, 8), "--ignore-eos",
        "--prompt-words", 20, *pace,
    )  # fmt: skip
    what = f"{clients} at once{how}"
    section.same(f"{what}: answers that failed", sum(told["answers"]["failures"].values()), 0)
    section.figure(f"{what}: from token to token, in the middle", told["between_tokens"]["steady"]["p50_ms"], "ms")
    section.figure(f"{what}: from token to token, p99", told["between_tokens"]["steady"]["p99_ms"], "ms")
    section.figure(what, told["tokens_per_second"], "tokens/s")
    return told["tokens_per_second"]


def first_token_ms(server, size, number, count):
    """From the request to the first event of a stream, for a prompt that no other began like."""
    drawn = random.Random(number)
    prompt = [drawn.randrange(256, size["vocabulary"] - 1) for _ in range(count)]
    order = {"model": "llama", "prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc, timeout=60)
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(order), {"content-type": "application/json"})
    reply = connection.getresponse()
    line = reply.readline()
    took = (time.perf_counter() - began) * 1e3
    if reply.status != 200 or not line.startswith(b"data:"):
        raise RuntimeError(f"/v1/completions: {reply.status} {line}")
    reply.read()
    connection.close()
    return took


def ours(section, size, bandwidth, peak):
    models = section.work / "models"
    model_folder(models, "llama", writers.toml(section), {"a": writers.version(section, "a", 5)})
    with Server(section, models) as server:
        count = section.of(CLIENTS, 4)
        one, many = answers(server, section, 1), answers(server, section, count)
        floor = bandwidth * 1e9 / (2 * writers.values(size))
        section.figure("one at once: what the weights' bytes would allow", floor, "tokens/s")
        section.timing("one at once, of that", one / floor * 100, 80.0, "%", most=False)
        section.timing(f"{count} at once over one", many / one, 10.0, "times", most=False)
        count = section.of(PROMPT, 40)
        took = [first_token_ms(server, size, number, count) for number in range(section.of(FIRSTS, 3))]
        middle = statistics.median(took[len(took) // 4 :])
        section.figure(f"the first token after {count}", middle, "ms")
        if peak:
            least = writers.operations(size, count) / peak * 1e3
            section.figure(f"what the products of {count} would allow", least, "ms")
            section.timing(f"the first token after {count}, of that", middle / least, 1.3, "times")
    without_graphs(section, models, (one, many))
    return one, many


def without_graphs(section, models, rates):
    """What it is worth that steps of one token for each text are recorded: the same, kernel by kernel."""
    with Server(section, models, WITHOUT_GRAPHS) as server:
        for count, rate in zip((1, section.of(CLIENTS, 4)), rates):
            slower = answers(server, section, count, ", without graphs")
            section.figure(f"{count} at once: with graphs over without", rate / slower, "times")


def against(section, rates):
    """Theirs after ours: the GPU is free again."""
    import reference_writer

    theirs, written = reference_writer.Writer(writers.version(section, "a", 5)), section.of(256, 4)
    for count, rate in zip((1, section.of(CLIENTS, 4)), rates):
        with section.part(f"transformers, {count} at once"):
            best = theirs.tokens_per_s(count, written)
            section.figure(f"{count} at once: transformers, static cache", best, "tokens/s")
            try:
                compiled = theirs.compiled_tokens_per_s(count, written)
                section.figure(f"{count} at once: transformers, static cache and torch.compile", compiled, "tokens/s")
                best = max(best, compiled)
            except Exception as error:  # that it does not work here, and why, is a finding
                section.figure(f"{count} at once: torch.compile does not work", f"{type(error).__name__}: {error}"[:300])
            section.timing(f"{count} at once: ours over the best of transformers", rate / best, 1.0, "times", most=False)


def main():
    section = Section("decode")
    size, torch, peak = writers.size_of(section), section.torch(), None
    if torch:
        import reference

        peak = reference.matrix_peak(section.of(8192, 64))
        section.figure("a bf16 product of cuBLAS, 8,192 each way", peak / 1e12, "TFLOP/s")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    bandwidth = floors.on_device(section)
    began = time.monotonic()
    writers.version(section, "a", 5)
    section.figure("writing the model", time.monotonic() - began, "s")
    rates = ours(section, size, bandwidth, peak)
    if torch:
        with section.part("transformers"):
            against(section, rates)
    section.end()


main()
