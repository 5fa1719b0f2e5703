"""transformers' side of `sections/decode.py`: the same weights in bf16, greedily, with scaled dot-product attention and a static cache,
as they are and compiled.

The loop is this file's: a step for all texts, whose tokens stay on the device until all are written. What a prompt takes is left
out of the rate. On the processor in a rehearsal. Packages: torch, transformers.
"""

import statistics
import time

import torch
import transformers
from reference import DEVICE, synchronize

PROMPT = 120
MOST = 64  # texts at once
ROUNDS = 3
FIRST = 2  # compiled and recorded before the clock runs


class Writer:
    def __init__(self, folder):
        load = transformers.LlamaForCausalLM.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE).eval()
        random = torch.Generator().manual_seed(1)
        self.prompts = torch.randint(256, self.model.config.vocab_size - 1, (MOST, PROMPT), generator=random).to(DEVICE)
        self.cache = None

    @torch.inference_mode()
    def seconds(self, step, count, written):
        """Of so many steps after a prompt and the first ones."""
        prompt, cache = self.prompts[:count], self.cache
        cache.reset()
        places = torch.arange(PROMPT, device=DEVICE)
        logits = self.model(prompt, past_key_values=cache, cache_position=places, use_cache=True, logits_to_keep=1).logits
        token, place = logits[:, -1].argmax(-1, keepdim=True), places[-1:] + 1
        for number in range(FIRST + written):
            if number == FIRST:
                synchronize()
                began = time.perf_counter()
            # A graph's own output is overwritten by the next step.
            token = step(token, cache, place).clone()
            place = place + 1
        synchronize()
        return time.perf_counter() - began

    def step(self, token, cache, place):
        out = self.model(token, past_key_values=cache, cache_position=place, use_cache=True)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def rate(self, step, count, written):
        # One cache for all rounds: what is compiled knows where it lies.
        self.cache = transformers.StaticCache(config=self.model.config, max_cache_len=PROMPT + FIRST + written + 1)
        self.seconds(step, count, written)
        return count * written / statistics.median(self.seconds(step, count, written) for _ in range(ROUNDS))

    def tokens_per_s(self, count, written):
        return self.rate(self.step, count, written)

    def compiled_tokens_per_s(self, count, written):
        """The first step compiles, which takes its time; those after it are recorded as a graph and run again."""
        step = torch.compile(self.step, mode="reduce-overhead", fullgraph=True, dynamic=False)
        return self.rate(step, count, written)
