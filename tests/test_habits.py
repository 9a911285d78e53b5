"""What contributors and forges read beside the code names things that exist, and the version that is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import normkit

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def steps(workflow: str) -> list[str]:
    return [step["run"] for job in read(workflow)["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", ["ci.yml", "nightly.yml", "site.yml", "wheels.yml"])
def test_a_workflow_runs_what_a_contributor_runs(workflow: str) -> None:
    found = steps(f".github/workflows/{workflow}")
    assert found
    for command in found:
        first, *words = command.split()
        assert (first == "make" and words[0] in TARGETS) or (ROOT / first).stat().st_mode & 0o111, command


def test_the_hooks_run_tools_of_the_environment() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    for hook in repo["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool.startswith(".venv/bin/"), tool
        assert tool.rpartition("/")[2] in {"ruff", "mypy", "python"}


def test_the_citation_and_the_changelog_name_this_version() -> None:
    assert read("CITATION.cff")["version"] == normkit.__version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(normkit.__version__)


def test_a_fault_is_reported_with_normkit_info() -> None:
    fields = read(".github/ISSUE_TEMPLATE/fault.yml")["body"]
    assert any("normkit info" in field["attributes"]["label"] and field["validations"]["required"] for field in fields)


def test_the_dev_container_makes_the_environment() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make setup"
