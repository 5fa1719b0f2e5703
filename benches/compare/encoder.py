"""all-MiniLM-L6-v2 in onnxruntime, as fast as it gets there.

The graph is built from the version's own safetensors with the fused operators that onnxruntime's transformer optimizer
ends at (EmbedLayerNormalization, Attention, SkipLayerNormalization, BiasGelu: onnxruntime's ContribOperators.md), so
that nothing depends on an exporter. Its embeddings are held against the golden cases before anything is timed.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FUSED = "com.microsoft"


def graph(version: Path) -> bytes:
    """The encoder: input_ids, token_type_ids, attention_mask [batch, tokens] -> hidden states [batch, tokens, width]."""
    config = json.loads((version / "config.json").read_text())
    weights = {name.removeprefix("bert."): value for name, value in load_file(version / "model.safetensors").items()}
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def weight(name: str, transposed: bool = False) -> str:
        value = weights[name]
        return constant(name, value.T if transposed else value)

    def node(op: str, inputs: list, output, **attributes) -> str:
        domain = "" if op == "MatMul" else FUSED
        outputs = output if isinstance(output, list) else [output]
        nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    epsilon = config["layer_norm_eps"]
    tables = [weight(f"embeddings.{table}_embeddings.weight") for table in ("word", "position", "token_type")]
    norm = [weight("embeddings.LayerNorm.weight"), weight("embeddings.LayerNorm.bias")]
    inputs = ["input_ids", "token_type_ids", *tables, *norm, "attention_mask"]
    x = node("EmbedLayerNormalization", inputs, ["embedded", "lengths"], epsilon=epsilon)
    layers = config["num_hidden_layers"]
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        projections = [f"{at}.attention.self.{name}" for name in ("query", "key", "value")]
        qkv = constant(f"{at}.qkv.weight", np.concatenate([weights[f"{name}.weight"].T for name in projections], 1))
        bias = constant(f"{at}.qkv.bias", np.concatenate([weights[f"{name}.bias"] for name in projections]))

        def closed(value: str, residual: str, dense: str, output: str) -> str:
            product = node("MatMul", [value, weight(f"{dense}.dense.weight", True)], f"{output}.product")
            last = [weight(f"{dense}.LayerNorm.weight"), weight(f"{dense}.LayerNorm.bias"), weight(f"{dense}.dense.bias")]
            return node("SkipLayerNormalization", [product, residual, *last], output, epsilon=epsilon)

        mixed = node("Attention", [x, qkv, bias, "lengths"], f"{at}.mixed", num_heads=config["num_attention_heads"])
        attended = closed(mixed, x, f"{at}.attention.output", f"{at}.attended")
        inner = f"{at}.intermediate.dense"
        product = node("MatMul", [attended, weight(f"{inner}.weight", True)], f"{at}.product")
        active = node("BiasGelu", [product, weight(f"{inner}.bias")], f"{at}.active")
        x = closed(active, attended, f"{at}.output", "hidden" if layer == layers - 1 else f"{at}.closed")
    named = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"])
        for name in ("input_ids", "token_type_ids", "attention_mask")
    ]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "tokens", config["hidden_size"]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(FUSED, 1)]
    built = helper.make_graph(nodes, "encoder", named, [hidden], constants)
    return helper.make_model(built, opset_imports=opsets, ir_version=8).SerializeToString()


class Encoder:
    """Texts to unit embeddings: tokenized, padded to the longest of the batch, mean-pooled."""

    def __init__(self, version: Path, threads: int):
        self.tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
        self.tokenizer.no_padding()
        longest = json.loads((version / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer.enable_truncation(longest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(graph(version), options, providers=["CPUExecutionProvider"])

    def length(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def embed(self, texts: list[str]) -> np.ndarray:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        shape = (len(encoded), max(map(len, encoded)))
        ids, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}
        hidden = self.session.run(None, feed)[0]
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def check(self, golden: Path) -> float:
        """The largest difference from the golden embeddings."""
        cases = [json.loads(line) for line in golden.read_text().splitlines()]
        cases = [case for case in cases if "embedding" in case["expect"]]
        expected = np.array([case["expect"]["embedding"] for case in cases])
        return float(np.abs(self.embed([case["input"] for case in cases]) - expected).max())
