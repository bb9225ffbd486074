"""The house: what may import what, which names are public, how long things may be. CONTRIBUTING.md says it in words."""
import ast
import re
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import yaml

from report import cells

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT / "vae_gmm"

FLOORS = [  # from the top; a module imports from the floors below its own
    {"__init__", "__main__"},
    {"cli"},
    {"explorer", "info"},
    {"classifier"},
    {"uses"},
    {"training", "model_files", "scans"},
    {"small"},
    {"data", "devices", "checkpoint", "config"},
    {"files", "vae", "gmm", "figures", "terminal", "mixture"},
    {"networks"}]
STAIRS = ["__init__", "estimator", "sources", "missing", "fast", "steps", "checks"]  # inside mixture/, from the top
CHAPTERS = {"data", "vae", "gmm", "training", "classifier", "uses"}  # the other modules are rooms
EVERYWHERE = {"__version__"}  # what anybody may take from the package itself
NAMES = 80            # in all __all__ together
MODULE = 300, 400     # lines of a chapter's module, of a room's
FUNCTION = 25, 40     # with its docstring
CLASS = 60
COLUMNS = 120


@lru_cache
def tree(text):
    """The syntax tree of a module's text; not to be changed."""
    return ast.parse(text)


def modules(lib):
    """The package's modules: {name: path}, such as `data` and `mixture.steps`; a package is its `__init__`."""
    paths = [path for path in cells.files(lib, "*.py") if path.name != "_modidx.py"]
    return {".".join(path.relative_to(lib).with_suffix("").parts): path for path in sorted(paths)}


def floor(name):
    """How far from the top a module stands, as a pair that can be compared; None if it has no place."""
    first, _, rest = name.partition(".")
    level = next((i for i, names in enumerate(FLOORS) if first in names), None)
    if level is None or rest and rest not in STAIRS:
        return None
    return level, STAIRS.index(rest) if rest else 0


def below(target, name):
    """Whether `target` stands below the module `name`, whose neighbours count only inside mixture/."""
    (a, b), (c, d) = floor(target), floor(name)
    return a > c or a == c and target.partition(".")[0] == name.partition(".")[0] and b > d


class Imports(ast.NodeVisitor):
    """What a module takes from others of its package: `found` has (line, module, name or None for all of it)."""

    def __init__(self, name, path, known, package="vae_gmm"):
        self.known, self.package, self.found, self.modules = known, package, [], {}
        self.here = name.split(".")[:-1]
        module = tree(path.read_text(encoding="utf-8"))
        self.visit(module)
        for node in ast.walk(module) if self.modules else ():  # module.name, where the module is imported as a whole
            if isinstance(node, ast.Attribute) and (module := self.modules.get(ast.unparse(node.value))):
                self.add(node.lineno, module.split("."), node.attr)

    def module(self, parts):
        """The module at this place of the package, or None."""
        return next((name for name in (".".join(parts), ".".join([*parts, "__init__"])) if name in self.known), None)

    def add(self, line, parts, name):
        """One name from the module at `parts`, which may itself be a module."""
        parts = [part for part in parts if part != "__init__"]
        inner = self.module([*parts, name]) if name else None
        self.found.append((line, inner or self.module(parts) or ".".join(parts), None if inner else name))
        return inner

    def visit_Import(self, node):
        for alias in node.names:
            package, *parts = alias.name.split(".")
            if package == self.package:
                self.found.append((node.lineno, self.module(parts) or alias.name, None))
                self.modules[alias.asname or alias.name] = self.found[-1][1]

    def visit_ImportFrom(self, node):
        parts = node.module.split(".") if node.module else []
        if node.level:
            parts = self.here[:len(self.here) - node.level + 1] + parts
        elif parts[0] != self.package:
            return
        else:
            parts = parts[1:]
        for alias in node.names:
            if inner := self.add(node.lineno, parts, alias.name):
                self.modules[alias.asname or alias.name] = inner

    def visit_Call(self, node):
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if called == "import_module" and isinstance(node.args[0], ast.Constant):
            parts = node.args[0].value.lstrip(".").split(".")
            if node.args[0].value.startswith(".") or parts[0] == self.package:
                parts = parts[1:] if parts[0] == self.package else parts
                self.found.append((node.lineno, self.module(parts) or ".".join(parts), None))
        self.generic_visit(node)


