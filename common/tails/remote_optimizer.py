"""The optimizer of a remote tail, as a training script and torch's learning-rate schedulers know optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import torch
from torch import nn

from fogline.common.errors import ConfigError, InputError
from fogline.common.tails import optimizer


class Steps(Protocol):
    """What the optimizer needs of its remote tail."""

    def zero_grad(self) -> None: ...  # noqa: D102

    def step(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> None: ...  # noqa: D102


class RemoteOptimizer(torch.optim.Optimizer):
    """Steps at the host of the tail. Changes of `param_groups` (of schedulers, or by hand) travel with the next step.

    Its groups are those of the specification (see `tails.optimizer`); in place of parameters, which are at the host,
    each holds a stand-in without elements. `state_dict` and `load_state_dict` are of hyper-parameters: moments are in
    the host's checkpoints. Neither call waits for the host: what goes wrong there is raised by a later one.
    """

    def __init__(self, remote: Steps, spec: Mapping[str, Any]) -> None:
        """Raises ConfigError for an unknown name or hyper-parameter."""
        groups = [
            {"params": [nn.Parameter(torch.empty(0))], **msgspec.structs.asdict(values)}
            for _, values in optimizer.hyper(spec)
        ]
        self._fixed = False
        # Schedulers look at the defaults for what there is.
        super().__init__(groups, {key: value for key, value in groups[0].items() if key != "params"})
        self._fixed = True
        self._remote, self._spec = remote, spec
        self._sent = [optimizer.flat(group, spec) for group in self.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the tail's parameters. Raises InputError for zeros in their place."""
        if not set_to_none:
            raise InputError("a remote optimizer drops gradients; call zero_grad() without set_to_none=False")
        self._remote.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, with the hyper-parameters as they are now."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        now = [optimizer.flat(group, self._spec) for group in self.param_groups]
        changes = []
        for number, (values, sent) in enumerate(zip(now, self._sent, strict=True)):
            if changed := {key: value for key, value in values.items() if sent.get(key) != value}:
                changes.append((number, changed))
        self._remote.step(changes)
        self._sent = now
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ConfigError once made: the groups are part of the session's setup."""
        if self._fixed:
            raise ConfigError("groups of a remote optimizer are given to connect: optimizer={..., 'groups': [...]}")
        super().add_param_group(param_group)

    def resend(self) -> None:
        """Let all hyper-parameters travel with the next step, whatever the host knows."""
        self._sent = [{} for _ in self.param_groups]
