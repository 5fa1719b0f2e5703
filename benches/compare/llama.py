"""How fast llama.cpp itself runs a GGUF file on this machine: what our server's figures are held against.

Prompts of 128 and 512 tokens, one stream, and eight streams in steps together, on two threads, greedily and without
stopping. The lower-level interface of llama-cpp-python is llama.cpp's own: nothing of Python stands in the measured
loops but the choice of the largest logit, which takes some microseconds of numpy. Medians of the rounds.

    python llama.py FILE.gguf [--rounds 5] [--tokens 128]
"""

import argparse
import ctypes
import statistics
import time

import llama_cpp
import numpy

THREADS = 2
PROMPTS = [128, 512]
STREAMS = [1, 8]
CONTEXT = 1024
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


class Llama:
    """A model, and a context that has a place for every stream."""

    def __init__(self, path: str):
        llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = CONTEXT * max(STREAMS)
        parameters.n_batch = parameters.n_ubatch = max(PROMPTS)
        parameters.n_seq_max = max(STREAMS)
        parameters.n_threads = parameters.n_threads_batch = THREADS
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.batch = llama_cpp.llama_batch_init(max(PROMPTS), 0, 1)

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def step(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows of token, position, stream, and whether its successor is asked for; the likeliest successors."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, stream, asked) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, position, asked
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, stream
        if llama_cpp.llama_decode(self.context, self.batch):
            raise SystemExit("llama.cpp could not run a step")
        return [self.likeliest(i) for i, row in enumerate(rows) if row[3]]

    def likeliest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(numpy.argmax(numpy.ctypeslib.as_array(logits, (self.vocabulary,))))

    def prompt(self, tokens: int) -> float:
        """Tokens a second."""
        self.forget()
        rows = [(1000 + i * 37 % 5000, i, 0, i + 1 == tokens) for i in range(tokens)]
        began = time.perf_counter()
        self.step(rows)
        return tokens / (time.perf_counter() - began)

    def streams(self, count: int, tokens: int) -> float:
        """Tokens a second of all together, each after a prompt of 32 of its own."""
        self.forget()
        last = []
        for stream in range(count):
            last += self.step([(1000 + stream * 101 + i * 37 % 5000, i, stream, i == 31) for i in range(32)])
        began = time.perf_counter()
        for i in range(tokens):
            last = self.step([(token, 32 + i, stream, True) for stream, token in enumerate(last)])
        return count * tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    llama = Llama(args.file)
    llama.prompt(PROMPTS[0])
    figures = {}
    for _ in range(args.rounds):
        for tokens in PROMPTS:
            figures.setdefault(f"prompt of {tokens} tokens", []).append(llama.prompt(tokens))
        for count in STREAMS:
            figures.setdefault(f"{count} streams", []).append(llama.streams(count, args.tokens))
    for name, rates in figures.items():
        print(f"{name:<22} {statistics.median(rates):7.1f} tokens/s  ({min(rates):.1f} to {max(rates):.1f})")


if __name__ == "__main__":
    main()
