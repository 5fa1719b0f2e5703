#!/usr/bin/env python3
"""Writes fuzz/seeds: what each target begins with. Needs nothing but Python, but for JPEGs (Pillow)."""

import base64
import io
import json
import math
import pathlib
import shutil
import struct

FUZZ = pathlib.Path(__file__).parent
ROOT = FUZZ.parent
SEEDS = FUZZ / "seeds"
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U8": 1, "BOOL": 1}


def save(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def archive(files):
    """Files as `src/fuzzing/files.rs` reads them."""
    text = lambda body: body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return b"\n".join(b"-- %s --\n%s" % (name.encode(), text(body)) for name, body in files.items())


def header(tensors, metadata=None):
    """A safetensors header, and how many bytes it speaks of."""
    at, entries = 0, {"__metadata__": metadata} if metadata else {}
    for name, (dtype, shape) in tensors.items():
        end = at + SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    return json.dumps(entries, separators=(",", ":")), at


def weights(name, tensors, **more):
    text, size = header(tensors, **more)
    return {f"{name} +{size}": text}


# --- versions of a few hundred bytes ---

HIDDEN, WORDS, POSITIONS = 4, 8, 8


def linear(name, to, of=HIDDEN):
    return {f"{name}.weight": ("F32", [to, of]), f"{name}.bias": ("F32", [to])}


def norm(name):
    return {f"{name}.weight": ("F32", [HIDDEN]), f"{name}.bias": ("F32", [HIDDEN])}


def block(at, names):
    q, k, v, out, first, up, down, second = (f"{at}.{name}" for name in names)
    parts = [linear(x, HIDDEN) for x in (q, k, v, out, up, down)] + [norm(first), norm(second)]
    return {name: tensor for part in parts for name, tensor in part.items()}


BERT_NAMES = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
              "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]
DISTIL_NAMES = ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
                "ffn.lin1", "ffn.lin2", "output_layer_norm"]
VIT_NAMES = ["attention.attention.query", "attention.attention.key", "attention.attention.value",
             "attention.output.dense", "layernorm_before", "intermediate.dense", "output.dense", "layernorm_after"]


def bert(prefix="", types=2):
    tables = {f"{prefix}embeddings.word_embeddings.weight": ("F32", [WORDS, HIDDEN]),
              f"{prefix}embeddings.position_embeddings.weight": ("F32", [POSITIONS, HIDDEN])}
    if types:
        tables[f"{prefix}embeddings.token_type_embeddings.weight"] = ("F32", [types, HIDDEN])
    return tables | norm(f"{prefix}embeddings.LayerNorm") | block(f"{prefix}encoder.layer.0", BERT_NAMES)


def config(**more):
    return {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": HIDDEN,
            "hidden_act": "gelu", "vocab_size": WORDS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12} | more


MODEL_TOML = """task = "embed"
family = "bert"
live = "v1"
description = "small"
limits = { max_inputs = 3, max_tokens = 77, max_text_bytes = 600, max_body_bytes = 9, queue = 5, deadline = "1s", max_image_pixels = 80 }
[gate]
min_pass = 0.9
max_latency_ratio = 3
latency_rounds = 2
case_timeout = "2s"
invariance_max_abs = 0.5
probation_timeout = "3s"
[observe]
window = "1h30m"
min_requests = 1
max_error_rate = 0
max_nonfinite = 4
max_p99_ratio = 9.5
golden_every = "250ms"
drain_timeout = "0s"
[batch]
max_tokens = 10
max_items = 11
max_wait = "2ms"
[rollout]
mode = "replace"
load_timeout = "4s"
"""

CUTOVER_TOML = """[server]
models = "models"
state = "state"
listen = "127.0.0.1:8080"
admin_listen = "[::1]:8081"
tls_cert = "chain.pem"
tls_key = "key.pem"
api_key_files = ["a", "b"]
max_body_bytes = 1000
read_timeout = "30s"
drain_timeout = "1m30s"
[limits]
max_connections = 100
keep_alive = "75s"
write_timeout = "30s"
handshake_timeout = "10s"
[device]
device = "cpu"
threads = 2
memory = 1000000
batch_tokens = 512
stall_after = "30s"
[log]
format = "json"
filter = "info"
[ledger]
keep_rollouts = 10
keep_events = 100
[tei]
model = "minilm"
[[faults]]
version = "digits@v2"
kind = "delay"
at = "gate"
rate = 0.5
delay = "5ms"
"""


