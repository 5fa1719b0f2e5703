"""Texts a second of an encoder of BERT-base's size in bf16 over HTTP, by clients and inputs of a request, beside PyTorch's own bf16
with scaled dot-product attention on the same texts, weights and GPU; and what CUDA graphs are worth to it. Packages: numpy, torch,
transformers.
"""

import subprocess
import time

import torch
import transformers
import weights
from server import Server, failures, model_folder
from told import Section
from transformers.utils import logging

TEXTS = 512
# Clients, and inputs of a request.
LEVELS = ((1, 1), (8, 1), (32, 1), (128, 1), (8, 16), (16, 32))
BATCHES = (1, 8, 32, 128)
# Those again where every kernel is launched by itself.
WITHOUT_GRAPHS = ((1, 1), (8, 1))
# The server's default suits a CPU.
CONFIG = "[device]\nbatch_tokens = 16384\n"
SECONDS = 8


def served(section, models, config, levels, name):
    best = 0.0
    with Server(section, models, config=config) as server:
        for clients, batch in levels:
            told = server.bench(
                "serve", "--model", "base", "--clients", clients, "--batch", batch, "--corpus", section.of(TEXTS, 8),
                "--duration", f"{section.of(SECONDS, 1)}s", "--warmup", section.of("2s", "0s"),
            )  # fmt: skip
            level = told["levels"][0]
            rate = level["throughput"] * batch
            named = f"{name}, {clients} clients, {batch} a request"
            section.figure(named, rate, "texts/s")
            for quantile in ("p50", "p99"):
                section.figure(f"{named}: {quantile}", level["latency"][f"{quantile}_ms"], "ms")
            section.same(f"{named}: requests that failed", failures(level)[1], 0)
            best = max(best, rate)
    return best


class Reference:
    """The same encoder by PyTorch, with mean pooling, and the texts that the server was asked."""

    def __init__(self, section, folder):
        self.device = section.of("cuda", "cpu")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        load = transformers.AutoModel.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(self.device).eval()
        command = [section.bundle / "bin/cutover", "bench", "texts", "--corpus", str(section.of(TEXTS, 8))]
        texts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        # Those of like length together, so that padding costs as little as it can.
        self.texts = sorted(texts, key=lambda text: len(self.tokenizer(text)["input_ids"]))

    def tokens(self, texts):
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)

    @torch.inference_mode()
    def forward(self, packed):
        hidden = self.model(**packed).last_hidden_state
        mask = packed["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def rates(self, size):
        """Texts a second in batches of a size: of the forward passes alone, and from text to numbers in the process."""
        parts = [self.texts[i : i + size] for i in range(0, len(self.texts), size)]
        packed = [self.tokens(part) for part in parts]
        for batch in packed:
            self.forward(batch)  # every shape once
        alone = self.timed(lambda: [self.forward(batch) for batch in packed])
        whole = self.timed(lambda: [self.forward(self.tokens(part)).float().cpu() for part in parts])
        return len(self.texts) / alone, len(self.texts) / whole

    def timed(self, work):
        """Seconds, the best of three."""
        took = []
        for _ in range(3):
            began = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        return min(took)


def main():
    section = Section("throughput")
    logging.set_verbosity_error()  # that there is no pooler
    size = weights.shape(section, 768, 12, 3072, 12)
    folder = section.work / "base"
    if not folder.exists():
        weights.encoder(folder, weights.tokenizer_of(section)[0], size, "bf16", 7)
    models = section.work / "models"
    model_folder(models, "base", weights.LARGE, {"a": folder})
    best = served(section, models, CONFIG, section.of(LEVELS, ((1, 1), (2, 2))), "server")
    served(section, models, CONFIG + "graphs = false\n", section.of(WITHOUT_GRAPHS, ((1, 1),)), "server without graphs")
    reference = Reference(section, folder)
    forward, whole = 0.0, 0.0
    for size in section.of(BATCHES, (1, 4)):
        alone, with_text = reference.rates(size)
        section.figure(f"PyTorch, batches of {size}, forward passes alone", alone, "texts/s")
        section.figure(f"PyTorch, batches of {size}, from text to numbers", with_text, "texts/s")
        forward, whole = max(forward, alone), max(whole, with_text)
    section.figure("the server's best over PyTorch's best, forward passes alone", best / forward)
    section.figure("the server's best over PyTorch's best, from text to numbers", best / whole)
    section.end()


main()
