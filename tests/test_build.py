"""The machinery on a small project of its own: what it must notice, and what it must leave alone."""
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import typst
from click import ClickException
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from report import build, cells, check, formulas, readme, text
from report.run import cleaned
from report.tree import BuildError, pandoc

ROOT = Path(__file__).resolve().parent.parent
PNG = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")


def md(source, *tags):
    return new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def code(source, *outputs, tags=()):
    outputs = [new_output("stream", text=o) if isinstance(o, str) else new_output("display_data", o) for o in outputs]
    return new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)} if tags else {})


def module(name, *body):
    """A notebook that exports a module `name` with one function, shows what it gives, and goes on with `body`."""
    return [code(f"#| default_exp {name}"), md(f"# The {name} module\n\n> A line about it."),
            code("#| export\ndef root(x):\n    \"The square root of `x`.\"\n    return x ** 0.5  # eq. (1.1)"),
            code("print(f'{root(2):.3f}')", "1.414\n"), *body,
            code("#| hide\nimport nbdev; nbdev.nbdev_export()")]


CHAPTER = module(
    "sound",
    md("The root of $x$ solves\n\n$$\ny^2 = x . \\tag{1.1}\n$$\n\nas Kingma and Welling [@kingma2014] do not say. "
       "See eq. (1.1), Eqs. (1.1) and (1.2). A lone (1.1) is no reference. The figure below is a dot:"),
    code("assert root(4) == 2  # eq. (1.1)"),
    md("$$\ny = x^{1/2} \\tag{1.2}\n$$\n\nThe table below has more roots."),
    code("#| label: fig-dot\n#| fig-cap: A dot, drawn with eq. (1.2).\nplot()", {"image/png": PNG}),
    code("#| label: tbl-roots\n#| tbl-cap: Some roots.\ntable()",
         {"text/html": "<div><table><thead><tr><th>x</th><th>root</th></tr></thead>"
                       "<tbody><tr><td>4</td><td>2.0</td></tr></tbody></table></div>"}),
    code("x = '" + "long " * 60 + "'  # eq. (1.2)"),
    md("Bishop [@bishop2006, chap. 9] disagrees [@wilson1927]."),
    md("Nobody prints `a_very_long_name.that_goes_on(and_on)/" + "and_on_" * 12 + "` in full."),
    md("Not for print, because it is in a room: eq. (R.1)", "no-pdf"), md("For the screen alone.", "html"),
    md("## A section left out", "no-pdf"), md("Nor this."), md("### Nor what is below"), md("Nor that."),
    md("## A section that stays"),
    md("<details><summary>Solution</summary>It is two.</details>", "solution"),
)


ROOM = "In a room\n\n$$\ny = 1 \\tag{R.1}\n$$\n\nfollows from eq. (1.1) and eq. (R.1)."


def write(path, cell_list):
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, cell in enumerate(cell_list):
        cell["id"] = f"c{i}"
    nb = new_notebook(cells=cell_list, metadata={"kernelspec": {
        "display_name": "python3", "language": "python", "name": "python3"}})
    path.write_text(cleaned(nb), encoding="utf-8")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A sound project: chapters and rooms, their modules, README.md and a report of one chapter."""
    root = tmp_path_factory.mktemp("small project")  # with a blank in its name
    for name in "settings.ini", "conftest.py", "pytest.ini", ".gitignore", "nbval_sanitize.cfg", ".codespellrc":
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "report", root / "report", ignore=shutil.ignore_patterns("__pycache__"))
    meta = (root / "report" / "metadata.yaml").read_text(encoding="utf-8")
    meta = re.sub(r"^chapters:.*$", "chapters: [01_sound]", meta, flags=re.M)
    meta = re.sub(r"^abstract:.*?(?=^#)", "abstract: An accuracy of {{accuracy:.1%}}.\n\n", meta, flags=re.M | re.S)
    meta = re.sub(r"^code:.*$", "code: equations", meta, flags=re.M)
    (root / "report" / "metadata.yaml").write_text(meta, encoding="utf-8")
    (root / "figures").mkdir()
    (root / "figures" / "results.json").write_text('{"accuracy": 0.9512}')
    write(root / "nbs" / "01_sound.ipynb", CHAPTER)
    write(root / "nbs" / "02_changed.ipynb", module("changed"))
    write(root / "nbs" / "rooms" / "edited.ipynb", module(
        "edited", md(ROOM), md("[Home](../01_sound.ipynb)."), code("#| label: room\nprint('Room.')", "Room.\n")))
    write(root / "nbs" / "rooms" / "deep" / "inner.ipynb", module("deep.inner"))
    write(root / "nbs" / "index.ipynb", [
        md("# Small\n\nSee [the notebook](01_sound.ipynb), [data](../figures/results.json) and `[a](b)`."),
        md("What roots are for.", "intro"), md("Only here.", "no-readme"), code("#| hide\nimport os"),
        md("## Letters\n\nWhat they mean.", "back", "no-readme"),
        code("#| echo: false\nprint('shown')", "shown\n"), code("1 + 1", {"text/plain": "2"})])
    (root / "vae_gmm" / "deep").mkdir(parents=True)
    (root / "vae_gmm" / "deep" / "__init__.py").write_text("from .inner import root\n")
    for name, text in check.fresh_export(root).items():
        (root / "vae_gmm" / name).write_bytes(text)
    (root / "README.md").write_text(readme.render(cells.read(root / "nbs" / "index.ipynb")), encoding="utf-8")
    return root


@pytest.fixture
def project(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / """it's "C#", 100% [1] $x é"""))


