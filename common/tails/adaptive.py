"""`AdaptiveModel`: a model that runs here, on a host, or on both with a cut between, chosen anew for each call."""

from __future__ import annotations

import inspect
import math
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import torch
from torch import Tensor, nn

from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError, InputError
from fogline.common.metrics import SplitMetrics
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.peer import Peer
from fogline.common.split.cuts import architecture_hash
from fogline.common.split.cuts import cuts as find_cuts
from fogline.common.split.link import LinkEstimate, LinkEstimator, LinkSettings
from fogline.common.split.options import enumerate_options
from fogline.common.split.planner import Planner
from fogline.common.split.policies.base import Choice, Situation, find, make
from fogline.common.split.profile import INPUT, Profile, hardware_id, load
from fogline.common.split.segments import Segment, split
from fogline.common.split.structure import replace, tensors
from fogline.common.tails.adaptive_link import HostLink, Observe, batch_of
from fogline.common.tails.connected import Connected
from fogline.common.tails.observed import Observed
from fogline.common.tails.remote import RemoteTail

LOCAL, DEVICE, HOST = "local", "device", "host"
PROBE_S = 5.0  # after which a probe counts as lost
_CODEC_PARAMETERS = ("codec", "feature_codec", "input_codec")  # of policies, which a session's one codec answers


@dataclass(frozen=True)
class Decision:
    """How a call was answered. `cut`: what was chosen, `local`, `input` or a cut's name; times in seconds.

    `by` is `device` or `host`: the device also answers for a cut where the host did not in time. `predicted_s` is None
    where the policy had no opinion.
    """

    cut: str
    by: str
    reason: str
    predicted_s: float | None
    measured_s: float


@dataclass(frozen=True)
class _Sides:
    """A cut's two sides here. Without a head the input is sent."""

    head: Segment | None
    tail: Segment


