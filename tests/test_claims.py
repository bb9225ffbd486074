"""No result is typed: `report.check` finds one that is planted in a chapter; what the code or a source has passes."""
import shutil

import nbformat
import pytest

from report import cells, check

CHAPTERS = [path for path in cells.notebooks() if cells.chapter(cells.name_of(path)) or path.stem == "index"]
PLANTED = {
    "prose": nbformat.v4.new_markdown_cell("The classifier reads 95.1 % of them.", id="planted"),
    "prose, no blank": nbformat.v4.new_markdown_cell("The classifier reads **95.1%** of them.", id="planted"),
    "a decimal": nbformat.v4.new_markdown_cell("Its accuracy is 0.9517.", id="planted"),
    "a caption": nbformat.v4.new_code_cell("#| fig-cap: It reads 95.1% of them.\nplot()", id="planted"),
    "a text in code": nbformat.v4.new_code_cell(
        '#| echo: false\nsay("""Of the {n} images which nobody has seen, it reads 95.1 % rightly.""", n=n)',
        id="planted"),
}


def found(tmp_path, notebook, *added):
    """What the check says about a chapter to which cells were added."""
    (tmp_path / "nbs").mkdir()
    for name in "settings.ini", "Makefile":
        shutil.copy(cells.ROOT / name, tmp_path / name)
    nb = cells.read(notebook)
    nb.cells += added
    nbformat.write(nb, tmp_path / "nbs" / notebook.name)
    (_, none), (_, problem) = check.check_claims(tmp_path)
    assert none is None
    return problem


@pytest.mark.parametrize("cell", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_a_planted_number_is_found(tmp_path, notebook, cell):
    problem = found(tmp_path, notebook, cell)
    assert problem.count("planted: ") == 1 and ("planted: 95.1" in problem or "planted: 0.9517" in problem)


@pytest.mark.parametrize("text", ("Others report 95.1% [@jiang2017].", "A 95% interval says more.", "See $0.951$."))
def test_what_is_cited_or_no_claim_passes(tmp_path, text):
    assert found(tmp_path, CHAPTERS[0], nbformat.v4.new_markdown_cell(text, id="planted")) is None


@pytest.mark.parametrize("code, passes", (("x = 0.31415", True), ("x = 0.31", False)))
def test_a_number_of_the_code_passes(tmp_path, code, passes):
    text = nbformat.v4.new_markdown_cell("A setting of 0.31415, or 31.415%.", id="planted")
    problem = found(tmp_path, CHAPTERS[0], text, nbformat.v4.new_code_cell(code))
    assert (problem is None) == passes


def test_the_abstract_types_no_number_either(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "report").mkdir()
    shutil.copy(cells.ROOT / "settings.ini", tmp_path / "settings.ini")
    (tmp_path / "report" / "metadata.yaml").write_text("title: A\nabstract: It reads 95.1 % of them.\n")
    assert dict(check.check_claims(tmp_path)) == {"claims abstract": "from no source: 95.1"}