def modules(*kinds):
    names = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    return [{"idx": i, "name": str(i), "path": names[kind], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)]


def write_config():
    embed = {
        "model.toml": 'task = "embed"',
        "config.json": config(model_type="bert"),
        "modules.json": modules("Transformer", "Pooling", "Dense", "Normalize"),
        "1_Pooling/config.json": {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True,
                                  "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False},
        "2_Dense/config.json": {"in_features": HIDDEN, "out_features": 3, "bias": True,
                                "activation_function": "torch.nn.modules.activation.Tanh"},
        **weights("2_Dense/model.safetensors", linear("linear", 3)),
        "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"query": ""}, "default_prompt_name": "query"},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None,
                                  "model_max_length": 512, "truncation_side": "right"},
        **weights("model.safetensors", bert()),
    }
    save("config", "embed", archive(embed))
    save("config", "plain-embed", archive({
        "model.toml": MODEL_TOML, "config.json": config(model_type="bert"),
        **weights("model.safetensors", bert("bert."), metadata={"format": "pt"})}))
    head = linear("bert.pooler.dense", HIDDEN) | linear("classifier", 3)
    save("config", "classify", archive({
        "model.toml": 'task = "classify"',
        "config.json": config(model_type="bert", id2label={"0": "a", "1": "b", "2": "c"}, num_labels=3,
                              problem_type="multi_label_classification"),
        **weights("model.safetensors", bert("bert.") | head)}))
    roberta = bert("roberta.", types=1) | linear("classifier.dense", HIDDEN) | linear("classifier.out_proj", 1)
    save("config", "rerank", archive({
        "model.toml": 'task = "rerank"',
        "config.json": config(model_type="xlm-roberta", type_vocab_size=1, pad_token_id=1, num_labels=1,
                              sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}),
        **weights("model.safetensors", roberta)}))
    tables = {"distilbert.embeddings.word_embeddings.weight": ("F32", [WORDS, HIDDEN]),
              "distilbert.embeddings.position_embeddings.weight": ("F32", [POSITIONS, HIDDEN])}
    distil = tables | norm("distilbert.embeddings.LayerNorm") | block("distilbert.transformer.layer.0", DISTIL_NAMES)
    distil |= linear("pre_classifier", HIDDEN) | linear("classifier", 2)
    save("config", "distilbert", archive({
        "model.toml": 'task = "classify"',
        "config.json": {"model_type": "distilbert", "dim": HIDDEN, "n_layers": 1, "n_heads": 2, "hidden_dim": HIDDEN,
                        "activation": "gelu", "vocab_size": WORDS, "max_position_embeddings": POSITIONS},
        **weights("model.safetensors", distil)}))
    vit = {"vit.embeddings.cls_token": ("F32", [1, 1, HIDDEN]),
           "vit.embeddings.patch_embeddings.projection.bias": ("F32", [HIDDEN]),
           "vit.embeddings.patch_embeddings.projection.weight": ("F32", [HIDDEN, 1, 2, 2]),
           "vit.embeddings.position_embeddings": ("F32", [1, 5, HIDDEN])}
    vit |= block("vit.encoder.layer.0", VIT_NAMES) | norm("vit.layernorm") | linear("classifier", 2)
    save("config", "vit", archive({
        "model.toml": 'task = "image-classify"',
        "config.json": config(model_type="vit", image_size=[4, 5], patch_size=2, num_channels=1, qkv_bias=True,
                              num_labels=2),
        "preprocessor_config.json": {"do_resize": True, "size": {"height": 4, "width": 5}, "resample": 3,
                                     "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
                                     "do_normalize": True, "image_mean": [0.5], "image_std": 0.5,
                                     "image_processor_type": "ViTImageProcessor", "data_format": "channels_first"},
        **weights("model.safetensors", vit)}))
    save("config", "server", archive({"cutover.toml": CUTOVER_TOML}))


