"""`fogline split` on a small network of a user's own, from measuring to plots, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from fogline.cli import main

pytest.importorskip("torch")

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
    def forward(self, x):
        return x + self.b(x + self.a(x))

def no_cut():
    return Residual()

def inputs():
    return torch.rand(4, 3, 32, 32)

def labelled():
    return torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])

def vectors():
    return torch.rand(4, 12)

def number():
    return 5
"""
CODECS = ["--codecs", "raw,fp16"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the user's module, which is forgotten afterwards."""
    (tmp_path / "tiny_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tiny_net", raising=False)
    return tmp_path


@pytest.fixture
def profile(here: Path) -> Path:
    path = here / "p.json"
    words = ["split", "profile", "--model", "tiny_net:build", "--inputs", "tiny_net:inputs", *CODECS]
    assert main([*words, "--batches", "1,2", "--rounds", "1", "-o", str(path)]) == 0
    return path


def planning(profile: Path, *more: str) -> list[str]:
    return ["--model", "tiny_net:build", "--profile", str(profile), "--edge-factor", "8", *more]


def traces(here: Path) -> Path:
    folder = here / "links"
    folder.mkdir(exist_ok=True)
    (folder / "stalls.csv").write_text("t_s,bps\n0,4000000\n1,0\n2,100000\n3,9000000\n")
    (folder / "steady.csv").write_text("t_s,bps\n0,1000000\n5,1000000\n")
    return folder


def test_a_profile_has_every_bottleneck_in_order(profile: Path) -> None:
    made = json.loads(profile.read_text())
    assert [cut["name"] for cut in made["cuts"]] == ["input", "0", "2", "4"] or [
        cut["name"] for cut in made["cuts"]
    ] == ["input", "2", "4"]
    assert set(made["whole_s"]) == {"1", "2"}
    heads = [cut["head_s"]["1"] for cut in made["cuts"]]
    assert heads == sorted(heads)
    raw = made["cuts"][-1]["codecs"][0]
    assert raw["codec"] == "raw"
    assert raw["coded_bytes"]["2"] == 2 * 64 * 4
    assert made["output_bytes"] == 40


def test_explain_tells_every_option_and_chooses(profile: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = here / "e.json"
    assert main(["split", "explain", *planning(profile, "--rate", "50Mbit/s", "--json", str(out))]) == 0
    shown = capsys.readouterr().out
    assert "<- chosen" in shown
    told = json.loads(out.read_text())
    assert told["schema"] == 1
    assert len(told["options"]) == 1 + 2 * len(json.loads(profile.read_text())["cuts"])
    for row in told["options"]:
        parts = ("device_s", "transfer_s", "round_trips_s", "waiting_s", "host_s")
        assert sum(row[part] for part in parts) == pytest.approx(row["latency_s"])
    assert told["link"] == {"state": "alive", "rate_bit_s": 50e6, "rtt_s": 0.02}
    least = min(told["options"], key=lambda row: row["latency_s"])
    assert told["choice"]["expected_s"] <= least["latency_s"] * 1.0001
    assert main(["split", "explain", *planning(profile, "--rate", "0", "--json", str(out))]) == 0
    told = json.loads(out.read_text())
    assert told["choice"]["option"] == "local"
    assert "dead" in told["choice"]["reason"]
    assert told["link"]["rate_bit_s"] == 0
    assert {row["latency_s"] is None for row in told["options"]} == {True, False}


def test_a_batch_between_measured_ones_is_known_and_one_far_beyond_is_not(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["split", "explain", *planning(profile, "--rate", "1MB/s", "--batch", "4")]) == 0
    capsys.readouterr()
    assert main(["split", "explain", *planning(profile, "--rate", "1MB/s", "--batch", "5")]) == 3
    assert "--batches 1,2,5" in capsys.readouterr().err


def test_bench_writes_figures_and_plots(profile: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = planning(profile, "--traces", str(traces(here)), "--policies", "local,neurosurgeon,joint")
    plots, out = here / "plots", here / "b.json"
    assert main(["split", "bench", *words, "--duration", "4", "--json", str(out), "--plots", str(plots)]) == 0
    assert "all traces: 2" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told["schema"] == 1
    assert [one["trace"] for one in told["traces"]] == ["stalls", "steady"]
    for one in told["traces"]:
        assert set(one["policies"]) == {"oracle", "best fixed", "local", "neurosurgeon", "joint"}
        assert one["policies"]["oracle"]["regret"] == 0
        assert one["policies"]["best fixed"]["over_best_fixed"] == 0
    assert told["summary"]["all"]["traces"] == 2
    for name in ("regret.png", "latency-links.png"):
        with Image.open(plots / name) as picture:
            assert picture.width > 500


def test_bench_for_energy_spends_less_of_it(profile: Path, here: Path) -> None:
    told = {}
    for objective in ("latency", "energy"):
        out = here / f"{objective}.json"
        # Computing costs so much that even a device that is faster lets others do it.
        words = planning(profile, "--traces", str(traces(here)), "--policies", "local,joint", "--objective", objective)
        words += [
            "--edge-factor",
            "1",
            "--watts",
            "6000,1,0.5",
            "--accuracy-budget",
            "1",
            "--rtt",
            "0.1",
            "--every",
            "50",
        ]
        assert main(["split", "bench", *words, "--duration", "4", "--json", str(out)]) == 0
        told[objective] = json.loads(out.read_text())
        assert told[objective]["setting"]["objective"] == objective
        assert told[objective]["policies"]["joint"]["power"] == {"compute_w": 6000, "transmit_w": 1, "idle_w": 0.5}
    for quick, frugal in zip(told["latency"]["traces"], told["energy"]["traces"], strict=True):
        assert frugal["policies"]["oracle"]["mean_j"] <= quick["policies"]["oracle"]["mean_j"]
        assert frugal["policies"]["joint"]["regret"] == pytest.approx(
            frugal["policies"]["joint"]["mean_j"] / frugal["policies"]["oracle"]["mean_j"] - 1
        )
    steady = [told[one]["traces"][1]["policies"]["joint"]["mean_j"] for one in ("energy", "latency")]
    assert steady[0] < steady[1]


def test_bench_forms_batches_of_what_comes_at_once(profile: Path, here: Path) -> None:
    out = here / "many.json"
    words = planning(profile, "--traces", str(traces(here)), "--policies", "local,joint", "--rtt", "50")
    words += ["--batches", "1,2", "--at-once", "4", "--accuracy-budget", "1", "--edge-factor", "20000"]
    assert main(["split", "bench", *words, "--duration", "4", "--json", str(out)]) == 0
    told = json.loads(out.read_text())
    assert {one["batch"] for one in told["options"]} == {1, 2}
    assert told["setting"]["samples"] == 4
    steady = told["traces"][1]
    assert steady["policies"]["joint"]["mean_s"] < steady["policies"]["local"]["mean_s"]


def test_a_second_host_behind_the_first(profile: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = here / "two.json"
    words = planning(profile, "--cloud", str(profile), "--cloud-rate", "1Gbit/s", "--cloud-rtt", "1")
    assert main(["split", "explain", *words, "--rate", "8Mbit/s", "--json", str(out)]) == 0
    assert "behind" in capsys.readouterr().out
    told = json.loads(out.read_text())
    both = [row for row in told["options"] if len(row["cuts"]) == 2]
    assert both
    assert all(row["round_trips_s"] == pytest.approx(0.021) for row in both)
    assert told["beyond"] == [{"rate_bit_s": 1e9, "rtt_s": 0.001}]
    words += ["--traces", str(traces(here)), "--policies", "local,joint", "--duration", "4", "--json", str(out)]
    assert main(["split", "bench", *words]) == 0
    told = json.loads(out.read_text())
    assert told["setting"]["beyond"] == {"rate_bit_s": 1e9, "rtt_s": 0.001}
    assert any("|" in one["option"] for one in told["options"])


def test_labels_are_what_accuracy_is_measured_by(here: Path) -> None:
    out = here / "l.json"
    words = ["split", "profile", "--model", "tiny_net:build", "--inputs", "tiny_net:labelled", *CODECS]
    assert main([*words, "--rounds", "1", "-o", str(out)]) == 0
    assert all(-1 <= one["accuracy_drop"] <= 1 for cut in json.loads(out.read_text())["cuts"] for one in cut["codecs"])


def test_images_are_a_calibration_set(here: Path) -> None:
    folder = here / "pictures"
    folder.mkdir()
    for index in range(2):
        Image.new("RGB", (40 + index, 64), (200, 10 * index, 0)).save(folder / f"{index}.png")
    out = here / "i.json"
    words = ["split", "profile", "--model", "tiny_net:build", "--images", str(folder), "--size", "32", *CODECS]
    assert main([*words, "--rounds", "1", "-o", str(out)]) == 0
    assert json.loads(out.read_text())["calibration"] == "pictures, 32x32"


def test_a_model_without_any_cut_is_local_or_remote(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny_net:no_cut", "--inputs", "tiny_net:vectors", "--rounds", "1", *CODECS]
    assert main(["split", "explain", *words, "--rate", "1Mbit/s", "--policy", "dynamic"]) == 0
    shown = capsys.readouterr().out
    assert "input" in shown
    assert "local" in shown


def test_a_stale_profile_is_refused_with_the_command(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["--model", "tiny_net:no_cut", "--profile", str(profile), "--rate", "1Mbit/s"]
    assert main(["split", "explain", *words]) == 2
    told = capsys.readouterr().err
    assert "stale" in told
    assert "fogline split profile --model tiny_net:build --batches 1,2" in told
    changed = json.loads(profile.read_text())
    changed["torch"] = "1.0"
    profile.write_text(json.dumps(changed))
    assert main(["split", "explain", *planning(profile, "--rate", "1Mbit/s")]) == 2
    assert "its torch is '1.0'" in capsys.readouterr().err
    profile.write_text("{}")
    assert main(["split", "explain", *planning(profile, "--rate", "1Mbit/s")]) == 5
    assert "not a profile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--rate", "-1"], 2, "is not a rate"),
        (["--rate", "nan"], 2, "is not a rate"),
        (["--rate", "0Mbit/s"], 2, "is not a rate"),
        (["--rate", "1Mbit/s", "--policy", "jiont"], 2, "did you mean 'joint'"),
        (["--rate", "1Mbit/s", "--rtt", "nan"], 2, "--rtt nan"),
        (["--rate", "1Mbit/s", "--edge-factor", "0"], 3, "factor above 0"),
        (["--rate", "1Mbit/s", "--objective", "money"], 2, "give latency or energy"),
        (["--rate", "1Mbit/s", "--accuracy-budget", "-1"], 2, "accuracy_budget -1"),
        (["--rate", "1Mbit/s", "--batch", "0"], 3, "a batch of 0"),
        (["--rate", "1Mbit/s", "--profile", "absent.json"], 2, "fogline split profile"),
        (["--rate", "1Mbit/s", "--model", "tiny_net:biuld"], 2, "did you mean 'build'"),
        (["--rate", "1Mbit/s", "--model", "tiny_net"], 2, "package.module:function"),
        (["--rate", "1Mbit/s", "--model", "absent_net:build"], 2, "absent_net"),
        (["--rate", "1Mbit/s", "--model", "tiny_net:number"], 2, "must return a torch.nn.Module"),
    ],
)
def test_bad_words_are_refused(
    profile: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    capsys.readouterr()
    assert main(["split", "explain", *planning(profile, *words)]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--codecs", "fp17"], 2, "fp17"),
        (["--cuts", "nowhere"], 2, "no cut 'nowhere'"),
        (["--inputs", "tiny_net:number"], 2, "returned int"),
        (["--images", "nowhere"], 2, "not both"),
        (["--batches", "a"], 2, "--batches 'a'"),
        (["--batches", "0"], 2, "1 or more"),
        (["--threads", "0"], 2, "1 or more"),
    ],
)
def test_bad_measuring_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    start = ["split", "profile", "--model", "tiny_net:build", "--inputs", "tiny_net:inputs", *CODECS]
    assert main([*start, "-o", str(here / "x.json"), *words]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"), [("", "columns"), ("t_s,bps\n", "empty trace"), ("t_s,bps\n0,0\n", "0 throughout")]
)
def test_bad_traces_are_refused(
    profile: Path, here: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (here / "bad.csv").write_text(text)
    capsys.readouterr()
    assert main(["split", "bench", *planning(profile, "--traces", str(here / "bad.csv"))]) == 3
    assert says in capsys.readouterr().err
    empty = here / "empty"
    empty.mkdir()
    assert main(["split", "bench", *planning(profile, "--traces", str(empty))]) == 3
    assert "no .csv" in capsys.readouterr().err
