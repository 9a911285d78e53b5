"""The documentation page of each study, generated from the study and from the record of its full run.

Without a record, or with one of another rule, a page states no word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import RENAMED, STUDIES
from .record import Record, blocks, is_current
from .report import number
from .rules import SIGNS
from .stability import ENOUGH, FRESH_SEEDS, RESAMPLES
from .study import Run, Study, seeds_of
from .tuned import tuned

OPTIMISTIC = (
    "Resampling is optimistic: it knows no data but those seeds' own. The fresh block, whose seeds were never looked "
    "at, is the check on it."
)


def pages(records: Mapping[str, Record]) -> dict[str, str]:
    """File name under docs/studies/ to its text: the index, a page per study, and the plots of those that were run."""
    made = {"README.md": _index(records)}
    for name, study in STUDIES.items():
        record = records.get(name)
        made[f"{name}.md"] = _page(study, record)
        if record and is_current(study, record):
            made |= _pictures(study, record)
    for old, new in RENAMED.items():
        made[f"{old}.md"] = f"# {old}\n\nThis study is now [{new}]({new}.md).\n"
    return made


def _index(records: Mapping[str, Record]) -> str:
    rows = "\n".join(
        f"| [`{s.name}`]({s.name}.md) | {s.claim} | {_word(s, records.get(s.name))} |" for s in STUDIES.values()
    )
    return f"""# Studies

Each study states a claim about training and who made it, runs an experiment, and judges the claim by a rule that is
written beside it and can fail. `normkit study` runs them all, `normkit study NAME` one, `--quick` the short preset;
`--list` says how long each takes, `--first-seed N` draws a fresh sample, `--stability` measures what a word is worth.

| study | claim | verdict of the full preset |
|---|---|---|
{rows}

## Words

- **BN, GN**: batch norm, group norm. **Units**: the outputs of a layer.
- **Start**: the weights before training. *He's* start suits ReLU, *Glorot's* tanh; a **gain** multiplies it.
- **Each at its own rate**: each network is trained at several learning rates and judged at the one that ends best on
  the validation images.
- **Exact statistics**: mean and variance of many training images under the weights as they are; **running average**:
  what batch norm collects while the weights move. **Prior**: how many samples the training statistics count for when
  they are mixed with a test batch's.
- **% points**: a difference of two percentages. **nats**: the unit of cross-entropy, 0.01 is 1 % in likelihood.
  **Deviations**: standard deviations.
- **Paired**: the difference is taken seed by seed, then averaged.

## How a verdict comes about

- A seed draws the split of the data into training, validation and test images, the start of the weights and the order
  of the batches, the same for everything that is compared; rates are chosen on the validation images of that seed.
- A claim has parts; each is measured once per seed and held against a margin that has a reason. A part is *supported*
  if a sign-flip permutation test over the seeds puts the mean beyond the margin at level 0.05, *not supported* if the
  same test, corrected by Holm over all parts of the study, puts it on the other side, *undecided* otherwise. The test
  is exact for errors that are symmetric about their mean. Five seeds are the fewest that can support a part; to
  contradict one of k parts takes n seeds with k / 2^n < 0.05, so 8 of them for 8 parts.
- A part that is exact is bounded instead: supported if every value is within the limit, not supported if the median is
  beyond ten times the limit.
- The other side of a margin need not be the other side of zero: "at least 1 point better" is contradicted by an effect
  that is there and smaller, too. The measured number and its interval say which it is.
- The rule says *supported* if all parts are, *not supported* if one is not. A claim that is *not supported* as a whole
  may hold in most of its parts: read the table.
- That word is stated only if {ENOUGH:.0%} of {RESAMPLES:,} resamples of the seeds, judged anew, give it too, and a
  block of {FRESH_SEEDS} fresh seeds as well; else *undecided* is stated, with the word it leans to. {OPTIMISTIC}

Margins were set before the runs shown here. For some studies earlier runs had been seen by then; a page names each rule
that was changed after results had been seen.

The runs behind each page are in [docs/data/studies](../data/studies): 20 seeds and the fresh block.
"""


def _word(study: Study, record: Record | None) -> str:
    if record is None:
        return "not run yet"
    if not is_current(study, record):
        return "not run since the rule changed"
    verdict, share = record["verdict"], f"{record['stability']:.0%} of resamples"
    if verdict["word"] == verdict["rule_word"] != "undecided":
        return f"**{verdict['word']}** ({share})"
    rule = f"the rule says {verdict['rule_word']} ({share}), on fresh seeds {record['fresh']['word']}"
    return f"**{verdict['word']}**: {rule}"


def _page(study: Study, record: Record | None) -> str:
    shown = _found(study, record) if record and is_current(study, record) else _unrun(study, record)
    papers = "\n".join(f"- {paper}" for paper in study.papers)
    changes = "\n".join(f"- {change}" for change in study.changes) or "- None since results were first seen."
    return f"""# {study.title}

**Claim.** {study.claim}

**Who says so.** {study.who}

{shown}
**The paper's figure beside ours.** {study.paper}

**What would change it.** {study.doubt}

**What to do with it.** {study.advice}

**Experiment.** {study.experiment}