def digest(root):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts}


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def spoil(root):
    """Change a stored result in one notebook and the exported module of another."""
    edit(root / "nbs" / "02_changed.ipynb", "1.414\\n", "1.415\\n")
    edit(root / "vae_gmm" / "edited.py", "0.5", "0.50")


def test_a_sound_project_passes_every_check_and_is_not_touched(project):
    before = digest(project)
    results = dict(check.run(project))
    assert {name: problem for name, problem in results.items() if problem} == {}
    assert {"clean 01_sound.ipynb", "size rooms/deep/inner.ipynb", "export deep/inner.py", "export deep/__init__.py",
            "equations"} <= results.keys()
    assert digest(project) == before


def test_notebooks_are_read_chapters_first_then_rooms_then_the_index(project):
    write(project / "nbs" / "rooms" / ".ipynb_checkpoints" / "edited.ipynb", [])
    write(project / "nbs" / "_scratch.ipynb", [])
    names = [cells.name_of(path, project) for path in cells.notebooks(project)]
    assert names == ["01_sound.ipynb", "02_changed.ipynb", "rooms/edited.ipynb", "rooms/deep/inner.ipynb",
                     "index.ipynb"]
    assert list(map(cells.chapter, names)) == [1, 2, None, None, None]
    fresh = check.fresh_export(project)
    assert [check.exported_from(name, fresh) for name in names] == [
        ["sound.py"], ["changed.py"], ["edited.py"], ["deep/inner.py"], []]


