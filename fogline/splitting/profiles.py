"""The profiles that a command plans with: read from files, or measured here and now."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.common.errors import ConfigError
from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Power
from fogline.common.split.profile import Profile, hardware_id, load
from fogline.explain import quantities

if TYPE_CHECKING:
    from torch import nn


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """Options of what is measured."""
    parser.add_argument("--model", required=True, metavar="M", help="package.module:function that builds it")
    parser.add_argument("--inputs", metavar="F", help="package.module:function that returns a calibration set")
    parser.add_argument("--images", type=Path, metavar="DIR", help="instead: a folder of images as calibration set")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="of these images (default: 224)")
    parser.add_argument("--codecs", metavar="A,B", help="tensor codecs (default: those that suit inference)")
    parser.add_argument("--cuts", metavar="A,B", help="cuts (default: the natural bottlenecks that can pay)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="that compute (default: 1)")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="for sizes and accuracy (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of measuring (default: 5)")


def add_planning(parser: argparse.ArgumentParser) -> None:
    """Options of who computes, and what is asked for."""
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the device; without, this host is measured")
    parser.add_argument("--host", type=Path, metavar="FILE", help="profile of the host; without, the device's own")
    parser.add_argument(
        "--edge-factor", type=float, metavar="F", help="the device takes F times as long as profiled (default: 1)"
    )
    parser.add_argument("--rtt", type=float, default=20.0, metavar="MS", help="round trip (default: 20 ms)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples in a request (default: 1)")
    parser.add_argument("--cloud", type=Path, metavar="FILE", help="profile of a second host, behind the first")
    parser.add_argument("--cloud-rate", metavar="R", help="of the link to it, which is taken as steady: 100Mbit/s")
    parser.add_argument("--cloud-rtt", type=float, default=20.0, metavar="MS", help="its round trip (default: 20 ms)")
    parser.add_argument("--objective", default="latency", help="latency or energy (default: latency)")
    parser.add_argument(
        "--watts",
        default="6,4.5,2.7",
        metavar="C,S,W",
        help="of the device while it computes, sends, waits (%(default)s)",
    )
    parser.add_argument(
        "--accuracy-budget",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="that a codec may lose on the calibration set (default: 0.01)",
    )


def build(arguments: argparse.Namespace) -> nn.Module:
    """The model, with threads set. Raises ConfigError."""
    import torch

    from fogline.splitting import inputs

    for name in ("threads", "rounds", "samples"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: give 1 or more")
    torch.set_num_threads(arguments.threads)
    return inputs.model(arguments.model)


def measured(
    arguments: argparse.Namespace, model: nn.Module, batches: Sequence[int], tell: Callable[[str], None]
) -> Profile:
    """This host's profile. Raises ConfigError and InputError."""
    from fogline.common.split.measure import Effort, measure
    from fogline.splitting import inputs

    calibration = inputs.calibration(arguments.inputs, arguments.images, arguments.size)
    return measure(
        model,
        calibration,
        name=arguments.model,
        batches=batches,
        codecs=None if arguments.codecs is None else tuple(arguments.codecs.split(",")),
        cut_names=None if arguments.cuts is None else tuple(arguments.cuts.split(",")),
        effort=Effort(rounds=arguments.rounds, samples=arguments.samples),
        tell=tell,
    )


def gathered(arguments: argparse.Namespace, tell: Callable[[str], None]) -> list[Profile]:
    """Of the device, the host and the one behind that, if any.

    Raises ConfigError for a profile of another model or an older torch.
    """
    if arguments.host is not None and arguments.profile is None:
        raise ConfigError("--host needs --profile, the device's own; `fogline split profile` measures it there")
    if (arguments.cloud is None) != (arguments.cloud_rate is None):
        raise ConfigError("--cloud and --cloud-rate belong together: a second host's profile, and the rate to it")
    model = build(arguments)
    if arguments.profile is None:
        device = measured(arguments, model, sizes(arguments), tell)
    else:
        device = _current(load(arguments.profile), model, arguments.threads)
    host = device if arguments.host is None else _current(load(arguments.host), model, arguments.threads)
    behind = [] if arguments.cloud is None else [_current(load(arguments.cloud), model, arguments.threads)]
    if arguments.edge_factor is not None:
        device = device.scaled(arguments.edge_factor)
    return [device, host, *behind]


def sizes(arguments: argparse.Namespace) -> list[int]:
    """Batch sizes to choose from: `--batches`, where a command has that, or the one of `--batch`."""
    text = getattr(arguments, "batches", None)
    if text is None:
        return [arguments.batch]
    try:
        found = sorted({int(one) for one in text.split(",")})
    except ValueError as error:
        raise ConfigError(f"--batches {text!r}: give numbers as in 1,4,8") from error
    if found[0] < 1:
        raise ConfigError(f"--batches {text}: give sizes of 1 or more")
    return found


def beyond(arguments: argparse.Namespace) -> LinkEstimate | None:
    """The link between the hosts, where there are two. Raises ConfigError."""
    if arguments.cloud_rate is None:
        return None
    if not 0 <= arguments.cloud_rtt < math.inf:
        raise ConfigError(f"--cloud-rtt {arguments.cloud_rtt}: give milliseconds, 0 or more")
    return LinkEstimate.stated(quantities.rate("--cloud-rate", arguments.cloud_rate), arguments.cloud_rtt / 1e3)


def power(arguments: argparse.Namespace) -> Power:
    """Of `--watts`. Raises ConfigError."""
    try:
        compute_w, transmit_w, idle_w = (float(one) for one in arguments.watts.split(","))
    except ValueError as error:
        raise ConfigError(f"--watts {arguments.watts!r}: give three numbers: computing, sending, waiting") from error
    return Power(compute_w, transmit_w, idle_w)


def _current(profile: Profile, model: nn.Module, threads: int) -> Profile:
    """A profile of this model; one of this very host must be of its torch as well."""
    import torch

    from fogline.common.split.cuts import architecture_hash

    here = profile.hardware == hardware_id(threads)
    profile.check(architecture=architecture_hash(model), torch=str(torch.__version__) if here else None)
    return profile
