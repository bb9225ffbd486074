"""Make nbval follow nbdev's rules, so that `pytest --nbval` holds on cleaned notebooks.

- Cells marked `#| eval: false`, or with one of settings.ini's `tst_flags`, are skipped, as nbdev_test does; but those
  marked `#| once` run: long experiments, which nbval compares and nbdev_test leaves out.
- nbdev_clean removes execution counts, and nbval would then not compare; they are put back.
- A `;` at the end hides a cell's value. IPython 8 looks for it in the input history, which nbval does not write.
- stderr (warnings, progress bars) and SVG (random ids) are not compared.
- A notebook's last cell, `nbdev_export()`, becomes a check: the exported module is what this notebook exports.

Trained networks are kept in build/kept, also by tests that work in another folder.
"""
import os
from functools import lru_cache

from report import cells, check

os.environ["VAE_GMM_KEPT"] = os.environ.get("VAE_GMM_KEPT") or str(cells.ROOT / "build" / "kept")
VOLATILE = "stderr", "image/svg+xml"  # nbval leaves out PNG, JPEG and widgets by itself
FLAGS = cells.nbval_flags() - set(os.environ.get("NB_FLAGS", "").split())


@lru_cache
def fresh_export(root):
    return check.fresh_export(root)


def check_module(path):
    """Fail if a module that the notebook at `path` exports has been edited by hand, or not exported."""
    fresh = fresh_export(cells.ROOT)
    modules = check.exported_from(cells.name_of(path), fresh)
    problems = [check.module_problem(cells.ROOT, module, fresh) for module in modules]
    assert not any(problems), "; ".join(filter(None, problems))


def pytest_ignore_collect(collection_path):
    """What operating systems and editors add (`._x.ipynb`, checkpoints) is no test; drafts (`_x.ipynb`) neither."""
    name = collection_path.name
    return True if name.startswith(".") or name.startswith("_") and name.endswith(".ipynb") else None


def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None:  # not a notebook's
            continue
        if "nbdev_export(" in cell.source:
            item.runtest = lambda path=item.path: check_module(path)
        elif cells.skipped(cell, FLAGS):
            item.options["skip"] = True
        if cell.source.rstrip().endswith(";"):
            cell.source += "\nNone"
        if cell.execution_count is None:
            cell.execution_count = 0
        if "stderr" not in item.parent.skip_compare:
            item.parent.skip_compare += VOLATILE
