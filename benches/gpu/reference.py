"""PyTorch's side of a comparison: the same models, weights and batches by transformers in bf16 with scaled dot-product attention.

A pass is what the server's is: inputs go up from pinned memory, the model runs, rows come down. Texts are padded to the longest of
their batch; where all are as long, no mask is given, so that the fastest attention may be taken. On the processor in a
rehearsal. It must not know what the server does. Packages: torch, transformers.
"""

import statistics
import time

import torch
import transformers
from transformers.utils import logging

logging.set_verbosity_error()  # that there is no pooler
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FEWEST = 3


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def pinned(tensor):
    return tensor.pin_memory() if DEVICE == "cuda" else tensor


class Encoder:
    """With mean pooling and rows of length one."""

    def __init__(self, folder):
        load = transformers.BertModel.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16, attn_implementation="sdpa", add_pooling_layer=False).to(DEVICE).eval()

    def batch(self, lengths):
        random = torch.Generator().manual_seed(1)
        longest, vocabulary = max(lengths), self.model.config.vocab_size
        ids = torch.randint(5, vocabulary, (len(lengths), longest), generator=random)
        mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        equal = len(set(lengths)) == 1
        return pinned(ids * mask), None if equal else pinned(mask.long())

    def __call__(self, batch):
        ids, mask = (part if part is None else part.to(DEVICE, non_blocking=True) for part in batch)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if mask is None:
            mean = hidden.float().mean(1)
        else:
            wide = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * wide).sum(1).float() / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1)


class Classifier:
    """Of images that are prepared already."""

    def __init__(self, folder):
        load = transformers.ViTForImageClassification.from_pretrained
        self.model = load(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE).eval()

    def batch(self, count):
        side = self.model.config.image_size
        return pinned(torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1)

    def __call__(self, pixels):
        return self.model(pixel_values=pixels.to(DEVICE, non_blocking=True).to(torch.bfloat16)).logits.float()


@torch.inference_mode()
def latency_ms(model, batch, seconds):
    """Milliseconds from numbers in the process to rows in the process, in the middle."""
    for _ in range(FEWEST):
        model(batch).cpu()
    took, began = [], time.perf_counter()
    while len(took) < FEWEST or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        model(batch).cpu()
        took.append((time.perf_counter() - start) * 1e3)
    return statistics.median(took)


@torch.inference_mode()
def passes_per_s(model, batch, seconds, each_ms):
    """With as many passes queued as PyTorch takes, and their rows copied down while later ones run."""
    rows = pinned(torch.empty_like(model(batch), device="cpu"))
    count = max(FEWEST, int(seconds * 1e3 / each_ms))
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        rows.copy_(model(batch), non_blocking=True)
    synchronize()
    return count / (time.perf_counter() - began)


@torch.inference_mode()
def matrix_peak(side):
    """Operations a second of a square bf16 product of cuBLAS, of random numbers; in the middle of ten after three."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    took = []
    for _ in range(13):
        synchronize()
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronize()
        took.append((time.perf_counter() - began) / 4)
    return 2 * side**3 / statistics.median(took[3:])
