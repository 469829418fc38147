from __future__ import annotations

import sys
import textwrap

import pytest
from torch import nn

from fogline.common.errors import ConfigError, FormatError, IdentityError, InputError
from fogline.common.models.loader import load_model

ALLOWED = [f"fogline_test_zoo.models:{name}" for name in ("build", "number", "bad", "gone", "constant")] + [
    "fogline_test_zoo.broken:build",
    "fogline_test_absent.models:build",
    "fogline_test_zoo.models.build",
]


@pytest.fixture(autouse=True)
def _zoo(tmp_path, monkeypatch):
    package = tmp_path / "fogline_test_zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            constant = 3
            def build(width=4): return nn.Linear(width, 2)
            def number(): return 5
            def bad(): raise KeyError("no such layer")
            def secret(): raise SystemExit("must never run")
            """
        )
    )
    (package / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.startswith("fogline_test_zoo")]:
        del sys.modules[name]


def test_builds_what_is_allowed():
    model = load_model("fogline_test_zoo.models:build", '{"width": 7}', ALLOWED)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 7
    assert load_model("fogline_test_zoo.models:build", "", ALLOWED).in_features == 4


@pytest.mark.parametrize(
    "name",
    [
        "fogline_test_zoo.models:secret",
        "os:system",
        "fogline_test_zoo.models:build ",
        "",
        "x" * 100_000,
        "fogline_test_zoo",
    ],
)
def test_nothing_else_is_imported(name):
    with pytest.raises(IdentityError, match="not allowed") as caught:
        load_model(name, "", ALLOWED)
    assert len(str(caught.value)) < 500
    assert "fogline_test_zoo" not in sys.modules


@pytest.mark.parametrize(
    ("name", "error", "what"),
    [
        ("fogline_test_absent.models:build", ConfigError, "no module 'fogline_test_absent'"),
        ("fogline_test_zoo.models:gone", ConfigError, "has no 'gone'"),
        ("fogline_test_zoo.models:constant", ConfigError, "not a function"),
        ("fogline_test_zoo.models:number", ConfigError, "returned a int"),
        ("fogline_test_zoo.models:bad", InputError, "no such layer"),
        ("fogline_test_zoo.broken:build", ConfigError, "division by zero"),
        ("fogline_test_zoo.models.build", ConfigError, "not of the form"),
    ],
)
def test_says_what_is_wrong(name, error, what):
    with pytest.raises(error, match=what):
        load_model(name, "", ALLOWED)


@pytest.mark.parametrize(
    "arguments",
    [
        "[1]",
        "{",
        "7",
        "null",
        "[" * 50_000,
        '{"width": ' + "[" * 980 + "]" * 980 + "}",
        '{"width": ' + "[" * 20 + "]" * 20 + "}",
        '{"a": "' + "x" * 70_000 + '"}',
    ],
)
def test_arguments_must_be_a_small_json_object(arguments):
    with pytest.raises(FormatError):
        load_model("fogline_test_zoo.models:build", arguments, ALLOWED)


def test_arguments_that_the_function_refuses():
    with pytest.raises(InputError, match="unexpected keyword"):
        load_model("fogline_test_zoo.models:build", '{"depth": 3}', ALLOWED)
    with pytest.raises(InputError, match="width"):
        load_model("fogline_test_zoo.models:build", '{"width": "wide"}', ALLOWED)
