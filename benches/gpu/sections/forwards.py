"""Whole forward passes of models of the base sizes in bf16, as the server runs them (`cutover bench forward`), and PyTorch's of
the same weights and batches, in turns: how long one takes, and tokens a second with more queued. From one text to 16,384 tokens, of
equal and of mixed lengths; PyTorch pads. What torch.compile makes of some of them is told at the end.

Packages: numpy, torch, transformers.
"""

import statistics

import bare
import shapes
import weights
from told import Section

ROUNDS = 3
SECONDS = bare.SECONDS
BATCHES = {
    "bert-base": ("128x1", "128x4", "128x16", "128x32", "128x64", "128x128", "512x32", "5-250x8", "5-250x32", "5-250x128"),
    "minilm": ("128x1", "128x128", "5-250x128"),
    "vit-base": ("1", "8", "32"),
}
REHEARSED = {"bert-base": ("16x1", "3-20x3"), "vit-base": ("2",)}
COMPILED = ("128x1", "128x128", "5-250x128")


def size_of(batch):
    """What PyTorch's side makes a batch from."""
    return shapes.lengths_of(batch) if "x" in batch else int(batch)


class Theirs:
    """PyTorch's model, and its batches."""

    def __init__(self, reference, name, folder, batches):
        self.reference = reference
        self.model = (reference.Classifier if name.startswith("vit") else reference.Encoder)(folder)
        self.batches = {batch: self.model.batch(size_of(batch)) for batch in batches}

    def round(self, seconds):
        for batch, packed in self.batches.items():
            ms = self.reference.latency_ms(self.model, packed, seconds)
            yield {"batch": batch, "p50_ms": ms, "passes_per_s": self.reference.passes_per_s(self.model, packed, seconds, ms)}


def compared(section, name, reference, peak):
    batches = section.of(BATCHES, REHEARSED)[name]
    folder, size = weights.figured(section, name)
    models = bare.repository(section, name, weights.LARGE_IMAGES if name.startswith("vit") else weights.LARGE, folder)
    theirs, ours, others = None, [], []
    for _ in range(section.of(ROUNDS, 1)):
        ours.append(bare.batches(section, models, f"{name}@a", batches))
        if reference:
            # Where PyTorch breaks off, a line says so, and our figures are told all the same.
            with section.part(f"{name}, PyTorch"):
                theirs = theirs or Theirs(reference, name, folder, batches)
                others.append(list(theirs.round(section.of(SECONDS, 0.0))))
    for at, told in enumerate(ours[0]):
        if "x" in told["batch"]:
            section.same(f"{name}, {told['batch']}: lengths as PyTorch's", told["lengths"] == size_of(told["batch"]), True)
        middle = lambda key, rounds=ours: statistics.median(round[at][key] for round in rounds)
        tell(section, name, size, told, middle, peak)
        if others:
            against(section, name, told, middle, lambda key: middle(key, others))
    return theirs if others else None


def tell(section, name, size, told, middle, peak):
    batch = f"{name}, {told['batch']}"
    if (name, told["batch"]) == ("bert-base", "128x1"):
        section.timing(f"{batch}: a forward", middle("p50_ms"), 0.6, "ms")
    else:
        section.figure(f"{batch}: a forward", middle("p50_ms"), "ms")
    section.figure(f"{batch}: a second", middle("tokens_per_s"), "tokens/s")
    if peak and name != "vit-base":
        rate = middle("tokens_per_s") / told["tokens"] * shapes.operations(size, told["lengths"])
        judged = (name, told["batch"]) == ("bert-base", "128x128")
        share, what = rate / peak * 100, f"{batch}: of the matrix peak"
        section.timing(what, share, 45.0, "%", most=False) if judged else section.figure(what, share, "%")


def against(section, name, told, ours, others):
    batch = f"{name}, {told['batch']}"
    section.figure(f"{batch}: PyTorch's forward", others("p50_ms"), "ms")
    rate = others("passes_per_s") * told["tokens"]
    section.figure(f"{batch}: PyTorch's a second", rate, "tokens/s")
    section.figure(f"{batch}: latency, PyTorch's over ours", others("p50_ms") / ours("p50_ms"), "times")
    ratio, what = ours("tokens_per_s") / rate, f"{batch}: tokens a second, ours over PyTorch's"
    wanted = {("bert-base", "128x128"): 1.5, ("bert-base", "5-250x128"): 2.0}.get((name, told["batch"]))
    section.timing(what, ratio, wanted, "times", most=False) if wanted else section.figure(what, ratio, "times")


def compiled(section, torch, theirs):
    """What compiling gains, where it works; the first pass compiles, which takes its time."""
    theirs.model.model = torch.compile(theirs.model.model, dynamic=False)
    for batch in section.of(COMPILED, ("16x1",)):
        packed = theirs.batches[batch]
        try:
            ms = theirs.reference.latency_ms(theirs.model, packed, section.of(SECONDS, 0.0))
            rate = theirs.reference.passes_per_s(theirs.model, packed, section.of(SECONDS, 0.0), ms)
        except Exception as error:  # that it does not work here, and why, is a finding
            section.figure(f"bert-base, {batch}: torch.compile does not work", f"{type(error).__name__}: {error}"[:300])
            return
        section.figure(f"bert-base, {batch}: PyTorch's forward, compiled", ms, "ms")
        section.figure(f"bert-base, {batch}: PyTorch's a second, compiled", rate * sum(size_of(batch)), "tokens/s")


def main():
    section = Section("forwards")
    torch, reference, peak, encoder = section.torch(), None, None, None
    if torch:
        import reference

        peak = reference.matrix_peak(section.of(8192, 64))
        section.figure("a bf16 product of cuBLAS, 8,192 each way", peak / 1e12, "TFLOP/s")
    for name in section.of(BATCHES, REHEARSED):
        with section.part(name):
            theirs = compared(section, name, reference, peak)
            encoder = encoder or theirs
    if encoder:
        with section.part("compiled"):
            compiled(section, torch, encoder)
    section.end()


main()
