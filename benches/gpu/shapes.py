"""Batches as `cutover bench forward` and everything beside it names them: `128x16` is 16 texts of 128 tokens, `5-250x64` 64 texts
of mixed lengths, `32` 32 images; and what such a batch is to compute. Packages: none.
"""

import math
import re


def lengths_of(batch):
    """The very lengths that `cutover bench forward` takes; `forwards` holds them against what it tells."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?x(\d+)", batch)
    least, most, count = int(found[1]), int(found[2] or found[1]), int(found[3])
    golden = (math.sqrt(5) - 1) / 2
    spread = lambda n: math.modf(0.5 + n * golden)[0] * (most - least + 1)
    return [least + min(int(spread(n)), most - least) for n in range(count)]


def operations(size, lengths):
    """Floating-point operations of a pass: two for each multiplication of linear layers and of attention."""
    hidden, inner, layers = size["hidden"], size["inner"], size["layers"]
    linear = sum(lengths) * (4 * hidden * hidden + 2 * hidden * inner)
    attention = sum(length * length for length in lengths) * 2 * hidden
    return 2 * layers * (linear + attention)
