#!/usr/bin/env bash
# A short selection of the tests on the oldest and the newest torch that are cached on this machine, beside .venv's own
# (`make test-torch VERSION=...` fetches one); says so where there is none. Two minutes each on a machine at rest.
set -euo pipefail
cd "$(dirname "$0")/.."
selection=(tests/kernels/test_native.py tests/kernels/test_edge.py tests/kernels/test_older_torch.py
    tests/functional/test_batch_norm.py tests/functional/test_aten.py tests/nn/test_constructors.py
    tests/conformance/test_drop_in.py tests/test_choose.py tests/test_compile.py tests/test_autocast.py
    tests/test_info.py tests/test_torch.py)
versions=$(.venv/bin/python -c 'from tools.torch_env import ends; print(*ends())')
[ -n "$versions" ] || echo "other versions of torch: skipped, none is cached on this machine"
for version in $versions; do
    .venv/bin/python -m tools.torch_env "$version"
    timeout 1200 ".venv-torch-$version/bin/python" -m pytest -q -m "not nightly and not browser" "${selection[@]}"
done