def write_safetensors():
    some = {"weight": ("F32", [2, 3]), "half": ("F16", [4]), "brain": ("BF16", [2, 1, 2]), "ids": ("I64", [1, 2]),
            "mask": ("BOOL", [3]), "empty": ("F32", [0, 7]), "scalar": ("F32", [])}
    save("safetensors", "single", archive(weights("model.safetensors", some, metadata={"format": "pt"})))
    text, _ = header({"a": ("F32", [2]), "b": ("F64", [1])})
    values = b"\0\0\x80\x3f\0\0\x7f\x7f" + b"\0\0\0\0\0\0\xf0\x3f"
    save("safetensors", "bytes", archive({"model.safetensors": len(text).to_bytes(8, "little") + text.encode() + values}))
    shards = {"x-1.safetensors": {"one": ("F32", [2, 2])}, "x-2.safetensors": {"two": ("F16", [17, 3])}}
    index = {"metadata": {"total_size": 118},
             "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    files = {"model.safetensors.index.json": index}
    for shard, tensors in shards.items():
        files |= weights(shard, tensors)
    save("safetensors", "shards", archive(files))
    dense = weights("2_Dense/model.safetensors", {"linear.weight": ("F32", [1])})
    inside = weights("a/b.safetensors", {"one": ("F32", [1])})
    save("safetensors", "folders", archive(
        {"model.safetensors.index.json": {"weight_map": {"one": "a/b.safetensors"}}} | inside | dense))


def gguf(pairs, tensors, version=3):
    """A GGUF file: values by their Python type, or (type, bytes); tensors as (row first shape, format, bytes)."""
    word = lambda number, size=4: number.to_bytes(size, "little")
    text = lambda value: word(len(value.encode()), 8) + value.encode()
    def value(given):
        if isinstance(given, bool):
            return word(7) + bytes([given])
        if isinstance(given, int):
            return word(4) + word(given)
        if isinstance(given, float):
            return word(6) + struct.pack("<f", given)
        if isinstance(given, str):
            return word(8) + text(given)
        kind, items = (8, map(text, given)) if isinstance(given[0], str) else (
            (6, (struct.pack("<f", x) for x in given)) if isinstance(given[0], float) else (5, map(word, given)))
        return word(9) + word(kind) + word(len(given), 8) + b"".join(items)
    padded = lambda data: data + bytes(-len(data) % 32)
    out = b"GGUF" + word(version) + word(len(tensors), 8) + word(len(pairs), 8)
    out += b"".join(text(key) + value(given) for key, given in pairs.items())
    data = b""
    for name, (shape, kind, content) in tensors.items():
        out += text(name) + word(len(shape)) + b"".join(word(size, 8) for size in shape) + word(kind) + word(len(data), 8)
        data = padded(data + content)
    return padded(out) + data


def write_gguf():
    sizes = {"context_length": 16, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
             "attention.head_count": 2, "attention.head_count_kv": 1}
    def about(architecture):
        return {"general.architecture": architecture} | {f"{architecture}.{key}": size for key, size in sizes.items()} | {
            f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5, f"{architecture}.rope.freq_base": 1e4}
    words = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581", "<x>"]
    kinds = [2, 3, 3, 1, 1, 1, 1, 4]
    vocabulary = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": 1,
                  "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.chat_template": "{{ x }}"}
    bytes_, pieces = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": ["a b"]}, {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -3.0, 0.0]}
    ones, floats = struct.pack("<e", 1.0), lambda count: struct.pack("<f", 0.5) * count
    table = {"token_embd.weight": ([32, 8], 8, (ones + bytes(range(32))) * 8), "output_norm.weight": ([32], 0, floats(32))}
    quants = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 12: (256, 144), 14: (256, 210), 30: (1, 2)}
    save("gguf", "bytes", gguf(about("llama") | bytes_ | vocabulary, table))
    save("gguf", "pieces", gguf(about("qwen3") | pieces | vocabulary, table, version=2))
    save("gguf", "turned", gguf(about("llama"), table | {
        "blk.0.attn_q.weight": ([32, 8], 2, (ones + bytes(range(16))) * 8), "blk.0.attn_k.weight": ([2, 4], 0, floats(8)),
        "blk.0.attn_q.bias": ([8], 0, floats(8))}))
    save("gguf", "formats", gguf({"general.architecture": "qwen2", "general.alignment": 32}, {
        f"blk.{kind}.ffn_up.weight": ([values], kind, (ones * size)[:size]) for kind, (values, size) in quants.items()}))
    save("gguf", "scaled", gguf(about("llama") | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, table))
    save("gguf", "factors", gguf(about("llama"), table | {"rope_freqs.weight": ([8], 0, floats(8))}))


