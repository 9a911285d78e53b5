"""A process that stores runs of a made-up study: `writer.py FOLDER NAME COUNT`.

It imports the store without torch, so that it starts in a tenth of a second.
"""

import sys
import types
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "normkit"


def result(seed: int) -> dict[str, object]:
    return {"value": seed * 0.1, "curve": [seed / (1 + step) for step in range(20)]}


def main(folder: str, study: str, count: str) -> None:
    for name, place in (("normkit", SOURCE), ("normkit.studies", SOURCE / "studies")):
        package = types.ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    from normkit.studies.store import Store
    from normkit.studies.study import Run

    store = Store(Path(folder), "v1")
    print("ready", flush=True)
    for seed in range(int(count)):
        if store.find(study, {"seed": seed}) is None:
            store.add(study, Run({"seed": seed}, result(seed), 0.25))


if __name__ == "__main__":
    main(*sys.argv[1:])
