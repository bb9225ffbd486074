"""What the tools share: where the project's parts are, and how a notebook cell is read."""
import configparser
import os
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
_DIRECTIVE = re.compile(r"#\|\s*([\w-]+)\s*:?\s*(.*)")


def settings(root=ROOT):
    """The project's settings.ini as a mapping."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(Path(root, "settings.ini"), encoding="utf-8")
    return parser["DEFAULT"]


def name_of(path, root=ROOT):
    """What a notebook is called in messages: its path in nbs/, such as 03_gmm.ipynb or rooms/files.ipynb."""
    return Path(os.path.relpath(Path(path).resolve(), Path(root, "nbs").resolve())).as_posix()


def notebooks(root=ROOT):
    """Paths of all notebooks in reading order: chapters by name, then rooms by folder and name, index.ipynb last."""
    nbs = Path(root, "nbs")
    inside = {path: path.relative_to(nbs).parts for path in nbs.rglob("*.ipynb")}
    shown = [path for path, parts in inside.items() if not any(part.startswith(("_", ".")) for part in parts)]
    return sorted(shown, key=lambda p: (inside[p] == ("index.ipynb",), inside[p][:-1], p.name))


def chapter(name):
    """The number of the chapter that the notebook called `name` is, or None for a room and the index."""
    found = re.match(r"(\d\d)_[^/]*$", name)
    return int(found[1]) if found else None


def read(path):
    """The notebook at `path` as nbformat 4."""
    return nbformat.read(path, as_version=4)


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


def skipped(cell, flags=()):
    """Whether a run passes over this cell: `#| eval: false`, one of `flags`, or the export that make does itself.

    nbdev_test follows the same rule, with `tst_flags` of settings.ini as `flags`.
    """
    d = directives(cell)
    return d.get("eval", "").lower() == "false" or bool(set(flags) & d.keys()) or "nbdev_export(" in cell.source
