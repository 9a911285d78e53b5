"""Say in one line which native core the package has: `python -m tools.native_core [--require]`.

A build without a C++ compiler succeeds and leaves the core out; pip shows its warning only with -v. `make setup` ends
with this line, and `.ci/run` asks with --require, which exits with 1 where the core is missing.
"""

from __future__ import annotations

import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # the line below says what the import would
    from normkit.kernels import native


def main(arguments: list[str]) -> int:
    if native.available():
        print(f"native core: {native.isa()}")
        return 0
    print(f"native core: missing: {native.why_not()}", file=sys.stderr)
    return 1 if "--require" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
