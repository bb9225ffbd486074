"""What `make report` does in build/: which notebooks have to run, after which others, and on what.

It runs those that report.pdf is made of, the chapters and the index, and what they wait for; rooms are not printed:
`make test` and `make publish` run them, and `python -m report.run --build nbs/rooms/NAME.ipynb` does. build/ holds a
second copy of what notebooks and report are made from, so that a run there finds `../figures` and the rest as in nbs/,
and changes nothing that git tracks. A notebook that has run there runs again only when its key has changed: its code
cells, the package's modules, the tools that run it, the versions of all that is installed, the data that it reads, and
what came out of the notebooks that it waits for. The keys are kept in build/runs.json.

The order follows from the notebooks themselves. SHARED names what some of them make and others take; the first in
reading order whose code has such a word make it, and the others wait for these. For networks that are trained once it
is the first two, since they may begin with different ones (if not, a lock lets one of them wait); later ones would only
wait there. Everything else can run side by side.
"""
import hashlib
import json
import os
import shutil
import site
import sys
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

from report import cells

SHARED = {"results.json": 1, "kept(": 2}  # the numbers of the run of the report; networks that are trained once
COPIED = "settings.ini", "Makefile", "figures/*.json", "figures/thumbnails/*", "experiments/*.json", "report/*"
MADE = {"results.json"}  # by a notebook, and so not copied
TOOLS = "run.py", "plan.py", "cells.py", "matplotlibrc"


def code(path):
    """The code of a notebook, cell by cell."""
    return [cell.source for cell in cells.read(path).cells if cell.cell_type == "code"]


@lru_cache
def makers(root=cells.ROOT):
    """{word of SHARED: the first notebooks in reading order that have it in their code}, {notebook: its code}."""
    texts = {path: "\n".join(code(path)) for path in cells.notebooks(root)}
    return {word: [path for path, text in texts.items() if word in text][:n] for word, n in SHARED.items()}, texts


@lru_cache
def waits(root=cells.ROOT):
    """{notebook: those that it waits for}, in reading order."""
    makes, texts = makers(root)
    found = {path: {other for word in SHARED if word in text and path not in makes[word] for other in makes[word]}
             for path, text in texts.items()}
    return {path: [other for other in texts if other in others] for path, others in found.items()}


def printed(root=cells.ROOT):
    """The notebooks that the report is made of: all but rooms."""
    return [path for path in cells.notebooks(root) if path.parent == Path(root, "nbs")]


def with_waited_for(paths, root=cells.ROOT):
    """`paths` and what they wait for, in reading order."""
    found, ahead = set(), list(paths)
    while ahead:
        found.add(path := ahead.pop())
        ahead += waits(root).get(path, [])
    return sorted(found, key=list(waits(root)).index)


def copied(root):
    """The files beside the notebooks that are copied to build/."""
    found = (path for pattern in COPIED for path in Path(root).glob(pattern))
    return sorted(p for p in found if p.is_file() and p.suffix != ".py" and p.name not in MADE)


def prepare(root=cells.ROOT):
    """Bring build/ up to date, but for its notebooks; returns it."""
    build = Path(root, "build")
    for path in copied(root):
        copy = build / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    there = {build / path.relative_to(root) for path in cells.notebooks(root)}
    for path in cells.files(build / "nbs", "*.ipynb"):
        if path not in there:
            path.unlink()
    return build


@lru_cache
def versions():
    """Of Python and of all that is installed, whatever a library has added to sys.path, as setuptools does."""
    places = [*site.getsitepackages(), site.getusersitepackages()]
    return [sys.version, *sorted(f"{d.metadata['Name']} {d.version}" for d in distributions(path=places))]


@lru_cache
def everywhere(root):
    """What every notebook depends on: the package, the tools, what is installed, where the data lie."""
    digest = hashlib.sha256()
    lib = cells.settings(root)["lib_path"]
    for path in [*cells.files(Path(root, lib), "*.py"), *(Path(__file__).with_name(name) for name in TOOLS)]:
        digest.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    digest.update(json.dumps([versions(), os.environ.get("VAE_GMM_DATA")]).encode())
    return digest.hexdigest()


def key(path, root=cells.ROOT):
    """A text that changes with all that decides about what the notebook at `path` shows when it runs in build/."""
    build, (makes, texts) = Path(root, "build"), makers(root)
    digest = hashlib.sha256(json.dumps([everywhere(root), code(path)]).encode())
    read = [p for p in copied(root) if p.suffix == ".json" or p.name in texts[path]]
    read += [build / "figures" / name for name in MADE if name in texts[path] and path not in makes[name]]
    for file in read:
        digest.update(file.name.encode() + (file.read_bytes() if file.exists() else b""))
    for other in (build / p.relative_to(root) for p in waits(root)[path]):
        digest.update(json.dumps([cell.get("outputs") for cell in cells.read(other).cells]).encode())
    return digest.hexdigest()


def runs(root=cells.ROOT):
    """The keys of the notebooks' last runs in build/, by name."""
    try:
        found = json.loads(Path(root, "build", "runs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path, text, root=cells.ROOT):
    """Write down the key of a notebook's run; None forgets it."""
    all_runs = {**runs(root), cells.name_of(path, root): text}
    part = Path(root, "build", ".runs.json.part")
    part.write_text(json.dumps(all_runs, indent=1) + "\n", encoding="utf-8")
    part.replace(Path(root, "build", "runs.json"))


def is_done(path, text, root=cells.ROOT):
    """Whether build/ has a run of the notebook at `path` with this key."""
    return Path(root, "build", path.relative_to(root)).exists() and runs(root).get(cells.name_of(path, root)) == text


def with_outputs(nb, built):
    """The notebook `nb` with the outputs of the same code cells in `built`; its text may have been changed."""
    there = [cell for cell in built.cells if cell.cell_type == "code"]
    for cell, done in zip((cell for cell in nb.cells if cell.cell_type == "code"), there):
        cell.outputs = done.outputs
    return nb
