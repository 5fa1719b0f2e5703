"""A ViT-base classifier in bf16 with 32 images a request, decoding and resizing included: the server over HTTP, with as many
requests at once as it likes, against PyTorch with the images decoded and resized by Pillow on as many threads as it likes, ahead of
its passes. The images are JPEGs as cameras make them, of half a megapixel; in a rehearsal the bundled digits.

Packages: numpy, pillow, torch, transformers.
"""

import collections
import concurrent.futures
import io
import os
import time

import bare
import numpy as np
import weights
from server import Server, failures
from told import Section

IMAGES, BATCH = 128, 32
CLIENTS = (1, 4, 8, 16)
THREADS = (4, 8, 16)
CONFIG = "[device]\nbatch_tokens = 16384\n"
SECONDS = 6


def photographs(section):
    """A folder of JPEGs: smooth large shapes with fine noise, so that they decode as photographs do."""
    if section.fake:
        return section.bundle / "models/digits/samples"
    from PIL import Image

    folder, random = section.work / "images", np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((800, 600), Image.Resampling.BICUBIC)
        fine = random.normal(0, 6, (600, 800, 3))
        pixels = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg", quality=88)
    return folder


def served(section, folder, images):
    models, best = bare.repository(section, "vit", weights.LARGE_IMAGES, folder), 0.0
    batch = section.of(BATCH, 2)
    with Server(section, models, config=CONFIG) as server:
        for clients in section.of(CLIENTS, (2,)):
            told = server.bench(
                "serve", "--model", "vit", "--clients", clients, "--batch", batch, "--images", images,
                "--corpus", section.of(IMAGES // BATCH, 2),
                "--duration", section.of(f"{SECONDS}s", "200ms"), "--warmup", section.of("2s", "0s"),
            )  # fmt: skip
            level = told["levels"][0]
            rate = level["throughput"] * batch
            named = f"server, {clients} clients of {batch}"
            section.figure(named, rate, "images/s")
            section.figure(f"{named}: p50", level["latency"]["p50_ms"], "ms")
            section.same(f"{named}: requests that failed", failures(level)[1], 0)
            best = max(best, rate)
    return best


class Reference:
    """Batches that threads prepare ahead of the passes."""

    def __init__(self, section, folder, images):
        import reference
        import torch
        from transformers import AutoImageProcessor

        self.torch, self.reference, self.device = torch, reference, reference.DEVICE
        self.model = reference.Classifier(folder).model
        self.side = self.model.config.image_size
        self.processor = AutoImageProcessor.from_pretrained(folder)
        files = sorted(path for path in images.iterdir() if path.suffix in (".jpg", ".png"))
        self.files = [path.read_bytes() for path in files]
        self.batch = section.of(BATCH, 2)

    def by_hand(self, file):
        """The least that can be done on the processor: the rest of it is done on the GPU, a batch at a time."""
        from PIL import Image

        image = Image.open(io.BytesIO(file)).convert("RGB")
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BILINEAR))

    def by_processor(self, file):
        from PIL import Image

        image = Image.open(io.BytesIO(file)).convert("RGB")
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0].numpy()

    def upload(self, prepared):
        batch = self.reference.pinned(self.torch.from_numpy(np.stack(prepared))).to(self.device, non_blocking=True)
        if batch.dtype == self.torch.uint8:
            batch = (batch.permute(0, 3, 1, 2).to(self.torch.float32) / 255 - 0.5) / 0.5
        return batch.to(self.torch.bfloat16)

    def rate(self, prepare, threads, seconds):
        """Images a second from files in memory to logits in memory."""
        with self.torch.inference_mode(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
            numbers = (number % len(self.files) for number in range(1 << 60))
            begin = lambda: [pool.submit(prepare, self.files[next(numbers)]) for _ in range(self.batch)]
            ahead = collections.deque(begin() for _ in range(1 + 2 * threads // self.batch + 1))
            done, since, before, began = 0, None, None, time.perf_counter()
            while done == 0 or time.perf_counter() - since < seconds:
                prepared = [future.result() for future in ahead.popleft()]
                ahead.append(begin())
                logits = self.model(pixel_values=self.upload(prepared)).logits.float()
                # The rows of the batch before: this one runs meanwhile.
                if before is not None:
                    before.cpu()
                    if since is not None:
                        done += self.batch
                    elif time.perf_counter() - began >= 0.2 * seconds:
                        since = time.perf_counter()
                before = logits
            took = time.perf_counter() - since
            for future in (future for batch in ahead for future in batch):
                future.cancel()
            return done / took


def by_pytorch(section, folder, images):
    reference, best = Reference(section, folder, images), 0.0
    seconds = section.of(SECONDS, 0.05)
    for threads in section.of([t for t in THREADS if t <= (os.cpu_count() or 1)] or [1], (2,)):
        for named, prepare in (("Pillow, and the GPU for the rest", reference.by_hand), ("its processor", reference.by_processor)):
            rate = reference.rate(prepare, threads, seconds)
            section.figure(f"PyTorch, {named}, {threads} threads", rate, "images/s")
            best = max(best, rate)
    return best


def main():
    section = Section("images")
    folder, _ = weights.figured(section, "vit-base")
    images = photographs(section)
    best = served(section, folder, images)
    if section.torch():
        with section.part("PyTorch"):
            other = by_pytorch(section, folder, images)
            section.timing("the server's best over PyTorch's best", best / other, 1.2, "times", most=False)
    section.end()


main()
