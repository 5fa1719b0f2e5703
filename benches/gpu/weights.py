"""Random BERT encoders and ViT classifiers in Hugging Face's layout, of any size, written as fast as the disk takes them.

For sections where only size and speed count; `sections/families.py` has models that are compared with others' answers. Values
come from one block of random numbers, from another place of it for each tensor and seed, so that no two tensors are the
same bytes. Packages: numpy.
"""

import json
import math
import os
import pathlib
import shutil
import zlib

import numpy as np

BLOCK = 1 << 24  # values
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
NAMES = {"f32": ("F32", "float32"), "f16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}
# What makes a tensor the factors of a norm, which lie round one.
NORMS = ("layernorm.weight", "layernorm_before.weight", "layernorm_after.weight", "model.norm.weight")
# What the fixtures' tokenizer needs; that of the bundle's real models has 30,522.
SMALL_VOCABULARY, VOCABULARY = 240, 30522


def tensors(size):
    """Name and shape of everything that an encoder without a head has."""
    hidden, inner = size["hidden"], size["inner"]
    yield "embeddings.word_embeddings.weight", (size["vocabulary"], hidden)
    yield "embeddings.position_embeddings.weight", (size["positions"], hidden)
    yield "embeddings.token_type_embeddings.weight", (2, hidden)
    yield from norm("embeddings.LayerNorm", hidden)
    for layer in range(size["layers"]):
        under = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            yield from linear(f"{under}attention.self.{name}", hidden, hidden)
        yield from linear(f"{under}attention.output.dense", hidden, hidden)
        yield from norm(f"{under}attention.output.LayerNorm", hidden)
        yield from linear(f"{under}intermediate.dense", inner, hidden)
        yield from linear(f"{under}output.dense", hidden, inner)
        yield from norm(f"{under}output.LayerNorm", hidden)


def image_tensors(size):
    """The same of a ViT with its classifier."""
    hidden, inner, patch = size["hidden"], size["inner"], size["patch"]
    yield "vit.embeddings.cls_token", (1, 1, hidden)
    yield "vit.embeddings.position_embeddings", (1, (size["side"] // patch) ** 2 + 1, hidden)
    yield "vit.embeddings.patch_embeddings.projection.weight", (hidden, 3, patch, patch)
    yield "vit.embeddings.patch_embeddings.projection.bias", (hidden,)
    for layer in range(size["layers"]):
        under = f"vit.encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            yield from linear(f"{under}attention.attention.{name}", hidden, hidden)
        yield from linear(f"{under}attention.output.dense", hidden, hidden)
        yield from norm(f"{under}layernorm_before", hidden)
        yield from linear(f"{under}intermediate.dense", inner, hidden)
        yield from linear(f"{under}output.dense", hidden, inner)
        yield from norm(f"{under}layernorm_after", hidden)
    yield from norm("vit.layernorm", hidden)
    yield from linear("classifier", size["labels"], hidden)


def linear(name, out, into):
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def stored(values, format):
    if format == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"f32": np.float32, "f16": np.float16}[format], copy=False)


def header_of(listed, format):
    told, at = {}, 0
    for name, shape in listed:
        end = at + math.prod(shape) * BYTES[format]
        told[name] = {"dtype": NAMES[format][0], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


def write_weights(path, listed, format, seed):
    listed = list(listed)
    head, _ = header_of(listed, format)
    random = np.random.default_rng(20)
    block = random.standard_normal(min(BLOCK, max(math.prod(shape) for _, shape in listed) + 8192), np.float32)
    with open(path, "wb") as file:
        file.write(head)
        for name, shape in listed:
            count, fan_in = math.prod(shape), shape[-1]
            begin = zlib.crc32(f"{seed} {name}".encode()) % len(block)
            scale = 1.3 / math.sqrt(fan_in) if len(shape) == 2 and "embedding" not in name else 0.1
            # Each time round, other bytes: two tensors of the same size never have the same.
            while count > 0:
                part = block[begin : begin + min(count, len(block) - begin)] * np.float32(scale)
                part += np.float32(1.0 if name.lower().endswith(NORMS) else 0.0)
                file.write(memoryview(stored(part, format)).cast("B"))
                count, begin, scale = count - len(part), 0, scale * 1.01
    return path


def size_bytes(size, format):
    return sum(math.prod(shape) * BYTES[format] for _, shape in tensors(size))


def encoder(folder, tokenizer, size, format, seed, hollow=False):
    """A version folder that embeds (mean, normalised); `hollow`: with a hole instead of weights, for what is never read."""
    fresh = pathlib.Path(folder).with_name(f".{pathlib.Path(folder).name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "layer_norm_eps": 1e-12, "max_position_embeddings": size["positions"],
        "num_attention_heads": size["heads"], "num_hidden_layers": size["layers"], "pad_token_id": 0,
        "position_embedding_type": "absolute", "dtype": NAMES[format][1], "type_vocab_size": 2, "vocab_size": size["vocabulary"],
    }
    (fresh / "config.json").write_text(json.dumps(config))
    embeds(fresh, tokenizer, size["hidden"], size["positions"])
    if hollow:
        head, length = header_of(list(tensors(size)), format)
        with open(fresh / "model.safetensors", "wb") as file:
            file.write(head)
            file.truncate(len(head) + length)
    else:
        write_weights(fresh / "model.safetensors", tensors(size), format, seed)
    fresh.rename(folder)
    return folder


def image_classifier(folder, size, format, seed):
    """A version folder that says what an image shows, resized as the real ones do."""
    fresh = pathlib.Path(folder).with_name(f".{pathlib.Path(folder).name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    labels = {str(i): f"shape {i}" for i in range(size["labels"])}
    config = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_act": "gelu", "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
        "image_size": size["side"], "patch_size": size["patch"], "num_channels": 3, "qkv_bias": True, "layer_norm_eps": 1e-12,
        "dtype": NAMES[format][1], "id2label": labels, "label2id": {label: int(i) for i, label in labels.items()},
    }  # fmt: skip
    (fresh / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 2}
    processor |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_processor_type": "ViTImageProcessor"}
    processor["size"] = {"height": size["side"], "width": size["side"]}
    (fresh / "preprocessor_config.json").write_text(json.dumps(processor))
    write_weights(fresh / "model.safetensors", image_tensors(size), format, seed)
    fresh.rename(folder)
    return folder


def embeds(folder, tokenizer, hidden, longest, pooling="mean", typed=True):
    """What makes an encoder a sentence-transformers model: its tokenizer, its pooling and the list of its modules."""
    copy_tokenizer(tokenizer, folder, longest, typed)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    how = {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": hidden, **how}))
    (folder / "2_Normalize").mkdir()


def copy_tokenizer(source, folder, longest, typed=True):
    """With the length of this model instead of that which it came from, and told to be taken as tokenizer.json has it: releases of
    transformers differ in what their own classes make of it. `typed`: the model takes token types."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["truncation"] = tokenizer["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((source / "tokenizer_config.json").read_text())
    takes = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    config |= {"model_max_length": longest, "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": takes}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tokenizer_of(section):
    """The real one of BERT, or in a rehearsal that of the fixtures; and the size of its vocabulary."""
    if section.fake:
        return section.bundle / "tests/fixtures/bert-embed-mean", SMALL_VOCABULARY
    return section.bundle / "tokenizers/bert", VOCABULARY


def shape(section, hidden, heads, inner, layers, positions=512):
    """A size: as told, or in a rehearsal as small as they get."""
    _, vocabulary = tokenizer_of(section)
    if section.fake:
        return dict(hidden=32, heads=1, inner=64, layers=2, positions=64, vocabulary=vocabulary)
    return dict(hidden=hidden, heads=heads, inner=inner, layers=layers, positions=positions, vocabulary=vocabulary)


# Width, heads, width between and blocks of the models that figures are told of.
TEXT_SIZES = {"bert-base": (768, 12, 3072, 12), "minilm": (384, 12, 1536, 6)}


def figured(section, name):
    """A version of a base model's size in bf16, made once for all sections of a run, and its size."""
    folder = section.shared / "figures" / name
    if name == "vit-base":
        size = dict(hidden=768, heads=12, inner=3072, layers=12, side=224, patch=16, labels=1000)
        if section.fake:
            size = dict(hidden=32, heads=1, inner=64, layers=2, side=32, patch=8, labels=12)
        make = lambda: image_classifier(folder, size, "bf16", 5)
    else:
        size = shape(section, *TEXT_SIZES[name])
        make = lambda: encoder(folder, tokenizer_of(section)[0], size, "bf16", 5)
    if not folder.exists():
        make()
    return folder, size


def large(section):
    """Two versions of several GB that have no byte in common; made once for all sections of a run, and the bytes of each."""
    size = shape(section, 4096, 32, 16384, 10)
    folders = {}
    for seed, version in enumerate(("a", "b")):
        folders[version] = section.shared / "large" / version
        if not folders[version].exists():
            encoder(folders[version], tokenizer_of(section)[0], size, "bf16", seed)
            # Or the disk is still written to while the ledger waits for it.
            os.sync()
    return folders, size_bytes(size, "bf16")


# For models whose answers nobody judges: nothing is held against another version's speed or digits.
LARGE = """
task = "embed"
live = "a"
[gate]
max_latency_ratio = 1000.0
latency_rounds = 4
invariance_max_abs = 0.05
[observe]
window = "10m"
golden_every = "10m"
max_p99_ratio = 1000.0
"""
# For saturation: every client's inputs may wait.
LARGE_CROWD = LARGE + "[limits]\nqueue = 8192\n"
LARGE_IMAGES = LARGE_CROWD.replace('"embed"', '"image-classify"')
