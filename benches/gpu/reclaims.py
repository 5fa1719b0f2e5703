"""What rollouts' records say of the memory that came back, judged the same way by every section that switches.

Packages: none.
"""

MIB = 1 << 20


def judge(section, rollouts, cycles):
    """`rollouts` as the server lists them, `cycles` as `cutover bench swap` does."""
    reclaims = [r["figures"]["reclaim"] for r in rollouts if (r["figures"].get("reclaim") or {}).get("vram_after")]
    shares = [share for reclaim in reclaims if (share := came_back(reclaim)) is not None]
    section.figure("reclaims that were measured", len(shares))
    section.at_least("of what was reserved, the least that came back", min(shares, default=0.0) * 100, 99.9, "%")
    slowest = max((r["drain_ms"] + r["free_ms"] for r in reclaims), default=None)
    section.at_most("from settling to having it back, the slowest", slowest, 1000.0, "ms")
    free = [cycle["memory_after"].get("vram free") for cycle in cycles if cycle["memory_after"]]
    if not free or None in free:
        section.write("free memory after each switch", "not told", holds=False, line="told")
        return
    start = cycles[0]["memory_before"]["vram free"]
    # What a first pass of each shape needs for ever is taken by the first two switches, and told apart.
    section.figure("free memory, before the first switch less after the second", (start - free[min(1, len(free) - 1)]) / MIB, "MiB")
    settled = free[1:] or free
    section.at_most("free memory from the second switch on, most less least", (max(settled) - min(settled)) / MIB, 32.0, "MiB")
    section.at_most("free memory, before the first switch less after the last", (start - free[-1]) / MIB, 32.0, "MiB")


def came_back(reclaim):
    """The share of what the driver held for a version that it has again; none where it held nothing."""
    before, after = reclaim["vram_before"]["reserved"], reclaim["vram_after"]["reserved"]
    return (before - after) / before if before else None
