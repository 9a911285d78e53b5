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
from .study import Study

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

| study | claim | full preset |
|---|---|---|
{rows}

## How a verdict comes about

- A seed draws the split of the data into training, validation and test images, the start of the weights and the order
  of the batches, the same for everything that is compared; rates are chosen on the validation images of that seed.
- A claim has parts; each is measured once per seed and held against a margin that has a reason. A part is *supported*
  if a sign-flip permutation test over the seeds puts the mean beyond the margin at level 0.05, *not supported* if the
  same test, corrected by Holm over all parts of the study, puts it on the other side, *undecided* otherwise. The test
  is exact for errors that are symmetric about their mean.
- A part that is exact is bounded instead: supported if every value is within the limit, not supported if the median is
  beyond ten times the limit.
- The rule says *supported* if all parts are, *not supported* if one is not.
- That word is stated only if {ENOUGH:.0%} of {RESAMPLES:,} resamples of the seeds, judged anew, give it too, and a
  block of {FRESH_SEEDS} fresh seeds as well; else *undecided* is stated, with the word it leans to. {OPTIMISTIC}

Margins were set before the runs of this edition, knowing those of the one before; a page names each rule that was
changed after results had been seen.

The runs behind each page are in [docs/data/studies](../data/studies): 20 seeds and the fresh block.
"""


def _word(study: Study, record: Record | None) -> str:
    if record is None:
        return "not run yet"
    if not is_current(study, record):
        return "not run since the rule changed"
    return f"**{record['verdict']['word']}** ({record['stability']:.0%} of resamples)"


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

**Rule of the verdict.** Supported if all of these hold, not supported if one is contradicted:

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
    return f"""**Verdict: {verdict["word"]}.** {verdict["sentence"]} {verdict["stable"]}

{pictures}

**What was found.** {len(record["seeds"])} seeds; means and their 95 % intervals over seeds.

| part | measured | asked | word of the rule | fresh seeds |
|---|---|---|---|---|
{rows}

**Stability.** {record["stability"]:.1%} of {RESAMPLES:,} resamples of the {len(record["seeds"])} seeds give the rule's
word, *{verdict["rule_word"]}*; the block of fresh seeds gives *{record["fresh"]["word"]}*. {OPTIMISTIC}

**Made.** {record["date"]}, commit {record["commit"][:10]}, {record["made_with"]}{on},
{record["seconds"]} seconds of one core; rule {record["rule_sha256"][:12]}; runs in
[{study.name}.json](../data/studies/{study.name}.json).

"""


def _measured(part: Mapping[str, Any]) -> str:
    interval = "" if part["low"] is None else f" [{number(part['low'])}, {number(part['high'])}]"
    return f"{number(part['measured'])}{interval} {part['unit']}".rstrip()


def _plots(study: Study, record: Record) -> list[tuple[int, Any]]:
    return list(enumerate(study.plot(blocks(record)[0])))


def _file(study: Study, index: int) -> str:
    return f"{study.name}.svg" if index == 0 else f"{study.name}-{index + 1}.svg"


def _pictures(study: Study, record: Record) -> dict[str, str]:
    from .plots import standalone

    return {_file(study, i): standalone(plot) for i, plot in _plots(study, record)}
