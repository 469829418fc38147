"""How fast a link is, as its sender can know it. Pure logic: times and bytes in, an estimate out.

The unknown is x = ln(seconds per byte), a random walk whose variance grows by `drift`² a second; each acknowledged
transfer is an observation of it (a scalar Kalman filter). What makes the observations honest:

- the time of a transfer runs from when the link could begin with it (its own start, or the arrival of what was sent
  before it) to its arrival (the acknowledgement less the round trip and what the peer held it for), so neither idle
  gaps nor the peer's work nor waiting behind other bytes count as slowness;
- the round trip varies, on a slow or busy device by more than a short transfer takes; so a residual is shared between
  the two by their variances, and hardly any of it falls on a transfer too short to be told from the jitter;
- how fast the link is *at least* is known much better, since no round trip is shorter than the least one: a transfer
  that came too soon for the rate that was believed raises it (as samples of the delivery rate do in BBR, Cardwell et
  al. 2016);
- an observation far outside of what both explain means that the link has changed: what was known is dropped;
- bytes that are overdue say that the link is *at most* so fast, before any acknowledgement comes.

The round trip is smoothed as in RFC 6298, and looked at again at times, since a busy end answers later. All times are
seconds of one steady clock of the caller's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist, median
from typing import NamedTuple

from fogline.common.errors import InternalError

FIRST_TRIPS = 5


class LinkState(Enum):
    """What is known of a link."""

    UNKNOWN = "unknown"  # nothing was acknowledged yet
    ALIVE = "alive"
    DEAD = "dead"  # bytes are outstanding and nothing comes back, or the connection is lost


_ALIVE = LinkState.ALIVE


class LinkEstimate(NamedTuple):
    """A link at one moment. `rate_bit_s` is 0 for a dead link and None for an unknown one."""

    state: LinkState
    rate_bit_s: float | None
    rtt_s: float
    jitter_s: float  # mean deviation of the round trip
    spread: float  # standard deviation of ln(rate)
    age_s: float  # since the last observation
    backlog_bytes: int = 0  # sent and not acknowledged: what is sent next waits behind them

    @classmethod
    def stated(cls, rate_bit_s: float, rtt_s: float = 0.0) -> LinkEstimate:
        """A rate that was told, not measured; zero, a negative or no number at all means that there is no link."""
        if not rate_bit_s > 0 or math.isinf(rate_bit_s):
            return cls(LinkState.DEAD, 0.0, rtt_s, 0.0, 0.0, 0.0)
        return cls(LinkState.ALIVE, float(rate_bit_s), rtt_s, 0.0, 0.0, 0.0)

    @property
    def usable(self) -> bool:
        """Whether anything can be planned over it."""
        return self.state is _ALIVE and bool(self.rate_bit_s)

    @property
    def seconds_per_byte(self) -> float:
        """Infinite where the link is not usable."""
        return 8.0 / self.rate_bit_s if self.state is _ALIVE and self.rate_bit_s else math.inf


@dataclass(frozen=True)
class LinkSettings:
    """How an estimate behaves. Times in seconds, sizes in bytes."""

    drift: float = 0.35  # how much ln(rate) wanders in one second: real cellular links are near this
    noise: float = 0.03  # relative error of a long transfer's time
    clock_s: float = 0.0005  # error of any single time
    surprise: float = 3.0  # standard deviations beyond which the link is taken to have changed
    dead_after_s: float = 1.0  # without an acknowledgement beyond the time at which one was due
    probe_every_s: tuple[float, float] = (0.15, 5.0)  # least and most between two probes of an idle link
    probe_bytes: tuple[int, int] = (1 << 10, 256 << 10)  # least and most in one probe
    probe_s: float = 0.02  # how long a probe should occupy the link at the rate in question
    trip_every_s: float = 2.0  # between two looks at the round trip, which a busy device makes longer than an idle one
    chance: float = 0.05  # that the rate has crossed the one in question, from which on a probe is due


@dataclass
class _Outstanding:
    number: int
    begun: float
    count: int
    through: int = 0  # of its bytes acknowledged


class LinkEstimator:
    """Told of every transfer over one direction of a link. Transfers share it in the order in which they began."""

    def __init__(self, settings: LinkSettings | None = None) -> None:
        self.settings = settings or LinkSettings()
        self._x = math.nan  # ln(seconds per byte)
        self._variance = math.inf
        self._observed = -math.inf  # when it was last observed
        self._trip_s = 0.0
        self._least_s = 0.0  # of the round trips, of late
        self._trips = 0  # round trips that were told
        self._first: list[float] = []  # of them
        self._tripped = -math.inf  # when the last of them ended
        self._jitter = 0.0
        self._outstanding: deque[_Outstanding] = deque()
        self._numbers = 0
        self._arrived = -math.inf  # when what was sent last was taken in by the peer, as far as known
        self._progress = -math.inf  # the last acknowledgement of anything
        self._probed = -math.inf
        self._wait = self.settings.probe_every_s[0]  # between probes: doubled while they tell nothing new
        self._lost = False
        self._drift = self.settings.drift**2
        self._deviations = NormalDist().inv_cdf(1 - self.settings.chance)
        self.events = 0  # rises with all that is told

    def trip_due(self, now: float) -> bool:
        """Whether the round trip should be looked at again, by a message too small to fill the idle link."""
        return not (self._outstanding or self._lost) and now - self._tripped >= self.settings.trip_every_s

    def round_trip(self, seconds: float, now: float = -math.inf) -> None:
        """The measured round trip of a message too small to fill the link."""
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise InternalError(f"a round trip of {seconds} s; give a time that passed on a steady clock")
        self.events += 1
        self._trips += 1
        self._tripped = max(self._tripped, now)
        self._least_s = (
            min(seconds, self._least_s + (self._trip_s - self._least_s) / 32) if self._trips > 1 else seconds
        )
        if self._trips <= FIRST_TRIPS:  # of few the median, since a busy device answers some of them very late
            self._first.append(seconds)
            self._trip_s = median(self._first)
            self._jitter = max(median(abs(one - self._trip_s) for one in self._first), self._trip_s / 8)
        else:
            self._settle(seconds - self._trip_s, 1.0)

    def _settle(self, late_s: float, share: float) -> None:
        """An answer came so much later than the round trip says, which has that share in it."""
        late_s *= share
        late_s = max(-4 * self._jitter, min(late_s, 4 * self._jitter))
        self._jitter += share * (abs(late_s) - self._jitter) / 4
        self._trip_s = max(self._least_s, self._trip_s + late_s / 8)

    def begin(self, now: float, count: int) -> int:
        """`count` bytes are ready and on their way; returns the transfer's number."""
        if count <= 0:
            raise InternalError(f"a transfer of {count} bytes; only what has bytes is a transfer")
        self._numbers += 1
        self.events += 1
        self._outstanding.append(_Outstanding(self._numbers, now, count))
        return self._numbers

    def probing(self, now: float) -> None:
        """A probe goes out; its bytes are reported by `begin` and `acknowledge` as all others."""
        self._probed = now
        self.events += 1

    def acknowledge(self, now: float, number: int, through: int | None = None, held_s: float = 0.0) -> None:
        """The first `through` bytes of a transfer (all of them by default) have arrived.

        `held_s` is how long the peer kept the acknowledgement back (the time it computed, as it reports it).
        Acknowledgements of unknown or finished transfers, as after `lost`, are ignored.
        """
        found = next((one for one in self._outstanding if one.number == number), None)
        if found is None:
            return
        through = found.count if through is None else min(through, found.count)
        fresh = through - found.through
        if fresh <= 0:
            return
        # What was sent before it has arrived as well, in whatever order the answers come.
        while self._outstanding[0] is not found:
            fresh += self._outstanding[0].count - self._outstanding[0].through
            found.begun = min(found.begun, self._outstanding[0].begun)
            self._outstanding.popleft()
        self.events += 1
        arrival = max(now - held_s - self._trip_s, found.begun)
        # The round trip is an estimate, so what was sent later may seem to have arrived first.
        since = max(found.begun, self._arrived)
        taken, most = now - held_s - self._trip_s - since, max(0.0, now - held_s - self._least_s - since)
        found.through = through
        if through == found.count:
            self._outstanding.popleft()
        self._arrived = max(self._arrived, arrival)
        self._progress = now
        if self._lost:
            self._lost, self._wait = False, self.settings.probe_every_s[0]
        self._observe(now, fresh, taken, most)

    def lost(self, now: float) -> None:
        """The connection broke: what was outstanding will never be acknowledged."""
        if self._outstanding or not self._lost:
            self._wait = self.settings.probe_every_s[0]
        self._outstanding.clear()
        self.events += 1
        self._lost = True
        self._arrived = now

    def estimate(self, now: float) -> LinkEstimate:
        """What is known at `now`."""
        age = now - self._observed
        if not (self._outstanding or self._lost or math.isnan(self._x)):  # the usual case, before every request
            age = max(0.0, age)
            spread = math.sqrt(self._variance + self._drift * age)
            return LinkEstimate(_ALIVE, 8.0 * math.exp(-self._x), self._trip_s, self._jitter, spread, age)
        backlog = sum(one.count - one.through for one in self._outstanding)
        if self._is_dead(now):
            return LinkEstimate(LinkState.DEAD, 0.0, self._trip_s, self._jitter, math.inf, age, backlog)
        if math.isnan(self._x):
            return LinkEstimate(LinkState.UNKNOWN, None, self._trip_s, self._jitter, math.inf, math.inf, backlog)
        per_byte = max(math.exp(self._x), self._overdue(now))
        return LinkEstimate(
            LinkState.ALIVE, 8.0 / per_byte, self._trip_s, self._jitter, self._spread(now), max(0.0, age), backlog
        )

    def probe_due(self, now: float, rate_bit_s: float | None = None) -> bool:
        """Whether an idle link should be probed now; `rate_bit_s` is the one at which a decision would change."""
        return now >= self.probe_at(rate_bit_s)

    def probe_at(self, rate_bit_s: float | None = None) -> float:
        """When an idle link should be probed, if nothing is heard of it before; infinite where something is under way.

        Far from the rate at which a decision would change little depends on the link and probes are rare; near it they
        are frequent.
        """
        soonest = self.soonest_probe
        if self._lost or math.isnan(self._x) or soonest == math.inf:
            return soonest
        last = max(self._probed, self._observed)
        due = last + self._wait
        if rate_bit_s is not None and 0 < rate_bit_s < math.inf:
            away = abs(self._x - math.log(8.0 / rate_bit_s))
            # By then it has crossed that rate with the probability `chance`.
            wandered = (away / self._deviations) ** 2 - self._variance if self._deviations > 0 else 0.0
            if wandered <= 0:
                due = last
            elif self.settings.drift > 0:
                due = min(due, self._observed + wandered / self.settings.drift**2)
        return max(due, soonest)

    @property
    def soonest_probe(self) -> float:
        """Before which no probe is due, whatever rate is in question; infinite where something is under way."""
        if self._lost:
            return self._probed + self._wait
        if self._outstanding:
            return math.inf  # they will tell
        last = self._probed if math.isnan(self._x) else max(self._probed, self._observed)
        return last + self.settings.probe_every_s[0]

    def probe_failed(self) -> None:
        """No connection for a probe: the next one later, up to the longest interval."""
        self._wait = min(2 * self._wait, self.settings.probe_every_s[1])
        self.events += 1

    def probe_size(self, rate_bit_s: float | None = None) -> int:
        """Bytes that fill the link for long enough to be told from jitter at the rate in question."""
        least, most = self.settings.probe_bytes
        per_byte = 8.0 / rate_bit_s if rate_bit_s and 0 < rate_bit_s < math.inf else math.exp(self._x)
        if not per_byte > 0:  # nothing known at all
            return 4 * least
        seconds = min(max(self.settings.probe_s, 4 * self._jitter), 3 * self.settings.probe_s)
        return int(min(max(seconds / per_byte, least), most))

    def _spread(self, now: float) -> float:
        return math.sqrt(self._variance + self._drift * max(0.0, now - self._observed))

    def _observe(self, now: float, count: int, seconds: float, most: float) -> None:
        """One transfer of `count` bytes took `seconds` of the link if its round trip was the usual one.

        `most`: if its round trip was the least one.
        """
        settings = self.settings
        blur = max(self._jitter, settings.clock_s)
        most = most * (1 + settings.noise) + max(settings.clock_s, blur / 4)
        if math.isnan(self._x):
            seconds = max(0.0, seconds)
            self._known(now, count, max(seconds, min(2 * blur, most)), blur)
            return
        expected = count * math.exp(self._x)
        before = self._variance + self._drift * max(0.0, now - self._observed)
        late, seconds = seconds - expected, max(0.0, seconds)
        apart = seconds - expected
        share = expected**2 * before
        share /= share + blur**2 + (settings.noise * expected) ** 2
        if apart**2 * share > (settings.surprise * expected) ** 2 * before and max(seconds, expected) > 2 * blur:
            # Far outside of what the walk expects: the link has changed, which is a reason to look again soon.
            self._wait = settings.probe_every_s[0]
            self._known(now, count, max(seconds, min(2 * blur, most)), blur)
            return
        self._wait = min(1.5 * self._wait, settings.probe_every_s[1])
        self._settle(late, 1 - share)
        found = max(expected + share * apart, min(2 * blur, most, expected))
        if most < found:
            self._known(now, count, most, blur)
            return
        self._x = math.log(found / count)
        self._variance = (1 - share) * before
        self._observed = now

    def _known(self, now: float, count: int, seconds: float, blur: float) -> None:
        """What was known before is dropped."""
        self._x = math.log(seconds / count)
        self._variance = min((blur / seconds) ** 2, 0.25) + self.settings.noise**2
        self._observed = now

    def _overdue(self, now: float) -> float:
        """Seconds per byte below which the outstanding bytes would have been acknowledged already; 0 where none are.

        Twice the least value that explains the silence: who has waited for w expects to wait as long again.
        """
        if not self._outstanding:
            return 0.0
        first = self._outstanding[0]
        since = max(first.begun, self._arrived if first.through or self._arrived > first.begun else first.begun)
        silent = now - since - self._trip_s - self._jitter
        count = first.count - first.through
        least = silent / count
        return 2 * least if least > math.exp(self._x) * 1.1 else 0.0

    def _is_dead(self, now: float) -> bool:
        if self._lost:
            return True
        if not self._outstanding:
            return False
        first = self._outstanding[0]
        since = max(first.begun, self._progress)
        expected = self._trip_s + 4 * self._jitter
        if not math.isnan(self._x):
            expected += 2 * (first.count - first.through) * math.exp(self._x)
        return now - since > expected + self.settings.dead_after_s
