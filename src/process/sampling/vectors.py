"""Write vectors.json beside this file: what transformers' logits processors leave of seeded logits.

    pip install torch==2.8.0 transformers==4.57.1
    python vectors.py

Every case is logits, the tokens before them (prompt and answer), the options, and the probabilities that are left when the
processors have run in the order in which `generate` runs them. A case whose cut falls on a rounding error is left out:
there a token more or less is nobody's fault. Seeded: running this again writes the same file.
"""

import json
from pathlib import Path

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

CASES, VOCABULARY = 240, 48


def processors(case, shift=0.0):
    chain = LogitsProcessorList()
    if "bias" in case:
        chain.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in case["bias"]}))
    if "repetition_penalty" in case:
        chain.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "temperature" in case:
        chain.append(TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        chain.append(TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        chain.append(TopPLogitsWarper(min(case["top_p"] + shift, 1.0)))
    if "min_p" in case:
        chain.append(MinPLogitsWarper(min(case["min_p"] + shift, 1.0)))
    return chain


def probabilities(case, shift=0.0):
    before = torch.tensor([case["prompt"] + case["answer"]], dtype=torch.long)
    logits = torch.tensor([case["logits"]], dtype=torch.float32)
    return processors(case, shift)(before, logits).softmax(-1)[0]


def rounded(value, digits):
    return float(f"{value:.{digits}g}")


def make(generator):
    def pick(low, high):
        return rounded(low + (high - low) * torch.rand((), generator=generator).item(), 4)

    def chance(share):
        return torch.rand((), generator=generator).item() < share

    def tokens(count):
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    spread = pick(0.5, 4.0)
    logits = [rounded(x, 6) for x in (torch.randn(VOCABULARY, generator=generator) * spread).tolist()]
    if chance(0.3):
        # equals, which a top k must not part
        for token in tokens(12):
            logits[token] = logits[0]
    case = {"logits": logits, "prompt": tokens(6), "answer": tokens(4)}
    if chance(0.4):
        case["bias"] = [[token, pick(-8, 8)] for token in sorted(set(tokens(3)))]
    if chance(0.5):
        case["repetition_penalty"] = pick(0.5, 2.0)
    if chance(0.8):
        case["temperature"] = pick(0.2, 2.0)
    if chance(0.5):
        case["top_k"] = int(pick(1, VOCABULARY))
    if chance(0.5):
        case["top_p"] = pick(0.05, 0.99)
    if chance(0.4):
        case["min_p"] = pick(0.01, 0.5)
    return case


def main():
    generator = torch.Generator().manual_seed(20)
    cases = []
    while len(cases) < CASES:
        case = make(generator)
        left = [probabilities(case, shift) for shift in (0.0, -1e-5, 1e-5)]
        # equals at the edge of a top p are told apart by the sort, which promises nothing
        edge = left[0][left[0] > 0].min()
        scores = processors({k: v for k, v in case.items() if k not in ("top_k", "top_p", "min_p")})(
            torch.tensor([case["prompt"] + case["answer"]]), torch.tensor([case["logits"]])
        )[0]
        smallest = scores[left[0] > 0].min()
        parted = bool(((scores == smallest) & (left[0] == 0)).any())
        same = all(torch.equal(left[0] > 0, other > 0) for other in left[1:])
        if same and not parted and edge > 0:
            case["probabilities"] = [rounded(p, 7) for p in left[0].tolist()]
            cases.append(case)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    Path(__file__).with_name("vectors.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
