"""The device's end of `split_link`: heads, codecs, a planner and the real client, request after request.

Reads one JSON object a line: what to run and for how long. Answers each with one line of results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitedTooLong
from pathlib import Path
from typing import Any

import grpc
import torch

from fogline.common.codecs import Chain
from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2_grpc
from fogline.common.rpc.tensor_client import Answered, TensorClient
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.cuts import cuts
from fogline.common.split.link import LinkEstimator
from fogline.common.split.options import Option, enumerate_options, pareto
from fogline.common.split.planner import Planner, Ticket
from fogline.common.split.policies.base import Choice, Policy, Situation, make
from fogline.common.split.profile import INPUT, load
from fogline.common.split.segments import split
from fogline.common.wire.session_client import ClientSession
from fogline.common.wire.tensors import Dtype, Role, Stage, TensorHeader
from fogline.splitting.inputs import folder as read_images
from fogline.splitting.inputs import model as build_model

TINY_PROBES = 5


class _EnoughError(BaseException):
    """The host's answer came while the device computed the same."""


class Device:
    """Everything that one policy after another uses."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.images = read_images(Path(options.images), 224)
        model = build_model(options.model)
        cuts(model, self.images[:1])
        self.model, self.names = model, json.loads(options.cuts)
        self.heads: dict[str, torch.nn.Module | None] = {INPUT: None}
        self.rests: dict[str, torch.nn.Module] = {INPUT: model}
        for name in self.names:
            if name != INPUT:
                head, rest = split(model, at=name)
                assert head is not None
                assert rest is not None
                self.heads[name], self.rests[name] = head, rest
        tls_folder = Path(options.tls)
        tls = TlsConfig(ca=tls_folder / "ca.pem", cert=tls_folder / "edge.pem", key=tls_folder / "edge.key")
        self.client = TensorClient(
            options.connect,
            tls,
            ClientSession(durable_answers=True),
            session_id=os.urandom(16),
            mode=pb.SESSION_MODE_INFERENCE,
            setup=b"{}",
            meter=LinkMeter("edge-fog"),
        )
        self.client.wait_open(60)
        self.channel = connect(options.connect, tls, meter=LinkMeter("edge-fog"), deadline_s=120)
        self.stub = tensors_pb2_grpc.TensorServiceStub(self.channel)
        self.waits_for: Future[Answered] | None = None
        torch.nn.modules.module.register_module_forward_pre_hook(self._look)

    def _look(self, module: torch.nn.Module, inputs: object) -> None:
        if self.waits_for is not None and self.waits_for.done():
            raise _EnoughError

    def probe(self, size: int) -> float:
        """Send padding; returns the seconds until its answer."""
        before = time.monotonic()
        self.stub.Probe(pb.ProbeRequest(padding=bytes(size)))
        return time.monotonic() - before


class Oracle(Policy):
    """Knows the trace, and of the hosts what their last answers told; takes what ends first."""

    name = "oracle"
    adaptive = False

    def __init__(self, options: list[Option], link: Bandwidth, overhead: float) -> None:
        super().__init__(pareto(options))
        self._link, self._overhead = link, overhead
        self.start = 0.0  # of the trace, on the clock of the situations

    def choose(self, situation: Situation) -> Choice:
        """No hysteresis, no deadline."""
        now, load, rtt_s = situation.now - self.start, situation.load, situation.links[0].rtt_s

        def end(one: Option) -> float:
            at = now + one.hosts_s[0] * load.factors[0]
            if not one.cuts:
                return at
            sent = self._link.finish(at, one.coded_bytes[0] * self._overhead)
            return sent + rtt_s + one.hosts_s[1] * load.factors[1]

        best = min(self.table.options, key=end)
        return Choice(best, "the trace is known", end(best) - now)


class Session:
    """One policy over one stretch of the link."""

    def __init__(self, device: Device, options: list[Option], task: dict[str, Any]) -> None:
        self.device, self.lock = device, threading.Lock()
        link = LinkEstimator()
        params = task.get("params") or {}
        self.oracle = None
        if task["policy"] == "oracle":
            trace = Bandwidth(params["times_s"], params["rates_bit_s"], last_s=params["last_s"])
            self.oracle = Oracle(options, trace, params["overhead"])
        self.planner = Planner(self.oracle or make(task["policy"], options, params), link)
        self.seconds, self.stop = float(task["seconds"]), threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {}  # of the request at hand
        self.start = 0.0
        self.probed = 0
        self.heard = threading.Event()  # something of the link
        self.whole: tuple[torch.Tensor, float] | None = None  # what the device computes alone, and until when
        self.open: list[Future[Answered]] = []

    def run(self) -> dict[str, Any]:
        """Requests until the time is over."""
        prober = threading.Thread(target=self._probing, daemon=True)
        prober_of_the_start = threading.Thread(target=self._connected, daemon=True)
        prober_of_the_start.start()
        while prober_of_the_start.is_alive():  # a device that is busy answers later than an idle one
            with torch.no_grad():
                self.device.model(self.device.images[:1])
        prober.start()
        self.start, index = time.monotonic(), 0
        if self.oracle is not None:
            self.oracle.start = self.start
        while time.monotonic() - self.start < self.seconds:
            began, cpu = time.monotonic(), time.process_time()
            self.record = {"begun_s": began - self.start}
            choice, fell_back = self._request(self.device.images[index % len(self.device.images)][None])
            took = time.monotonic() - began
            self.record |= {"latency_s": took, "option": choice.option.name, "fell_back": fell_back}
            self.record |= {"expected_s": choice.expected_s, "cpu_s": time.process_time() - cpu}
            self.requests.append(self.record)
            index += 1
        self.stop.set()
        self.heard.set()
        with self.lock:
            rtt = self.planner.link.estimate(time.monotonic()).rtt_s
            factors = self.planner.live.load.factors
        for future in self.open:  # what was abandoned must not burden the next policy
            future.exception(120)
        prober.join(120)
        return {
            "requests": self.requests,
            "probe_bytes": self.probed,
            "rtt_s": rtt,
            "factors": factors,
        }

    def _request(self, image: torch.Tensor) -> tuple[Choice, bool]:
        with self.lock:
            before, cpu = time.perf_counter(), time.thread_time()
            choice = self.planner.decide(time.monotonic())
            self.record["decision_cpu_s"] = time.thread_time() - cpu
            self.record["decision_s"] = time.perf_counter() - before
            link = self.planner.link.estimate(time.monotonic())
        self.record |= {"rate_bit_s": link.rate_bit_s, "backlog_bytes": link.backlog_bytes, "age_s": link.age_s}
        option, began = choice.option, time.monotonic()
        if not option.cuts:
            return choice, self._local(image, option)
        head = self.device.heads[option.cuts[0]]
        with torch.no_grad():
            crossing = image if head is None else head(image)
        future, ticket = self._send(crossing, choice, began)
        try:
            future.result(max(0.0, ticket.overdue_at - time.monotonic()) if ticket.overdue_at < 1e12 else None)
        except WaitedTooLong:
            return choice, self._rest(option.cuts[0], crossing, future)
        return choice, False

    def _local(self, image: torch.Tensor, option: Option) -> bool:
        """Compute everything here, unless what was sent after all is answered before; False."""
        began = time.monotonic()
        self.whole = (image, began + option.hosts_s[0] * self.planner.live.load.factors[0])
        try:
            with torch.no_grad():
                self.device.model(image)
            self.whole = None
            self._computed(time.monotonic() - began, option)
        except _EnoughError:
            pass
        finally:
            with self.lock:
                self.whole = self.device.waits_for = None
        return False

    def _reconsider(self) -> None:
        """Something was heard of the link: send what the device computes, where that is faster."""
        whole, now = self.whole, time.monotonic()
        if whole is None or self.device.waits_for is not None:
            return
        with self.lock:
            choice = self.planner.second_thought(now, whole[1] - now)
        if choice is not None:
            future, _ = self._send(whole[0], choice, now)
            with self.lock:
                if self.whole is whole:
                    self.device.waits_for = future

    def _send(self, crossing: torch.Tensor, choice: Choice, began: float) -> tuple[Future[Answered], Ticket]:
        """Encode and submit what crosses; the device has been at it since `began`."""
        option = choice.option
        cut, codec = option.cuts[0], option.codecs[0]
        before = time.monotonic()
        coded = Chain.parse(codec).encoder().encode(crossing, training=False)
        record, ready = self.record, time.monotonic()
        record |= {"encode_s": ready - before, "ready_s": ready - self.start}
        if self.whole is None:
            record["head_s"] = before - began
            self._computed(ready - began, option)
        else:
            record["second_thought"] = option.name
        payload = memoryview(coded.payload).cast("B")
        header = TensorHeader(
            Role.ACTIVATION,
            Dtype.FLOAT32,
            tuple(coded.shape),
            len(payload),
            tuple(Stage(s.number, s.version, s.params) for s in coded.stages),
            codec,
        )
        with self.lock:
            ticket = self.planner.sending(time.monotonic(), choice)
        future = self.device.client.submit(pb.Forward(cut=self.device.names.index(cut)), (header,), (payload,))
        self.open = [one for one in self.open if not one.done()] + [future]
        record |= {"bytes": len(payload), "submit_s": time.monotonic() - ready}
        future.add_done_callback(lambda done: self._answered(done, ticket, option, record))
        return future, ticket

    def _rest(self, cut: str, crossing: torch.Tensor, future: Future[Answered]) -> bool:
        """Compute the rest here until that or the host's answer is there; True when the device was first."""
        self.device.waits_for = future
        try:
            with torch.no_grad():
                self.device.rests[cut](crossing)
        except _EnoughError:
            return False
        finally:
            self.device.waits_for = None
        return True

    def _computed(self, seconds: float, option: Option) -> None:
        with self.lock:
            self.planner.live.computed(0, seconds, option.hosts_s[0])

    def _answered(self, future: Future[Answered], ticket: Ticket, option: Option, record: dict[str, Any]) -> None:
        if future.exception() is not None:
            return
        body, now = future.result().body, time.monotonic()
        compute, queued = body.compute_us / 1e6, body.queued_us / 1e6
        record |= {"answered_s": now - self.start, "compute_s": compute, "queued_s": queued}
        with self.lock:
            self.planner.answered(now, ticket, compute + queued)
            self.planner.live.computed(1, compute, option.hosts_s[1])
            self.planner.live.waited(1, queued)
        if self.whole is not None:
            self.heard.set()

    def _probing(self) -> None:
        while not self.stop.is_set():
            now = time.monotonic()
            with self.lock:
                size, due = self.planner.probe_due(now), self.planner.probe_at(now)
                trip = self.planner.trip_due(now)
            if size is not None:
                self._probe(size)
                self._reconsider()
            elif trip:
                self._trip()
            elif self.heard.wait(min(max(due - now, 0.005), 1.0)):
                self.heard.clear()
                self._reconsider()

    def _connected(self) -> None:
        """What a client does first."""
        for _ in range(TINY_PROBES):
            self._trip()
        if self.planner.policy.adaptive:
            self._probe(4096)

    def _trip(self) -> None:
        seconds = self.device.probe(1)
        with self.lock:
            self.planner.link.round_trip(seconds, time.monotonic())

    def _probe(self, size: int) -> None:
        with self.lock:
            ticket = self.planner.probing(time.monotonic(), size)
        self.probed += size
        try:
            self.device.probe(size)
        except grpc.RpcError:
            with self.lock:
                self.planner.link.lost(time.monotonic())
            return
        with self.lock:
            self.planner.probed(time.monotonic(), ticket)


def main() -> None:
    """Parse the command line, then serve tasks from standard input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("--connect", "--tls", "--model", "--cuts", "--images", "--host-profile"):
        parser.add_argument(name, required=True)
    parser.add_argument("--device-profile", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = Device(options)
    choices = enumerate_options([load(Path(options.device_profile)), load(Path(options.host_profile))], 1)
    _say({"ready": True, "rtt_s": sorted(device.probe(1) for _ in range(21))[10]})
    for line in sys.stdin:
        task = json.loads(line)
        session = Session(device, choices, task)
        _say({"begin": True})
        _say(session.run())
    device.client.close()
    device.channel.close()


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
