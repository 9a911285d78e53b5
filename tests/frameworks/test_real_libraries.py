"""States of the real Keras, Flax and Haiku: their cases run in processes of their own.

JAX has threads, and warns about every fork of a process that it is in; Keras chooses its backend once a process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMIT = 600  # seconds; importing a library and a dozen small trainings take twenty, on a crowded machine far more


@pytest.mark.parametrize(
    ("library", "cases"), [("keras", "keras_cases.py"), ("flax", "flax_cases.py"), ("haiku", "haiku_cases.py")]
)
def test_states_of_the_real_library(library: str, cases: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-m", "pytest", str(HERE / cases), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert re.search(r"^\d+ passed in ", done.stdout, re.MULTILINE), done.stdout[-1000:]  # none failed, none skipped
