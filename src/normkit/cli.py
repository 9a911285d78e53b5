"""The command line: parse, call the library, print. No logic.

A UsageError becomes one line on stderr and exit code 2, an interrupt one line and 130; anything else is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or a claim may have what the terminal cannot show
    args = parser().parse_args(argv)
    try:
        args.call(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"normkit: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("normkit: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `normkit study --list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        return 128 + 13
    return 0


def parser() -> argparse.ArgumentParser:
    from .info import version
    from .studies import STUDIES

    top = argparse.ArgumentParser(prog="normkit", description="Normalization for PyTorch: studies, demo and facts.")
    top.add_argument("--version", action="version", version=f"normkit {version()}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    study = commands.add_parser("study", help="test claims about normalization by training on real data")
    study.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(STUDIES)} (default: all)")
    study.add_argument("--list", action="store_true", help="name the studies, what each claims and how long it takes")
    study.add_argument("--quick", action="store_true", help="the short preset of the demo")
    study.add_argument(
        "--seeds", type=int, metavar="N", help="seeds per setting (default: 10, quick 5; fewer than 5 decide nothing)"
    )
    study.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="the seeds begin at N (default: 0): for a fresh sample"
    )
    study.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core, at most 8)")
    study.add_argument(
        "--data", metavar="DATASET|PATH", help="digits, mnist5k, fashion-mnist or a .npz of images and labels"
    )
    study.add_argument("--out", type=Path, default=Path("normkit-report"), metavar="DIR", help="default: %(default)s")
    study.set_defaults(call=_study)

    demo = commands.add_parser("demo", help="is it right, is it fast, why normalize: three acts into one report")
    demo.add_argument("--out", type=Path, default=Path("normkit-report"), metavar="DIR", help="default: %(default)s")
    demo.set_defaults(call=_demo)

    bench = commands.add_parser("bench", help="time normalization against its peers and the machine's copy speed")
    bench.add_argument(
        "families",
        nargs="*",
        metavar="FAMILY",
        help="batch_norm, group_norm, layer_norm, inference "
        "(default: these four) or network, a ResNet-50 training step",
    )
    bench.add_argument(
        "--peers", default="torch", metavar="LIST", help="out of torch,compile,onednn,jax; comma between"
    )
    bench.add_argument("--shapes", default="quick", choices=("quick", "full"), help="default: %(default)s, a minute")
    bench.add_argument("--dtype", default="float32", metavar="LIST", help="float32, bfloat16, float16, float64")
    bench.add_argument("--threads", type=int, metavar="N", help="default: torch's")
    bench.add_argument("--seconds", type=float, metavar="S", help="time per case; a network takes ten times that")
    bench.add_argument("--cold", action="store_true", help="rotate through so many inputs that no cache holds them")
    bench.add_argument(
        "--busy", type=int, default=0, metavar="N", help="let N other processes compute meanwhile; ratios of means then"
    )
    bench.add_argument("--json", type=Path, metavar="F", help="write the figures to F, beside those it holds already")
    bench.set_defaults(call=_bench)

    info = commands.add_parser("info", help="versions, instruction set, threads, paths available and why not")
    info.set_defaults(call=_info)
    return top


def _study(args: argparse.Namespace) -> None:
    from .studies.conduct import listed, study
    from .studies.progress import show

    if args.list:
        width = shutil.get_terminal_size().columns
        print(listed(args.names, args.seeds, args.first_seed, args.jobs, width))
        return
    outcome = study(args.names, args.quick, args.seeds, args.data, args.out, first_seed=args.first_seed, jobs=args.jobs)
    show(outcome.results, str(outcome.html))


def _demo(args: argparse.Namespace) -> None:
    from .studies.demo import demo
    from .studies.progress import show

    outcome = demo(args.out)
    show(outcome.results, str(outcome.html))


def _bench(args: argparse.Namespace) -> None:
    from .bench.run import Request, bench

    request = Request(
        families=args.families,
        peers=args.peers.split(","),
        preset=args.shapes,
        dtypes=args.dtype.split(","),
        threads=args.threads,
        seconds=args.seconds,
        cold=args.cold,
        busy=args.busy,
        json=args.json,
    )
    bench(request, show=print)


def _info(_args: argparse.Namespace) -> None:
    from .info import collect

    facts = collect()
    width = max(len(label) for label in facts)
    for label, fact in facts.items():
        print(f"{label:<{width}}  {fact}")
    from .paths import table

    print("\nThe paths of typical calls on this machine, as they are chosen:\n")
    print(table().text())
