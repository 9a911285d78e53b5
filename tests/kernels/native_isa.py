"""What tests of the native kernels need: the core, and each instruction set that this build and CPU have.

Where the core has to be there (CI), tests/conftest.py ends the run before anything could be skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from normkit.kernels import native

needs_native = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set in use during the test; the one before is put back."""
    before = native.isa()
    if not native._core.use_isa(request.param):
        pytest.skip(f"no {request.param} here")
    yield request.param
    native._core.use_isa(before)