def write_golden():
    def lines(*cases):
        return "".join(json.dumps(case) + "\n" for case in cases)
    save("golden", "numbers", lines(
        {"id": "a", "input": "x", "expect": {"label": "b", "min_score": 0.5}},
        {"id": "b", "input": ["x", "y"], "expect": {"labels": [{"label": "a", "score": 0.25}], "max_abs": 0.01}},
        {"id": "c", "input": [1, 2], "expect": {"embedding": [0.1, -0.2, 1e-9], "min_cosine": 0.999, "max_abs": 1e-3}},
        {"id": "d", "input": {"text": "a", "pair": "b"}, "expect": {"score": -3.5, "max_abs": 0.0}}))
    save("golden", "relations", lines(
        {"id": "e", "inputs": ["x", "y"], "expect": {"similar_at_least": 0.5}},
        {"id": "f", "inputs": ["x", "y"], "expect": {"similar_at_most": -1}},
        {"id": "g", "inputs": ["q", "x", "y", "z"], "expect": {"order": [2, 0, 1]}},
        {"id": "h", "inputs": [["q", "x"], ["q", "y"]], "expect": {"order": [1, 0]}}))
    image = base64.b64encode((ROOT / "models/digits/samples/1.png").read_bytes()).decode()
    save("golden", "image", lines({"id": "1", "input": {"image": image}, "expect": {"label": "1"}}))


def write_binary_tensors():
    def tensor(name, shape, **more):
        return {"name": name, "shape": shape, "datatype": "BYTES"} | more
    framed = lambda texts: b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    def behind(name, *texts):
        return tensor(name, [len(texts)], parameters={"binary_data_size": len(framed(texts))}), framed(texts)
    request = lambda inputs, **more: json.dumps({"inputs": inputs} | more).encode()
    save("binary_tensors", "json", b"embed\n" + request(
        [tensor("text", [2, 1], data=[["a"], ["b"]])], id="7", outputs=[{"name": "embedding"}],
        parameters={"dimensions": 2, "normalize": True, "truncate": False, "timeout": 1000}))
    query, first = behind("query", b"q")
    text, second = behind("text", b"one", b"")
    save("binary_tensors", "pairs", b"rerank cut\n" + request(
        [query, text], parameters={"binary_data_output": True, "raw_scores": True}) + b"\n--\n" + first + second)
    text, bytes_ = behind("text", "é".encode(), b"b")
    outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
    save("binary_tensors", "labels", b"classify cut\n" + request([text], outputs=outputs) + b"\n--\n" + bytes_)
    save("binary_tensors", "base64", b"image-classify\n" + request([tensor("image", [1], data=["aGk="])]))
    save("binary_tensors", "raw", b"image-classify 0\n\x89PNG")
    body = request([tensor("text", [1], parameters={"binary_data_size": 5})])
    save("binary_tensors", "length", b"embed %d\n" % len(body) + body + framed([b"a"]))