**Rule of the verdict.** Supported if all of these hold, not supported if one is contradicted ([how, and the words
that are used](README.md#words)):

{chr(10).join(f"- {part.text}" for part in study.parts)}

**Changes of the rule.**

{changes}

**Run it.** `normkit study {study.name} --stability`; the code is in `src/normkit/studies/{study.name}.py`.

**Sources.**

{papers}
"""


def _unrun(study: Study, record: Record | None) -> str:
    why = "The full preset has not been run yet"
    if record:
        why = f"The rule has changed since the full preset was run on {record['date']} at {record['commit'][:10]}"
    return f"**Verdict.** {why}, so no word is stated here.\n"


def _found(study: Study, record: Record) -> str:
    verdict = record["verdict"]
    on = f", on {record['data']}" if "data" in record["shared"] else ""  # else the study draws its own numbers
    pictures = "\n\n".join(
        f"![{plot.title}]({_file(study, i)})\n\n{plot.description}" for i, plot in _plots(study, record)
    )
    rows = "\n".join(
        f"| {p['claim']} | {_measured(p)} | {SIGNS[p['rule']]} {number(p['margin'])} | {p['word']}; {p['reason']} | "
        f"{f['word']} |"
        for p, f in zip(record["parts"], record["fresh"]["parts"], strict=True)
    )
    return f"""**Verdict: {verdict["word"]}.** {verdict["sentence"]} {verdict["stable"]}{_withheld(record)}

{pictures}

**What was found.** {_kinds(record)}

| part | measured | asked | word of the rule | fresh seeds |
|---|---|---|---|---|
{rows}
{_opposite(record)}
**Stability.** {record["stability"]:.1%} of {RESAMPLES:,} resamples of the {len(record["seeds"])} seeds give the rule's
word, *{verdict["rule_word"]}*; the block of fresh seeds gives *{record["fresh"]["word"]}*. {OPTIMISTIC}

{_edges(record)}**Made.** {record["date"]}, commit {record["commit"][:10]}, {record["made_with"]}{on},
{record["seconds"]} seconds of one core; rule {record["rule_sha256"][:12]}; runs in
[{study.name}.json](../data/studies/{study.name}.json).

"""


def _measured(part: Mapping[str, Any]) -> str:
    interval = "" if part["low"] is None else f" [{number(part['low'])}, {number(part['high'])}]"
    return f"{number(part['measured'])}{interval} {part['unit']}".rstrip()


def _withheld(record: Record) -> str:
    """Why the word of the rule is not the word that is stated; "" where it is."""
    verdict = record["verdict"]
    if verdict["word"] == verdict["rule_word"]:
        return ""
    reasons = [f"fewer than {ENOUGH:.0%} of the resamples agree"] if record["stability"] < ENOUGH else []
    reasons += ["the fresh seeds do not agree"] if record["fresh"]["word"] != verdict["rule_word"] else []
    return f" *{verdict['rule_word'].capitalize()}* is not stated, since {' and '.join(reasons)}."


def _kinds(record: Record) -> str:
    """What stands under "measured"."""
    text = f"{len(record['seeds'])} seeds; means over seeds and their 95 % intervals (bootstrap)"
    if any(part["unit"] == "times" for part in record["parts"]):
        text += ", geometric where the unit is times"
    if any(part["rule"] == "within" for part in record["parts"]):
        text += "; of an exact part the worst value"
    return text + "."


def _opposite(record: Record) -> str:
    if not any(part["word"] == "not supported" and part["p"] is not None for part in record["parts"]):
        return ""
    return """
*For the opposite*: the mean is on the other side of what was asked. That can be an effect the other way round, or one
that is there and too small: the interval says which.
"""


def _edges(record: Record) -> str:
    """The arms whose rate lies at an end of what was tried in half of the seeds or more; "" where none does."""
    runs = blocks(record)[0]
    if not all("valid" in run.result and "rate" in run.params for run in runs):
        return ""
    seeds = seeds_of(runs)
    arms: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:  # whose parameters may come in any order
        arm = {k: v for k, v in run.params.items() if k not in (*record["shared"], "seed", "rate")}
        arms.setdefault(frozenset(arm.items()), []).append(run)
    found = []
    for arm_items, of_arm in arms.items():
        names = [(k, v) for k, v in of_arm[0].params.items() if (k, v) in arm_items]
        label = ", ".join(v if isinstance(v, str) else f"{k} {v:g}" for k, v in names)
        rates = {run.params["rate"] for run in of_arm}
        chosen = [tuned([run for run in of_arm if run.params["seed"] == seed]).params["rate"] for seed in seeds]
        for end, name in ((min(rates), "smallest"), (max(rates), "largest")):
            if len(rates) > 1 and 2 * chosen.count(end) >= len(seeds):
                found.append(f"- {label}: {end:g}, the {name}, in {chosen.count(end)} of {len(seeds)} seeds")
    if not found:
        return ""
    lines = "\n".join(found)
    return f"""**Rates at the end of the grid.** With a wider grid these could come out otherwise; a training that fails
at every rate takes the smallest.

{lines}

"""


def _plots(study: Study, record: Record) -> list[tuple[int, Any]]:
    return list(enumerate(study.plot(blocks(record)[0])))


def _file(study: Study, index: int) -> str:
    return f"{study.name}.svg" if index == 0 else f"{study.name}-{index + 1}.svg"


def _pictures(study: Study, record: Record) -> dict[str, str]:
    from .plots import standalone

    return {_file(study, i): standalone(plot) for i, plot in _plots(study, record)}
