"""Nothing is ever unpickled without the allow-list: not in the packages, the tests or the experiments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("npmerge", "alignment", "tests", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
DANGEROUS = {"load", "loads", "Unpickler", "_Unpickler", "open"}


def unpickles(source: str) -> list[str]:
    """Every call that runs a stranger's pickle, or could."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(x.name.split(".")[0] in UNPICKLERS and x.asname for x in node.names):
            found.append(f"line {node.lineno}: another name for pickle")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            names = {x.name for x in node.names} & DANGEROUS
            found += [f"line {node.lineno}: {node.module}.{name}" for name in sorted(names)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in DANGEROUS:
            found += [f"line {node.lineno}: {node.value.id}.{node.attr}"] if node.value.id in UNPICKLERS else []
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {why}" for why in _call(node)]
    return found


def _call(node: ast.Call) -> list[str]:
    given = {x.arg: x.value.value if isinstance(x.value, ast.Constant) else "?" for x in node.keywords}
    called = ast.unparse(node.func)
    why = []
    if given.get("allow_pickle", False) is not False:
        why.append("allow_pickle")
    if called in ("torch.load", "torch.jit.load", "torch.package.PackageImporter") and given.get("weights_only") is not True:
        why.append(f"{called} without weights_only=True")
    return why + ([f"{called}"] if called.endswith((".read_pickle", ".load_pickle")) else [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p",
        "from pickle import loads",
        "import pickle\nclass A(pickle.Unpickler): pass",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "import joblib\njoblib.load(f)",
        "pandas.read_pickle(f)",
    ],
)
def test_every_way_to_unpickle_is_seen(source: str) -> None:
    assert unpickles(source)


def test_what_is_safe_is_let_pass() -> None:
    assert not unpickles(
        "import pickle\npickle.dumps(x)\nnp.load(f)\nnp.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)"
    )


def test_nothing_is_unpickled() -> None:
    assert len(FILES) > 300
    found = {str(path): bad for path in FILES if (bad := unpickles((ROOT / path).read_text(encoding="utf-8")))}
    assert not found
