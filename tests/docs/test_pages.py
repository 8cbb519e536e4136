"""What the README and the documentation say: their code runs, their links lead somewhere, their keys exist."""

import ast
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import NOTEBOOKS, PAGES, ROOT, anchors, links, python_blocks, run, without_blocks
from tljax.config.schema import default
from tljax.config.tuning import argument_kinds
from tljax.tuning.recipes import RECIPES
from tljax.tuning.strategies import STRATEGIES

OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "benchmarks/README.md", "launch/README.md")]
FREE = ("task.dataset_args.", "loss_args.", "optim.args.", "optim.schedule_args.", "tuning.stride")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path):
    run(page, tmp_path)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS, *OTHERS], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def _keys(config, path: str = "") -> set[str]:
    keys = set()
    for name, value in config.items():
        keys |= {f"{path}{name}"} | (_keys(value, f"{path}{name}.") if hasattr(value, "items") else set())
    return keys


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_of_the_config_exist(page):
    strategies = {
        f"tuning.{key}" for name in (*STRATEGIES, *RECIPES) for key in argument_kinds("tuning.strategy", name)
    }
    keys = _keys(default()) | strategies
    sections = "|".join(name for name, value in default().items() if hasattr(value, "items"))
    text = page.read_text()
    named = re.findall(r"--config\.([a-z_0-9.]+)=", text)
    named += re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)(?:=[^`]*)?`", without_blocks(page))
    wrong = [key for key in named if key not in keys and not key.startswith(FREE)]
    assert not wrong


def test_the_faq_quotes_what_is_said():
    said = set()
    for path in (ROOT / "tljax").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        said |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    said = "\n".join(sorted(said))
    quotes = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "faq.md").read_text(), re.M)
    parts = [part.strip(" ():") for quote in quotes for part in quote.split("…")]
    assert len(quotes) > 30 and not [part for part in parts if part not in said]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        tmp_path / "trees",
        "docs",
        tmp_path / "out",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index", "api", "config_reference", "notebooks/linear_probe"):
        assert (tmp_path / "out" / f"{page}.html").exists()
    for key in ("optim.learning_rate", "task.dataset"):
        assert key in (tmp_path / "out" / "config_reference.html").read_text()


def test_each_example_is_short_and_shown_and_tested():
    page = (ROOT / "docs" / "extending.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "extending").glob("test_*.py"))
    for path in (ROOT / "examples").glob("my_*.py"):
        assert len(path.read_text().splitlines()) <= 40
        assert f"../examples/{path.name}" in page and f"{path.stem}:" in tests
