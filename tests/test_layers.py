"""The code keeps its layers: who may import whom, and what nobody may use. Read from the source."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "hsap_hf"
LAYERS = ["errors", "config", "planner", "comm", "attention", "hf", "data", "train", "cli"]
"""A file imports only from layers to its left, or its own."""
SAME_LAYER = {"strict": "config"}
EXEMPT = {"__init__", "__main__"}
FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))

MAY_USE = {
    "torch.distributed": lambda path: layer_of(path) in ("comm", "train"),
    "transformers": lambda path: layer_of(path) in ("hf", "data", "train", "cli"),
    "flash_attn": lambda path: path.parent.name == "kernels" and path.stem.startswith("flash_attn_"),
    "pickle": lambda path: False,
    "marshal": lambda path: False,
    "shelve": lambda path: False,
}
ENVIRONMENT = {"config", "train", "cli"}
COLLECTIVES = r"all_to_all|all_gather|all_reduce|broadcast|barrier|reduce_scatter|gather_batches|confirm"
TOP_LEVEL = {
    *("hsap_hf", "tests", "docs", "recipes", "examples", ".ci"),
    *("README.md", "LICENSE", "pyproject.toml", ".gitignore", ".pre-commit-config.yaml"),
}


def layer_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return SAME_LAYER.get(name, name)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; what it hangs on is left out where that is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a file imports, also inside functions; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def breaches(path: Path, tree: ast.Module) -> Iterator[str]:
    """Every rule that a file breaks, one sentence each."""
    yield from wrong_imports(path, tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node)
            if within(name, "torch.distributed") and not MAY_USE["torch.distributed"](path):
                yield f"line {line}: torch.distributed"
            if name in ("os.environ", "os.getenv", "os.putenv") and layer_of(path) not in ENVIRONMENT:
                yield f"line {line}: {name}"
            if name.endswith("_object_list"):
                yield f"line {line}: {name}"
        if isinstance(node, ast.Call):
            yield from (f"line {line}: {problem}" for problem in wrong_calls(node))
    for node in tree.body:
        if is_mutable_state(node):
            yield f"line {node.lineno}: mutable state in a module"
    if layer_of(path) == "comm":
        yield from (f"line {line}: a collective under a rank condition" for line in unequal_collectives(tree))


def wrong_imports(path: Path, tree: ast.Module) -> Iterator[str]:
    for name in imported(tree):
        for module, allowed in MAY_USE.items():
            if within(name, module) and not allowed(path):
                yield f"imports {name}"
        if within(name, "os.environ") and layer_of(path) not in ENVIRONMENT:
            yield f"imports {name}"
        parts = name.split(".")
        if parts[0] == "hsap_hf" and layer_of(path) not in EXEMPT and len(parts) > 1:
            theirs = SAME_LAYER.get(parts[1], parts[1])
            if theirs in LAYERS and LAYERS.index(theirs) > LAYERS.index(layer_of(path)):
                yield f"imports {name}, a layer to its right"
            if theirs not in LAYERS and not (theirs == "__version__" or theirs[0].isupper()):
                yield f"imports {name}, which belongs to no layer"


def wrong_calls(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    if name in ("eval", "exec", "compile", "__import__", "torch.load"):
        yield name
    loader = next((dotted(word.value) for word in call.keywords if word.arg == "Loader"), "")
    if name in ("yaml.load", "yaml.load_all") and loader not in ("yaml.SafeLoader", "_StrictLoader"):
        yield f"{name} without a safe loader"
    if name in ("yaml.unsafe_load", "yaml.full_load"):
        yield name


def is_mutable_state(node: ast.stmt) -> bool:
    """A module-level list, dict or set that code could change; dicts and sets named in capitals are constants."""
    if isinstance(node, ast.AugAssign):
        return not isinstance(node.value, ast.Tuple)
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [dotted(target) for target in targets]
    value = node.value
    mutable = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
    made = isinstance(value, ast.Call) and dotted(value.func).split(".")[-1] in (
        *("list", "dict", "set", "defaultdict", "deque", "Counter", "OrderedDict"),
        *("WeakKeyDictionary", "WeakValueDictionary", "ContextVar", "local"),
    )
    constant = all(re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name) for name in names) and isinstance(value, ast.Dict | ast.Set)
    return names != ["__all__"] and (made or (mutable and not constant))


def unequal_collectives(tree: ast.Module) -> Iterator[int]:
    """Collectives that only some ranks would reach: inside `if ...rank...:`, or behind such an early return."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        left_early = False
        for statement in ast.walk(function):
            if isinstance(statement, ast.If | ast.While | ast.IfExp) and asks_for_rank(statement.test):
                parts = statement.body if isinstance(statement.body, list) else [statement.body]
                yield from (call.lineno for part in parts for call in collectives(part))
                rest = statement.orelse if isinstance(statement.orelse, list) else [statement.orelse]
                yield from (call.lineno for part in rest for call in collectives(part))
        for statement in function.body:
            if left_early:
                yield from (call.lineno for call in collectives(statement))
            ends = (ast.Return, ast.Raise, ast.Continue, ast.Break)
            if isinstance(statement, ast.If) and asks_for_rank(statement.test):
                left_early |= any(isinstance(node, ends) for part in statement.body for node in ast.walk(part))