class AdaptiveModel(Connected):
    """Takes and returns what the model does; for inference. Close it, or use it in `with`.

    The whole model stays here, so that there is always an answer: a dead link never raises. `last` tells of the last
    call that ended. May be called from several threads. With `codec="raw"` results are the model's own, bit for bit,
    whoever computes them, with as many threads here as there.
    """

    last: Decision | None = None

    def __init__(
        self,
        model: nn.Module,
        address: str,
        *,
        profile: Profile | Path | str,
        host_profile: Profile | Path | str,
        example: Any = None,
        build: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        cuts: Sequence[str] | None = None,
        policy: str = "joint",
        params: Mapping[str, Any] | None = None,
        codec: str = "raw",
        deadline_s: float = 1.0,
        tls: TlsConfig | None = None,
        name: str = "edge",
        role: str = "edge",
        link: LinkSettings | None = None,
        connect_s: float = 5.0,
        stall_s: float = 10.0,
        give_up_s: float = 60.0,
        meter: LinkMeter | None = None,
        metrics: SplitMetrics | None = None,
    ) -> None:
        """`model` in eval mode; `address` (host:port) of a tail host, which need not be there yet.

        `profile` and `host_profile` are what `fogline split profile` made here and there, or its files. `example` is
        as for `cuts`, and not needed where `cuts(model, example)` was called before. `build` names the function that
        makes the model at the host (default: the profile's), `kwargs` are for it. `cuts`: those of the profile to
        choose from, `input` among them (default: all). `policy` and `params` as for `fogline split explain`; `codec`
        is that of the session, so a policy chooses among cuts alone. `deadline_s`, from the call on: where the host has
        not answered by then, the device computes the rest. The others are those of `RemoteTail.connect`.

        Raises ConfigError (a profile of something else, an unknown cut, policy or codec), FormatError, InputError.
        """
        super().__init__()
        if model.training:
            raise InputError("AdaptiveModel is for inference, and the model is in training mode; call model.eval()")
        if not (deadline_s > 0 and math.isfinite(deadline_s)):
            raise ConfigError(f"deadline_s {deadline_s}; give seconds above 0")
        device = profile if isinstance(profile, Profile) else load(Path(profile))
        host = host_profile if isinstance(host_profile, Profile) else load(Path(host_profile))
        architecture, here = architecture_hash(model), hardware_id(torch.get_num_threads())
        device.check(architecture=architecture, hardware=here, torch=str(torch.__version__))
        host.check(architecture=architecture)
        self.model = model
        self._deadline_s = deadline_s
        self._profiles, self._codec = (device, host), codec
        self._policy, self._params = policy, _with_codec(policy, params, codec)
        self._names = _chosen(device, cuts)
        self._metrics = metrics
        self._watch = watch = Observed(metrics, whole=False)
        meter = meter or LinkMeter("edge-fog", None if metrics is None else metrics.link_bytes)
        tls, me = tls or TlsConfig(insecure=True), Peer(name, role)
        options: dict[str, Any] = {"kwargs": kwargs, "tls": tls, "name": name, "role": role, "codec": codec}
        options |= {
            "metrics": watch,
            "meter": meter,
            "connect_s": connect_s,
            "stall_s": stall_s,
            "give_up_s": give_up_s,
        }

        def session(observe: Observe) -> RemoteTail:
            weights = [sides.tail for sides in self._sides.values()]
            return RemoteTail.connect(
                address, model=build or device.model, weights=weights, training=False, observe=observe, **options
            )

        def probes() -> grpc.Channel:
            return connect(address, tls, meter=meter, deadline_s=PROBE_S, me=me)

        self._host = HostLink(session, probes, LinkEstimator(link))
        self._planners: dict[int, Planner] = {}
        self._told: float | None = None
        for size in device.batches:
            self._host.planner = self._planner(size)  # refuses what can't be planned with
        if example is not None:
            find_cuts(model, example)
        self._sides = {name: _sides(model, name) for name in self._names}
        if metrics is not None:
            told = weakref.ref(self)
            metrics.connected.set_function(lambda: float(getattr(told(), "connected", False)))
            metrics.link_rate.set_function(lambda: _rate(told()))
            metrics.link_round_trip.set_function(lambda: _round_trip(told()))
        self._host.start()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, from here or from the host. Raises what the model itself raises."""
        began = time.monotonic()
        with torch.no_grad():
            result, cut, by, reason, predicted = self._answer(began, args, kwargs)
        self.last = Decision(cut, by, reason, predicted, time.monotonic() - began)
        if self._metrics is not None:
            self._metrics.calls.labels(cut, self._codec, by).inc()
            self._metrics.call_seconds.labels(by).observe(self.last.measured_s)
        return result

    def train(self, mode: bool = True) -> AdaptiveModel:
        """Raises InputError: this is for inference. `eval()` changes nothing."""
        if mode:
            raise InputError("AdaptiveModel is for inference; train with RemoteTail, then build it from the result")
        super().train(False)
        return self

    @property
    def connected(self) -> bool:
        """Whether the host has the session now."""
        return self._host.connected

    @property
    def link(self) -> LinkEstimate:
        """What is known of the link now."""
        with self._host.lock:
            return self._estimate(time.monotonic())

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the host has the weights and the link was probed; calls before that are answered here.

        Raises why it has not: UnavailableError, or what the host or this end refuses for good, such as ConfigError or
        IdentityError.
        """
        self._host.wait_known(timeout_s)

    def tell_rate(self, bit_s: float | None) -> None:
        """The link's rate as somebody else knows it, such as a modem, in place of the estimate; None ends that.

        Zero, below zero or NaN: there is no link, and everything is computed here.
        """
        self._told = bit_s

    def close(self) -> None:
        """End the session; calls are answered here from then on. Idempotent."""
        if self._ours:
            self._host.close()

    def __enter__(self) -> AdaptiveModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, began: float, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, str, str, str, float | None]:
        if not self._ours:
            return self.model(*args, **kwargs), LOCAL, DEVICE, "a forked process has no connection", None
        try:
            planner = self._planner(batch_of(args, kwargs))
        except InputError as error:  # too far from what was measured
            return self.model(*args, **kwargs), LOCAL, DEVICE, str(error), None
        given = args, kwargs
        choice, reason = self._choose(planner, began)
        if choice is None or not choice.option.cuts:
            return self._local(given, planner, reason, None if choice is None else choice.expected_s)
        cut = choice.option.cuts[0]
        sides = self._sides[cut]
        crossing: tuple[Any, ...] = args
        theirs = {f.tensor.untyped_storage().data_ptr() for f in tensors([args, kwargs])}
        try:
            if sides.head is not None:
                with self._watch.part("forward", "head"):
                    made = sides.head(*args, **kwargs)
                crossing, kwargs = made if isinstance(made, tuple) else (made,), {}
            # The caller may change what is his while it is still sent and nobody waits for the answer any more.
            out, named = replace(
                (crossing, kwargs), Tensor, lambda t: t.clone() if t.untyped_storage().data_ptr() in theirs else t
            )
            sent = self._host.send(out, named, None if sides.head is None else cut, planner, choice)
        except FoglineError as error:  # other sizes than the example's, too much under way, a connection that broke
            return self._local(given, planner, f"{cut} was chosen; {error}", None)
        with self._host.lock:
            self._host.live.computed(0, sent.at - began, choice.option.hosts_s[0])
        until = min(sent.ticket.overdue_at, began + self._deadline_s)
        wait((sent.answer, sent.broken), max(0.0, until - time.monotonic()), FIRST_COMPLETED)
        if sent.answer.done() and sent.answer.exception() is None:
            return sent.answer.result(), cut, HOST, reason, choice.expected_s
        late = "the connection broke" if sent.broken.done() else f"no answer {until - began:.3g} s after the call"
        return sides.tail(*crossing, **kwargs), cut, DEVICE, f"{late}; chosen for: {reason}", choice.expected_s

    def _local(
        self, given: tuple[tuple[Any, ...], dict[str, Any]], planner: Planner, reason: str, predicted: float | None
    ) -> tuple[Any, str, str, str, float | None]:
        before = time.monotonic()
        with self._watch.part("local", "head"):
            result = self.model(*given[0], **given[1])
        table = planner.policy.table
        if table.local is not None:
            with self._host.lock:
                self._host.live.computed(0, time.monotonic() - before, table.options[table.local].hosts_s[0])
        return result, LOCAL, DEVICE, reason, predicted

    def _choose(self, planner: Planner, now: float) -> tuple[Choice | None, str]:
        """A choice, or None and why the device computes all of it."""
        with self._host.lock:
            self._host.planner = planner
            link = self._estimate(now)
            if self._told is not None and not link.usable:
                return None, f"no link: a rate of {self._told:g} bit/s was told"
            choice = planner.policy.choose(Situation(now, (link,), planner.live.load))
        if choice.option.cuts and not self._host.connected:
            return None, "the host is not connected"
        return choice, choice.reason

    def _estimate(self, now: float) -> LinkEstimate:
        known = self._host.link.estimate(now)
        return known if self._told is None else LinkEstimate.stated(self._told, known.rtt_s)

    def _planner(self, batch: int) -> Planner:
        """That of a batch size; all share what is known of link and hosts. Raises InputError for one too far off."""
        with self._host.lock:
            if batch not in self._planners:
                options = [
                    one
                    for one in enumerate_options(self._profiles, batch, codecs=[self._codec])
                    if not one.cuts or one.cuts[0] in self._names
                ]
                policy = make(self._policy, options, self._params)
                self._planners[batch] = Planner(policy, self._host.link, self._host.live)
            return self._planners[batch]


