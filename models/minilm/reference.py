"""Compute the reference embeddings of minilm again, with sentence-transformers, from the folders that `fetch` made.

    pip install -r requirements.txt
    ../fetch minilm
    python reference.py

Writes golden-f32.jsonl and golden-f16.jsonl (`fetch` copies them into the version folders), golden.jsonl (behaviour that
every version must show; the bounds are checked here against both) and tests/fixtures/minilm-reference.json. The f16
weights are widened to f32, and all arithmetic is f32, one text a batch.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).resolve().parent
FIXTURE = HERE.parent.parent / "tests" / "fixtures" / "minilm-reference.json"
torch.set_num_threads(1)

STORY = (
    "The ferry to the outer islands leaves at six in the morning, when the fish market is already awake and the cafes "
    "are not. On the lower deck there is room for eleven cars, two tractors and whatever the farmers have bought in "
    "town: seed potatoes, a bathtub, once a piano under a blue sheet. The crew is four people who have known each other "
    "since school. They speak little, because everything that needs to be said has been said on some other morning. "
    "The engine is older than any of them. It was built in a yard that has since become a supermarket, and the man who "
    "looks after it keeps a notebook in which he writes down every sound that he has not heard before. In the first "
    "year there were many entries; in the past winter there was only one, and it turned out to be a spoon. "
    "Halfway across, where the current from the strait meets the tide, the ship turns a little to the north and the "
    "cups slide along the counter, always in the same direction. Visitors reach out to catch them. The islanders let "
    "them slide, for there is a rail. At the first island the mail is handed over before the ropes are tied, since the "
    "postman has a long road and a short temper. At the second a dog comes aboard, rides to the third, and goes home "
    "in the afternoon; nobody owns it and nobody has ever asked it for a ticket. The last stop is a bare rock with a "
    "lighthouse, three houses and a school with two pupils, who wave at the ship each day as though it had come for "
    "the first time. Then the captain sounds the horn, writes the hour into the log, and the whole small world is "
    "carried back over the same water in the opposite order, with the piano delivered, the potatoes on their way into "
    "the ground, and the cups sliding the other way along the counter until they come to rest against the rail."
)
WORDS = STORY.split()
TEXTS = [
    "ferry",
    "Hello",
    "42",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun by the window.",
    "How do I reset my password?",
    "I forgot my login credentials and cannot get into my account.",
    "The central bank raised interest rates by half a point.",
    "def add(a, b):\n    return a + b",
    "SELECT name FROM users WHERE age > 30 ORDER BY name;",
    "na\u00efve caf\u00e9 owners in M\u00fcnchen; \u6771\u4eac\u306e\u5929\u6c17 \u2600\ufe0f \U0001f680",
    "UPPER lower MiXeD 3.14159 -- e-mail: someone@example.org (50%)",
    "Write the release notes before you tag the release, not after.",
    "Zero downtime means that no request fails while the new version takes over.",
    " ".join(WORDS[:12]),
    " ".join(WORDS[:25]),
    " ".join(WORDS[40:80]),
    " ".join(WORDS[20:80]),
    " ".join(WORDS[100:190]),
    " ".join(WORDS[60:170]),
    " ".join(WORDS[:150]),
    " ".join(WORDS[80:280]),
    STORY,
    "",
]
GOLDEN = [0, 3, 5, 7, 8, 10, 11, 13, 16, 19, 21, 22]

SIMILAR = [
    ("cat-kitten", "The cat sleeps on the warm windowsill.", "A cat is napping in the sun by the window."),
    ("password", "How do I reset my password?", "What should I do if I forgot my password?"),
    ("rates", "The central bank raised interest rates.", "Interest rates were increased by the central bank."),
    ("ferry", "The ferry was late because of fog.", "Fog delayed the boat to the island."),
]
DISSIMILAR = [
    ("cat-bank", "The cat sleeps on the warm windowsill.", "The central bank raised interest rates."),
    ("password-recipe", "How do I reset my password?", "Bake the bread for forty minutes in a hot oven."),
    ("code-sea", "This function returns the sum of two integers.", "Waves broke against the harbour wall all night."),
    ("football-physics", "She scored in the last minute of the match.", "Electrons occupy discrete energy levels."),
]
ORDER = [
    (
        "where-is-it-cold",
        "Which place is the coldest?",
        [
            "The recipe needs two eggs and a cup of flour.",
            "Antarctica is the coldest place on Earth.",
            "It was a chilly evening in the north.",
        ],
    ),
    (
        "restart-server",
        "How can I restart the web server?",
        [
            "Run the restart command to start the web server again.",
            "Tulips are planted in autumn.",
            "The server logs are kept for thirty days.",
        ],
    ),
    (
        "train",
        "train timetable",
        ["A violin has four strings.", "The bus stops near the market.", "Departure times of trains from this station"],
    ),
    (
        "headache",
        "What helps against a headache?",
        [
            "A glass of water and some rest often ease a headache.",
            "The doctor will see you on Monday.",
            "The stadium seats forty thousand people.",
        ],
    ),
]


def number(value):
    return float(f"{float(value):.7g}")


def line(name, key, value, expect):
    return json.dumps({"id": name, key: value, "expect": expect}, ensure_ascii=False, separators=(",", ":")) + "\n"


def load(version):
    model = SentenceTransformer(str(HERE / version), device="cpu", model_kwargs={"dtype": torch.float32}).float()
    assert model.max_seq_length == 256 and all(p.dtype == torch.float32 for p in model.parameters())
    return model, lambda texts: np.stack([model.encode([t])[0] for t in texts])


def behaviour(encoders):
    """Bounds with room to spare on every version."""
    lines = []
    for kind, cases in (("similar_at_least", SIMILAR), ("similar_at_most", DISSIMILAR)):
        for name, a, b in cases:
            cosines = [float(np.dot(*encode([a, b]))) for encode in encoders]
            if kind == "similar_at_least":
                bound = int(20 * (min(cosines) - 0.1)) / 20
                assert bound >= 0.5, (name, cosines)
            else:
                bound = 0.25
                assert max(cosines) < 0.17, (name, cosines)
            print(f"{name}: {cosines[0]:.3f} {kind} {bound}")
            lines.append(line(name, "inputs", [a, b], {kind: bound}))
    for name, query, texts in ORDER:
        orders = []
        for encode in encoders:
            vectors = encode([query] + texts)
            cosines = vectors[1:] @ vectors[0]
            order = np.argsort(-cosines).tolist()
            assert min(-np.diff(cosines[order])) > 0.05, (name, cosines)
            orders.append(order)
        assert all(order == orders[0] for order in orders)
        print(f"{name}: {np.round(cosines, 3).tolist()} {orders[0]}")
        lines.append(line(name, "inputs", [query] + texts, {"order": orders[0]}))
    (HERE / "golden.jsonl").write_text("".join(lines), encoding="utf-8")


def main():
    encoders = []
    for version in ("f32", "f16"):
        model, encode = load(version)
        encoders.append(encode)
        vectors = encode(TEXTS)
        lines = []
        # A GPU computes in the format of the weights: halves are off by up to 0.00016 there.
        most = {"f32": 0.0001, "f16": 0.0005}[version]
        for index in GOLDEN:
            expect = {"embedding": [number(v) for v in vectors[index]], "min_cosine": 0.99999, "max_abs": most}
            lines.append(line(f"numbers-{index}", "input", TEXTS[index], expect))
        (HERE / f"golden-{version}.jsonl").write_text("".join(lines), encoding="utf-8")
        if version == "f32":
            cases = []
            for text, vector in zip(TEXTS, vectors):
                tokens = model.tokenize([text])["input_ids"][0].tolist()
                cases.append({"input": text, "tokens": tokens, "output": [number(v) for v in vector]})
            assert max(len(c["tokens"]) for c in cases) == 256
            print("tokens:", [len(c["tokens"]) for c in cases], "words:", len(WORDS))
            rows = ",\n".join("    " + json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
            head = '{"task": "embed", "model": "minilm", "version": "f32", "tolerance": {"output": 0.00002},\n'
            FIXTURE.write_text(f'{head}  "cases": [\n{rows}\n  ]}}\n', encoding="utf-8")
            first = vectors
        else:
            print("f16 weights move an embedding by at most", float(np.abs(vectors - first).max()))
    behaviour(encoders)


main()
