"""Split against unsplit models at every valid cut: equal bits, and what splitting itself costs.

    python -m fogline.benchmarks.split_exactness [--full] [--families NAME …] [--repeats 15] [--timed 6]
        [--quick] [--json FILE]

Seven families of Hugging Face transformers with random weights: small ones, or with `--full` the library's default
sizes (EfficientNet: B0). Head and tail run in one process, one after the other, in evaluation mode without gradients,
so no link is in the times. Overhead is (head + tail) ÷ the model's own forward - 1, medians of CPU seconds that take
turns, one thread; the median and the largest over `--timed` cuts spread over the model. `--data` is not used.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fogline.benchmarks.hardware import describe
from fogline.benchmarks.split_families import FAMILIES, Family
from fogline.common.split.cuts import Cut, cuts
from fogline.common.split.segments import split
from fogline.common.split.structure import tensors

SCHEMA = 1


def equal(one: Any, other: Any) -> bool:
    """Whether two outputs are of one class, with tensors of equal bits."""
    pairs = [(a.tensor, b.tensor) for a, b in zip(tensors(one), tensors(other), strict=True)]
    return type(one) is type(other) and bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def overhead(model: nn.Module, family: Family, cut: Cut, example: dict[str, Any], repeats: int) -> dict[str, float]:
    """CPU seconds of the whole, the head and the tail, by the thread's own clock: medians, taking turns."""
    head, tail = split(model, cut, max_tensors=family.max_tensors)
    assert head is not None
    assert tail is not None
    taken: dict[str, list[float]] = {"whole": [], "head": [], "tail": []}
    for _ in range(repeats + 1):
        start = time.thread_time()
        model(**example)
        between = time.thread_time()
        sent = head(**example)
        sent_at = time.thread_time()
        tail(sent)
        taken["whole"].append(between - start)
        taken["head"].append(sent_at - between)
        taken["tail"].append(time.thread_time() - sent_at)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def measure(family: Family, full: bool, repeats: int, timed: int) -> dict[str, Any]:
    """One family."""
    torch.manual_seed(0)
    model = family.build(full).eval()
    example = family.example(full, 2, 64 if full else 7)
    start = time.thread_time()
    table = cuts(model, example, max_tensors=family.max_tensors)
    found_s = time.thread_time() - start
    rows = []
    every = max(len(table) // timed, 1)
    with torch.no_grad():
        whole = model(**example)
        for number, cut in enumerate(table):
            head, tail = split(model, cut, max_tensors=family.max_tensors)
            assert head is not None
            assert tail is not None
            row: dict[str, Any] = {"name": cut.name, "trainable": cut.trainable, "bytes": cut.bytes, "ratio": cut.ratio}
            row["equal"] = equal(tail(head(**example)), whole)
            if number % every == every // 2:
                seconds = overhead(model, family, cut, example, repeats)
                row["overhead"] = (seconds["head"] + seconds["tail"]) / seconds["whole"] - 1
                row["overhead_us"] = (seconds["head"] + seconds["tail"] - seconds["whole"]) * 1e6
                row["whole_ms"] = seconds["whole"] * 1e3
            rows.append(row)
    timed_rows = [row for row in rows if "overhead" in row]
    return {
        "cuts": len(table),
        "equal": sum(row["equal"] for row in rows),
        "trainable": sum(cut.trainable for cut in table),
        "whole_ms": statistics.median(row["whole_ms"] for row in timed_rows),
        "overhead_median": statistics.median(row["overhead"] for row in timed_rows),
        "overhead_max": max(row["overhead"] for row in timed_rows),
        "overhead_us_median": statistics.median(row["overhead_us"] for row in timed_rows),
        "find_over_forward": found_s * 1e3 / statistics.median(row["whole_ms"] for row in timed_rows),
        "rows": rows,
    }


def main() -> None:
    """Parse the command line, measure every family, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="not used")
    parser.add_argument("--full", action="store_true", help="the library's default sizes")
    parser.add_argument("--families", nargs="*", choices=[family.name for family in FAMILIES], help="default: all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--timed", type=int, default=6, help="cuts that are timed")
    parser.add_argument("--quick", action="store_true", help="two repeats; the times mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"schema": SCHEMA, "hardware": describe(), "full": options.full, "families": {}}
    for family in FAMILIES:
        if options.families and family.name not in options.families:
            continue
        found = measure(family, options.full, 2 if options.quick else options.repeats, options.timed)
        result["families"][family.name] = found
        print(
            f"{family.name:<13} {found['cuts']:>3} cuts  {found['equal']:>3} equal  {found['trainable']:>3} trainable  "
            f"overhead {found['overhead_median']:6.1%} (max {found['overhead_max']:6.1%}), "
            f"{found['overhead_us_median']:6.0f} us  finding them {found['find_over_forward']:.1f} forwards",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if any(found["equal"] < found["cuts"] for found in result["families"].values()):
        raise SystemExit("a split model computed other bits than the unsplit one")


if __name__ == "__main__":
    main()