def test_the_check_names_what_is_wrong(project):
    subprocess.run(["git", "init", "-q", "."], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    spoil(project)
    edit(project / "nbs" / "01_sound.ipynb", '"execution_count": null', '"execution_count": 7')
    (project / "vae_gmm" / "orphan.py").write_text("")
    (project / "vae_gmm" / "attic").mkdir()
    (project / "vae_gmm" / "attic" / "__init__.py").write_text("")
    edit(project / "vae_gmm" / "deep" / "inner.py", "0.5", "0.50")
    edit(project / "README.md", "What roots", "Wat roots")
    write(project / "nbs" / "rooms" / "new.ipynb", [
        md("# New\n\nTeh [lost](lost.md) neighbor, not `color`."), md("$\\|x\\|$ and $ y$"),
        code("w", {"application/vnd.jupyter.widget-view+json": {}})])
    problems = {name: problem for name, problem in check.run(project) if problem}
    assert set(problems) == {"clean 01_sound.ipynb", "export edited.py", "export orphan.py", "export deep/inner.py",
                             "export attic/__init__.py", "README.md", "links", "spelling", "British English",
                             "known to git", "formulas", "widgets"}
    assert r"\lVert" in problems["formulas"] and "$ y$" in problems["formulas"]
    assert "rooms/new.ipynb" in problems["widgets"]
    assert "lost.md" in problems["links"]
    assert "Teh" in problems["spelling"]
    assert "neighbor" in problems["British English"] and "color" not in problems["British English"]
    assert "nbs/rooms/new.ipynb" in problems["known to git"] and "vae_gmm/orphan.py" in problems["known to git"]


@pytest.mark.parametrize("name, source, problem", [
    ("02_changed.ipynb", "$$\na \\tag{1.3}\n$$", "(1.3) is no number for 02_changed.ipynb"),
    ("rooms/edited.ipynb", "$$\na \\tag{3.1}\n$$", "(3.1) is no number for rooms/edited.ipynb"),
    ("rooms/deep/inner.ipynb", "$$\na \\tag{R.1}\n$$",
     "(R.1) is already the number of an equation in rooms/edited.ipynb"),
    ("rooms/edited.ipynb", "Eqs. (1.1), (1.2) and (1.7)", "no equation has the number (1.7)"),
    ("rooms/edited.ipynb", "By equation (R.2)", "no equation has the number (R.2)"),
    ("01_sound.ipynb", "See eq. (1.1). A lone (1.7) is no reference, nor is 10 (9.5) in an equation (see 9.3)", None),
    ("01_sound.ipynb", "$$\na \\tag{1.3a}\n$$ eq. (1.3a)", None),
])
def test_numbers_of_equations_are_their_chapters_and_lead_somewhere(project, name, source, problem):
    path = project / "nbs" / name
    nb = cells.read(path)
    nb.cells += [new_markdown_cell(source, id="wrong"), new_code_cell("pass  # eq. (1.1)", id="right")]
    nbformat.write(nb, path)
    (_, found), = check.check_equations(project)
    assert found is None if problem is None else f"{name}/wrong: {problem}" in found
    if problem and "no equation" in problem:  # in code too
        nb.cells[-2:] = [new_code_cell(f"pass  # {source}", id="wrong")]
        nbformat.write(nb, path)
        assert f"{name}/wrong: {problem}" in dict(check.check_equations(project))["equations"]


def test_nbval_fails_on_a_changed_result_and_on_an_edited_module(project):
    spoil(project)
    edit(project / "nbs" / "02_changed.ipynb", "print(f'{root(2)", "#| once\\nprint(f'{root(2)")  # for nbval alone
    out = project / "nbval.xml"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval",
                           "--nbval-current-env", "--nbval-sanitize-with", "nbval_sanitize.cfg", f"--junitxml={out}",
                           "nbs/02_changed.ipynb", "nbs/rooms"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {(Path(case.get("classname").replace(".", "/")).name, case.get("name"))
              for case in ET.parse(out).iter("testcase") if case.find("failure") is not None}
    assert {name for _, name in failed} == {"Cell 2", "Cell 4"} and len(failed) == 2  # the result; the last cell
    assert "edited.py is not what its notebook exports" in done.stdout
    assert ET.parse(out).getroot()[0].get("tests") == "13"


def test_execution_stores_the_same_bytes_again_and_a_failure_stores_nothing(project):
    path = project / "nbs" / "09_run.ipynb"
    write(path, [code("import sys, warnings\nprint('a'); print('b', file=sys.stderr); print('c')"),
                 code("#| eval: false\nraise SystemExit", "kept\n"), code("#| slow\n2 * 3"), code("object()")])

    def run(*options):
        return subprocess.run([sys.executable, "-m", "report.run", path, *options], cwd=project, capture_output=True,
                              text=True)

    assert run("--skip", "slow").returncode == 0
    first = path.read_bytes()
    outputs = [cell.outputs for cell in cells.read(path).cells]
    assert [o.text for o in outputs[0]] == ["a\nc\n"] and outputs[1][0].text == "kept\n" and not outputs[2]
    assert outputs[3][0].data["text/plain"] == "<object>"  # no address
    assert "as stored" in run("--skip", "slow").stdout and path.read_bytes() == first

    nb = cells.read(path)
    nb.cells.append(new_code_cell("x = 0\n1 / x", id="wrong"))
    path.write_text(cleaned(nb), encoding="utf-8")
    before = path.read_bytes()
    done = run()
    assert done.returncode == 1 and path.read_bytes() == before
    assert "09_run.ipynb: cell 4 (id wrong)" in done.stderr
    assert "1 / x" in done.stderr and "ZeroDivisionError" in done.stderr


def test_the_readme_is_the_index_without_its_plumbing(original):
    text = (original / "README.md").read_text(encoding="utf-8")
    assert "[the notebook](nbs/01_sound.ipynb)" in text and "[data](figures/results.json)" in text
    assert "`[a](b)`" in text and "What roots are for." in text
    assert "Only here." not in text and "import os" not in text
    assert "```text\nshown\n```" in text and "print(" not in text and "```python\n1 + 1\n```\n\n```text\n2\n```" in text
    assert readme.relink('<img src="../a.png"> ![](b.png) [c](https://d) [e](#f)') == \
        '<img src="a.png"> ![](nbs/b.png) [c](https://d) [e](#f)'


def test_the_readme_shows_small_pictures_of_what_is_stored(project):
    def pictures():
        return {name.split()[1]: problem for name, problem in check.check_readme(project) if name.startswith("picture")}

    edit(project / "nbs" / "index.ipynb", "Only here.", "![](../figures/thumbnails/01_sound-fig-dot.png) "
                                                        "![](../figures/thumbnails/edited-room.png) "
                                                        "![](../figures/thumbnails/index-said.png)")
    edit(project / "nbs" / "index.ipynb", "#| echo: false", "#| label: said")
    dot, room, said = "01_sound-fig-dot.png", "edited-room.png", "index-said.png"
    assert all("run make readme" in problem for problem in pictures().values())
    assert set(pictures()) == {dot, room, said}
    readme.main(["--root", str(project)], standalone_mode=False)
    assert pictures() == {dot: None, room: None, said: None}
    with Image.open(project / "figures" / "thumbnails" / said) as picture:
        assert np.asarray(picture.convert("L")).min() < 100  # something is written there
    edit(project / "nbs" / "01_sound.ipynb", PNG, PNG.replace("AAAADUlE", "AAAAEUlE"))
    assert "run make readme" in pictures()[dot] and pictures()[said] is None
    edit(project / "nbs" / "index.ipynb", "index-said", "index-unsaid")
    with pytest.raises(ClickException, match="index-unsaid.png"):
        readme.main(["--root", str(project)], standalone_mode=False)


@pytest.mark.parametrize("text, problems", [
    (r"$$\begin{aligned} a &= b \end{aligned}$$ and $x$, $y$ and `$ x$`", 0),
    (r"$$\begin{align} a &= b \end{align}$$", 1), (r"$\operatorname*{arg\,max}$", 1),
    (r"$\operatorname{KL}$", 1), (r"$\mathrm{KL}$", 0), (r"$\|x\|$", 1), ("$ x$", 1)])
def test_formulas_that_github_does_not_show_are_found(text, problems):
    assert len(list(check.unshown_formulas(text))) == problems


def pages(source, ppi=36):
    """The pages of a Typst source folder as arrays of grey values."""
    done = typst.compile(str(source / "report.typ"), root=str(source), format="png", ppi=ppi, ignore_system_fonts=True)
    done = done if isinstance(done, list) else [done]
    return [np.asarray(Image.open(io.BytesIO(page)).convert("L")) for page in done]


def assert_margins_blank(page_list, width=0.08):
    for number, page in enumerate(page_list, 1):
        n = int(width * page.shape[1])
        assert page[:, :n].min() > 240 and page[:, -n:].min() > 240, f"page {number} has something in its margin"


def test_the_report_has_its_parts_and_the_same_bytes_again(project):
    for name in "a.pdf", "b.pdf":
        build.build_pdf(project / name, project, keep=project / "source")
    assert (project / "a.pdf").read_bytes() == (project / "b.pdf").read_bytes()
    text = (project / "source" / "report.typ").read_text(encoding="utf-8")
    assert "An accuracy of 95.1%." in text
    assert text.count("#link(<eq-1.1>)") == 2 and text.count("#link(<eq-1.2>)") == 2  # one of them in the caption
    assert re.search(r'#display-math\(.*"1\.1".*<eq-1\.1>', text)
    assert "What roots are for." in text and "= The sound module" in text and "A line about it." in text
    assert "#ref(<tbl-roots>) has more roots." in text
    assert "#ref(<fig-dot>) is a dot." in text  # numbered, and the colon before code that is not printed has gone
    assert "A dot, drawn with eq." in text and 'picture("01_sound-dot.png", "A dot, drawn with eq. (1.2).")' in text
    assert "Some roots." in text and "<tbl-roots>" in text
    assert "return x ** 0.5  # eq. (1.1)" in text
    assert "A section that stays" in text
    assert text.index("A section that stays") < text.index("[Letters]") < text.index("#listed(<fig-dot>)")
    assert text.index("A section that stays") < text.index("It is two") < text.index("[Letters]")  # solutions
    for hidden in ("Not for print", "For the screen", "left out", "Nor", "assert", "plot()", "table()", "nbdev"):
        assert hidden not in text
    assert "Auto-Encoding Variational Bayes" in text
    assert "Kingma and Welling \\(#link(<ref-kingma2014>)[2014])" in text  # a name in the text is not said again
    assert "Bishop \\(#link(<ref-bishop2006>)[2006]" in text and "[Wilson 1927]" in text
    pdf = (project / "a.pdf").read_bytes()
    assert b"<pdfuaid:part>1</pdfuaid:part>" in pdf and b"/Lang (en-GB)" in pdf and b"/StructTreeRoot" in pdf
    assert_margins_blank(pages(project / "source"))


def test_a_long_table_goes_on_on_the_next_page(project):
    path = project / "nbs" / "01_sound.ipynb"
    nb = cells.read(path)
    nb.cells.append(new_markdown_cell("| a |\n|---|\n" + "| long |\n" * 80, id="long"))
    nbformat.write(nb, path)
    build.build_pdf(project / "a.pdf", project, keep=project / "source")
    text = (project / "source" / "report.typ").read_text(encoding="utf-8")
    assert text.count("#show figure: set block(breakable: true)") == 1
    assert len(pages(project / "source")) > 2


def test_the_report_is_one_html_file_too(project):
    build.build_html(project / "a.html", project)
    build.build_html(project / "b.html", project)
    page = (project / "a.html").read_text(encoding="utf-8")
    assert page == (project / "b.html").read_text(encoding="utf-8")
    assert "<math" in page and 'id="eq-1.1"' in page and 'href="#eq-1.1"' in page
    assert "Figure\u00a01" in page and "Table\u00a01" in page and "It is two." in page
    assert "<summary>Code <code>root</code></summary>" in page and "For the screen alone." in page
    assert page.count('href="#fig-dot"') == 2  # in the text and in the list of figures
    assert page.count('<details class="source" open>') == 2 < page.count('<details class="source">')
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(?!data:)', page)  # nothing beside the file
    assert "url(data:font/woff;base64," in page and not re.search(r"url\((?!data:)", page)
    targets, places = set(re.findall(r'href="#([^"]+)"', page)), re.findall(r' id="([^"]+)"', page)
    assert targets <= set(places) and len(places) == len(set(places))


@pytest.mark.parametrize("cell, message", [
    (md("By eq. (1.7) it follows."), "eq. (1.7) is mentioned"),
    (md("$$\na \\tag{1.1}\n$$"), "equation (1.1) is already numbered"),
    (md("As was shown [@nobody1900]."), "@nobody1900"),
    (code("#| label: fig-lost\n#| fig-cap: Nothing.\npass"), "no figure"),
    (code("plot()", {"image/png": PNG}), "a figure needs"),
    (code("#| label: tbl-lost\n#| tbl-cap: Nothing.\npass"), "no table"),
    (code("#| label: fig-dot\n#| fig-cap: Again.\nplot()", {"image/png": PNG}), "label fig-dot is already used"),
    (md("![gone](gone.png)"), "gone.png does not exist"),
    (md("A formula $\\undefined{x}{$ that is none: $\\frac{1}{$"), "cannot be set"),
])
def test_the_report_is_not_built_from_what_it_cannot_print(project, tmp_path, cell, message):
    path = project / "nbs" / "01_sound.ipynb"
    nb = cells.read(path)
    cell["id"] = "wrong"
    nb.cells.append(cell)
    nbformat.write(nb, path)
    with pytest.raises(BuildError) as error:
        build.source(build.read_metadata(project), project, tmp_path)
    assert "01_sound.ipynb cell wrong" in error.value.message and message in error.value.message


def test_the_smallest_letter_of_a_drawing_is_measured_in_print(project, tmp_path):
    def drawn(width):
        fig, ax = plt.subplots(figsize=(width, 2))
        ax.set(xlabel="$z_1$", ylabel="up")
        ax.tick_params(labelsize=7)
        fig.savefig(file := tmp_path / "figure.svg")
        plt.close(fig)
        return text.smallest_letter(file.read_text("utf-8"))

    assert drawn(5) == pytest.approx(7) and drawn(10) == pytest.approx(7 * 496 / 720)
    (project / "figures" / "dot.svg").write_text((tmp_path / "figure.svg").read_text("utf-8"), encoding="utf-8")
    with pytest.raises(BuildError, match="smallest letters of fig-dot are 4.8 points in print"):
        build.source(build.read_metadata(project), project, tmp_path)


def wrong(root):
    return {name: problem for name, problem in check.run(root) if problem}


def collect(root):
    """What pytest says when it looks for the notebooks' cells."""
    return subprocess.run([sys.executable, "-m", "pytest", "--nbval", "--collect-only", "-q", "nbs"], cwd=root,
                          capture_output=True, text=True)


def test_what_an_operating_system_adds_is_passed_over(project):
    subprocess.run("git init -q . && git add .", shell=True, cwd=project, check=True)
    for folder in "", "nbs", "nbs/rooms", "vae_gmm", "vae_gmm/deep", "figures", "report":
        for name in "._01_sound.ipynb", "._sound.py", "._README.md", ".DS_Store", "Thumbs.db", "desktop.ini":
            (project / folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(range(128, 256)))
    assert wrong(project) == {}
    build.build_html(project / "a.html", project)


def test_pytest_collects_the_notebooks_whatever_lies_around_them(project):
    """Files of an operating system, line ends of Windows, the settings of a folder around."""
    count = sum(cell.cell_type == "code" for path in cells.notebooks(project) for cell in cells.read(path).cells)
    for path in digest(project):
        if path.suffix != ".pyc":
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for folder in "nbs", "nbs/rooms":
        (project / folder / "._01_sound.ipynb").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(range(128, 256)))
    (project.parent / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--nonsense"\n')
    done = collect(project)
    assert done.returncode == 0 and "._" not in done.stdout and done.stdout.count("::") == count > 20, done.stdout


def test_windows_line_ends_make_no_difference(project):
    build.build_html(project / "a.html", project)
    (project / "a.html").rename(project / "unix.page")
    for path in digest(project):
        if path.suffix not in (".page", ".pyc"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    edit(project / "nbs" / "02_changed.ipynb", "(x):\\n", "(x):\\r\\n")  # inside a cell too
    assert wrong(project) == {}
    build.build_html(project / "a.html", project)
    assert (project / "a.html").read_bytes() == (project / "unix.page").read_bytes()


def test_a_repository_around_the_project_is_not_asked(project, monkeypatch):
    outer = project.parent
    subprocess.run(["git", "init", "-q", "."], cwd=outer, check=True)
    results = dict(check.run(project))
    assert "known to git" not in results and not any(results.values())
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))  # as in a hook of the outer one
    subprocess.run(["git", "init", "-q", "."], cwd=project, env=cells.environment(outer), check=True)
    assert "nbs/01_sound.ipynb" in dict(check.check_known(project))["known to git"]


