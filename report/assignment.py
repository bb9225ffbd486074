"""The course as an assignment: `python -m report.assignment` writes a course folder of nbgrader, build/assignment.

In the chapters a cell with the tag `write:NAME` holds a function that students are to write, one with the tag
`points:N` tests it. A chapter that has such cells becomes a notebook with the text of their sections, these cells, and
of the others those that they need.

source/ has the solutions, between nbgrader's marks: its tests pass. release/ is what nbgrader makes of it, without the
solutions: the tests that have points fail, and no other cell. Nothing else in the folder is touched.
"""
import ast
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

from report import cells

COURSE = "vae_gmm"  # nbgrader's names for the course and for its one assignment
TOP = """# {title}

> An assignment, with the text of chapter {number} of the report. Figures and cells that are left out here are there.

Write {functions}, where it says `YOUR CODE HERE`. All other functions are given. The cells that follow test yours;
{points} points are to be had. Run the notebook from top to bottom before you hand it in."""


def tagged(cell, kind):
    """What follows `kind:` in a tag of the cell, or None."""
    return next((tag.partition(":")[2] for tag in cells.tags(cell) if tag.startswith(f"{kind}:")), None)


def with_marks(code, name):
    """A cell's code with the body of the function `name`, all but its docstring, between nbgrader's marks."""
    function = next((node for node in ast.parse(code).body if getattr(node, "name", None) == name), None)
    if function is None:
        raise ValueError(f"the tag write:{name} is on a cell without a function {name}")
    first = function.body[ast.get_docstring(function) is not None]
    lines, indent = code.splitlines(), " " * first.col_offset
    body = slice(first.lineno - 1, function.end_lineno)
    lines[body] = [f"{indent}### BEGIN SOLUTION", *lines[body], f"{indent}### END SOLUTION"]
    return "\n".join(lines)


def for_nbgrader(cell):
    """A code cell of a chapter as nbgrader wants it: to be written, graded or given."""
    name, points, code = tagged(cell, "write"), tagged(cell, "points"), cells.code(cell)
    about = dict(schema_version=3, grade_id=f"cell-{cell.id}", task=False, solution=name is not None,
                 grade=points is not None, locked=name is None)
    if points:
        about["points"] = int(points)
    return new_code_cell(with_marks(code, name) if name else code, id=cell.id, metadata={"nbgrader": about})


def kept_text(notebook, kept):
    """The positions of the text cells that lead to the cells at `kept`, in the sections that have such tags."""
    starts = [i for i, cell in enumerate(notebook) if re.match("## ", cell.source) and cell.cell_type == "markdown"]
    for start, end in zip(starts, [*starts[1:], len(notebook)]):
        here = [i for i in kept if start < i < end]
        if any(tagged(notebook[i], "write") or tagged(notebook[i], "points") for i in here):
            for i in (i for i in range(start, here[-1]) if notebook[i].cell_type == "markdown"):
                if i + 1 in kept or not {"fig-cap", "tbl-cap"} & cells.directives(notebook[i + 1]).keys():
                    yield i  # it does not announce a figure that is not here


def source(path):
    """The notebook with its solutions and marks that the chapter at `path` becomes, or None."""
    notebook = cells.read(path).cells
    wanted = [i for i, cell in enumerate(notebook) if tagged(cell, "write") or tagged(cell, "points")]
    if not wanted:
        return None
    codes = [cells.code(cell) if cell.cell_type == "code" else "" for cell in notebook]
    kept = cells.needed(codes, wanted)
    text = set(kept_text(notebook, kept))
    written = ", ".join(f"`{name}`" for i in wanted if (name := tagged(notebook[i], "write")))
    points = sum(int(tagged(notebook[i], "points") or 0) for i in wanted)
    title = next(cell.source for cell in notebook if cell.source.startswith("# ")).splitlines()[0].removeprefix("# ")
    top = TOP.format(title=title, number=cells.chapter(path.name), functions=written, points=points)
    return new_notebook(metadata={"kernelspec": cells.KERNEL}, cells=[new_markdown_cell(top, id="assignment")] + [
        for_nbgrader(cell) if i in kept else new_markdown_cell(cell.source, id=cell.id)
        for i, cell in enumerate(notebook) if i in kept or i in text])


def write_sources(folder, root=cells.ROOT):
    """Write the solution set and nbgrader's settings to the course folder; the notebooks' paths."""
    found = {path: nb for path in cells.notebooks(root) if (nb := source(path))}
    place = Path(folder, "source", COURSE)
    place.mkdir(parents=True, exist_ok=True)
    Path(folder, "nbgrader_config.py").write_text(f'get_config().CourseDirectory.course_id = "{COURSE}"\n', "utf-8")
    for path, nb in found.items():
        (place / path.name).write_text(writes(nb) + "\n", encoding="utf-8")
    return [place / path.name for path in found]


def release(folder):
    """Let nbgrader write the student set from the solution set; the folder that holds it, or an error that says why."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls alembic by its name
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", COURSE, "--force"], cwd=folder,
                              env=cells.environment(home) | {"PATH": path}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"nbgrader failed:\n{done.stdout}")
    return Path(folder, "release", COURSE)


def main(out=cells.ROOT / "build" / "assignment"):
    solutions = write_sources(out)
    print(f"{len(solutions)} notebooks with their solutions: {solutions[0].parent.relative_to(cells.ROOT)}")
    if not find_spec("nbgrader"):
        sys.exit("nbgrader is not installed, and the students' set is its work; expected pip install -e '.[teaching]'")
    print(f"The same for students: {release(out).relative_to(cells.ROOT)}")


if __name__ == "__main__":
    main()
