#!/bin/sh
# Put a headless Chromium and its driver in place for the tests marked `browser` (Debian and Ubuntu). Where this user may
# not install packages it says so and succeeds: those tests then skip with the reason, except in CI, where they fail.
set -eu

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "install_browser: no apt-get here; install chromium and chromedriver by your system's own means" >&2
    exit 0
fi
run=""
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "install_browser: not root; run: sudo apt-get install chromium chromium-driver" >&2
        exit 0
    fi
    run="sudo"
fi
$run apt-get update -q
$run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    chromium chromium-driver fonts-dejavu-core
