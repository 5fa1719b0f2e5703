"""Every family and task as a version folder with random weights, made by transformers in Hugging Face's layout.

Sizes are those of the base models (BERT, RoBERTa, XLM-R, DistilBERT, ViT), or as small as they get. RoBERTa's and XLM-R's
tokenizers are the fixtures': what matters here is what a model makes of its tokens. It must not know who compares what.
Packages: torch, transformers.
"""

import json
import math
import shutil
import zlib

import torch
import transformers as hf

from weights import copy_tokenizer, embeds, tokenizer_of

FORMATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
EMBED, CLASSIFY, RERANK, IMAGES = "embed", "classify", "rerank", "image-classify"
MOODS = ("negative", "neutral", "positive")


def names(labels):
    return dict(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})


class Made:
    """A model of one family and task: how it is configured, and by which class it is saved."""

    def __init__(self, name, task, kind, config, tokenizer=None, pooling="mean"):
        self.name, self.task, self.kind, self.config = name, task, kind, config
        self.tokenizer, self.pooling = tokenizer, pooling

    def save(self, folder, format, seed, device):
        """The folder, whole or not at all."""
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with torch.device(device):
            model = self.kind(self.config).eval()
        scramble(model, seed)
        model.to(FORMATS[format]).save_pretrained(fresh)
        if self.task == EMBED:
            embeds(fresh, self.tokenizer, model.config.hidden_size, self.longest(), self.pooling, self.typed())
        elif self.tokenizer:
            copy_tokenizer(self.tokenizer, fresh, self.longest(), self.typed())
        else:
            processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 2}
            processor |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "image_processor_type": "ViTImageProcessor"}
            processor["size"] = {"height": self.config.image_size, "width": self.config.image_size}
            (fresh / "preprocessor_config.json").write_text(json.dumps(processor))
        fresh.rename(folder)

    def typed(self):
        return self.config.model_type == "bert"

    def longest(self):
        """Tokens of an input. RoBERTa's positions begin after its padding's."""
        padded = self.config.model_type in ("roberta", "xlm-roberta")
        return self.config.max_position_embeddings - (2 if padded else 0)


def scramble(model, seed):
    """Weights of a spread that keeps outputs apart from each other, as tests/fixtures/make.py has them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.Generator(parameter.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            value = torch.randn(parameter.shape, generator=random, device=parameter.device)
            flat = name.lower().replace("_", "")
            if ("layernorm" in flat or ".norm." in flat) and name.endswith("weight"):
                value = 1 + 0.3 * value
            elif name.endswith("bias"):
                value *= 0.2
            elif "embedding" in name or "cls_token" in name:
                value *= 0.5
            else:
                value *= (3.0 if "classifier" in name and "dense" not in name else 1.3) / math.sqrt(math.prod(parameter.shape[1:]))
            parameter.copy_(value)


def all_of(section):
    """Every family with every task that it has, at real sizes or as small as they get."""
    bert_tokenizer, vocabulary = tokenizer_of(section)
    fixtures = section.bundle / "tests/fixtures"
    hidden, layers, heads, inner, positions = section.of((768, 12, 12, 3072, 512), (32, 2, 1, 64, 64))
    dims = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    bert = lambda **more: hf.BertConfig(vocab_size=vocabulary, max_position_embeddings=positions, **dims, **more)
    padded = dict(max_position_embeddings=positions + 2, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    roberta = lambda **more: hf.RobertaConfig(vocab_size=section.of(50265, 320), layer_norm_eps=1e-5, **padded, **dims, **more)
    xlmr = hf.XLMRobertaConfig(vocab_size=section.of(250002, 320), layer_norm_eps=1e-5, **padded, **dims)
    distil = lambda **more: hf.DistilBertConfig(
        vocab_size=vocabulary, max_position_embeddings=positions, dim=hidden, n_layers=section.of(6, 2), n_heads=heads,
        hidden_dim=inner, **more,
    )  # fmt: skip
    shapes = names([f"shape {i}" for i in range(12)])
    vit = hf.ViTConfig(image_size=section.of(224, 32), patch_size=section.of(16, 8), **dims, **shapes)
    moods, one = names(MOODS), dict(num_labels=1)
    untyped = bert_tokenizer if not section.fake else fixtures / "distilbert-classify"
    return [
        *(Made(f"bert-embed-{how}", EMBED, hf.BertModel, bert(), bert_tokenizer, how) for how in ("mean", "cls", "max")),
        Made("bert-classify", CLASSIFY, hf.BertForSequenceClassification, bert(**moods), bert_tokenizer),
        Made("bert-rerank", RERANK, hf.BertForSequenceClassification, bert(**one), bert_tokenizer),
        Made("roberta-classify", CLASSIFY, hf.RobertaForSequenceClassification, roberta(**moods), fixtures / "roberta-classify"),
        Made("roberta-rerank", RERANK, hf.RobertaForSequenceClassification, roberta(**one), fixtures / "roberta-rerank"),
        Made("xlmr-embed", EMBED, hf.XLMRobertaModel, xlmr, fixtures / "xlmr-embed"),
        Made("distilbert-embed", EMBED, hf.DistilBertModel, distil(), untyped),
        Made("distilbert-classify", CLASSIFY, hf.DistilBertForSequenceClassification, distil(**moods), untyped),
        Made("vit-classify", IMAGES, hf.ViTForImageClassification, vit),
    ]
