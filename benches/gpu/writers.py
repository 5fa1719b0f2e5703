"""Models that write, of a Llama's shape with random weights, in Hugging Face's layout; and what a step of one must move and compute.

The tokenizer spells every id, so that each token that is written is seen: letters are one token each, all other ids are words that
no text is cut into. Packages: numpy.
"""

import json
import pathlib
import shutil

import counts
import weights

SMALL = dict(hidden=64, inner=128, layers=2, heads=4, kv_heads=2, of_head=16, vocabulary=512)
CONTEXT = 8192
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# Nothing is held against another version's speed or text, and a window ends when it is told to.
RULES = """
task = "generate"
live = "a"
[generate]
cache_tokens = {cache}
[gate]
max_latency_ratio = 1000.0
latency_rounds = 4
[observe]
window = "10m"
golden_every = "10m"
max_p99_ratio = 1000.0
"""


def toml(section):
    """Room for 64 texts of 1,024 tokens."""
    return RULES.format(cache=section.of(1 << 16, 1 << 13))


def size_of(section):
    return section.of(counts.LLAMA_8B, SMALL)


def tensors(size):
    """Name and shape of everything that it has; the head is a weight of its own."""
    hidden, inner, of_head = size["hidden"], size["inner"], size["of_head"]
    q, kv = size["heads"] * of_head, size["kv_heads"] * of_head
    yield "model.embed_tokens.weight", (size["vocabulary"], hidden)
    for layer in range(size["layers"]):
        under = f"model.layers.{layer}."
        yield f"{under}input_layernorm.weight", (hidden,)
        for name, shape in (("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)), ("o", (hidden, q))):
            yield f"{under}self_attn.{name}_proj.weight", shape
        yield f"{under}post_attention_layernorm.weight", (hidden,)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{under}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (size["vocabulary"], hidden)


def values(size):
    """Of all weights that a step reads whole: of the embedding table it takes rows."""
    told = {name: shape[0] * (shape[1] if len(shape) == 2 else 1) for name, shape in tensors(size)}
    return sum(told.values()) - told["model.embed_tokens.weight"]


def operations(size, tokens):
    """Of a prompt of so many tokens, after the last of which one is chosen: two for each multiplication."""
    head = size["vocabulary"] * size["hidden"]
    linear = tokens * (values(size) - head) + head
    attention = size["layers"] * 2 * size["heads"] * size["of_head"] * tokens * (tokens + 1) // 2
    return 2 * (linear + attention)


def letters():
    """The characters by which a byte-level tokenizer writes bytes: those that can be printed for themselves, others from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printed] + [chr(256 + at) for at in range(256 - len(printed))]


def tokenizer(vocabulary):
    spelled = letters()
    spelled += [f"Ġword{number}" for number in range(vocabulary - len(spelled) - 1)]
    entries = {token: number for number, token in enumerate(spelled)}
    end = {"id": vocabulary - 1, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end | {"normalized": False, "special": True}],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": model | {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": entries, "merges": []},
    }  # fmt: skip


def version(section, name, seed):
    """A version folder in bf16, made once for all sections of a run."""
    folder, size = section.shared / "writers" / name, size_of(section)
    if folder.exists():
        return folder
    fresh = pathlib.Path(folder).with_name(f".{name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"], "head_dim": size["of_head"], "vocab_size": size["vocabulary"],
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "dtype": "bfloat16", "bos_token_id": None,
        "eos_token_id": size["vocabulary"] - 1,
    }  # fmt: skip
    (fresh / "config.json").write_text(json.dumps(config))
    (fresh / "tokenizer.json").write_text(json.dumps(tokenizer(size["vocabulary"])))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": TEMPLATE}
    (fresh / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": CONTEXT}))
    weights.write_weights(fresh / "model.safetensors", tensors(size), "bf16", seed)
    fresh.rename(folder)
    return folder
