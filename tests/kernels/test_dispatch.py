"""Which instruction set the core takes on CPUs that are not here: its choice, compiled with other answers of the CPU.

x86-64 has SSE2 by definition, and the baseline asks for no more, so a build with a baseline runs on every CPU. A build
without one may not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
AVX2 = "avx2 fma"
AVX512 = f"{AVX2} avx512f avx512dq avx512bw avx512vl bmi2"
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <sstream>
static bool has(const char* feature) {
    std::istringstream features(std::getenv("FEATURES"));
    for (std::string one; features >> one;) if (one == feature) return true;
    return false;
}
#define __builtin_cpu_supports(feature) has(feature)
#include "dispatch.cpp"
namespace normkit {
const Kernels& baseline_kernels() { static const Kernels table{"baseline"}; return table; }
const Kernels& avx2_kernels() { static const Kernels table{"avx2"}; return table; }
const Kernels& avx512_kernels() { static const Kernels table{"avx512"}; return table; }
}
int main(int, char** arguments) {
    const char* problem = "";
    const normkit::Kernels* found = normkit::choose_kernels(arguments[1], &problem);
    std::puts(found != nullptr ? found->name : problem);
}
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The choice in a build of every instruction set, and in one without the baseline."""
    folder = tmp_path_factory.mktemp("dispatch")
    (folder / "main.cpp").write_text(PROGRAM)
    made = {}
    for name, sets in {"all": ("BASELINE", "AVX2", "AVX512"), "narrow": ("AVX2", "AVX512")}.items():
        made[name] = folder / name
        options = ["-std=c++17", "-w", f"-I{NATIVE}", *(f"-DNK_{one}" for one in sets)]
        command = [str(COMPILER), *options, str(folder / "main.cpp"), "-o", str(made[name])]
        subprocess.run(command, check=True, timeout=120)
    return made


@pytest.mark.parametrize(
    ("build", "features", "asked", "answer"),
    [
        ("all", AVX512, "", "avx512"),
        ("all", AVX512.replace("avx512vl", ""), "", "avx2"),
        ("all", "avx2", "", "baseline"),
        ("all", "", "", "baseline"),
        ("all", AVX512, "avx2", "avx2"),
        ("all", "", "avx2", "this CPU does not have it"),
        ("narrow", AVX2, "", "avx2"),
        ("narrow", "", "", "this CPU has none of the instruction sets of this build"),
        ("narrow", AVX2, "baseline", "expected baseline, avx2 or avx512, where this build has it"),
    ],
)
def test_the_widest_that_the_cpu_has_is_taken(
    build: str, features: str, asked: str, answer: str, builds: dict[str, Path]
) -> None:
    environment = {**os.environ, "FEATURES": features}
    done = subprocess.run([builds[build], asked], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == answer
