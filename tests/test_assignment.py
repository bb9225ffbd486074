"""The assignment: with its solutions every test passes, without them exactly the tests that have points fail."""
import csv
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from report import assignment, cells

CHAPTERS = [path for path in cells.notebooks() if assignment.source(path)]
CLEARED = re.compile(r"^( *)### BEGIN SOLUTION.*?### END SOLUTION", re.M | re.S)
FORGET = "%reset -f\nimport torch\ntorch.set_default_dtype(torch.float32)\n%reset -f"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assignment")
    assignment.write_sources(folder)
    return folder


def kind(cell, what):
    return cell.metadata.get("nbgrader", {}).get(what)


def test_each_chapter_that_derives_something_has_a_part():
    assert [cells.chapter(path.name) for path in CHAPTERS] == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def ran():
    """{chapter: (its cells as a student finds them, as they are solved)}, run; by one kernel, which forgets between."""
    pairs, cells_run = {}, []
    for path in CHAPTERS:
        given, solved = pairs[path] = [assignment.source(path).cells for _ in range(2)]
        for cell in given:
            cell.source, cleared = CLEARED.subn(r"\1raise NotImplementedError", cell.source)
            assert cleared == bool(kind(cell, "solution"))
        for notebook in given, solved:
            cells_run += [nbformat.v4.new_code_cell(FORGET), *notebook]
    for i, cell in enumerate(cells_run):
        cell.id = f"cell-{i}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(cells.ROOT), os.environ.get("PYTHONPATH", "")]))
        NotebookClient(nbformat.v4.new_notebook(cells=cells_run, metadata={"kernelspec": cells.KERNEL}), timeout=300,
                       allow_errors=True).execute()
    return pairs


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_exactly_the_tests_fail_until_the_functions_are_written(path, ran):
    def failed(notebook): return [any(o.output_type == "error" for o in cell.get("outputs", [])) for cell in notebook]
    given, solved = ran[path]
    assert failed(given) == [bool(kind(cell, "grade")) for cell in given]
    assert not any(failed(solved))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_behind_each_function_stands_a_test_that_calls_it(path):
    notebook = assignment.source(path).cells
    nbformat.validate(nbformat.v4.new_notebook(cells=notebook))
    for tagged in (cell for cell in cells.read(path).cells if assignment.tagged(cell, "write")):
        at = next(i for i, cell in enumerate(notebook) if cell.id == tagged.id)
        tests = [cell.source for cell in notebook[at:] if kind(cell, "grade") and kind(cell, "points")]
        assert any(assignment.tagged(tagged, "write") in cells.names(test)[1] for test in tests)


def test_a_tag_without_its_function_is_found():
    with pytest.raises(ValueError, match="write:other"):
        assignment.with_marks("def one(): return 1", "other")


def test_the_docstring_and_what_follows_the_function_stay():
    code = 'def one(\n    x,  # a number\n):\n    "One more."\n    y = x\n    return y + 1\n\ndef two(): return 2'
    assert assignment.with_marks(code, "one") == (
        'def one(\n    x,  # a number\n):\n    "One more."\n    ### BEGIN SOLUTION\n    y = x\n    return y + 1\n'
        '    ### END SOLUTION\n\ndef two(): return 2')


@pytest.mark.parametrize("code, made, taken", [
    ("import a.b, c as d\nx = y", {"a", "d", "x"}, {"y"}),
    ("def f(x): return g(x) + [z for z in x][0]", {"f"}, {"g"}),
    ("for i, j in k: l = i", {"i", "j", "l"}, {"k"}),
    ("class A(B):\n    n: int\n    def m(self): return self.n + C", {"A"}, {"B", "int", "C"}),
    ("with open(p) as f: print((t := f.read()))", {"f", "t"}, {"open", "p", "print"}),
])
def test_names_of_a_cell(code, made, taken):
    assert cells.names(code) == (made, taken)


def test_what_a_cell_needs():
    codes = ["a = 1", "b = 1", "a = 2", "def f(): return a", "c = b", "f()", "a = 3"]
    assert cells.needed(codes, [5]) == [2, 3, 5]
    assert cells.needed(codes, [4, 5]) == [1, 2, 3, 4, 5]


def test_nbgrader_releases_and_grades_it(folder, tmp_path):
    """By its own commands, for one chapter: all points for the solution, none for the notebook as it was handed out."""
    if not find_spec("nbgrader"):
        pytest.skip("nbgrader is not installed: pip install -e '.[teaching]'")
    path = folder / "source" / assignment.COURSE / "02_vae.ipynb"
    for other in set(path.parent.iterdir()) - {path}:
        other.unlink()
    released = assignment.release(folder)
    assert "YOUR CODE HERE" in (text := (released / path.name).read_text("utf-8")) and "SOLUTION" not in text
    for student, place in ("solver", path.parent), ("reader", released):
        shutil.copytree(place, folder / "submitted" / student / assignment.COURSE)
    programs = str(Path(sys.executable).parent)
    env = cells.environment(tmp_path) | {"PATH": os.pathsep.join([programs, os.environ["PATH"]]),
                                         "PYTHONPATH": str(cells.ROOT)}
    for words in ("autograde", assignment.COURSE), ("export",):
        done = subprocess.run([sys.executable, "-m", "nbgrader", *words], cwd=folder, env=env, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
    with open(folder / "grades.csv", newline="") as file:
        scores = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    points = sum(kind(cell, "points") or 0 for cell in cells.read(path).cells)
    assert scores == {"solver": (points, points), "reader": (0, points)}
