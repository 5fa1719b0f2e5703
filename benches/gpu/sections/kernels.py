"""Every kernel against its floor: what must be moved and computed (counts.py) over what this GPU does in the same run, bytes as a
copy on the device moves them, operations as a product of cuBLAS does them; and attention against PyTorch's own, in turns.

That a kernel computes the right thing is said by `checks`. Packages: numpy, torch.
"""

import json
import statistics
import subprocess
import sys

import shapes
from told import Section

# BERT-base's heads. Of equal lengths: PyTorch's flash attention; of mixed ones besides what else PyTorch has for them.
WIDTH, HEADS = 768, 12
EQUAL, RAGGED = ("128x128", "512x8", "512x32"), ("5-250x128", "5-512x64")
ROUNDS = 3
# Written down besides the large sizes, of all that are timed: these models' in bf16.
TOLD = ("bert-base", "vit-base", "llama-8b")
BOUND_BY_MEMORY = 75.0


def timed(section, *arguments):
    folder = section.bundle
    command = [sys.executable, folder / "benches/gpu/kernels.py", folder / "lib/libcutover_kernels_cpu.so", folder / "kernels"]
    command += ["--json", *section.of((), ("--smoke",)), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment())
    if run.returncode != 0:
        raise RuntimeError(f"kernels.py: {run.stdout[-500:]}{run.stderr[-500:]}")
    print(run.stderr, end="")
    return [json.loads(line) for line in run.stdout.splitlines()]


def every_kernel(section, peak):
    """`peak`: operations a second of a matrix product, where that is known."""
    found = timed(section)
    copied = next(told for told in found if told["kernel"] == "copy")
    bandwidth = copied["bytes"] / copied["us"] * 1e6
    section.figure("bytes of a copy on the device, read and written", bandwidth / 1e12, "TB/s")
    section.figure("kernels that were timed", len({told["kernel"] for told in found}) - 1)
    for told in (told for told in found if told["kernel"] != "copy"):
        named = f"{told['kernel']}, {told['what']}"
        share = told["bytes"] / bandwidth / told["us"] * 1e8
        if told["size"] == "large":
            section.timing(f"{named}: of the copy's bandwidth", share, BOUND_BY_MEMORY, "%", most=False)
        elif told["size"] == "launch" or (told["size"] in TOLD and told["kernel"].endswith("bf16")):
            section.figure(named, told["us"], "us")
            if peak and told["kernel"].startswith("attention") and told["kernel"].endswith("bf16"):
                section.figure(f"{named}: of the matrix peak", told["operations"] / peak / told["us"] * 1e8, "%")


