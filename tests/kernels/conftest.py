"""Fixtures of the tests of kernels."""

from tests.kernels.native_isa import isa as isa  # written twice: handed on, not unused
