"""The arrows of the house: tests → stages → ris_pipeline, never backwards, and the rows of its drawing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

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
            if node.level:
                yield f"<relative import {'.' * node.level}{node.module or ''}>"
            elif "." in str(node.module):
                yield str(node.module)
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_backward_import(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported_modules(path.read_text(encoding="utf-8")):
        top = module.partition(".")[0]
        assert not module.startswith("<"), f"{path}: {module}"
        assert top not in PACKAGES - MAY_IMPORT[package], f"{path} imports {module}"


def test_a_backward_import_would_be_seen():
    source = "def f():\n    from stages.cli import main\n    from stages import cost\n    import tests.conftest\n"
    assert list(imported_modules(source)) == ["stages.cli", "stages.cost", "tests.conftest"]


def test_rooms_import_from_their_own_row_of_the_drawing_and_from_those_below():
    drawing = ElementTree.parse(ROOT / "docs" / "architecture.svg")
    rows = [group for group in drawing.iter("{http://www.w3.org/2000/svg}g") if group.get("id", "").startswith("row-")]
    row_of = {str(text.text): k for k, row in enumerate(rows) for text in row}
    folder = ROOT / "ris_pipeline"
    rooms = {path.stem: [path] for path in folder.glob("[!_]*.py")}
    rooms |= {path.parent.name: sorted(path.parent.rglob("*.py")) for path in folder.glob("*/__init__.py")}
    assert set(row_of) == set(rooms)
    for room, paths in rooms.items():
        for module in (imported for path in paths for imported in imported_modules(path.read_text(encoding="utf-8"))):
            package, _, rest = module.partition(".")
            if package == "ris_pipeline" and rest:
                assert row_of[rest.partition(".")[0]] >= row_of[room], f"{room} imports {module}"


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, stages.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "numpy", "scipy", "zarr", "cv2", "PIL", "timm", "open_clip"}
    assert heavy.isdisjoint(modules.stdout.split())
