"""What each kernel must move and compute at least: every input read once, every output written once. Divided by what a machine can
do these are floors; `kernels.py` times against them, and `counts.py` prints those of one forward pass as a table. Pure.

Counts are (bytes, operations), an operation being a multiplication or an addition. Those of kernels that are bound by memory are
about: what matters of them is their bytes. Packages: none.
"""

BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "u32": 4, "u8": 1}
# Weights of a block of a quantised format, and its bytes.
QUANTIZED = {"q4_0": (32, 18), "q4_1": (32, 20), "q8_0": (32, 34), "q4_k": (256, 144), "q6_k": (256, 210)}
VOCABULARY, POSITIONS = 30522, 512


def layer_norm(dtype, rows, width):
    return (2 * rows + 2) * width * BYTES[dtype], 8 * rows * width


def add_layer_norm(dtype, rows, width, keeps=True):
    """`keeps`: the sum is written too."""
    return ((4 if keeps else 3) * rows + 2) * width * BYTES[dtype], 9 * rows * width


def embed_tokens(dtype, tokens, width, words):
    """`words`: different ones among the tokens."""
    read = (words + min(tokens, POSITIONS) + 2 + 2) * width * BYTES[dtype] + 3 * 4 * tokens
    return read + tokens * width * BYTES[dtype], 10 * tokens * width


def bias_activate(dtype, rows, width):
    return (2 * rows + 1) * width * BYTES[dtype], 20 * rows * width


def activate(dtype, count):
    return 2 * count * BYTES[dtype], 20 * count


def pool_normalize(dtype, tokens, sequences, width):
    return tokens * width * BYTES[dtype] + 4 * (sequences + 1) + 4 * sequences * width, (tokens + 3 * sequences) * width


def pool(dtype, tokens, sequences, width):
    return (tokens + sequences) * width * BYTES[dtype] + 4 * (sequences + 1), tokens * width


def l2_normalize(dtype, rows, width):
    return rows * width * (BYTES[dtype] + 4), 3 * rows * width


def attention(dtype, lengths, width):
    """Two products of every token with all of its sequence; `width`: that of all heads together."""
    tokens, pairs = sum(lengths), sum(length * length for length in lengths)
    return 4 * tokens * width * BYTES[dtype] + 4 * (len(lengths) + 1), 4 * pairs * width


def rms_norm(dtype, rows, width):
    return (2 * rows + 1) * width * BYTES[dtype], 4 * rows * width


def add_rms_norm(dtype, rows, width, keeps=True):
    """`keeps`: the sum is written too."""
    return ((4 if keeps else 3) * rows + 1) * width * BYTES[dtype], 5 * rows * width


def gated(dtype, rows, width):
    """Two halves in, one out."""
    return 3 * rows * width * BYTES[dtype], 20 * rows * width


def take_rows(dtype, rows, width):
    """Different ones."""
    return 2 * rows * width * BYTES[dtype] + 4 * rows, 0


def likeliest(rows, vocabulary):
    return 4 * rows * vocabulary + 16 * rows, 8 * rows * vocabulary


def likely(rows, vocabulary, most):
    return 4 * rows * vocabulary + rows * (24 + 8 * most), 6 * rows * vocabulary


def logit_of(rows):
    return 16 * rows, 0


def turns(rows, half):
    return 8 * rows * half + 4 * rows + 4 * half, 40 * rows * half


def place_heads(dtype, rows, heads, kv_heads, width):
    """Queries to what attention takes, keys and values to the cache, and what they are turned by."""
    return rows * (2 * (heads + 2 * kv_heads) * width * BYTES[dtype] + 4 * width + 4), 6 * rows * (heads + kv_heads) * width


def paged_attention(dtype, runs, heads, kv_heads, width, window=None):
    """`runs`: for each sequence the position of its first row, and rows. Its keys and values are read once, those that any of
    its rows sees; every row meets those that it sees."""
    window = window or 1 << 40
    keys = sum(first + rows - max(first + 1 - window, 0) for first, rows in runs)
    pairs = sum(min(first + row + 1, window) for first, rows in runs for row in range(rows))
    rows = sum(rows for _, rows in runs)
    return 2 * (keys * kv_heads + rows * heads) * width * BYTES[dtype], 4 * pairs * heads * width


