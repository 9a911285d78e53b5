"""Plants bugs in copies of native/ and runs the kernels' stand-alone test on each; `tools.mutation` asks it to.

The baseline set is compiled once without a bug; of a planted one only the units are compiled that include its file.
Each command is the one that CMake wrote for the clean copy.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from .native_includes import reached
from .planted_native import NativeBug

ROOT = Path(__file__).resolve().parents[1]
COMPILE = 600  # seconds for one unit
RUN = 300  # seconds for the test, which takes a few without a bug
SLOW = "neither caught nor missed: the tests did not end within"


class Workshop:
    """The clean build of the stand-alone test."""

    def __init__(self, folder: Path) -> None:
        self.native = folder.resolve() / "native"
        shutil.copytree(ROOT / "native", self.native)
        build = folder.resolve() / "build"
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "cmake"
        subprocess.run(
            [cmake, "-S", self.native / "test", "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DNK_ISAS=baseline",
             "-DNK_OPTIMIZE=-O1", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"],
            check=True, capture_output=True,
        )  # fmt: skip
        commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
        self.objects = {}  # source -> (command, object)
        for entry in commands:
            words = shlex.split(entry["command"])
            compiled = build / "clean" / f"{len(self.objects)}.o"
            self.objects[Path(entry["file"]).resolve()] = (words, compiled)
            compiled.parent.mkdir(exist_ok=True)
            run = subprocess.run(_into(words, compiled), cwd=build, capture_output=True, text=True, timeout=COMPILE)
            if run.returncode:
                raise RuntimeError(f"{entry['file']} does not compile:\n{run.stderr[-2000:]}")
        self.compiler = shlex.split(commands[0]["command"])[0]
        noticed, said = self.tested({}, build)
        if noticed or SLOW in said:
            raise RuntimeError(f"the kernels' test fails without any bug: {said}")

    def caught(self, bug: NativeBug, folder: Path) -> tuple[bool, str]:
        """Whether the test fails with the bug in, and what it says."""
        copy = folder.resolve() / "native"
        shutil.copytree(self.native, copy)
        target = copy / bug.file
        text = target.read_text(encoding="utf-8")
        if bug.old not in text:
            return False, f"native/{bug.file} no longer holds the text to replace: {bug.old!r}"
        target.write_text(text.replace(bug.old, bug.new, 1), encoding="utf-8")
        made: dict[Path, Path] = {}
        for source, (words, _) in self.objects.items():
            if self.native / bug.file not in {source, *reached(source, self.native)}:
                continue
            made[source] = folder.resolve() / f"{len(made)}.o"
            there = [word.replace(str(self.native), str(copy)) for word in words]
            run = subprocess.run(
                _into(there, made[source]), cwd=folder, capture_output=True, text=True, timeout=COMPILE
            )
            if run.returncode:
                return False, f"{bug.file} does not compile with the bug: {run.stderr[-500:]}"
        if not made:
            return False, f"no unit of the baseline includes native/{bug.file}"
        return self.tested(made, folder)

    def tested(self, made: dict[Path, Path], folder: Path) -> tuple[bool, str]:
        """Links these objects in place of the clean ones; whether the test fails, and how."""
        objects = [made.get(source, clean) for source, (_, clean) in self.objects.items()]
        program = folder / "kernels_test"
        subprocess.run([self.compiler, *objects, "-pthread", "-o", program], check=True, capture_output=True)
        try:
            run = subprocess.run([program], capture_output=True, text=True, timeout=RUN)
        except subprocess.TimeoutExpired:
            return False, f"{SLOW} {RUN} s"
        if run.returncode < 0:
            return True, f"the kernels' test ended by signal {-run.returncode}"
        failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
        return run.returncode != 0, failed[0] if failed else "the kernels' test passes"


def _into(words: list[str], compiled: Path) -> list[str]:
    """The compiler's command with another output, and without the file of dependencies."""
    at = words.index("-o")
    return [*words[:at], "-o", str(compiled), *words[at + 2 :]]
