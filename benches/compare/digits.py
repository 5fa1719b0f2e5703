"""`POST /models/digits@v2/infer`, one image a request, against transformers on the same images.

Each round times transformers (torch with scaled dot product attention) at every batch size on the same PNG files, decoded
and prepared by its own image processor; then the server with 32 clients, which does the same. The server is held against the
batch size that was transformers' best over all rounds. The labels are held against the server's first.
"""

import io
import json
import statistics
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from server import THREADS, Server, arguments
from transformers import ViTForImageClassification, ViTImageProcessor

BATCHES = [1, 4, 8, 16, 32, 64, 128]
CLIENTS = 32
REPEATED = 64


def once(classify, files: list[bytes], size: int) -> float:
    """Images a second, from PNG files to labels."""
    began = time.perf_counter()
    for at in range(0, len(files), size):
        classify(files[at : at + size])
    return len(files) / (time.perf_counter() - began)


def classifier(version: Path):
    processor = ViTImageProcessor.from_pretrained(version)
    model = ViTForImageClassification.from_pretrained(version, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def classify(files: list[bytes]) -> list[str]:
        images = [Image.open(io.BytesIO(file)).convert("L") for file in files]
        # A grey image has no axis of channels there unless it is given one.
        arrays = [np.asarray(image)[None] for image in images]
        pixels = processor(arrays, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        logits = model(pixels).logits.softmax(-1)
        return [model.config.id2label[int(at)] for at in logits.argmax(-1)]

    return classify


def label(server: Server, file: bytes) -> str:
    request = urllib.request.Request(f"{server.url}/models/digits@v2/infer", file, {"content-type": "image/png"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["outputs"][0]["labels"][0]["label"]


def main() -> None:
    args = arguments(seconds=5)
    torch.set_num_threads(THREADS)
    samples = sorted((Path(args.models) / "digits" / "samples").glob("*.png"))
    own = [sample.read_bytes() for sample in samples]
    files = own * REPEATED
    classify = classifier(Path(args.models) / "digits" / "v2")
    server = Server(args.binary, args.models, "digits")
    promote = urllib.request.Request(f"{server.url}/models/digits@v2/promote", b'{"observe": "1s", "wait": "settled"}')
    with urllib.request.urlopen(promote):
        pass
    theirs, ours = classify(own), [label(server, file) for file in own]
    if theirs != ours:
        raise SystemExit(f"transformers says {theirs}, the server {ours}: nothing to compare")
    rates = {size: [] for size in BATCHES}
    served = []
    for number in range(args.rounds):
        for size in BATCHES:
            classify(files[:size])
            rates[size].append(once(classify, files, size))
        served.append(server.asked(CLIENTS, args.seconds)["throughput"])
        told = " ".join(f"{rates[size][-1]:.0f}" for size in BATCHES)
        print(f"round {number}: transformers {told}, server {served[-1]:.0f}", flush=True)
    server.stop()
    for size in BATCHES:
        print(f"transformers, batches of {size:3}: {statistics.median(rates[size]):7.0f} images/s")
    best = max(BATCHES, key=lambda size: statistics.median(rates[size]))
    ratio = statistics.median(rate / other for rate, other in zip(served, rates[best]))
    print(f"server, {CLIENTS} clients: {statistics.median(served):7.0f} images/s, {ratio:.2f} of transformers' best (batches of {best})")


if __name__ == "__main__":
    main()
