#!/usr/bin/env bash
# A short selection of the tests on the oldest and the newest torch that docs/compatibility.md claims, where they are
# cached (`make test-torch VERSION=...` fetches one); says so where they are not. A few minutes at most.
set -euo pipefail
cd "$(dirname "$0")/.."
selection=(tests/kernels/test_native.py tests/kernels/test_edge.py tests/kernels/test_older_torch.py
    tests/functional/test_batch_norm.py tests/nn/test_constructors.py tests/conformance/test_drop_in.py
    tests/test_choose.py tests/test_info.py)
versions=$(.venv/bin/python -c 'from tools.compatibility import ends; print(*ends())')
[ -n "$versions" ] || echo "other versions of torch: skipped, docs/compatibility.md claims none"
for version in $versions; do
    status=0
    .venv/bin/python -m tools.torch_env "$version" --cached || status=$?
    if [ "$status" -eq 3 ]; then
        echo "torch $version: skipped, it is not cached on this machine"
        continue
    fi
    [ "$status" -eq 0 ] || exit "$status"
    timeout 300 ".venv-torch-$version/bin/python" -m pytest -q -m "not nightly and not browser" "${selection[@]}"
done
