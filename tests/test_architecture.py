"""The architecture of the package: which part may import which, and how large its rooms are."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tljax
from tljax.models.base import Backbone

PACKAGE = Path(tljax.__file__).parent
# From the top down: each may import those below it, and its own modules.
ORDER = (
    *(
        "__main__",
        "cli",
        "api",
        "reports",
        "sweeps",
        "training",
        "evals",
        "checkpoints",
        "profiling",
        "core",
        "weights",
    ),
    *("tuning", "peft", "data", "models", "problems", "metrics", "distributed", "config", "io", "console", "streams"),
    "program",
    "errors",
)
VAGUE = {"found", "told", "one", "mine", "wanted", "made", "some", "both", "given"}
FILES = {path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def _imports(tree: ast.AST) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tljax":
            base = node.module.removeprefix("tljax").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                imported.add(name if name in MODULES else base)
        elif isinstance(node, ast.Import):
            imported |= {alias.name.removeprefix("tljax.") for alias in node.names if alias.name.startswith("tljax.")}
    return imported


def test_imports_go_downwards():
    for name, path in MODULES.items():
        part = name.split(".")[0]
        if path == Path("__init__.py"):
            continue
        for other in _imports(FILES[path]):
            below = other.split(".")[0]
            assert ORDER.index(below) >= ORDER.index(part), f"{path} imports {other}"


def test_no_modules_import_each_other():
    TopologicalSorter({name: _imports(FILES[path]) - {name} for name, path in MODULES.items()}).prepare()


def test_rooms_are_small():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 13, folder
    for path, tree in FILES.items():
        assert len((PACKAGE / path).read_text().splitlines()) <= 400, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_orbax_and_linen_stay_in_their_rooms():
    for path in FILES:
        text = (PACKAGE / path).read_text()
        assert "orbax.checkpoint" not in text or path == Path("io/arrays.py"), path
        assert "flax.linen" not in text or path.parts[0] in ("models", "peft") or path == Path("core/classifier.py"), (
            path
        )


FAMILIES = ("ViT", "Swin", "BEiT", "EVA", "ResNet", "BiT", "EfficientNet", "ConvNeXt", "MobileNetV3", "RegNet")


@pytest.mark.parametrize("family", [*FAMILIES, "Bert", "ModernBert", "Deberta", "MPNet", "Albert", "Electra"])
def test_no_family_is_asked_for_outside_its_files(family):
    for path, tree in FILES.items():
        if path.parts[0] == "models" or path.parts[:2] == ("weights", "mappings"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {child.id for child in ast.walk(node.args[1]) if isinstance(child, ast.Name)}
                assert family not in names, f"{path}, line {node.lineno}"


def _names(node: ast.AST) -> Iterator[str]:
    """What a node gives a name to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler):
        yield node.name or ""
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.id if isinstance(node, ast.Name) else node.attr


def test_names_say_what_they_hold():
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            for name in _names(node):
                assert name.strip("_") not in VAGUE, f"{path}, line {node.lineno}: {name}"


def _public(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The functions, classes and methods that a module or class offers."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _public(child)


def test_docstrings_are_sentences_and_name_their_arguments():
    # What the members of a protocol mean stands there.
    protocol = {name for name in vars(Backbone) if not name.startswith("_")} | {"setup"}
    for path, node in ((path, node) for path, tree in FILES.items() for node in _public(tree)):
        place, text = f"{path}: {node.name}", ast.get_docstring(node) or ""
        if path.parts[0] == "models" and path != Path("models/base.py") and node.name in protocol and not text:
            continue
        assert re.match(r"[A-Z][^\n]*\.(\n\n|$)", text), f"{place}: no sentence in one line: {text[:80]!r}"
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = {argument.arg for argument in every} - {"self", "cls"}
            missing = {name for name in names if not re.search(rf"\b{name}\b", text)}
            assert len(names) <= 2 or not missing, f"{place} has no word of {', '.join(sorted(missing))}"


def _offered(tree: ast.AST) -> set[str]:
    """The names that a module has at its top, and those of its classes' members."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return names | {name for node in ast.walk(tree) for name in _names(node)}


def test_what_docstrings_refer_to_is_there():
    """`part.module.name` is a name in that module, wherever a docstring or comment says so."""
    parts, checked = {name.split(".")[0] for name in MODULES} - {"config", "__init__"}, 0
    for path in FILES:
        for reference in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", (PACKAGE / path).read_text()):
            *module, name = reference.split(".")
            places = [known for known in MODULES if known == ".".join(module) or known.endswith("." + ".".join(module))]
            if reference in MODULES or module[0] not in parts or name in ("py", "pyi", "json", "jsonl"):
                continue
            if module in (["tuning"], ["io"]):  # a key of a config, and Python's own module
                continue
            checked += 1
            assert any(name in _offered(FILES[MODULES[place]]) or f"{place}.{name}" in MODULES for place in places), (
                f"{path}: {reference}"
            )
    assert checked > 5
