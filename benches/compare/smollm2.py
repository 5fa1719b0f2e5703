"""SmolLM2-135M over HTTP against llama.cpp itself (llama.py), on the same GGUF files and as many threads.

Q4_1 is the file that is fetched; llama.cpp makes Q8_0 and Q4_0 of it. In each round llama.cpp runs alone, then the server
does, each the same tokens: a prompt of 512 that nobody has seen, answered with one token; one stream of a prompt of 32
tokens and so many written; eight such at once. llama.cpp's times are those of its own interface, the server's are whole
requests to /v1/completions, sent from Python. Greedily, and without stopping. Medians of the rounds' ratios.
"""

import argparse
import ctypes
import http.client
import json
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import llama_cpp
from llama import SILENT, STREAMS, Llama
from server import Server

PROMPT = 512
SHORT = 32
# What the issue that brought language models asks for, of llama.cpp's tokens a second.
LINES = {"q4_1": {"prompt": 0.8, 1: 0.8, 8: 1.2}, "q8_0": {"prompt": 0.6, 1: 0.6, 8: 0.6}, "q4_0": {"prompt": 0.6, 1: 0.6, 8: 0.6}}
MADE = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def files(models: Path, work: Path) -> dict[str, Path]:
    """A version folder for each format, below a model's own."""
    (source,) = (models / "smollm2" / "q4_1").glob("*.gguf")
    found = {"q4_1": source}
    for name, kind in MADE.items():
        found[name] = work / f"{name}.gguf"
        if not found[name].exists():
            work.mkdir(parents=True, exist_ok=True)
            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.ftype, parameters.allow_requantize, parameters.nthread = kind, True, 2
            part = work / f"{name}.part"
            if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(parameters)):
                raise SystemExit(f"llama.cpp could not make {name} of {source}")
            part.rename(found[name])
    return found


def repository(work: Path, name: str, file: Path) -> Path:
    """A repository with one version of one model."""
    root = work / f"models-{name}"
    version = root / "smollm2" / name
    version.mkdir(parents=True, exist_ok=True)
    (root / "smollm2" / "model.toml").write_text(f'task = "generate"\nlive = "{name}"\n')
    if not (version / "model.gguf").exists():
        (version / "model.gguf").symlink_to(file.resolve())
    return root


def tokens_of(count: int, number: int) -> list[int]:
    """A prompt that begins as no other does."""
    return [1000 + number] + [1000 + (number * 101 + i * 37) % 5000 for i in range(1, count)]


class Theirs:
    def __init__(self, file: Path):
        self.llama = Llama(str(file))

    def run(self, prompts: list[list[int]], written: int) -> float:
        """Seconds for all of them."""
        self.llama.forget()
        began = time.perf_counter()
        last = []
        for stream, prompt in enumerate(prompts):
            last += self.llama.step([(token, i, stream, i + 1 == len(prompt)) for i, token in enumerate(prompt)])
        for i in range(written - 1):
            last = self.llama.step([(token, len(prompts[0]) + i, stream, True) for stream, token in enumerate(last)])
        return time.perf_counter() - began


class Ours:
    def __init__(self, url: str):
        self.address = urlsplit(url).netloc

    def one(self, prompt: list[int], written: int) -> None:
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": written, "temperature": 0, "ignore_eos": True}
        connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200 or told["usage"]["completion_tokens"] != written:
            raise SystemExit(f"the server answered {answer.status}: {told}")
        connection.close()

    def run(self, prompts: list[list[int]], written: int) -> float:
        began = time.perf_counter()
        asked = [threading.Thread(target=self.one, args=(prompt, written)) for prompt in prompts]
        for thread in asked:
            thread.start()
        for thread in asked:
            thread.join()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    print(f"tokens a second, medians of {args.rounds} rounds: the prompt's {PROMPT}, else {args.tokens} written by each stream after {SHORT}")
    for name, file in files(args.models, args.work).items():
        server = Server(args.binary, str(repository(args.work, name, file)), "smollm2")
        sides = {"llama.cpp": Theirs(file), "server": Ours(server.url)}
        rates, number = {}, 0
        for turn in range(args.rounds + 1):
            for what in ["prompt", *STREAMS]:
                streams = 1 if what == "prompt" else what
                size, written = (PROMPT, 1) if what == "prompt" else (SHORT, args.tokens)
                number += streams
                prompts = [tokens_of(size, number + stream) for stream in range(streams)]
                for side, runs in sides.items():
                    rate = (size if what == "prompt" else streams * written) / runs.run(prompts, written)
                    # The first turn warms both.
                    if turn:
                        rates.setdefault((what, side), []).append(rate)
        server.stop()
        for what, line in LINES[name].items():
            theirs, ours = rates[what, "llama.cpp"], rates[what, "server"]
            ratio = statistics.median(mine / other for mine, other in zip(ours, theirs))
            told = what if what == "prompt" else f"{what} streams"
            verdict = "holds" if ratio >= line else "DOES NOT HOLD"
            print(
                f"{name}  {told:<10} llama.cpp {statistics.median(theirs):7.1f}  server {statistics.median(ours):7.1f}"
                f"  {ratio:.2f} of it (line {line}: {verdict})",
                flush=True,
            )


if __name__ == "__main__":
    main()
