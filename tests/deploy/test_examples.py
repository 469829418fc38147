"""The example configurations are valid, and show no key at odds with another."""

from __future__ import annotations

from pathlib import Path

import pytest

from fogline.cloud_server.config import CloudConfig
from fogline.common import addresses
from fogline.common.config import Config, load
from fogline.common.tails.config import TailHostConfig
from fogline.edge_agent.config import EdgeConfig
from fogline.fog_node.config import FogConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
KINDS: dict[str, type[Config]] = {"edge": EdgeConfig, "fog": FogConfig, "cloud": CloudConfig, "tail": TailHostConfig}


def test_every_example_is_of_a_known_kind() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_valid(name: str) -> None:
    load(KINDS[name], EXAMPLES / f"{name}.yaml", {}, {})


def test_they_fit_together() -> None:
    edge = load(EdgeConfig, EXAMPLES / "edge.yaml", {}, {})
    fog = load(FogConfig, EXAMPLES / "fog.yaml", {}, {})
    cloud = load(CloudConfig, EXAMPLES / "cloud.yaml", {}, {})
    assert edge.fog == fog.advertise
    assert edge.cloud == fog.cloud
    assert addresses.parse(edge.cloud).port == addresses.parse(cloud.listen).port
    assert edge.tls.authority == fog.tls.authority == cloud.tls.authority != ""
    assert edge.tls.cert == EXAMPLES / f"{edge.name}.pem"