def test_a_project_that_may_not_be_written_is_checked_and_printed(project, tmp_path):
    for path in digest(project):
        path.chmod(0o444)
    assert wrong(project) == {}
    for _ in range(2):
        build.build_pdf(tmp_path / "a.pdf", project, keep=tmp_path / "source")
    assert all(path.stat().st_mode & 0o200 for path in digest(tmp_path / "source"))


def run_notebook(path, **changes):
    return subprocess.run([sys.executable, "-m", "report.run", path], cwd=path.parents[1], capture_output=True,
                          text=True, env={**os.environ, **changes})


@pytest.mark.parametrize("kernel", ["conda-env-foo-py", "ir", None])
def test_the_kernel_of_another_environment_is_named_and_a_run_sets_it_right(project, kernel):
    path = project / "nbs" / "02_changed.ipynb"
    sound = path.read_text(encoding="utf-8")
    nb = json.loads(sound)
    nb["metadata"] = {"kernelspec": {"display_name": kernel, "language": "R", "name": kernel}} if kernel else {}
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    problem = dict(check.check_clean(project))["kernel 02_changed.ipynb"]
    assert f"the kernel {kernel}, which others do not have" in problem
    if kernel == "ir":
        assert run_notebook(path).returncode == 0 and path.read_text(encoding="utf-8") == sound


