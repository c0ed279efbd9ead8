"""The code that each stage reaches against its `code_version`: whoever changes it says whether results change.

Reached is what the function of the chain imports, with the functions of its own module that it calls, and all that
these modules import. Comments, docstrings and line breaks do not count. `--renew` writes the table anew:

    python tests/artifacts/test_code_version.py --renew
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ris_pipeline.artifacts.layout import STAGES
from ris_pipeline.methods import METHODS, TRIS

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("code_versions.json")
CHAIN = {
    "clip": ("chain.clip", "pretrain_clip"),
    "step1": ("chain.train", "train_step1"),
    "responses": ("chain.responses", "dump_responses"),
    "pseudolabels": ("chain.pseudolabels", "make_pseudolabels"),
    "step2": ("chain.train", "train_step2"),
    "scores": ("chain.scores", "score"),
    "irnet": ("chain.imports", "import_checkpoint"),
    "report": ("report.make", "make_report"),
}
READERS, TRIS_CODE = "datasets.load", "methods.tris"
BY_NAME = {  # what the context and the registry of methods bring in
    "step1": [READERS, TRIS_CODE], "responses": [READERS, TRIS_CODE], "pseudolabels": [READERS], "step2": [READERS],
    "scores": [READERS], "report": [READERS],
}  # fmt: skip
# They carry results and make none; and settings are in the identity by their values.
CARRIERS = ("artifacts", "process", "chain", "errors", "config", "datasets.card", "methods", "methods.configs")


def parse(module: str) -> ast.Module:
    """The syntax tree of a module, by its name below ris_pipeline."""
    path = ROOT / "ris_pipeline" / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name it has here, module of ris_pipeline) of each import, without those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            package = str(node.module).removeprefix("ris_pipeline").lstrip(".")
            if str(node.module).startswith("ris_pipeline"):
                for alias in node.names:
                    inner = f"{package}.{alias.name}".lstrip(".")
                    path = ROOT / "ris_pipeline" / inner.replace(".", "/")
                    is_module = path.is_dir() or path.with_suffix(".py").is_file()
                    yield alias.asname or alias.name, inner if is_module else package
        else:
            yield from imports_of(node)


def strip(tree: ast.Module) -> str:
    """The code without docstrings and comments, in one layout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def find_functions(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The function or class of that name in a module, and those of the module that it uses."""
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert name in known, f"{name} is not there: name in CHAIN what makes the stage's artifacts"
    found: dict[str, ast.stmt] = {}
    to_see = [name]
    while to_see:
        name = to_see.pop()
        if name in known and name not in found:
            found[name] = known[name]
            to_see += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)]
    return [found[name] for name in sorted(found)]


def follow(modules: list[str]) -> list[str]:
    """The modules and all that they import, without the CARRIERS."""
    seen: set[str] = set()
    to_see = list(modules)
    while to_see:
        module = to_see.pop()
        room = module.partition(".")[0]
        if module and module not in seen and module not in CARRIERS and (room == "methods" or room not in CARRIERS):
            seen.add(module)
            to_see += [imported for _, imported in imports_of(parse(module))]
    return sorted(seen)


def start_of(module: str, function: str) -> tuple[str, list[str]]:
    """The code of a function and of those of its module that it uses; the modules that these import."""
    tree = parse(module)
    own = ast.Module(find_functions(tree, function), [])
    used = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
    modules = [imported for _, imported in imports_of(own)]
    modules += [imported for name, imported in imports_of(ast.Module(tree.body, [])) if name in used]
    return strip(own), modules


def reached_by(stage: str) -> tuple[str, list[str]]:
    """The code of the stage's function, and the modules behind it."""
    own, modules = start_of(*CHAIN[stage])
    return own, follow([*modules, *BY_NAME.get(stage, [])])


@functools.cache
def code_of(module: str) -> str:
    return strip(parse(module))


def digest(own: str, modules: list[str]) -> str:
    return hashlib.sha256("\n".join([own, *map(code_of, modules)]).encode()).hexdigest()[:16]


def list_now() -> dict[str, dict[str, Any]]:
    """{stage or method: its version and the hash of its code} as they are."""
    now = {
        name: {"code_version": stage.code_version, "code": digest(*reached_by(name))} for name, stage in STAGES.items()
    }
    for name, method in METHODS.items():
        if name != TRIS:  # whose versions are those of the stages
            code = digest("", follow([method.module.removeprefix("ris_pipeline.")]))
            now[f"method {name}"] = {"code_version": method.code_version, "code": code}
    return now


def test_the_code_is_that_of_the_version():
    stored = json.loads(TABLE.read_text("utf-8"))
    if stored.pop("python") != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("another Python writes the same syntax tree otherwise")
    now = list_now()
    other = [name for name in {**now, **stored} if now.get(name) != stored.get(name)]
    assert not other, (
        f"the code behind {', '.join(other)} has changed. Where it would now write something else, raise its "
        "code_version (artifacts/layout.STAGES, methods.METHODS). In any case renew the table: "
        "python tests/artifacts/test_code_version.py --renew"
    )


def test_what_a_stage_reaches():
    of = {stage: reached_by(stage)[1] for stage in STAGES}
    assert {"networks.step1", "training.losses", "datasets.formats.refer"} <= set(of["step1"])
    assert not [module for module in of["step1"] if module.startswith(("refine", "report", "artifacts"))]
    assert "refine.crf" in of["pseudolabels"]
    assert "networks.step2" in of["step2"]
    assert "maps.select" in of["responses"]
    assert "scoring.intervals" in of["scores"]


def test_words_do_not_count_and_values_do():
    before = 'def f(x):\n    """Return it."""\n    return x + 1  # by one\n'
    assert strip(ast.parse(before)) == strip(ast.parse("def f(x):\n    return (x\n        + 1)\n"))
    assert strip(ast.parse(before)) != strip(ast.parse("def f(x):\n    return x + 2\n"))


if __name__ == "__main__" and "--renew" in sys.argv:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    TABLE.write_text(json.dumps({"python": python, **list_now()}, indent=1) + "\n", "utf-8")
