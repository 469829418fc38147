"""Every file of the corpus is refused, by the right error, for the reason that its table gives."""

from __future__ import annotations

import fnmatch
import re
import runpy
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fogline.common.errors import FormatError, InputError
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.forms import CODED_FORMS, Form
from fogline.common.images.jpeg import decode_jpeg, inspect_jpeg
from fogline.common.images.uplink import decode as decode_upload

HERE = Path(__file__).resolve().parent


def tables() -> dict[str, dict[str, str]]:
    """Folder to file name to what the message says."""
    found: dict[str, dict[str, str]] = {}
    for line in (HERE / "README.md").read_text().splitlines():
        if line.startswith("## `"):
            rows = found.setdefault(line[4:].split("/")[0], {})
        elif line.startswith("| ") and not line.startswith("| file"):
            name, _, message = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name] = message
    return found


def rows(folder: str) -> list[tuple[str, str]]:
    return sorted(tables()[folder].items())


@pytest.mark.parametrize("folder", ["container", "payload", "jpeg"])
def test_every_file_is_described(folder: str) -> None:
    assert {path.stem for path in (HERE / folder).iterdir()} == set(tables()[folder])


def test_every_invariant_of_the_specification_has_files() -> None:
    text = (HERE.parents[2] / "docs" / "image-format.md").read_text()
    numbered = text.split("## Invariants")[1].split("## Decoding")[0]
    names = set(tables()["container"])
    covered: set[str] = set()
    for invariant in re.findall(r"^\d+\. .*?\[(.*?)\]", numbered, re.MULTILINE | re.DOTALL):
        for pattern in re.findall(r"`(.*?)`", invariant):
            found = set(fnmatch.filter(names, pattern))
            assert found, pattern
            covered |= found
    assert covered == names
    assert len(re.findall(r"^\d+\. ", numbered, re.MULTILINE)) == numbered.count("[")


@pytest.mark.parametrize("folder", ["container", "payload"])
def test_files_are_those_of_the_generator(folder: str) -> None:
    made = runpy.run_path(str(HERE / "generate.py"))[f"{folder}s"]()
    assert made == {path.stem: path.read_bytes() for path in (HERE / folder).iterdir()}


@pytest.mark.parametrize(("name", "message"), rows("container"))
def test_container_attack_is_refused(name: str, message: str) -> None:
    with pytest.raises(FormatError) as error:
        from_bytes((HERE / "container" / f"{name}.fgl").read_bytes())
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "message"), rows("payload"))
def test_payload_attack_is_refused(name: str, message: str) -> None:
    record = from_bytes((HERE / "payload" / f"{name}.fgl").read_bytes())
    with pytest.raises(FormatError) as error:
        BatchDecoder().prepare(record, {})
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "message"), rows("jpeg"))
def test_jpeg_attack_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        decode_jpeg((HERE / "jpeg" / f"{name}.jpg").read_bytes())
    assert message in str(error.value)


@pytest.mark.parametrize("form", CODED_FORMS)
def test_no_attack_does_better_as_a_coded_upload(form: Form) -> None:
    for path in sorted(HERE.glob("*/*.fgl")) + sorted(HERE.glob("jpeg/*.jpg")):
        data = path.read_bytes()
        uploads = [data]
        if path.parent.name == "payload":  # dressed as an upload, so that it gets as far as its payload
            record = from_bytes(data)
            plain = replace(record, camera="", capture_time_us=0, boxes=(), source_size=record.size)
            uploads.append(to_bytes(plain))
        for upload in uploads:
            with pytest.raises(InputError, match=f"upload as {form.text}"):
                decode_upload(form, upload, bytes(range(32)))


@pytest.mark.parametrize(
    "filler", [b"\xff", b"\xff\x00", b"\xff\xfe\x00\x02", b"\xff\xd0"], ids=["fill", "stuffing", "segments", "restarts"]
)
def test_megabytes_of_markers_are_refused_quickly(filler: bytes) -> None:
    good = (HERE / "jpeg" / "truncated-end-marker.jpg").read_bytes()
    start = time.process_time()
    for prefix in (b"\xff\xd8\xff\xfe\x00\x02", good):
        with pytest.raises(InputError):
            inspect_jpeg(prefix + filler * (8_000_000 // len(filler)))
    assert time.process_time() - start < 10
