"""What pyproject.toml promises: bounds that CI can try, versions that are pinned, licences that are listed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
NAMED = [Requirement(line) for lines in GROUPS.values() for line in lines if not line.startswith("walrus-hf[")]
LISTED = dict(
    re.findall(r"^\| \[([\w.-]+)\]\(\S+\) \| \S+ \| (.+?) \|", (ROOT / "THIRD_PARTY_LICENCES.md").read_text(), re.M)
)


@pytest.mark.parametrize("name", sorted({canonicalize_name(required.name) for required in NAMED}))
def test_the_licence_of_every_dependency_is_listed_and_its_version_pinned(name):
    assert LISTED[name] not in ("", "unknown")
    pinned = {canonicalize_name(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split("\n")}
    assert name in pinned


def test_pinned_versions_are_within_the_bounds_of_the_project():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    for required in NAMED:
        assert versions[canonicalize_name(required.name)] in required.specifier, required


def test_libraries_whose_lowest_and_newest_versions_ci_tries_have_one_range_each():
    script = (ROOT / ".ci" / "versions").read_text(encoding="utf-8")
    names = re.search(r'^libraries="(.+)"$', script, re.M)[1].split()
    assert {"accelerate", "datasets", "peft", "transformers"} <= set(names)
    for name in names:
        ranges = {str(required.specifier) for required in NAMED if required.name == name}
        assert len(ranges) == 1, (name, ranges)
        assert re.fullmatch(r"<\d+,>=[\d.]+", ranges.pop())
    for path in re.findall(r"tests/\S+\.py", script):
        assert (ROOT / path).is_file(), path
