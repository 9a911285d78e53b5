"""`import normkit` stays light: beside torch it loads its own layers and functions, and nothing of anybody else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch
before = set(sys.modules)
import normkit
print(json.dumps(sorted(set(sys.modules) - before)))
print(*(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normkit::")))
"""
MOST = 73  # each module costs half a millisecond and more: a new one has to be worth it
ON_DEMAND = (
    *("surgery", "statistics", "doctor", "model", "padding", "studies", "bench", "learn", "paths", "info", "testing"),
    "cli",
)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def loaded(printed: list[str]) -> list[str]:
    return json.loads(printed[0])


def test_nothing_is_loaded_that_torch_has_not_loaded(loaded: list[str]) -> None:
    assert [name for name in loaded if name.partition(".")[0] != "normkit"] == []


def test_of_its_own_it_loads_layers_and_functions(loaded: list[str]) -> None:
    assert {"normkit.nn.batch_norm", "normkit.functional.batch_norm"} < set(loaded)
    assert [name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in ON_DEMAND] == []
    assert len(loaded) <= MOST


def test_operators_are_made_with_the_first_graph_that_asks(printed: list[str]) -> None:
    assert printed[1:] == [""]