def write_requests():
    def send(name, path, body, **headers):
        head = "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in headers.items())
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        save("requests", name, f"{path}\n{head}\n".encode() + body)
    image = (ROOT / "models/digits/samples/1.png").read_bytes()
    send("native", "/models/embed@v1/infer", {"inputs": ["a", {"text": "b"}, [4, 5]], "parameters": {
        "truncate": True, "dimensions": 2, "normalize": True, "deadline_ms": 1000}})
    send("native-pairs", "/models/rerank/infer", {"inputs": [["a", "b"], {"text": "a", "pair": "b"}],
                                                  "parameters": {"raw_scores": True}})
    send("native-image", "/models/vit/infer", image, content_type="image/png")
    send("native-base64", "/models/vit/infer", {"inputs": [{"image": base64.b64encode(image).decode()}]})
    send("openai", "/v1/embeddings", {"model": "embed", "input": ["a", "b"], "encoding_format": "base64",
                                      "dimensions": 2}, authorization="Bearer x")
    send("openai-tokens", "/v1/embeddings", {"model": "embed@v1", "input": [[4, 5], [6]], "encoding_format": "float"})
    send("tei-embed", "/embed", {"inputs": ["a", "b"], "truncate": True, "normalize": True,
                                 "truncation_direction": "right"})
    send("tei-predict", "/predict", {"inputs": [["a"], ["a", "b"]], "raw_scores": True})
    send("tei-rerank", "/rerank", {"query": "a", "texts": ["b", "c"], "return_text": True, "truncate": True})
    send("tei-root", "/", {"inputs": "a"})
    tensor = lambda name, size: {"name": name, "shape": [1], "datatype": "BYTES",
                                 "parameters": {"binary_data_size": size}}
    request = json.dumps({"inputs": [tensor("query", 5), tensor("text", 5)],
                          "parameters": {"binary_data_output": True}}).encode()
    send("oip", "/v2/models/rerank/versions/v1/infer", request + b"\1\0\0\0a" * 2,
         inference_header_content_length=len(request))
    send("oip-raw", "/v2/models/vit/infer", image, inference_header_content_length=0)
    field = lambda tag, data: bytes([tag << 3 | 2, len(data)]) + data
    text = field(1, b"text") + field(2, b"BYTES") + field(3, b"\1")
    typed = field(1, b"classify") + field(5, text + field(5, field(8, b"a"))) + field(6, field(1, b"label"))
    flag = field(1, b"truncate") + field(2, b"\x08\1")
    raw = field(1, b"embed") + field(2, b"v1") + field(3, b"7") + field(4, flag) + field(5, text)
    for name, message in [("grpc-typed", typed), ("grpc-raw", raw + field(7, b"\1\0\0\0a"))]:
        send(name, "/inference.GRPCInferenceService/ModelInfer", b"\0" + len(message).to_bytes(4, "big") + message,
             content_type="application/grpc", grpc_timeout="5S")
    send("oip-json", "/v2/models/classify/infer", {"inputs": [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}], "outputs": [{"name": "label"}]})


def write_image():
    steps = lambda how, height=8, width=8, edge=10: bytes([0xC0 | how, height - 1, width - 1, edge - 1])
    resample = json.loads((ROOT / "tests/fixtures/resample.json").read_text())
    for number, case in enumerate(resample["convert"]):
        # Of channels, normalising, cropping and resizing by an edge, but for the last without cropping.
        how = number | (number & 8) >> 1 | number % 4 << 4
        save("image", f"png-{case['name'].replace(' ', '-')}", steps(how) + base64.b64decode(case["png"]))
    save("image", "png-digit", steps(0b00_0011, 28, 28) + (ROOT / "models/digits/samples/1.png").read_bytes())
    from PIL import Image  # after the rest, which needs no Pillow
    picture = Image.new("RGB", (19, 13))
    picture.putdata([(x * 13 % 256, y * 19 % 256, (x * y) % 256) for y in range(13) for x in range(19)])
    for name, how, image, options in [
        ("grey", 0b10_0100, picture.convert("L"), {}),
        ("sampled", 0b01_1101, picture, {"subsampling": 2}),
        ("progressive", 0b11_0111, picture, {"progressive": True, "subsampling": 0}),
        ("restarts", 0b00_0001, picture, {"restart_marker_blocks": 1}),
        ("cmyk", 0b10_0001, picture.convert("CMYK"), {}),
    ]:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=50, optimize=True, **options)
        save("image", f"jpeg-{name}", steps(how) + file.getvalue())


if __name__ == "__main__":
    shutil.rmtree(SEEDS, ignore_errors=True)
    for write in (write_config, write_gguf, write_safetensors, write_golden, write_binary_tensors, write_requests, write_image):
        write()
    print(sum(path.stat().st_size for path in SEEDS.rglob("*") if path.is_file()), "bytes")
