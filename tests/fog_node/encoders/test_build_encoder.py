"""Encoders by name."""

import pytest

from fogline.common.errors import ConfigError
from fogline.common.images.codec import ImageEncoder
from fogline.fog_node.encoders import ENCODERS, build_encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_every_name_builds_an_encoder(name: str) -> None:
    assert isinstance(build_encoder(name, {}, "cpu"), ImageEncoder)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'gif' is unknown; known: siren, latent, nerv, jpeg2, avif2"):
        build_encoder("gif", {}, "cpu")
