"""Detector weights on this device, from the cloud's registry: the newest version of each model."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from fogline.common.blobs import BlobStore
from fogline.common.files import replace_file

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """A version on this device."""

    version: int
    digest: str  # hexadecimal; names its file
    device: str  # who published it


class ModelStore:
    """The newest version of each model that this device has."""

    def __init__(self, root: Path) -> None:
        self.blobs = BlobStore(root / "blobs", None)
        self._index = root / "held.json"
        self._held = self._load()

    def versions(self) -> dict[str, int]:
        """Name to version."""
        return {name: held.version for name, held in self._held.items()}

    def path(self, name: str) -> Path | None:
        """The weights of a model, where there are any."""
        held = self._held.get(name)
        return self.blobs.path(bytes.fromhex(held.digest)) if held else None

    def holds(self, digest: bytes) -> bool:
        """Whether a version has these bytes."""
        return any(held.digest == digest.hex() for held in self._held.values())

    def sweep(self) -> None:
        """Clear what a kill left behind of models that were on their way; for the agent, at its start."""
        self.blobs.keep({bytes.fromhex(held.digest) for held in self._held.values()})

    def enter(self, name: str, held: Held) -> None:
        """Note a version whose bytes are in `blobs`; the older one goes."""
        old = self._held.get(name)
        self._held = {**self._held, name: held}
        replace_file(self._index, json.dumps({name: asdict(h) for name, h in self._held.items()}).encode())
        if old is not None and old.digest != held.digest:
            self.blobs.delete(bytes.fromhex(old.digest))

    def _load(self) -> dict[str, Held]:
        try:
            found = {name: Held(**held) for name, held in json.loads(self._index.read_bytes()).items()}
            return {n: h for n, h in found.items() if self.blobs.has(bytes.fromhex(h.digest))}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s is unreadable (%s); models are fetched again", self._index, error)
            return {}
