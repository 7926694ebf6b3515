"""Writes THIRD_PARTY_LICENCES.md: what an installation brings along, and under which licence.

    python .ci/licences.py

Reads the metadata of the installed packages, so it needs an environment with all extras (`make licences`).
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "THIRD_PARTY_LICENCES.md"
DEVELOPMENT = ("dev", "oracle")
HEAD = """# Licences of the dependencies

walrus_hf itself is under the MIT licence. This is what an installation brings along, by the packages' own metadata, in
the versions of `constraints.txt` on Linux. `make licences` writes this file anew.

Two things that metadata do not tell: the wheel of `imageio-ffmpeg` holds an executable of FFmpeg that was built under
the GPL, version 3, and runs in a process of its own; and PyPI's `torch` for Linux brings CUDA libraries under NVIDIA's
own terms, which the CPU build listed here does not have.
"""


def with_dependencies(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The packages that these requirements bring along, by name, with all that those require in turn."""
    found: dict[str, Distribution] = {}
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        required = todo.pop()
        name, extras = canonicalize_name(required.name), ("", *sorted(required.extras))
        if name == "walrus-hf" or (name, extras) in seen:
            continue
        seen.add((name, extras))
        package = found[name] = distribution(name)
        wanted = [Requirement(line) for line in package.requires or ()]
        todo += [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


def licence(package: Distribution) -> str:
    """By the expression, else the classifiers, else the first line of the text in the metadata or beside them."""
    meta = package.metadata
    if "License-Expression" in meta:
        return meta["License-Expression"]
    classifiers = [line.split(" :: ")[-1] for line in meta.get_all("Classifier", []) if line.startswith("License ::")]
    texts = [meta.get("License", ""), *(package.read_text(f"licenses/{f}") for f in meta.get_all("License-File", []))]
    first_lines = [line for text in texts for line in (text or "").strip().splitlines()[:1]]
    return "; ".join(sorted(classifiers)) or (first_lines or ["unknown"])[0]


def table(packages: dict[str, Distribution], extras: dict[str, dict[str, Distribution]]) -> str:
    """Markdown, with the extras that need a package where there are any."""
    lines = ["| package | version | licence |" + " extras |" * bool(extras), "|---|---|---|" + "---|" * bool(extras)]
    for name, package in sorted(packages.items()):
        version = package.version.partition("+")[0]
        line = f"| [{name}](https://pypi.org/project/{name}/) | {version} | {licence(package)} |"
        users = ", ".join(extra for extra, needed in extras.items() if name in needed)
        lines.append(f"{line} {users} |" if extras else line)
    return "\n".join(lines)


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        base = with_dependencies(project["dependencies"])
        extras = {name: with_dependencies(lines) for name, lines in project["optional-dependencies"].items()}
    except PackageNotFoundError as error:
        sys.exit(f"expected an environment with all dependencies, found no {error}; pip install -e '.[dev,oracle]'")
    users = {name: packages for name, packages in extras.items() if name not in DEVELOPMENT}
    optional = {n: p for packages in users.values() for n, p in packages.items() if n not in base}
    development = {n: p for e in DEVELOPMENT for n, p in extras[e].items() if n not in base and n not in optional}
    parts = [
        HEAD,
        f"## The package\n\n`pip install walrus-hf`\n\n{table(base, {})}\n",
        f"## Its extras\n\n`pip install 'walrus-hf[{','.join(users)}]'`\n\n{table(optional, users)}\n",
        "## Development\n\nWhat tests and documentation need; nothing of it is part of a release.\n\n"
        f"{table(development, {})}\n",
    ]
    TARGET.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