def patches(dtype, images, side, patch):
    values = images * 3 * (side // patch * patch) ** 2
    return values * (4 + BYTES[dtype]), 0


def embed_patches(dtype, images, count, width):
    return ((images * count + 1 + count + 1) + images * (count + 1)) * width * BYTES[dtype], images * count * width


def cast(source, target, count):
    return count * (BYTES[source] + BYTES[target]), 0


def finite(dtype, count):
    return count * BYTES[dtype], 0


def land(dtype, count):
    """Rows to where they come down from, looked at on their way."""
    return 2 * count * BYTES[dtype], 0


def product(dtype, rows, out, into, adds=False):
    """cublasLt's, with its bias. `adds`: and a residual."""
    return (rows * (into + (2 if adds else 1) * out) + out * into + out) * BYTES[dtype], 2 * rows * out * into


def quantized(name, count):
    """Bytes of so many weights."""
    weights, size = QUANTIZED[name]
    return count // weights * size


def quantized_product(name, dtype, rows, out, into, adds=False):
    """The same with a weight that stays quantised."""
    return quantized(name, out * into) + (rows * (into + (2 if adds else 1) * out) + out) * BYTES[dtype], 2 * rows * out * into


def spell_out(name, dtype, count):
    return quantized(name, count) + count * BYTES[dtype], 2 * count


def take_quantized_rows(name, dtype, rows, width):
    """Different ones."""
    return spell_out(name, dtype, rows * width)[0] + 4 * rows, 2 * rows * width


def arrange(name, count):
    return 2 * quantized(name, count), 0


def pass_of(size, lengths, dtype="bf16"):
    """(what, launches, bytes and operations of one launch) of a forward pass of an encoder that embeds, as the server launches
    it: residuals are added by products, and queries, keys and values are one."""
    hidden, inner, layers, tokens = size["hidden"], size["inner"], size["layers"], sum(lengths)
    yield "embed_tokens", 1, embed_tokens(dtype, tokens, hidden, min(tokens, VOCABULARY))
    yield "product, queries, keys and values", layers, product(dtype, tokens, 3 * hidden, hidden)
    yield "attention", layers, attention(dtype, lengths, hidden)
    yield "product, attention's output", layers, product(dtype, tokens, hidden, hidden, adds=True)
    yield "layer_norm", 2 * layers, layer_norm(dtype, tokens, hidden)
    yield "product, up", layers, product(dtype, tokens, inner, hidden)
    if dtype == "f32":  # of the others GELU is the product's own ending
        yield "bias_activate", layers, bias_activate(dtype, tokens, inner)
    yield "product, down", layers, product(dtype, tokens, hidden, inner, adds=True)
    yield "pool", 1, pool(dtype, tokens, len(lengths), hidden)
    yield "l2_normalize", 1, l2_normalize(dtype, len(lengths), hidden)
    yield "land", 1, land("f32", len(lengths) * hidden)


def step_of(size, runs, dtype="bf16"):
    """The same of a step of a decoder; `runs` as paged_attention has them, of each of which one row of logits is wanted."""
    hidden, inner, layers, heads, kv_heads, of_head = (size[key] for key in ("hidden", "inner", "layers", "heads", "kv_heads", "of_head"))
    rows, of_all = sum(rows for _, rows in runs), (heads + 2 * kv_heads) * of_head
    yield "take_rows", 1, take_rows(dtype, rows, hidden)
    yield "turns", 1, turns(rows, of_head // 2)
    yield "rms_norm", 2 * layers + 1, rms_norm(dtype, rows, hidden)
    yield "product, queries, keys and values", layers, product(dtype, rows, of_all, hidden)
    yield "place_heads", layers, place_heads(dtype, rows, heads, kv_heads, of_head)
    yield "paged attention", layers, paged_attention(dtype, runs, heads, kv_heads, of_head)
    yield "product, attention's output", layers, product(dtype, rows, hidden, heads * of_head, adds=True)
    yield "product, gate and up", layers, product(dtype, rows, 2 * inner, hidden)
    yield "gated", layers, gated(dtype, rows, inner)
    yield "product, down", layers, product(dtype, rows, hidden, inner, adds=True)
    yield "product, logits", 1, product(dtype, len(runs), size["vocabulary"], hidden)
    yield "likeliest", 1, likeliest(len(runs), size["vocabulary"])


LLAMA_8B = dict(hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, of_head=128, vocabulary=128256)


def table(title, launched):
    print(f"\n{title}\n")
    print("| kernel | launches | MB each | Gop each | MB in all | Gop in all |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    all_bytes = all_operations = 0
    for what, launches, (moved, operations) in launched:
        all_bytes, all_operations = all_bytes + launches * moved, all_operations + launches * operations
        cells = (moved / 1e6, operations / 1e9, launches * moved / 1e6, launches * operations / 1e9)
        print(f"| {what} | {launches} | " + " | ".join(f"{cell:,.2f}" for cell in cells) + " |")
    print(f"| all | | | | {all_bytes / 1e6:,.2f} | {all_operations / 1e9:,.2f} |")


def main():
    size = dict(hidden=768, inner=3072, layers=12)
    for lengths in ((128,), (128,) * 128, (512,) * 32):
        table(f"BERT-base in bf16, {len(lengths)} x {lengths[0]} tokens", pass_of(size, lengths))
    for runs in (((1000, 1),), ((1000, 1),) * 64, ((0, 1000),)):
        what = f"{len(runs)} x {runs[0][1]} tokens after {runs[0][0]}"
        table(f"A decoder of Llama 3 8B's sizes in bf16, {what}", step_of(LLAMA_8B, runs))


if __name__ == "__main__":
    main()