def test_what_the_user_has_set_does_not_change_a_run(project, tmp_path):
    path = project / "nbs" / "09_plot.ipynb"
    write(path, [code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\n"
                      "print('planted' in globals(), __debug__, plt.rcParams['lines.linewidth'])")])
    assert run_notebook(path).returncode == 0
    stored = path.read_bytes()
    assert b"image/png" in stored and b"False True 1.5" in stored
    user = tmp_path / "user"
    for name, content in {"matplotlibrc": "lines.linewidth: 9", "start.py": "planted = 1",
                          "profile_default/startup/00.py": "planted = 1",
                          "profile_default/ipython_config.py": "c.InteractiveShellApp.exec_lines = ['planted = 1']",
                          "matplotlib/matplotlibrc": "lines.linewidth: 9",
                          "kernels/python3/kernel.json": '{"argv": ["false"], "display_name": "x", "language": "x"}',
                          }.items():
        (user / name).parent.mkdir(parents=True, exist_ok=True)
        (user / name).write_text(content)
    homes = "IPYTHONDIR", "JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME"
    done = run_notebook(path, **dict.fromkeys(homes, str(user)), MATPLOTLIBRC=str(user / "matplotlibrc"),
                        PYTHONSTARTUP=str(user / "start.py"), MPLBACKEND="Agg", MAKEFLAGS="-n -j8", IN_TEST="1")
    assert "as stored" in done.stdout, done.stderr
    assert path.read_bytes() == stored
    dropped = cells.environment(tmp_path).keys()
    assert not {"MPLBACKEND", "JUPYTER_PATH", "PYTHONSTARTUP", "MAKEFLAGS", "GIT_DIR", "IN_TEST"} & dropped


