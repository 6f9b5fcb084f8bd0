# SPDX-License-Identifier: Apache-2.0
"""The wheel in a project that has packages `agents`, `envs` and `configs` of its own, first on the import path."""

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.fakes_wheel import Builder, wheel_environment

pytestmark = pytest.mark.slow

USERS_OWN = ("agents", "benchmarks", "configs", "envs", "evaluate", "tests", "train")
"""Names of the user's modules; importing one is an error."""
SMALL = ("eval.num_resamples=50", "data.compressions=nf4")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def site(builder: Builder) -> Path:
    return builder.installed()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in USERS_OWN:
        package = folder / name / "__init__.py" if name not in ("evaluate", "train") else folder / f"{name}.py"
        package.parent.mkdir(exist_ok=True)
        package.write_text(f'raise ImportError("the user\'s own {name} was imported")\n', encoding="utf-8")
    return folder


def run(site: Path, project: Path, *arguments: str) -> str:
    outcome = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=wheel_environment(site, project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_the_wheel_owns_one_import_name(site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.suffix != ".dist-info" and path.name != "bin"}
    assert names == {"speckv"}
    (top,) = site.glob("speckv-*.dist-info")
    assert "speckv = speckv.commands.main:program" in (top / "entry_points.txt").read_text(encoding="utf-8")
    assert (site / "speckv" / "configs" / "train.yaml").is_file()
    assert not any(path.is_symlink() for path in site.rglob("*"))


def test_the_wheel_of_the_source_distribution_is_the_same(builder: Builder) -> None:
    wheels = [ZipFile(builder.wheel()), ZipFile(builder.wheel(builder.sdist()))]
    one, other = ({name: wheel.read(name) for name in wheel.namelist()} for wheel in wheels)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == set()


def test_an_environment_is_made_in_three_lines(site: Path, project: Path) -> None:
    code = (
        "import gymnasium, speckv.envs\n"
        "env = gymnasium.make('SpecKV/GammaSelection-v0')\n"
        "observation, info = env.reset(seed=0)\n"
        "print(env.observation_space.contains(observation), speckv.__file__)"
    )
    contained, origin = run(site, project, "-c", code).split()
    assert contained == "True"
    assert Path(origin).is_relative_to(site)


def test_a_shipped_policy_decides(site: Path, project: Path) -> None:
    code = (
        "import speckv.runtime\n"
        "session = speckv.runtime.load('shipped').session(max_new_tokens=8)\n"
        "print(type(session).__module__)"
    )
    assert run(site, project, "-c", code).strip() == "speckv.runtime.session"


def test_stored_controllers_are_found_by_the_entry_point(site: Path, project: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "(found,) = {point.load()('svip') for point in entry_points(group='speckv.policy_kinds')}\n"
        "print(found.__module__)"
    )
    assert run(site, project, "-c", code).strip() == "speckv.agents.rules.svip"


def test_the_commands_work_in_any_folder(site: Path, project: Path) -> None:
    speckv = ("-m", "speckv")
    assert "usage: speckv train" in run(site, project, *speckv, "train", "--help")
    run(site, project, *speckv, "export", "shipped", "--cost", "cpu-2core", "--out", "mine")
    assert json.loads((project / "mine" / "policy.json").read_text(encoding="utf-8"))
    run(site, project, *speckv, "train", "agent=svip", "output=run", *SMALL)
    evaluated = run(site, project, *speckv, "evaluate", "controllers=run", "output=table", "num_resamples=50", SMALL[1])
    assert "svip" in evaluated
    results = json.loads((project / "table" / "results.json").read_text(encoding="utf-8"))
    assert results["controllers"] == ["svip"]
    commit = json.loads((project / "run" / "run.json").read_text(encoding="utf-8"))["commit"]
    assert commit == "unknown"  # not that of a checkout that the project may be


def test_the_script_is_installed(site: Path, project: Path) -> None:
    script = site / "bin" / "speckv"
    assert run(site, project, str(script), "--version").startswith("speckv ")


def test_a_folder_elsewhere_has_all_that_is_shipped(site: Path, project: Path) -> None:
    code = (
        "from speckv.commands.app import compose_checked\n"
        "from speckv.cost import CostTable\n"
        "from speckv.profiling.prompts import EXAMPLES, read_prompts\n"
        "from speckv.traces import TraceSet, find_traces\n"
        "compose_checked('calibrate', ['name=mine'])\n"
        "names = [CostTable.load(name).name for name in ('cpu-2core', 'rtx3090-paper')]\n"
        "TraceSet.load(find_traces('qwen2.5-coder-greedy'))\n"
        "print(*names, len(read_prompts([EXAMPLES])) > 0)"
    )
    assert run(site, project, "-c", code).split() == ["cpu-2core", "rtx3090-paper", "True"]