class Attention:
    """PyTorch's ways to attend, each timed as the kernels are: several in one graph."""

    def __init__(self, torch):
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"

    def inputs(self, count, longest):
        shape = (3, count, longest, HEADS, WIDTH // HEADS)
        # As flash attention reads them: heads beside each other in memory.
        return self.torch.randn(shape, device=self.device, dtype=self.torch.bfloat16).transpose(2, 3)

    def attend(self, *packed, **more):
        return self.torch.nn.functional.scaled_dot_product_attention(*packed, **more)

    def flash(self, lengths):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        packed = self.inputs(len(lengths), max(lengths))
        backend = SDPBackend.FLASH_ATTENTION if self.device == "cuda" else SDPBackend.MATH
        with sdpa_kernel(backend):
            return self.time(lambda: self.attend(*packed))

    def chosen(self, lengths):
        """Whatever PyTorch takes by itself, which on some GPUs is faster than flash attention."""
        packed = self.inputs(len(lengths), max(lengths))
        return self.time(lambda: self.attend(*packed))

    def masked(self, lengths):
        """Padded, with a mask: whatever PyTorch takes for it."""
        packed = self.inputs(len(lengths), max(lengths))
        whole = self.torch.arange(max(lengths), device=self.device)[None, :]
        mask = whole < self.torch.tensor(lengths, device=self.device)[:, None]
        return self.time(lambda: self.attend(*packed, attn_mask=mask[:, None, None, :]))

    def nested(self, lengths):
        """Jagged tensors, which flash attention takes as they are."""
        part = lambda: self.torch.nested.nested_tensor(
            [self.torch.randn(n, HEADS, WIDTH // HEADS, device=self.device, dtype=self.torch.bfloat16) for n in lengths],
            layout=self.torch.jagged,
        ).transpose(1, 2)  # fmt: skip
        packed = [part() for _ in range(3)]
        return self.time(lambda: self.attend(*packed), graph=False)

    def varlen(self, lengths):
        from torch.nn.attention.varlen import varlen_attn

        packed = [
            self.torch.randn(sum(lengths), HEADS, WIDTH // HEADS, device=self.device, dtype=self.torch.bfloat16) for _ in range(3)
        ]
        ends = self.torch.tensor([0, *lengths], device=self.device).cumsum(0).to(self.torch.int32)
        return self.time(lambda: varlen_attn(*packed, ends, ends, max(lengths), max(lengths)))

    def time(self, work, graph=True):
        """Microseconds, the median of nine rounds of twenty."""
        torch, count = self.torch, 20
        with torch.no_grad():  # not inference_mode, in which jagged tensors do not work
            for _ in range(3):
                work()
            if self.device != "cuda":
                return 1.0
            torch.cuda.synchronize()
            several = lambda: [work() for _ in range(count)]
            if graph:
                recorded = torch.cuda.CUDAGraph()
                with torch.cuda.graph(recorded):
                    several()
                several = recorded.replay
            took = []
            for _ in range(9):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                several()
                end.record()
                torch.cuda.synchronize()
                took.append(begin.elapsed_time(end) * 1e3 / count)
        return statistics.median(took)


def attention(section, torch):
    ways = Attention(torch)
    equal, ragged = section.of((EQUAL, RAGGED), (("16x2",), ("3-20x4",)))
    batches = (*equal, *ragged)
    ours = {batch: [] for batch in batches}
    of = lambda batch: ("flash", "chosen") if batch in equal else ("masked", "varlen", "nested")
    theirs = {(batch, way): [] for batch in batches for way in of(batch)}
    failed = {}
    for _ in range(section.of(ROUNDS, 1)):
        for told in timed(section, "--attention", *batches):
            ours[told["batch"]].append(told["us"])
        for (batch, way), took in theirs.items():
            try:
                took.append(getattr(ways, way)(shapes.lengths_of(batch)))
            except Exception as error:  # what this PyTorch cannot do is told, and compared with what it can
                failed[batch, way] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    for batch in batches:
        us = statistics.median(ours[batch])
        section.figure(f"attention, {batch}", us, "us")
        for way in of(batch):
            if (batch, way) in failed:
                section.figure(f"attention, {batch}: PyTorch, {way}: does not run", failed[batch, way])
                continue
            other = statistics.median(theirs[batch, way])
            section.figure(f"attention, {batch}: PyTorch, {way}", other, "us")
            judge(section, batch, way, other / us)


def judge(section, batch, way, ratio):
    """Nine tenths of flash attention at 512 tokens, and ahead of everything where lengths are mixed."""
    named = f"attention, {batch}: as fast as PyTorch's {way}"
    if way == "chosen" or (way == "flash" and not batch.startswith("512x")):
        section.figure(named, ratio, "times")
    else:
        section.timing(named, ratio, 0.9 if way == "flash" else 1.0, "times", most=False)


def main():
    section = Section("kernels")
    torch, peak = section.torch(), None
    if torch:
        with section.part("the matrix peak"):
            from reference import matrix_peak

            peak = matrix_peak(section.of(8192, 64))
            section.figure("a bf16 product of cuBLAS, 8,192 each way", peak / 1e12, "TFLOP/s")
    with section.part("every kernel"):
        every_kernel(section, peak)
    if torch:
        with section.part("attention"):
            attention(section, torch)
    section.end()


main()