def test_a_figure_that_is_missing_after_a_run_is_an_error(project):
    path = project / "nbs" / "09_plot.ipynb"
    write(path, [code("#| label: fig-a\n#| fig-cap: A line.\nimport matplotlib\nmatplotlib.use('agg')\n"
                      "import matplotlib.pyplot as plt\nplt.plot([1, 2]);", {"image/png": PNG})])
    before = path.read_bytes()
    done = run_notebook(path)
    assert done.returncode == 1 and "cell c0 has a fig-cap, but has drawn no figure" in done.stderr
    assert path.read_bytes() == before


def set_metadata(root, text):
    (root / "report" / "metadata.yaml").write_text(text, encoding="utf-8")


ODD = """title: 'Digits: a "good" *report* & <more> at $100 #1'
authors:
  - name: 'Ann "A." Lee & Co'
    affiliation: 7
  - {name: "Ke$ha \\\\ O'Neil <b>", email: 'a$b@example.org'}
keywords: [a $ sign, 'b "c"']
date: 2026-11-01
chapters: [01_sound]
"""


@pytest.mark.parametrize("text, authors", [
    (ODD, ['Ann "A." Lee & Co', "Ke$ha \\ O'Neil <b>"]), ("title: 7\nchapters: 01_sound", []),
    ("title: x\nauthors:\nchapters: [01_sound]\nkeywords: one", []),
    ("title: x\nchapters: [01_sound]\nauthors: []", []),
    ("title: x\nauthors: Ann Lee\nchapters: [01_sound]", ["Ann Lee"]),
    ("title: x\nauthors: [Ann Lee, {name: Bo}]\nchapters: [01_sound]", ["Ann Lee", "Bo"])])
