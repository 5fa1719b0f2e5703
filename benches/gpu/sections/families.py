"""Every family and task in f32, f16 and bf16 against transformers (sentence-transformers for embeddings) on the same GPU, with
random weights of the base models' sizes.

What is right is what transformers gives for the same weights in f32 with eager attention and without TF32. The server is held
to the tolerances below; how far off transformers itself is in the same format is told beside it.

Packages: torch, transformers, sentence-transformers, pillow.
"""

import base64
import io
import os
import subprocess
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers as hf
from families import CLASSIFY, EMBED, FORMATS, IMAGES, RERANK, all_of
from PIL import Image
from sentence_transformers import SentenceTransformer
from server import Server, model_folder
from told import Section
from transformers.utils import logging

# The least cosine of any output, and the largest difference as a part of the largest value; or twice as far as transformers itself
# is off in that format, where that is more.
TOLERANCES = {"f32": (0.99999, 1e-4), "f16": (0.9999, 1e-2), "bf16": (0.999, 5e-2)}
QUERY = "which of them repaired the broken engine"


def texts(section):
    """From a few words to more than a model takes."""
    command = [section.bundle / "bin/cutover", "bench", "texts", "--corpus", str(section.of(15, 5))]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [*made, " ".join(made * 3)]


def pictures(size, count):
    """Of a model's own size, so that nothing is resized: waves and a little noise."""
    y, x = np.mgrid[0:size, 0:size]
    for number in range(count):
        random = np.random.default_rng(number)
        planes = [120 + 90 * np.sin(a * x + b * y) for a, b in random.uniform(0.02, 0.4, (3, 2))]
        noisy = np.stack(planes, -1) + random.integers(-20, 20, (size, size, 3))
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Cases:
    """What a model is asked, as the server and as transformers take it."""

    def __init__(self, section, made):
        self.made, self.device = made, section.of("cuda", "cpu")
        if made.task == IMAGES:
            self.inputs = list(pictures(made.config.image_size, section.of(8, 2)))
        else:
            self.inputs = texts(section)

    def for_server(self):
        task = self.made.task
        if task == IMAGES:
            return [{"image": png(pixels)} for pixels in self.inputs]
        return [[QUERY, text] for text in self.inputs] if task == RERANK else self.inputs

    @torch.inference_mode()
    def by_transformers(self, folder, format, attention):
        """A row for each input, alone in its batch."""
        options = {"dtype": FORMATS[format], "attn_implementation": attention}
        if self.made.task == EMBED:
            model = SentenceTransformer(str(folder), device=self.device, model_kwargs=options, local_files_only=True)
            rows = [model.encode([text], convert_to_tensor=True, show_progress_bar=False)[0] for text in self.inputs]
        else:
            model = self.made.kind.from_pretrained(folder, **options).to(self.device).eval()
            rows = [model(**packed).logits[0] for packed in self.packed(folder, FORMATS[format])]
        return [row.float().cpu().numpy() for row in rows]

    def packed(self, folder, dtype):
        if self.made.task == IMAGES:
            for pixels in self.inputs:
                scaled = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
                yield {"pixel_values": scaled.to(self.device, dtype)}
            return
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        for text in self.inputs:
            pair = (QUERY, text) if self.made.task == RERANK else (text,)
            yield tokenizer(*pair, truncation=True, return_tensors="pt").to(self.device)

    def by_server(self, server, name):
        """The same rows, all inputs in one request."""
        body = {"inputs": self.for_server()}
        if self.made.task != EMBED:
            body["parameters"] = {"raw_scores": True}
        outputs = server.post(f"/models/{name}/infer", body)["outputs"]
        return [np.array(self.row(output), np.float32) for output in outputs]

    def row(self, output):
        if self.made.task in (CLASSIFY, IMAGES):
            scores = {entry["label"]: entry["score"] for entry in output["labels"]}
            labels = self.made.config.id2label
            return [scores[labels[i]] for i in range(len(labels))]
        return output["embedding"] if self.made.task == EMBED else [output["score"]]


def apart(rows, right, task):
    """The least cosine and the largest difference. Of a few logits as of one row: of a single one near zero nothing can be said."""
    if task != EMBED:
        rows, right = [np.concatenate(rows)], [np.concatenate(right)]
    cosine = min(float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in zip(rows, right, strict=True))
    return cosine, max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(rows, right, strict=True))


def judge(section, server, made, format, folder):
    cases = Cases(section, made)
    name = f"{made.name}-{format}"
    right = cases.by_transformers(folder, "f32", "eager")
    cosine, off = apart(cases.by_server(server, name), right, made.task)
    least, most = TOLERANCES[format]
    if format != "f32":
        theirs, their_off = apart(cases.by_transformers(folder, format, "sdpa"), right, made.task)
        section.figure(f"{name}: transformers in {format}, cosine", round(theirs, 7))
        section.figure(f"{name}: transformers in {format}, largest difference", their_off)
        # Where transformers itself is off by that much, the weights are to blame.
        least, most = min(least, 1 - 2 * (1 - theirs)), max(most, 2 * their_off)
    section.at_least(f"{name}: cosine", round(cosine, 7), round(least, 7))
    section.at_most(f"{name}: largest difference", off, round(most, 5))


def main():
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    section = Section("families")
    torch.backends.cuda.matmul.allow_tf32 = False
    models, folders = section.work / "models", {}
    for seed, made in enumerate(all_of(section)):
        for format in FORMATS:
            folder = section.work / "made" / f"{made.name}-{format}"
            if not folder.exists():
                made.save(folder, format, seed, section.of("cuda", "cpu"))
            model_folder(models, folder.name, f'task = "{made.task}"\nlive = "a"\n', {"a": folder})
            folders[folder.name] = (made, format, folder)
    if not section.fake:
        torch.cuda.empty_cache()
    with Server(section, models) as server:
        section.figure("models served at once", len(folders))
        section.figure("bytes of them reserved", server.memory()["reserved"] / 1e9, "GB")
        for made, format, folder in folders.values():
            with section.part(folder.name):
                judge(section, server, made, format, folder)
    section.end()


main()