def public(path):
    """The names in a module's `__all__`."""
    for node in tree(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def import_faults(lib):
    """Imports that do not lead to a floor below, and names that their home does not have in `__all__`."""
    known = modules(lib)
    homes = {name: set(public(path)) for name, path in known.items()}
    homes["mixture.__init__"] = set().union(*(names for name, names in homes.items() if name.startswith("mixture.")))
    for module, path in known.items():
        if floor(module) is None:
            yield f"{module} has no place on a floor"
            continue
        for line, target, name in dict.fromkeys(Imports(module, path, known).found):
            if target == "__init__" and name in EVERYWHERE:
                continue
            if target not in known or floor(target) is None:
                yield f"{module}, line {line}: there is no module {target}"
            elif not below(target, module):
                yield f"{module}, line {line}: {target} does not stand below"
            elif name and name not in homes[target] and not module.startswith("mixture.") and target != "__init__":
                yield f"{module}, line {line}: {target} does not have {name} in __all__"


def name_faults(lib):
    """Too many public names; those that a package hands on count where they are at home."""
    names = [name for module, path in modules(lib).items() if not module.endswith("__init__") for name in public(path)]
    if len(names) > NAMES:
        yield f"{len(names)} names in all __all__, more than {NAMES}"


def size_faults(lib):
    """Modules, functions and classes that are too long."""
    for module, path in modules(lib).items():
        room, text = module not in CHAPTERS, path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MODULE[room]:
            yield f"{module} has {lines} lines, more than {MODULE[room]}"
        for node in ast.walk(tree(text)):
            most = (CLASS if isinstance(node, ast.ClassDef) else FUNCTION[room]
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else None)
            if most and (lines := node.end_lineno - node.lineno + 1) > most:
                yield f"{module}.{node.name} has {lines} lines, more than {most}"


def texts(root):
    """All code in lines: (what it is called, its text). Directives of cells (`#|`) are no code."""
    for folder in "vae_gmm", "report", "tests", "benchmarks":
        for path in (path for path in cells.files(root / folder, "*") if path.suffix in (".py", ".typ", ".html")):
            if path.name != "_modidx.py":  # nbdev's index
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    for path in cells.notebooks(root):
        for cell in cells.read(path).cells:
            if cell.cell_type == "code":
                yield f"{cells.name_of(path, root)} cell {cell.id}", re.sub(r"^#\|.*", "", cell.source, flags=re.M)


def line_faults(root):
    """Lines of code that are too long."""
    for name, text in texts(root):
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > COLUMNS and not line.startswith("__all__ = "):  # nbdev's own
                yield f"{name}, line {number}: {len(line)} columns, more than {COLUMNS}"


def faults(root):
    for check in import_faults, name_faults, size_faults:
        yield from check(root / "vae_gmm")
    yield from line_faults(root)


def test_imports_lead_down_and_take_public_names():
    assert list(import_faults(LIB)) == []


def test_there_are_not_too_many_public_names():
    assert list(name_faults(LIB)) == []


def test_modules_functions_and_classes_are_short():
    assert list(size_faults(LIB)) == []


def test_lines_are_short():
    assert list(line_faults(ROOT)) == []


def test_each_module_has_a_floor_and_each_floor_its_modules():
    tops = {name.partition(".")[0] for name in modules(LIB)}
    assert tops == set().union(*FLOORS)
    assert {name.partition(".")[2] for name in modules(LIB) if name.startswith("mixture.")} == set(STAIRS)


def test_chapters_are_the_numbered_notebooks_and_the_report_prints_them():
    names = [cells.name_of(path) for path in cells.notebooks() if cells.chapter(cells.name_of(path))]
    assert [cells.chapter(name) for name in names] == list(range(1, len(names) + 1))
    meta = yaml.safe_load((ROOT / "report" / "metadata.yaml").read_text(encoding="utf-8"))
    assert [f"{name}.ipynb" for name in meta["chapters"]] == names
    sources = [cell.source for name in names for cell in cells.read(ROOT / "nbs" / name).cells]
    modules_written = {cells.directives(cell).get("default_exp") for name in names
                       for cell in cells.read(ROOT / "nbs" / name).cells if cell.cell_type == "code"} - {None}
    assert modules_written == CHAPTERS
    headings = set(re.findall(r"^#+ +(.*?) *$", "\n".join(sources), re.M))
    assert set(meta["leave-out"]) <= headings  # no section of the past is left out


LONG = "def long():\n" + "    x = 1\n" * 30
PLANTS = {
    "an import of a floor above": ("data", "from .training import fit_vae", "training does not stand below"),
    "of a neighbour": ("vae", "from .files import InputError", "files does not stand below"),
    "of itself": ("vae", "from .vae import VAE", "vae does not stand below"),
    "inside a function": ("data", "def f():\n    from . import cli", "cli does not stand below"),
    "by an absolute name": ("files", "import vae_gmm.classifier as c", "classifier does not stand below"),
    "from the package by its name": ("files", "from vae_gmm import classifier", "classifier does not stand below"),
    "of the package itself": ("data", "from vae_gmm import VAE", "__init__ does not stand below"),
    "by a call": ("data", "import_module('.cli', __package__)", "cli does not stand below"),
    "of what is not there": ("data", "from .nowhere import x", "there is no module nowhere"),
    "up the stairs": ("mixture.checks", "from .steps import Parameters", "mixture.steps does not stand below"),
    "out of the mixture": ("mixture.steps", "from ..files import InputError", "files does not stand below"),
    "a private name": ("data", "from .files import _read_header", "files does not have _read_header in __all__"),
    "of a module": ("data", "from . import files as f\nf._read_header", "files does not have _read_header in __all__"),
    "of a module in full": ("cli", "import vae_gmm.data\nvae_gmm.data._x", "data does not have _x in __all__"),
    "of the mixture": ("cli", "from .mixture.steps import _x", "mixture.steps does not have _x in __all__"),
    "every name": ("data", "from .files import *", "files does not have * in __all__"),
    "a module without a floor": ("attic", "x = 1", "attic has no place on a floor"),
    "a long chapter": ("gmm", "x = 1\n" * 301, "lines, more than 300"),
    "a long room": ("info", "x = 1\n" * 401, "lines, more than 400"),
    "a long function of a chapter": ("gmm", LONG, "gmm.long has 31 lines, more than 25"),
    "a long function of a room": ("info", LONG + "    y = 1\n" * 10, "info.long has 41 lines, more than 40"),
    "a long docstring": ("gmm", 'def said():\n    """' + "\n" * 26 + '"""', "gmm.said has 28 lines, more than 25"),
    "a long class": ("info", "class Long:\n" + "    x = 1\n" * 60, "info.Long has 61 lines, more than 60"),
    "a long line": ("info", "# " + "x" * 119, "columns, more than 120"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package, and what is wrong with it as it is."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(LIB, root / "vae_gmm", ignore=shutil.ignore_patterns("__pycache__"))
    return root, set(faults(root))


@pytest.mark.parametrize("module, code, fault", PLANTS.values(), ids=PLANTS)
def test_what_is_planted_is_found(house, module, code, fault):
    root, before = house
    path = root / "vae_gmm" / (module.replace(".", "/") + ".py")
    text = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text((text or "") + "\n\n" + code + "\n", encoding="utf-8")
    try:
        assert any(fault in found for found in set(faults(root)) - before)
    finally:
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")


def test_what_is_allowed_is_not_found(house):
    root, before = house
    path = root / "vae_gmm" / "info.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\nimport torch\nfrom . import __version__, vae as v\nfrom vae_gmm.vae import VAE\nv.VAE\n"
                           "def f():\n    from .mixture import GaussianMixture\n", encoding="utf-8")
    assert [fault for fault in set(faults(root)) - before if "lines" not in fault] == []
    path.write_text(text, encoding="utf-8")


def test_one_name_too_many_is_found(house):
    root, _ = house
    path = root / "vae_gmm" / "info.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(__all__ = \[)", rf"\1{', '.join(repr(f'x{i}') for i in range(NAMES))}, ", text))
    assert any(f"in all __all__, more than {NAMES}" in fault for fault in name_faults(root / "vae_gmm"))
    path.write_text(text, encoding="utf-8")
