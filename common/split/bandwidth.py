"""A link whose rate changes with time: piecewise constant, repeated from its start when it ends."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fogline.common.errors import InputError

MAX_ROWS = 1_000_000


class Bandwidth:
    """Seconds at which the rate changes, and the rates from there on, in bit/s.

    The first row is moved to time 0; the last one holds for `last_s`, by default as long as the median of the others.
    Raises InputError.
    """

    def __init__(
        self,
        times_s: Sequence[float],
        rates_bit_s: Sequence[float],
        name: str = "trace",
        *,
        last_s: float | None = None,
    ) -> None:
        if not times_s or len(times_s) != len(rates_bit_s):
            raise InputError(f"{name}: an empty trace; give rows of t_s,bps, at least one")
        for row, (at, rate) in enumerate(zip(times_s, rates_bit_s, strict=True), 1):
            if not math.isfinite(at) or (row > 1 and at <= times_s[row - 2]):
                raise InputError(f"{name}, row {row}: time {at} is not after the one before; times must increase")
            if not (math.isfinite(rate) and rate >= 0):
                raise InputError(f"{name}, row {row}: a rate of {rate} bit/s; give a number of 0 or more")
        if not any(rates_bit_s):
            raise InputError(f"{name}: its rate is 0 throughout, so nothing would ever arrive; leave this trace out")
        steps = sorted(b - a for a, b in pairwise(times_s))
        last = last_s or (steps[len(steps) // 2] if steps else 1.0)
        self.name = name
        self.times = [at - times_s[0] for at in times_s] + [times_s[-1] - times_s[0] + last]
        self.rates = [rate / 8.0 for rate in rates_bit_s]  # bytes per second
        self.carried = [0.0]  # bytes until each of `times`
        for index, rate in enumerate(self.rates):
            self.carried.append(self.carried[-1] + rate * (self.times[index + 1] - self.times[index]))

    @classmethod
    def read(cls, path: Path) -> Bandwidth:
        """A CSV file with columns t_s (seconds, increasing) and bps (bit/s until the next row). Raises InputError."""
        times: list[float] = []
        rates: list[float] = []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames is None or not {"t_s", "bps"} <= set(reader.fieldnames):
                    raise InputError(f"{path}: its first line must name the columns t_s and bps")
                for row in reader:
                    if len(times) == MAX_ROWS:
                        raise InputError(f"{path}: more than {MAX_ROWS:,} rows; cut the trace into pieces")
                    try:
                        at, rate = float(row["t_s"]), float(row["bps"])
                    except (TypeError, ValueError) as error:
                        raise InputError(f"{path}, row {len(times) + 1}: {error}; give numbers") from error
                    times.append(at)
                    rates.append(rate)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} can't be read as a trace: {error}") from error
        return cls(times, rates, str(path))

    @property
    def duration_s(self) -> float:
        """Length of one round."""
        return self.times[-1]

    def rate_at(self, now: float) -> float:
        """Bit/s at a time."""
        return 8.0 * self.rates[bisect_right(self.times, now % self.times[-1], 0, len(self.rates)) - 1]

    def finish(self, start: float, count: float) -> float:
        """When the last of `count` bytes that begin at `start` on the idle link has gone through."""
        rounds, at = divmod(start, self.times[-1])
        index = bisect_right(self.times, at, 0, len(self.rates)) - 1
        goal = self.carried[index] + (at - self.times[index]) * self.rates[index] + count
        whole = self.carried[-1]
        if goal > whole:
            more, goal = divmod(goal, whole)
            if goal == 0:
                more, goal = more - 1, whole
            rounds += more
        # The first segment at whose end the goal is reached: earlier ones with the same sum carried nothing more.
        low, high = 0, len(self.rates)
        while low < high:
            middle = (low + high) // 2
            if self.carried[middle + 1] >= goal:
                high = middle
            else:
                low = middle + 1
        rate = self.rates[low]
        rest = (goal - self.carried[low]) / rate if rate > 0 else 0.0
        return max(start, rounds * self.times[-1] + self.times[low] + rest)

    def cut(self, seconds: float) -> Bandwidth:
        """The first `seconds` of it; itself where it is no longer. Raises InputError where these carry nothing."""
        if self.times[-1] <= seconds:
            return self
        count = max(1, bisect_right(self.times, seconds - 1e-9, 0, len(self.rates)))
        rates = [8 * rate for rate in self.rates[:count]]
        return Bandwidth(self.times[:count], rates, self.name, last_s=seconds - self.times[count - 1])
