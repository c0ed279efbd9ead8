"""What docs/security.md says of the code as a whole: nothing in it can execute what a file holds."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("ris_pipeline", "stages") for path in sorted((ROOT / package).rglob("*.py"))]
CALLS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "marshal.load", "marshal.loads",
    "os.system", "os.popen", "shelve.open", "torch.hub.load", "torch.jit.load", "joblib.load", "yaml.load",
}  # fmt: skip
ALLOWED = {
    "datasets/io/pickles.py": "an unpickler",  # restricted ones, with tests of their own
    "networks/weights/tensors.py": "an unpickler",
    "process/ranks.py": "pickle.loads",  # what torchrun's processes tell each other, as torch's own gather_object does
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(source: str) -> Iterator[str]:
    """What in a module could execute what a file or a server holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any("Unpickler" in dotted(base) for base in node.bases):
            yield "an unpickler"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in CALLS:
            yield name
        if name == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only"
        for flag in ("trust_remote_code", "allow_pickle", "shell"):
            if given.get(flag) not in (None, False):
                yield flag


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_executes_what_a_file_holds(path):
    found = set(dangers(path.read_text(encoding="utf-8")))
    allowed = {danger for name, danger in ALLOWED.items() if path.as_posix().endswith(name)}
    assert found <= allowed


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("eval(text)", "eval"),
        ("import pickle\npickle.load(file)", "pickle.load"),
        ("torch.load(path)", "torch.load without weights_only"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only"),
        ("build(name, trust_remote_code=True)", "trust_remote_code"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("subprocess.run(line, shell=True)", "shell"),
        ("class Reader(pickle.Unpickler): pass", "an unpickler"),
    ],
)
def test_such_code_would_be_found(source, danger):
    assert list(dangers(source)) == [danger]
