# SPDX-License-Identifier: Apache-2.0
"""The house keeps its own rules: one version, headers, module sizes, declared imports, no path of one machine."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import speckv
from benchmarks import ablations_page, pages
from speckv.cost import ASSETS, CostTable

ROOT = Path(__file__).resolve().parents[1]
SPDX = "# SPDX-License-Identifier: Apache-2.0"
ROOMS = ("speckv", "envs", "agents", "train.py", "evaluate.py")
NUMPY_ONLY = ("types", "errors", "cost", "observation", "runtime", "replay", "traces")
OTHERS = ("speckv.envs", "speckv.agents")
HEAVY = ("torch", "transformers", "gymnasium", "stable_baselines3", "sb3_contrib", "hydra", *OTHERS)
MAX_MODULE_LINES = 500

IMPORT_NAMES = {
    "hydra-core": "hydra",
    "pyyaml": "yaml",
    "sb3-contrib": "sb3_contrib",
    "stable-baselines3": "stable_baselines3",
}
OWN = {"speckv", "benchmarks"}  # `evaluate` imports benchmarks late: it needs a checkout
BEHIND_OTHERS = {"accelerate", "gguf", "tensorboard"}  # imported by transformers and torch on our behalf
COMES_WITH = {"omegaconf": "hydra"}
HOSTS = {"llama_cpp", "onnx", "sglang", "vllm"}  # libraries that a policy can go to; whoever has them, uses them


@cache
def _house_files() -> list[Path]:
    """Returns every file that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("needs a git checkout")
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not _in_environment(path)]


def _in_environment(path: Path) -> bool:
    """Whether a file belongs to a virtual environment, whatever its folder is called."""
    inside = path.relative_to(ROOT).parents
    return any((ROOT / folder / "pyvenv.cfg").is_file() for folder in inside if folder.parts)


def _modules() -> list[Path]:
    return [path for path in _house_files() if path.suffix == ".py"]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _offenders(paths: list[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def test_one_version_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == speckv.__version__
    try:
        installed = metadata.version("speckv")
    except metadata.PackageNotFoundError:
        pytest.skip("speckv runs from the checkout, not installed")
    assert installed == speckv.__version__


def test_every_module_has_licence_header_and_docstring() -> None:
    def lacking(path: Path) -> bool:
        text = path.read_text(encoding="utf-8")
        return not text.startswith(SPDX + "\n") or not ast.get_docstring(_tree(path))

    assert _offenders([path for path in _modules() if lacking(path)]) == []


def test_no_module_outgrows_its_room() -> None:
    long = [path for path in _modules() if len(path.read_text(encoding="utf-8").splitlines()) > MAX_MODULE_LINES]
    assert _offenders(long) == []


def test_no_path_of_one_machine() -> None:
    absolute = re.compile(rb"(?<![\w.$}~-])/(root|work|home/[a-z]\w*|Users/[a-z]\w*)/\w")
    assert _offenders([path for path in _house_files() if absolute.search(path.read_bytes())]) == []


def test_pages_hold_what_the_committed_results_give() -> None:
    assert pages.stale() == []


def test_every_study_that_can_be_run_has_been_and_stands_on_its_page() -> None:
    experiments = ROOT / "configs" / "experiment"
    configs = [p for folder in ("ablation", "generalisation") for p in (experiments / folder).glob("*.yaml")]
    studies = [OmegaConf.load(path).study for path in configs]
    records = ablations_page.records()
    assert {study.name for study in studies} <= set(records)
    for study in studies:
        assert records[study.name]["arms"] == OmegaConf.to_container(study.arms)
    for name in records:
        assert (ablations_page.FOLDER / f"{name}.png").is_file()


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    page = "a\n<!-- table: one -->\nold\n<!-- end -->\nz\n"
    assert pages.filled(page, {"one": "new"}) == "a\n<!-- table: one -->\nnew\n<!-- end -->\nz\n"
    with pytest.raises(ValueError, match="a place for each"):
        pages.filled(page, {"one": "new", "two": "none"})


@pytest.mark.parametrize("name", sorted(path.stem for path in ASSETS.glob("*.json")))
def test_shipped_measured_tables_predict_live_runs(name: str) -> None:
    table = CostTable.load(name)
    if table.kind == "measured" and not table.fit:
        pytest.skip(f"{name} was measured before tables were checked; calibrate again with check=true")
    table.require_publishable()


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) < 1000


def test_ci_runs_the_readmes_own_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```\w*\n(.*?)```", readme, re.DOTALL) if '".[test]"' in block]
    commands = block.strip().split(" && ")
    stages = re.findall(r"^stage \w+ (.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    shared = [command for command in commands if command in stages]
    assert shared == [next(command for command in commands if '".[test]"' in command), "pytest"]


@cache
def _imported(path: Path) -> frozenset[str]:
    """Returns the top-level names a module imports from outside itself."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def test_declared_dependencies_are_the_imported_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *project["optional-dependencies"]["models"],
        *project["optional-dependencies"]["tune"],
    ]
    distributions = {re.split(r"[<>=\[ ]", requirement, maxsplit=1)[0] for requirement in requirements}
    declared = {IMPORT_NAMES.get(name, name) for name in distributions}
    product = [path for path in _modules() if path.relative_to(ROOT).parts[0] in ROOMS]
    imported = {name for path in product for name in _imported(path)}
    third_party = imported - set(sys.stdlib_module_names) - OWN - HOSTS
    assert {COMES_WITH.get(name, name) for name in third_party} | BEHIND_OTHERS == declared


def test_only_the_commands_compose_configs() -> None:
    def may(path: Path) -> bool:
        room = path.relative_to(ROOT)
        return room.parts[:2] == ("speckv", "commands")

    composers = [path for path in _modules() if {"hydra", "omegaconf"} & _imported(path)]
    inside = [path for path in composers if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
    assert _offenders([path for path in inside if not may(path)]) == []


@pytest.mark.parametrize("module", NUMPY_ONLY)
def test_lowest_floor_imports_numpy_only(module: str) -> None:
    probe = f"import sys, speckv.{module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True, check=True, text=True
    )
    assert outcome.stdout.strip() == ""
