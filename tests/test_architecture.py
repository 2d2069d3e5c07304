"""Imports run downwards only, and opening a linker loads no package that only training needs."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent / "elq_jax"
ALLOWED = {
    "model": {"model"},
    "data": {"data", "errors"},
    "retrieval": {"retrieval", "data", "errors", "training.devices"},
    "linking": {"linking", "training", "retrieval", "model", "data", "errors"},
    "evaluation": {"evaluation", "linking", "training", "retrieval", "model", "data", "errors"},
    "training": {"training", "evaluation", "linking", "retrieval", "model", "data", "errors"},
}
HEAVY = {"scann", "matplotlib", "transformers", "grain", "tensorflow_datasets", "orbax", "torch"}
# The modules that exist for one heavy package; they are imported where they are needed.
HOMES = {"data/builders.py": "tensorflow_datasets", "training/checkpoints.py": "orbax"}


def imported(tree, top_level_only):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_run_downwards(package):
    files = sorted((ROOT / package).glob("*.py"))
    assert files
    for path in files:
        for name in imported(ast.parse(path.read_text()), top_level_only=False):
            if name.startswith("elq_jax."):
                place = name.removeprefix("elq_jax.")
                allowed = [a == place or f"{place}.".startswith(f"{a}.") for a in ALLOWED[package]]
                # `from elq_jax.a import b` is checked as elq_jax.a.b.
                package_alone = any(a.startswith(f"{place}.") for a in ALLOWED[package])
                assert any(allowed) or package_alone, f"{path.name} imports {name}"


def test_the_home_of_pmap_imports_nothing_else_of_the_library():
    tree = ast.parse((ROOT / "training" / "devices.py").read_text())
    names = [n for n in imported(tree, top_level_only=False) if n.startswith("elq_jax.")]
    assert {name.split(".")[1] for name in names} == {"errors"}


def test_heavy_packages_are_imported_where_they_are_used():
    for path in sorted(ROOT.rglob("*.py")):
        found = {name.split(".")[0] for name in imported(ast.parse(path.read_text()), True)}
        own = {HOMES.get(path.relative_to(ROOT).as_posix())}
        assert not (found & HEAVY) - own, path


def test_configs_import_nothing_of_the_library():
    for path in (ROOT.parent / "configs").glob("*.py"):
        names = imported(ast.parse(path.read_text()), top_level_only=False)
        assert not [name for name in names if name.startswith("elq_jax")], path


def test_opening_a_linker_loads_only_what_it_needs():
    code = (
        "import sys, elq_jax; elq_jax.EntityLinker;"
        f"print(sorted(set(sys.modules) & {HEAVY | {'tensorflow'}!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert result.stdout.strip() == "[]"


def test_what_is_pinned_is_what_the_package_asks_for():
    """requirements.txt has every package of pyproject.toml, in a version that it allows."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    asked = {r.name: r for r in map(Requirement, project["dependencies"])}
    lines = (ROOT.parent / "requirements.txt").read_text().splitlines()
    pinned = {r.name: r for r in map(Requirement, lines)}
    assert asked.keys() == pinned.keys()
    for name, requirement in pinned.items():
        [pin] = requirement.specifier
        assert pin.operator == "=="
        assert asked[name].specifier.contains(pin.version), name
        assert str(asked[name].marker) == str(requirement.marker), name
