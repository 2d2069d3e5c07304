"""Imports run downwards only, and opening a linker loads no package that only training needs."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent.parent / "elq_jax"
# From the ground up: a package imports only itself and packages of the lines above its own.
FLOORS = (
    ("core",),
    ("storage",),
    ("text",),
    ("model",),
    ("losses",),
    ("entities",),
    ("questions",),
    ("retrieval",),
    ("linking",),
    ("evaluation",),
    ("training",),
    ("serving",),
    ("dumps",),
    ("original",),
    ("cli",),
)
HEAVY = {"scann", "matplotlib", "transformers", "grain", "tensorflow_datasets", "orbax", "torch"}
HEAVY |= {
    "fastapi",
    "uvicorn",
    "starlette",
    "prometheus_client",
    "rdflib",
    "mcp",
    "spacy",
    "apache_beam",
    "mwparserfromhell",
}  # extras
# What `link` does without until it compiles a program, shows links on a terminal, or downloads.
NOT_TO_LINK = {"flax", "optax", "rich", "scipy", "sklearn", "huggingface_hub", "pandas"}
NOT_TO_LINK |= {"ml_collections", "tensorflow"}
# The modules that exist for one heavy package; they are imported where they are needed.
HOMES = {"questions/prepared.py": "tensorflow_datasets", "training/checkpoints.py": "orbax"}


def imported(tree, top_level_only):
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_of(path):
    """Packages of ours that a file imports, wherever in it."""
    for name in imported(ast.parse(path.read_text()), top_level_only=False):
        first, _, rest = name.partition(".")
        if first == "elq_jax" and (ROOT / rest.split(".")[0]).is_dir() and rest:
            yield rest.split(".")[0]


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {package for floor in FLOORS for package in floor}


def test_every_package_is_installed():
    """setuptools takes a list, since configs/ and demo/ are installed as parts of elq_jax."""
    setup = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")}
    names = {".".join(package.parts) for package in packages}
    assert sorted(setup["packages"]) == sorted(names | {"elq_jax.configs", "elq_jax.demo"})
    assert setup["package-dir"] == {"elq_jax.configs": "configs", "elq_jax.demo": "demo"}


@pytest.mark.parametrize("package", [package for floor in FLOORS for package in floor])
def test_imports_run_downwards(package):
    [height] = [i for i, floor in enumerate(FLOORS) if package in floor]
    allowed = {package, *(below for floor in FLOORS[:height] for below in floor)}
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        found = set(packages_of(path))
        assert found <= allowed, f"{path.relative_to(ROOT)} imports {found - allowed}"


def test_the_original_has_one_door():
    """Others ask for what it registers by name: "elq_jax.original.recipe:original"."""
    importing = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if path.parent.name != "original" and "original" in packages_of(path)
    }
    assert importing <= {"convert.py", "cli/flags.py"}  # the second for --preset


def test_pmap_is_named_in_one_file():
    using = [path for path in ROOT.rglob("*.py") if "jax.pmap(" in path.read_text()]
    assert [path.relative_to(ROOT).as_posix() for path in using] == ["core/devices.py"]


def lines_of_body(function):
    """Lines of a function's body, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_a_screen():
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    too_long = [
        f"{path.relative_to(ROOT)}: {node.name}, {lines_of_body(node)} lines"
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and lines_of_body(node) > 60
    ]
    assert not too_long


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
        "import sys, elq_jax, elq_jax.link, elq_jax.linking.rows; elq_jax.EntityLinker;"
        f"print(sorted(set(sys.modules) & {HEAVY | NOT_TO_LINK!r}))"
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
