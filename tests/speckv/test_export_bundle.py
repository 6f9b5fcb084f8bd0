# SPDX-License-Identifier: Apache-2.0
"""Modules copied side by side: with all that they need, with nothing else, and unchanged but for their imports."""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from speckv.agents.registry import AGENTS, Agent
from speckv.errors import ConfigError
from speckv.export.bundle import bundle
from speckv.export.hf import EMBEDDED
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression

Make = Callable[[Mapping[str, str]], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Installs packages: path of a file -> its text."""

    def make(files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cask", "copied")]:
        del sys.modules[name]


FILES = {
    "cask/__init__.py": "from cask.hoops import Hoop as Band\nfrom cask.heavy import stove\nSIZE = 7\n",
    "cask/hoops.py": "import torch\nclass Hoop:\n    pass\n",
    "cask/heavy.py": "import tensorflow\nstove = 1\n",
    "cask/staves.py": "import json, numpy.linalg\nfrom cask import hoops, Band\noak = (hoops.Hoop, Band)\n",
}


def test_a_copy_needs_what_is_used_and_no_more(installed: Make) -> None:
    installed(FILES)
    made = bundle(["cask.staves"])
    assert dict(made.sources) == {
        "cask_hoops": FILES["cask/hoops.py"],
        "cask_staves": "import json, numpy.linalg\n"
        "from . import cask_hoops as hoops\nfrom .cask_hoops import Hoop as Band\n"
        "oak = (hoops.Hoop, Band)\n",
    }
    assert made.libraries == {"numpy", "torch"}


REWRITTEN = {
    "one name of a module": ("from cask.hoops import Hoop", "from .cask_hoops import Hoop"),
    "several, over lines": (
        "from cask.staves import (\n    oak,\n    json as j,\n)",
        "from .cask_staves import oak, json as j",
    ),
    "a relative one": ("from .hoops import Hoop", "from .cask_hoops import Hoop"),
    "a relative module": ("from . import hoops", "from . import cask_hoops as hoops"),
    "what a package defines": ("from cask import SIZE", "from .cask import SIZE"),
    "in a function": (
        "def f():\n    from cask import Band, hoops\n    return Band",
        "def f():\n    from .cask_hoops import Hoop as Band\n    from . import cask_hoops as hoops\n    return Band",
    ),
    "behind wide letters": ('a = "γγ"; from cask import Band', 'a = "γγ"; from .cask_hoops import Hoop as Band'),
    "two on a line": ("from cask import Band; import os", "from .cask_hoops import Hoop as Band; import os"),
    "for a type checker": (
        "if TYPE_CHECKING:\n    from cask.heavy import stove\nelse:\n    from cask import Band",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from .cask_hoops import Hoop as Band",
    ),
    "in a text": ('"""\nfrom cask import Band"""', '"""\nfrom cask import Band"""'),
}


@pytest.mark.parametrize("what", REWRITTEN)
def test_imports_are_rewritten_and_nothing_else(what: str, installed: Make) -> None:
    source, wanted = REWRITTEN[what]
    installed({**FILES, "cask/lid.py": source + "\nlast = 1\n"})
    made = bundle(["cask.lid"])
    assert made.sources["cask_lid"] == wanted + "\nlast = 1\n"
    assert ("cask_heavy" in made.sources) == (what == "what a package defines")


def test_copies_work_where_the_package_is_not(installed: Make, tmp_path: Path) -> None:
    files = {
        "cask/__init__.py": "",
        "cask/a.py": "from cask.b import twice\ndef four():\n    return twice(2)\n",
        "cask/b.py": "def twice(n):\n    from cask import c\n    return n * c.TWO\n",
        "cask/c.py": "from cask.b import twice\nTWO = 2\n",
    }
    installed(files)
    made = bundle(["cask.a"])
    for name in files:
        (tmp_path / "site" / name).unlink()
    installed({f"copied/{name}.py": text for name, text in {**made.sources, "__init__": ""}.items()})
    assert importlib.import_module("copied.cask_a").four() == 4


REFUSED = {
    "a plain import": ("import cask.hoops\n", "by `from ... import`, got line 1"),
    "a star": ("from cask.hoops import *\n", "got a star"),
    "nothing there": ("from cask.bung import cork\n", "source of cask.bung"),
    "names that meet": ("from cask.a import b_c\nfrom cask.a_b import c\nfrom cask.a.b import c\n", "differ when flat"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_copied_is_refused(what: str, installed: Make) -> None:
    source, message = REFUSED[what]
    installed({**FILES, "cask/lid.py": source, "cask/a/__init__.py": "b_c = 1", "cask/a/b.py": "c = 1"})
    installed({"cask/a_b.py": "c = 1"})
    with pytest.raises(ConfigError, match=message):
        bundle(["cask.lid"])


def test_a_package_without_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="source of cask_that_is_nowhere"):
        bundle(["cask_that_is_nowhere.mod"])


def without_imports(source: str) -> str:
    class Dropped(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            """Drops it."""

        def visit_Pass(self, node: ast.Pass) -> None:
            """Drops it: what stood under `if TYPE_CHECKING`."""

    return ast.dump(Dropped().visit(ast.parse(source)))


def stored_by_itself(agent: Agent) -> bool:
    return not agent.in_environment and not issubclass(agent.controller_class, ConstantGamma | ConstantPerCompression)


def test_speckvs_own_modules_are_whole_and_need_three_libraries() -> None:
    made = bundle({EMBEDDED, *(a.controller_class.__module__ for a in AGENTS.values() if stored_by_itself(a))})
    assert made.libraries == {"numpy", "torch", "transformers"}
    root = Path(__file__).resolve().parents[2]
    folders = [root / "speckv", *(root / "speckv" / linked for linked in ("agents", "envs"))]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    originals = {str(p.relative_to(root).with_suffix("")).replace("/", "_"): p for p in paths}
    originals["speckv"] = root / "speckv" / "__init__.py"
    for name, text in made.sources.items():
        assert "\nfrom speckv" not in text
        assert without_imports(text) == without_imports(originals[name].read_text(encoding="utf-8"))
