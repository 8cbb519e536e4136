"""The import order of the package: each module may import only what stands here beside it."""

import ast
from pathlib import Path

import tljax

PACKAGE = Path(tljax.__file__).parent
LEAVES = {"errors", "flag_types", "ranges", "streams", "strict_json"}
MAY_IMPORT = {
    "errors": set(),
    "ranges": set(),
    "flag_types": set(),
    "choices": set(),
    "streams": set(),
    "strict_json": set(),
    "fields": set(),
    "sealed": set(),
    "phase_config": {"choices"},
    "config": {"choices", "fields", "phase_config"},
    "preprocessing": set(),
    "additions": set(),
    "strategies": {"additions"},
    "tuning": {"additions", "strategies"},
    "metrics": set(),
    "bootstrap": set(),
    "scores": {"bootstrap"},
    "figures": {"scores", "storage"},
    "console": set(),
    "buckets": set(),
    "storage": {"buckets", "console"},
    "array_files": {"sealed", "storage"},
    "lock": {"buckets", "console", "storage"},
    "events": {"console", "storage"},
    "stopping": set(),
    "sharding": set(),
    "peers": set(),
    "processes": {"console", "peers", "sharding", "stopping"},
    "compiled": set(),
    "flops": set(),
    "weights": {"buckets", "preprocessing", "sealed"},
    "models": {"additions", "weights"},
    "optim": {"config", "tuning"},
    "phases": {"additions", "config", "optim", "strategies", "tuning"},
    "flags": {"config", "fields", "phases"},
    "data": {"config", "console", "preprocessing", "sealed", "weights"},
    "mix": set(),
    "step": {"config", "metrics", "mix", "optim", "tuning"},
    "checkpoint": {
        *("array_files", "config", "console", "lock", "metrics", "sharding", "step", "storage", "tuning"),
    },
    "backbone": {"array_files", "buckets", "config", "fields", "models", "preprocessing", "sealed", "weights"},
    "network": {
        *("additions", "backbone", "config", "data", "models", "preprocessing", "strategies"),
        "weights",
    },
    "resolve": {"backbone", "config", "data", "models", "preprocessing", "weights"},
    "inputs": {"backbone", "config", "data", "resolve"},
    "beginning": {"config", "network", "optim", "phases", "sharding", "step", "tuning"},
    "run": {
        *("beginning", "compiled", "config", "data", "inputs", "network", "optim", "phases", "processes"),
        *("resolve", "sharding", "step", "tuning"),
    },
    "heads": {"compiled", "config", "data", "fields", "models", "optim", "sharding", "step"},
    "probe": {"config", "data", "heads", "metrics", "scores"},
    "logistic": {"probe"},
    "knn": {"probe", "sharding"},
    "cost": {"flops", "models", "phases", "run", "tuning"},
    "devices": set(),
    "memory": {"config", "console", "cost", "devices", "phases", "run", "sharding", "tuning"},
    "plan": {"backbone", "console", "cost", "fields", "phases", "run"},
    "features": {
        *("compiled", "console", "cost", "data", "network", "phases", "run", "sealed", "sharding", "step", "tuning"),
    },
    "lr_find": {"console", "data", "run", "sharding"},
    "workdir": {"checkpoint", "config", "console", "data", "fields", "lock", "metrics", "resolve", "storage"},
    "predictions": {"console", "data", "processes", "run", "scores", "sharding", "step", "storage"},
    "overrides": {"config", "console", "data", "fields", "inputs", "resolve"},
    "evaluation": {
        *("checkpoint", "config", "data", "figures", "overrides", "predictions", "resolve", "run", "step", "storage"),
        *("fields", "workdir"),
    },
    "evaluate": {
        *("checkpoint", "config", "console", "evaluation", "flags", "metrics", "overrides", "predictions"),
        *("run", "storage", "workdir"),
    },
    "selection": {"config", "fields", "metrics"},
    "report": {
        *("bootstrap", "config", "console", "evaluation", "fields", "figures", "metrics", "predictions", "resolve"),
        *("scores", "selection", "storage", "workdir"),
    },
    "formats": {"storage"},
    "predict_inputs": {"config", "data", "resolve", "weights"},
    "predict": {
        *("config", "console", "data", "fields", "flags", "formats", "predict_inputs", "run", "sharding"),
        *("storage", "workdir"),
    },
    "inspect": {
        *("config", "console", "data", "features", "flags", "inputs", "lr_find", "memory", "plan", "resolve", "run"),
    },
    "convert": {
        *("additions", "array_files", "backbone", "buckets", "config", "models", "run", "storage", "weights"),
        "workdir",
    },
    "loop": {
        *("checkpoint", "console", "data", "events", "features", "metrics", "phases", "predictions"),
        *("processes", "run", "sharding", "step", "stopping", "workdir"),
    },
    "train": {
        *("checkpoint", "config", "console", "data", "evaluation", "features", "flags", "loop", "memory"),
        *("fields", "metrics", "plan", "predictions", "processes"),
        *("run", "scores", "sharding", "step", "stopping", "storage", "tuning", "workdir"),
    },
    "grids": set(),
    "points": {"config", "fields", "heads", "selection", "storage", "workdir"},
    "joint": {
        *("config", "console", "features", "heads", "lock", "plan", "points", "run", "step", "stopping", "train"),
        "workdir",
    },
    "slurm": {"console", "stopping"},
    "launchers": {"console", "devices", "points", "slurm", "stopping", "workdir"},
    "status": {"console", "metrics", "points", "selection", "slurm", "workdir"},
    "sweep": {
        *("buckets", "config", "console", "flags", "joint", "launchers", "metrics", "points", "selection", "status"),
        *("stopping", "workdir"),
    },
    "__main__": {"compiled", "stopping", "weights"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tljax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tljax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tljax.")}
    return found


def test_import_order():
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module != "__init__":
            extra = _imports(path) - MAY_IMPORT[module] - LEAVES - {module}
            assert not extra, f"{path.relative_to(PACKAGE)} imports {extra}"


def test_the_order_has_no_circle():
    rank: dict[str, int] = {}
    while len(rank) < len(MAY_IMPORT):
        free = [name for name, uses in MAY_IMPORT.items() if name not in rank and uses <= rank.keys()]
        assert free, f"a circle among {MAY_IMPORT.keys() - rank.keys()}"
        rank |= dict.fromkeys(free, len(rank))


def test_only_array_files_imports_orbax_and_only_models_use_linen():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "orbax.checkpoint" not in text or path.name == "array_files.py", path
        assert "flax.linen" not in text or path.parent.name == "models", path
