"""The encoder's child as its parent sees it."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from fog_helpers import picture

from fogline.common.config import LogConfig
from fogline.common.errors import ConfigError
from fogline.fog_node import encoder
from fogline.fog_node.config import EncoderConfig, Limits
from fogline.fog_node.encode_messages import WorkItem
from fogline.fog_node.encoder import BatchFailed, EncoderProcess, check


async def test_a_child_that_hangs_is_killed_and_one_that_waits_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "STALL_S", 1.0)
    monkeypatch.setattr(encoder, "STALL_CPU_S", 0.01)
    (tmp_path / "image.jpg").write_bytes(picture(1))
    item = WorkItem(b"i" * 32, str(tmp_path / "image.jpg"), "cam", 5, [], (160, 120))
    child = await EncoderProcess.start(EncoderConfig(codec="jpeg2"), Limits(), LogConfig())
    encoded = await child.encode([item])
    assert encoded.results[0].record
    process = psutil.Process(child.pid)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(BatchFailed, match="did nothing") as failed:
        await child.encode([item])
    assert failed.value.died
    assert not process.is_running()


def test_settings_are_judged_before_anything_is_started() -> None:
    check(EncoderConfig(codec="siren"))
    check(EncoderConfig(codec="avif2"))
    for codec in ("siren", "jpeg2", "avif2"):
        with pytest.raises(ConfigError, match="nonsense"):
            check(EncoderConfig(codec=codec, params={"nonsense": 1}))  # type: ignore[arg-type]