def _rate(model: AdaptiveModel | None) -> float:
    rate = None if model is None else model.link.rate_bit_s
    return math.nan if rate is None else rate / 8


def _round_trip(model: AdaptiveModel | None) -> float:
    return math.nan if model is None else model.link.rtt_s


def _with_codec(policy: str, params: Mapping[str, Any] | None, codec: str) -> dict[str, Any]:
    """The session's codec in the parameters of policies that would otherwise look for another."""
    known = inspect.signature(find(policy)).parameters
    return {key: codec for key in _CODEC_PARAMETERS if key in known} | dict(params or {})


def _chosen(profile: Profile, cuts: Sequence[str] | None) -> list[str]:
    """In the order of the forward: the weights of the first hold those of all others."""
    known = [cut.name for cut in profile.cuts]
    for name in cuts or ():
        if name not in known:
            raise ConfigError(f"cuts: {name!r} is not in the profile of {profile.model}; it has {', '.join(known)}")
    if cuts is not None and not cuts:
        raise ConfigError(f"cuts: none is given; choose of {', '.join(known)}, or leave it out for all")
    return [name for name in known if cuts is None or name in cuts]


def _sides(model: nn.Module, name: str) -> _Sides:
    head, tail = split(model, at=None if name == INPUT else name)
    assert tail is not None
    if not tail.resolved:
        raise InputError("the model was not traced yet; pass example=, or call cuts(model, example) first")
    return _Sides(head, tail)
