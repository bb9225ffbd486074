"""The exercises at the end of the chapters: three to five, each with a folded solution whose code runs."""
import json
import os
import re

import pytest
from commands import Forked

from report import cells
from report.text import MAX_COLUMNS

CHAPTERS = [path for path in cells.notebooks() if cells.chapter(cells.name_of(path))]
NUMBER = re.compile(r"^(?:\*\*)?(\d)\.", re.M)
SOLUTION = re.compile(r"<details><summary>Solution of exercise (\d)</summary>\n\n(.*?)\n\n</details>", re.S)
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
RUN = """
import json, sys, traceback
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt, torch
said = []
for needed, solutions in json.load(open(sys.argv[1])):
    torch.set_default_dtype(torch.float32)
    names = {"__name__": "chapter"}
    for code in needed: exec(compile(code, "cell", "exec", dont_inherit=True), names)
    for code in solutions:
        try: exec(compile(code, "solution", "exec", dont_inherit=True), dict(names))  # no solution needs another
        except Exception: said.append(traceback.format_exc())
        else: said.append(None)
    plt.close("all")
json.dump(said, open(sys.argv[1], "w"))
"""


def text(path):
    """The exercises of a chapter and their solutions: two texts."""
    notebook = cells.read(path).cells
    exercises = [cell.source for cell in notebook if cell.source.startswith("## Exercises")]
    return exercises[0], "\n\n".join(cell.source for cell in notebook if "solution" in cells.tags(cell))


def solutions(path):
    """{number: code} of a chapter's solutions."""
    return {number: "\n".join(CODE.findall(solution)) for number, solution in SOLUTION.findall(text(path)[1])}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_exercise_has_a_folded_solution_with_code(path):
    exercises, solved = text(path)
    numbers = NUMBER.findall(exercises)
    assert numbers == [str(i + 1) for i in range(len(numbers))] and 3 <= len(numbers) <= 5
    assert [number for number, _ in SOLUTION.findall(solved)] == numbers
    assert not SOLUTION.sub("", solved).strip()  # nothing outside the folds
    for code in solutions(path).values():
        assert "assert" in code or "test_" in code
        assert max(map(len, code.splitlines())) <= MAX_COLUMNS


def test_what_solutions_need_trains_no_network():
    for path in CHAPTERS:
        assert not any("kept(" in code for code in needed(path))


def needed(path):
    """The code of the chapter's cells that its solutions need."""
    codes = [cells.code(cell) if cell.cell_type == "code" and not cells.skipped(cell) else ""
             for cell in cells.read(path).cells]
    found = {i for code in solutions(path).values() for i in cells.needed([*codes, code], [len(codes)])}
    return [codes[i] for i in sorted(found - {len(codes)})]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{(chapter, number): what went wrong, or None}; one process runs all, since loading takes longest."""
    folder = tmp_path_factory.mktemp("exercises")
    file = folder / "code.json"
    file.write_text(json.dumps([(needed(path), list(solutions(path).values())) for path in CHAPTERS]))
    env = {"OMP_NUM_THREADS": "1", **cells.environment(folder),
           "PYTHONPATH": os.pathsep.join([str(cells.ROOT), os.environ.get("PYTHONPATH", "")])}
    status, _, err = Forked(cells.ROOT, RUN, file, env=env).result()
    assert status == 0, err
    keys = [(path.stem, number) for path in CHAPTERS for number in solutions(path)]
    return dict(zip(keys, json.loads(file.read_text()), strict=True))


@pytest.mark.parametrize("chapter, number", [(path.stem, n) for path in CHAPTERS for n in solutions(path)])
def test_the_solution_runs(said, chapter, number):
    assert said[chapter, number] is None, said[chapter, number]
