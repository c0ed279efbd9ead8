"""The arrows of the house: tests → stages → ris_pipeline, never backwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"ris_pipeline": {"ris_pipeline"}, "stages": {"stages", "ris_pipeline"}}
PACKAGES = {"ris_pipeline", "stages", "tests"}
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its package, unless it climbs out of it: absolute ones only.
            yield (f"<relative import {'.' * node.level}{node.module or ''}>" if node.level else str(node.module))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_backward_import(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported_modules(path.read_text(encoding="utf-8")):
        top = module.partition(".")[0]
        assert not module.startswith("<"), f"{path}: {module}"
        assert top not in PACKAGES - MAY_IMPORT[package], f"{path} imports {module}"


def test_a_backward_import_would_be_seen():
    source = "def f():\n    from stages.cli import main\n    import tests.conftest\n"
    assert list(imported_modules(source)) == ["stages.cli", "tests.conftest"]


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, stages.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "numpy", "scipy", "zarr", "cv2", "PIL", "timm", "open_clip"}
    assert heavy.isdisjoint(modules.stdout.split())
