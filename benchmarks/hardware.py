"""What a figure was measured on; it goes into every result file."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch

from fogline import __version__


def describe() -> dict[str, object]:
    """Processor, cores, memory, accelerator and versions, as JSON-able values."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "machine": platform.machine(),
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fogline": __version__,
    }
