"""What the tools share: where the project's parts are, and how a notebook cell is read."""
import configparser
import os
import re
import symtable
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}  # every notebook's kernelspec
# What a user may have set for other work, and what must not change what is built here.
PERSONAL = re.compile(r"MPL|MATPLOTLIB|IPYTHON|JUPYTER|PYTHON(STARTUP|OPTIMIZE|INSPECT|WARNINGS)|(GNU)?MAKE|MFLAGS|GIT_"
                      r"|((NO|FORCE)_COLOR|COLUMNS|LINES|IN_TEST)$")
_DIRECTIVE = re.compile(r"#\|\s*([\w-]+)\s*:?\s*(.*)")


def settings(root=ROOT):
    """The project's settings.ini as a mapping."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(Path(root, "settings.ini"), encoding="utf-8")
    return parser["DEFAULT"]


def environment(folder):
    """The environment for what is built and tested: no configuration of the user's, for which `folder` stands in."""
    env = {key: value for key, value in os.environ.items() if not PERSONAL.match(key)}
    homes = "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CONFIG_HOME"
    return env | dict.fromkeys(homes, str(folder)) | {
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not one that the user has installed
        "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc"))}  # SVG files with the same ids each time


def files(folder, pattern):
    """Files below `folder`, sorted; names that begin with a dot are an operating system's or an editor's."""
    found = (path for path in Path(folder).rglob(pattern) if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def name_of(path, root=ROOT):
    """What a notebook is called in messages: its path in nbs/, such as 03_gmm.ipynb or rooms/files.ipynb."""
    return Path(os.path.relpath(Path(path).resolve(), Path(root, "nbs").resolve())).as_posix()


def notebooks(root=ROOT):
    """Paths of all notebooks in reading order: chapters by name, then rooms by folder and name, index.ipynb last."""
    nbs = Path(root, "nbs")
    inside = {path: path.relative_to(nbs).parts for path in files(nbs, "*.ipynb")}
    shown = [path for path, parts in inside.items() if not any(part.startswith("_") for part in parts)]
    return sorted(shown, key=lambda p: (inside[p] == ("index.ipynb",), inside[p][:-1], p.name))


def chapter(name):
    """The number of the chapter that the notebook called `name` is, or None for a room and the index."""
    found = re.match(r"(\d\d)_[^/]*$", name)
    return int(found[1]) if found else None


def read(path):
    """The notebook at `path` as nbformat 4, with the line ends of Unix."""
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        cell.source = cell.source.replace("\r\n", "\n")
    return nb


def _split(source):
    """Split a cell's source into its leading `#|` lines and the code below them."""
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#|")), len(lines))
    return lines[:n], "\n".join(lines[n:]).strip("\n")


def directives(cell):
    """The cell's `#| name: value` lines as a dict; an entry without a value maps to an empty string."""
    return dict(m.groups() for line in _split(cell.source)[0] if (m := _DIRECTIVE.match(line.strip())))


def code(cell):
    """The cell's source without its directives."""
    return _split(cell.source)[1]


def tags(cell):
    """The cell's tags as a set."""
    return set(cell.metadata.get("tags", []))


def hidden(cell):
    """Whether a reader of README.md or report.pdf is spared this cell: plumbing and tests."""
    d = directives(cell)
    return bool({"hide", "default_exp"} & d.keys()) or d.get("include") == "false" or "nbdev_export(" in cell.source


def echoed(cell):
    """Whether the cell's source may be shown (its outputs are shown either way)."""
    d = directives(cell)
    return "hide_input" not in d and d.get("echo") != "false" and "hide_input" not in tags(cell)


def nbval_flags(root=ROOT):
    """Flags of the cells that nbval passes over: `tst_flags` of settings.ini, but for `once`."""
    return set(settings(root).get("tst_flags", "").split()) - {"once"}


def skipped(cell, flags=()):
    """Whether a run passes over this cell: `#| eval: false`, one of `flags`, or the export that make does itself.

    nbdev_test follows the same rule, with `tst_flags` of settings.ini as `flags`.
    """
    d = directives(cell)
    return d.get("eval", "").lower() == "false" or bool(set(flags) & d.keys()) or "nbdev_export(" in cell.source


def names(code):
    """The names that a cell's code makes, and those that it takes from cells before it."""
    made, taken, tables = set(), set(), [top := symtable.symtable(code, "cell", "exec")]
    while tables:
        tables += (table := tables.pop()).get_children()
        for symbol in table.get_symbols():
            if table is top and (symbol.is_assigned() or symbol.is_imported()):
                made.add(symbol.get_name())
            elif symbol.is_referenced() and (table is top or symbol.is_global()):
                taken.add(symbol.get_name())
    return made, taken - made


def needed(codes, wanted):
    """The positions in `codes` of the cells at `wanted` and of all that these need, in order."""
    known, found, ahead = [names(code) for code in codes], set(), list(wanted)
    while ahead:
        if (at := ahead.pop()) not in found:
            found.add(at)
            for name in known[at][1]:
                ahead += [i for i in range(at) if name in known[i][0]][-1:]
    return sorted(found)