def asks_for_rank(test: ast.AST) -> bool:
    return any(
        re.search(r"(^|[._])(rank|get_rank|is_main_process|process_index|replica)$", dotted(node))
        for node in ast.walk(test)
        if isinstance(node, ast.Attribute | ast.Name)
    )


def collectives(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if re.search(rf"(^|\.)({COLLECTIVES})\w*$", dotted(call.func))]


@every_file
def test_every_file_keeps_the_layers_and_the_bans(path):
    assert list(breaches(path, tree_of(path))) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("planner/plan.py", "from hsap_hf.comm import Axis"),
        ("comm/axis.py", "def f():\n    from hsap_hf.hf.enable import enable_hsap"),
        ("strict.py", "import hsap_hf.planner"),
        ("errors.py", "from hsap_hf.config import HsapPlugin"),
        ("hf/hooks.py", "import torch.distributed as dist"),
        ("attention/function.py", "import torch\ntorch.distributed.barrier()"),
        ("planner/cost.py", "import transformers"),
        ("attention/function.py", "from flash_attn import flash_attn_func"),
        ("hf/enable.py", "import os\nos.environ['A']"),
        ("comm/mesh.py", "from os import environ"),
        ("planner/plan.py", "import os\nos.getenv('A')"),
        ("train/run.py", "import pickle"),
        ("train/run.py", "eval('1')"),
        ("train/run.py", "import torch\ntorch.load('a')"),
        ("strict.py", "import yaml\nyaml.load(text, Loader=yaml.Loader)"),
        ("strict.py", "import yaml\nyaml.load(text)"),
        ("comm/agree.py", "import torch.distributed as dist\ndist.all_gather_object_list(a, b)"),
        ("comm/agree.py", "cache = {}"),
        ("comm/agree.py", "_PLANS: list[int] = []"),
        ("hf/hooks.py", "from contextvars import ContextVar\nbatch = ContextVar('batch')"),
        ("comm/agree.py", "def f(axis):\n    if axis.rank == 0:\n        axis.all_gather(row, 'x')"),
        ("comm/agree.py", "def f(axis):\n    if axis.rank:\n        return\n    axis.all_reduce_max(row, 'x')"),
        (
            "comm/agree.py",
            "def f(axis):\n    if axis.rank:\n        pass\n    else:\n        axis.all_gather(row, 'x')",
        ),
    ],
)
def test_each_rule_notices_its_breach(file, source):
    assert len(list(breaches(PACKAGE / file, ast.parse(source)))) >= 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("comm/agree.py", "import torch.distributed as dist"),
        ("attention/kernels/flash_attn_2.py", "def f():\n    import flash_attn"),
        ("train/run.py", "import os\nos.environ['A'] = 'b'"),
        ("comm/agree.py", "LIMITS = {'a': 1}\nNAMES = ('a',)\n__all__ = ['a']"),
        ("comm/agree.py", "def f(axis):\n    if axis.rank == 0:\n        text = 1\n    axis.all_gather(text, 'x')"),
        ("data/packing.py", "from hsap_hf.planner import Plan"),
    ],
)
def test_what_is_allowed_passes(file, source):
    assert list(breaches(PACKAGE / file, ast.parse(source))) == []


def test_no_file_is_longer_than_two_screens():
    long = {str(path): count for path in FILES if (count := len(path.read_text().splitlines())) > 300}
    assert long == {}


def test_the_top_level_holds_only_what_was_agreed():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= TOP_LEVEL
