"""What the tools import by themselves must be importable: torchvision beside the CPU build of torch (`library`)."""

from __future__ import annotations

import pytest

from tests.surgery.foreign import library


@pytest.fixture(autouse=True, scope="session")
def _torchvision() -> None:
    library("torchvision")  # Lightning, peft and transformers import it