def test_titles_and_authors_are_printed_as_they_are(project, text, authors):
    set_metadata(project, text)
    if text is ODD or text.startswith("title: 7"):  # with authors and without
        build.build_pdf(project / "a.pdf", project, keep=project / "source")
    else:
        (project / "source").mkdir()
        build.write_settings(build.read_metadata(project), project / "source")
    build.build_html(project / "a.html", project)
    found, titles, parser = [], [], HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tag == "meta" and found.append(dict(attrs))
    parser.handle_data = lambda data: titles.append(data) if parser.get_starttag_text() == "<title>" else None
    parser.feed((project / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag in found if tag.get("name") == "author"] == [
        {"name": "author", "content": author} for author in authors]
    settings = json.loads((project / "source" / "settings.json").read_text(encoding="utf-8"))
    assert [author["name"] for author in settings["authors"]] == authors
    if text is ODD:
        assert titles[0] == 'Digits: a "good" report & <more> at $100 #1'
        assert "a $ sign" in settings["keywords"] and settings["authors"][1]["email"] == "a$b@example.org"


@pytest.mark.parametrize("text, message", [
    ("title: Digits: a report", "report/metadata.yaml, line 1: mapping values are not allowed here. A text with"),
    ("title: x\nsubtitle: @home", "line 2"), ("title: x\nabstract: [a]", "abstract must be a text"),
    ("title: x\ncourse: {a}", "course must be a text"), ("authors: [Ann]", "there is no title"),
    ("", "there is no title"), ("- title", "there is no title"), ("title: \0", "report/metadata.yaml"),
    ("title: x\nauthors:\n  - affiliation: y", "an author has no name"), ("title: x\nauthors: [null]", "no name"),
    (None, "report/metadata.yaml: cannot be read"), ("title: x\nchapters: [08_gone]", "chapter 08_gone")])
def test_metadata_that_cannot_be_understood_gets_a_sentence(project, text, message):
    set_metadata(project, text or "")
    if text is None:
        (project / "report" / "metadata.yaml").unlink()
    done = CliRunner().invoke(build.main, ["--root", str(project)])
    assert done.exit_code == 1 and message in done.output and not isinstance(done.exception, Exception)
    assert not list(project.glob("report.*"))


@pytest.mark.parametrize("name", ["sound", "01_sound", "00_sound", "17_sound"])
def test_a_chapter_is_found_by_its_name(project, name):
    assert build.chosen(build.read_metadata(project), [name]) == ["01_sound"]
    if name == "sound":
        page = project / "a.html"
        done = CliRunner().invoke(build.main, ["--root", str(project), "--html", "--only", name, "--out", str(page)])
        assert done.exit_code == 0 and "The sound module" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("words, message", [
    (["--only", "noise"], "there is no chapter noise; there are 01_sound"),
    (["--out", "nowhere/a.pdf"], "nowhere/a.pdf: cannot be written")])
def test_what_cannot_be_built_gets_a_sentence(project, words, message):
    done = CliRunner().invoke(build.main, ["--root", str(project), *words])
    assert done.exit_code == 1 and message in done.output and not isinstance(done.exception, Exception)


@pytest.mark.parametrize("tex, typst_text", [
    (r"|\Sigma|^{1/2}", "lr(|Sigma|)"),
    (r"\lvert\hat p - p\rvert", "lr(|hat(p) - p|)"),
    (r"p(x|z)\,q(z|x)", r"p \( x \| z \) thin q \( z \| x \)"),
    (r"\operatorname{KL}(q)", r'op("KL") \( q \)'),
    (r"x_{\text{max}}", 'upright("max")'),
    (r"\bigl( \tfrac12 \bigr)", "(1 / 2)"),
    (r"a\!b", "a b"),
])
def test_formulas_come_out_as_meant(tex, typst_text):
    source = pandoc(f"${formulas.mend_tex(tex)}$", "-f", "markdown", "-t", "typst").strip()
    assert typst_text in formulas.mend_typst(f'#inline-math("", {source})')


THIN = '<mspace width="0.167em" />'


@pytest.mark.parametrize("tex, mathml_text", [
    (r"2\log x", f'<mn>2</mn>{THIN}<mrow><mi mathvariant="normal">log</mi></mrow>{THIN}<mi>x</mi>'),
    (r"a-\log(x)", '<mo>−</mo><mrow><mi mathvariant="normal">log</mi></mrow><mo'),
    (r"\left[\log x\right]", f'<mi mathvariant="normal">log</mi>{THIN}<mi>x</mi>'),
    (r"x_{\max}", '<msub><mi>x</mi><mi mathvariant="normal">max</mi></msub>'),
    (r"\hat p", '<mo accent="true" stretchy="false">ˆ</mo>'),
    (r"xy", "<mi>x</mi><mi>y</mi>"),
])
def test_names_of_functions_stand_apart_in_html(tex, mathml_text):
    page = formulas.mend_html(pandoc(f"${tex}$, and", "-f", "markdown", "-t", "html", "--mathml"))
    assert mathml_text in page and "</math>\u2060," in page


def test_this_report_can_be_printed(tmp_path):
    """The report itself: it can be built, nothing stands in a margin, and it is neither too short nor too long."""
    build.build_pdf(tmp_path / "report.pdf", ROOT, keep=tmp_path / "source")
    page_list = pages(tmp_path / "source")
    assert_margins_blank(page_list)
    assert 15 <= len(page_list) <= 50
    marks = json.loads(typst.query(str(tmp_path / "source" / "report.typ"), "metadata", ignore_system_fonts=True))
    listed, captions = ([mark["value"] for mark in marks if mark.get("label") == f"<{name}>"]
                        for name in ("listed", "caption"))
    assert listed == captions and len(listed) > 30  # of each figure, its number and the page of its caption
