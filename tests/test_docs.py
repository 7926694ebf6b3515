"""The documentation site builds without a warning, which a dead link or an unknown name would be; its Python parses."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in [*ROOT.glob("docs/**/*.md"), ROOT / "BEWARE.md"])


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # Never --quiet: it hides the warnings from --strict, which then ends well whatever they are.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    page = (tmp_path / "site" / "api" / "pipeline" / "index.html").read_text(encoding="utf-8")
    assert "prediction_length" in page
    for part in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'(?:src|href)="(https?://[^"]*\.(?:js|css|woff2?))"', part.read_text(encoding="utf-8"))
        assert not loaded, f"{part} loads {loaded}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_python_in_the_pages_parses_and_imports_what_there_is(page):
    for indent, block in re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.S | re.M):
        code = "\n".join(line.removeprefix(indent) for line in block.splitlines())
        tree = ast.parse(code, str(page))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "walrus_hf" in node.module]
        for node in names:
            exec(compile(ast.Module([node], []), str(page), "exec"), {})
