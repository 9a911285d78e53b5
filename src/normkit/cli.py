"""The command line: parse, call the library, print. No logic.

A UsageError becomes one line on stderr and exit code 2, an interrupt one line and 130; a command that judges gives its
own exit code; anything else is a bug of ours and keeps its traceback.
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
        code: int | None = args.call(args)
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
    return code or 0


def parser() -> argparse.ArgumentParser:
    from .info import version
    from .studies import STUDIES

    top = argparse.ArgumentParser(
        prog="normkit", description="Normalization for PyTorch: doctor, surgery, studies, facts."
    )
    top.add_argument("--version", action="version", version=f"normkit {version()}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    _add_doctor(commands)
    _add_changes(commands)
    study = commands.add_parser("study", help="test claims about normalization by training on real data")
    study.add_argument("names", nargs="*", metavar="NAME", help=f"out of {', '.join(STUDIES)} (default: all)")
    study.add_argument("--list", action="store_true", help="name the studies, what each claims and how long it takes")
    study.add_argument("--quick", action="store_true", help="the short preset of the demo")
    study.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="seeds per setting (default: 20, quick 10; fewer than 5 decide nothing, fewer than 8 seldom contradict)",
    )
    study.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="the seeds begin at N (default: 0): for a fresh sample"
    )
    study.add_argument(
        "--stability", action="store_true", help="judge 1,000 resamples and 10 fresh seeds too; state what holds"
    )
    study.add_argument(
        "--ranks", type=int, metavar="N", help="small_batch: 2 images on each of N processes, synchronised over 1 to N"
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
        "(default: these four; group_norm has instance norm with it, layer_norm RMS norm) or network, a "
        "ResNet-50 training step",
    )
    bench.add_argument(
        "--peers", default="torch", metavar="LIST", help="out of torch,compile,onednn,jax,onnx; comma between"
    )
    bench.add_argument("--shapes", default="quick", choices=("quick", "full"), help="default: %(default)s, a minute")
    bench.add_argument("--dtype", default="float32", metavar="LIST", help="float32, bfloat16, float16, float64")
    bench.add_argument("--threads", type=int, metavar="N", help="default: torch's")
    bench.add_argument("--seconds", type=float, metavar="S", help="time per case; a network takes ten times that")
    bench.add_argument("--cold", action="store_true", help="rotate through so many inputs that no cache holds them")
    bench.add_argument(
        "--busy", type=int, default=0, metavar="N", help="let N other processes compute meanwhile; ratios of means then"
    )
    bench.add_argument(
        "--models", action="store_true", help="whole models instead: plain, accelerated, compiled, and the norms' share"
    )
    bench.add_argument(
        "--ranks", default="", metavar="LIST", help="2,4: so many processes synchronise ResNet-50's norms over gloo"
    )
    bench.add_argument("--json", type=Path, metavar="F", help="write the figures to F, beside those it holds already")
    bench.set_defaults(call=_bench)

    learn = commands.add_parser("learn", help="batch norm as a page to play with, in English and Chinese")
    learn.add_argument("--out", type=Path, default=Path("learn.html"), metavar="F", help="default: %(default)s")
    learn.add_argument("--lang", default="en", metavar="en|zh", help="the language it opens in (default: %(default)s)")
    learn.add_argument("--serve", action="store_true", help="answer on 127.0.0.1 with the library instead of writing F")
    learn.add_argument("--port", type=int, default=8765, metavar="N", help="default: %(default)s; 0 takes a free one")
    learn.add_argument("--data", type=Path, metavar="PATH", help="a .npz with images, values or both: your own numbers")
    learn.set_defaults(call=_learn)

    info = commands.add_parser("info", help="versions, instruction set, threads, paths available and why not")
    info.set_defaults(call=_info)
    return top


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what is wrong with a model's normalization, in numbers, and the call that mends it",
        epilog="exit code: 0 healthy, 1 findings as severe as --fail-on, 2 what was asked cannot be done",
    )
    doctor.add_argument(
        "target",
        nargs="?",
        metavar="TARGET",
        help="package.module:factory, or a checkpoint (.pt, .safetensors; no code in it is run); "
        "default: a small net with planted faults",
    )
    doctor.add_argument("--data", metavar="MODULE:LOADER", help="batches: a function that returns them, or an iterable")
    doctor.add_argument("--select", action="append", default=[], metavar="CODE", help="only these rules (NK1: a group)")
    doctor.add_argument("--ignore", action="append", default=[], metavar="CODE=REASON", help="not these rules")
    doctor.add_argument("--fail-on", default="error", choices=("note", "warning", "error"), help="default: %(default)s")
    doctor.add_argument("--fix", type=Path, metavar="F", help="write the healed state to F, never over the input")
    doctor.add_argument("--html", type=Path, metavar="F", help="write the page to F, one file to look at")
    doctor.add_argument("--json", type=Path, metavar="F", help="write the findings to F (schema: doctor/schema.json)")
    doctor.add_argument("--sarif", type=Path, metavar="F", help="write the findings to F as SARIF 2.1.0")
    doctor.set_defaults(call=_doctor)

    compare = commands.add_parser("compare", help="what happened to the norms between two states")
    compare.add_argument("before", help="as TARGET of doctor")
    compare.add_argument("after", help="as TARGET of doctor")
    compare.set_defaults(call=_compare)

    explain = commands.add_parser("explain", help="what a rule of the doctor checks, why, and when to ignore it")
    explain.add_argument("code", metavar="CODE", help="as NK103")
    explain.set_defaults(call=_explain)

    rules = commands.add_parser("rules", help="list the rules of the doctor")
    rules.set_defaults(call=_rules)


def _add_changes(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    helps = {
        "convert": "turn a model's norms into another family, and write the weights",
        "fold": "put a model's batch norms into the weights of their neighbours, and write it",
        "recalibrate": "make a model's running statistics those of a data set, exactly, and write it",
        "freeze": "fix a model's batch norms whatever train() says, and write it",
    }
    for name, text in helps.items():
        command = commands.add_parser(
            name, help=text, epilog="exit code: 0 changed, 1 no layer was changed, 2 what was asked cannot be done"
        )
        command.add_argument("target", metavar="TARGET", help="package.module:factory of the model")
        if name == "convert":
            command.add_argument(
                "family", metavar="FAMILY", help="batch, sync, group, layer, instance, frozen, domain, torch, ..."
            )
            command.add_argument("--domains", type=int, metavar="N", help="of the family domain: how many there are")
        command.add_argument(
            "--weights", type=Path, metavar="F", help="weights for it (.pt, .safetensors; no code is run)"
        )
        command.add_argument("--part", metavar="NAME", help="which state dict of that file, where several fit")
        command.add_argument("--out", type=Path, metavar="F", help="written by suffix: .pt, .safetensors, .pt2, .onnx")
        command.add_argument("--dry-run", action="store_true", help="print the table of changes, write nothing")
        command.add_argument("--only", action="append", default=[], metavar="PATTERN", help="only these layers")
        if name != "recalibrate":
            command.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="not these layers")
        command.add_argument(
            "--data",
            metavar="MODULE:LOADER",
            help="batches: a function that returns them, or an iterable"
            + ("" if name == "recalibrate" else "; one is used"),
        )
        command.add_argument("--input", metavar="SIZES", help="an example of this shape in their place, as 1x3x224x224")
        if name == "recalibrate":
            command.add_argument("--steps", type=int, metavar="N", help="batches at most (default: all)")
        command.set_defaults(call=_change, operation=name)


def _change(args: argparse.Namespace) -> int:
    from .commands.change import Order, run

    order = Order(
        operation=args.operation,
        target=args.target,
        family=getattr(args, "family", None),
        domains=getattr(args, "domains", None),
        weights=args.weights,
        part=args.part,
        out=args.out,
        dry_run=args.dry_run,
        only=args.only,
        skip=getattr(args, "skip", ()),
        data=args.data,
        shape=args.input,
        steps=getattr(args, "steps", None),
    )
    return run(order)


def _doctor(args: argparse.Namespace) -> int:
    from .doctor.command import Order, doctor

    select = [code for given in args.select for code in given.split(",")]
    order = Order(args.target, args.data, args.fix, args.html, args.json, args.sarif, select, args.ignore, args.fail_on)
    return doctor(order)


def _compare(args: argparse.Namespace) -> None:
    from .doctor.command import compared
    from .model.terminal import show

    show(compared(args.before, args.after))


def _explain(args: argparse.Namespace) -> None:
    from .doctor.command import explain

    print(explain(args.code))


def _rules(_args: argparse.Namespace) -> None:
    from .doctor.command import rules

    print(rules())


def _study(args: argparse.Namespace) -> None:
    from .studies.conduct import listed, study
    from .studies.progress import show

    if args.list:
        width = shutil.get_terminal_size().columns
        print(listed(args.names, args.seeds, args.first_seed, args.jobs, width, args.ranks))
        return
    outcome = study(
        args.names,
        args.quick,
        args.seeds,
        args.data,
        args.out,
        first_seed=args.first_seed,
        jobs=args.jobs,
        stability=args.stability,
        ranks=args.ranks,
    )
    show(outcome.results, str(outcome.html))


def _demo(args: argparse.Namespace) -> None:
    from .learn import learn
    from .studies.demo import demo
    from .studies.progress import show

    outcome = demo(args.out)
    show(outcome.results, str(outcome.html))
    learn(args.out / "learn.html", show=lambda path: print(f"to play with: {path}"))


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
        models=args.models,
        ranks=[_number("--ranks", text) for text in args.ranks.split(",") if text],
    )
    bench(request, show=print)


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} must be whole numbers with a comma between, got {text!r}") from None


def _learn(args: argparse.Namespace) -> None:
    from .learn import learn

    learn(args.out, args.lang, serve=args.serve, port=args.port, data=args.data)


def _info(_args: argparse.Namespace) -> None:
    from .info import collect

    facts = collect()
    width = max(len(label) for label in facts)
    for label, fact in facts.items():
        print(f"{label:<{width}}  {fact}")
    from .paths import table

    print("\nThe paths of typical calls on this machine, as they are chosen:\n")
    print(table().text())
