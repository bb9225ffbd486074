"""The notebooks as one Markdown text, and their pictures as files: the first step of report/build.py.

What is printed of a notebook:
- its text, except cells tagged `no-pdf` or `solution`; on a cell that begins with a heading, `no-pdf` leaves out the
  whole section;
- figures (`#| label: fig-x` and `#| fig-cap:`) and tables (`#| label: tbl-x` and `#| tbl-cap:`) of cells that are
  neither hidden (`#| hide`) nor tagged `no-pdf`;
- code that carries out an equation (a line that is no assertion and says `# eq. (`) and code tagged `pdf`, with what
  it printed. Cells that draw a figure, or are longer than MAX_LINES, show their code only with the tag. With
  `code: tagged` in report/metadata.yaml the tag alone decides.

report.html has room for everything that is not hidden: the rest of the code and the solutions are folded away.
"""
import base64
import re
from pathlib import Path

from report import cells
from report.run import vector_file
from report.tree import BuildError

MAX_LINES = 25    # longer cells are not printed without the tag pdf
MAX_COLUMNS = 98  # characters of code that fit on a line
PLACEHOLDER = (b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="160">'
               b'<rect width="400" height="160" fill="#ddd"/></svg>')
NAMED = ("figure", "fig"), ("table", "tbl")  # what has a number and a caption: its name, and how its label starts
ASSERTION = re.compile(r"\s*(assert\b|test_\w+\(|(np|torch)\.testing\.|with (pytest\.raises|ExceptionExpected))")

# How a notebook speaks of a figure or table beside the text; in the report, where figures float, by its number.
POINTERS = [
    (re.compile(rf"\b[Tt]he (?:{kind} below|next {kind}|following {kind})\b"), f"{label}-", 1)
    for kind, label in NAMED] + [
    (re.compile(rf"\b[Tt]he (?:{kind} above|last {kind})\b"), f"{label}-", -1) for kind, label in NAMED] + [
    (re.compile(r"\bThe figure(?= \w+s\b)"), "fig-", 0)]  # 0: the nearer one, of two equally near ones the one above


def division(content, kind, identifier="", **attributes):
    """`content` as a Markdown division that pandoc hands on; long colons, so that cells may hold divisions."""
    keys = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    mark = ":" * (20 if kind == "cell" else 12)
    return f"{mark} {{.{kind} {'#' + identifier if identifier else ''} {keys}}}\n\n{content}\n\n{mark}"


def fenced(text, language):
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence} {language}\n{text.rstrip()}\n{fence}"


def fit(code):
    """Move comments closer to the code where a line is too long for the page."""
    return "\n".join(line if len(line) <= MAX_COLUMNS else re.sub(r"(?<=\S) {2,}#", "  #", line)
                     for line in code.splitlines())


def shows_code(cell, rule="equations"):
    """Whether the report prints this cell's source: see the rule at the top."""
    if not cells.echoed(cell) or not cells.code(cell):
        return False
    if "pdf" in cells.tags(cell) or rule == "tagged":
        return "pdf" in cells.tags(cell)
    lines = cells.code(cell).splitlines()
    if len(lines) > MAX_LINES or "fig-cap" in cells.directives(cell):
        return False
    return any(re.search(r"# eqs?\. \(", line) and not ASSERTION.match(line) for line in lines)


class Notebook:
    """A notebook on its way into the report: its cells as Markdown, its pictures as files."""

    def __init__(self, path, folder, root, meta):
        self.path, self.folder, self.root, self.meta = Path(path), Path(folder), Path(root), meta
        self.nb = cells.read(path)

    def picture(self, name, content, suffix):
        """Write a picture beside the Typst source; its file name there."""
        path = Path(self.folder, f"{self.path.stem}-{name}{suffix}")
        path.write_bytes(content)
        return path.name

    def figure_file(self, cell, at):
        """The file with the cell's figure: drawn as vectors where there is such a file, otherwise the stored PNG."""
        label = cells.directives(cell).get("label", "").removeprefix("fig-")
        png = next((o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})), None)
        places = [Path(self.root, "figures", f"{name}.svg") for name in (label, label.replace("-", "_"))]
        if png is None and self.meta.get("draft"):
            return self.picture(label, PLACEHOLDER, ".svg")
        if png is None:
            raise BuildError(at, f"no figure: the cell with label fig-{label} has no stored picture")
        for path in [vector_file(png, self.root), *places]:
            if path.exists():
                return self.picture(label or cell.id, path.read_bytes(), ".svg")
        return self.picture(label or cell.id, base64.b64decode(png), ".png")

    def figure(self, cell, at):
        d = cells.directives(cell)
        if not d.get("label", "").startswith("fig-") or not d.get("fig-cap"):
            raise BuildError(at, "a figure needs `#| label: fig-name` and `#| fig-cap: ...` (or the tag no-pdf)")
        return division(d["fig-cap"], "figure", d["label"], file=self.figure_file(cell, at),
                        alt=d.get("fig-alt", "").replace('"', "'"))

    def outputs(self, cell, at):
        """The cell's figures and tables as Markdown."""
        d, done = cells.directives(cell), False
        for out in cell.outputs:
            data = out.get("data", {})
            table = re.search(r"<table.*?</table>", data.get("text/html", ""), re.S)
            if "image/png" in data or "image/svg+xml" in data:
                yield self.figure(cell, at)
                done = True
            elif "text/markdown" in data or table:
                text = data["text/markdown"] if "text/markdown" in data else fenced(table[0], "{=html}")
                cap = d.get("tbl-cap")
                yield division(f"{cap}\n\n{text}", "table", d.get("label", "")) if cap else text
        if "fig-cap" in d and not done:
            yield self.figure(cell, at)

    @staticmethod
    def printed(cell):
        """What the cell printed, as Markdown."""
        for out in cell.outputs:
            data = out.get("data", {})
            if out.get("name") == "stdout" or "text/plain" in data and len(data) == 1:
                yield fenced(out.get("text") or data["text/plain"], "output")

    def code(self, cell, at):
        """A code cell as Markdown; empty if nothing of it is printed."""
        if cells.hidden(cell):
            return ""
        shown = shows_code(cell, self.meta.get("code", "equations"))
        if self.meta["html"] and cells.echoed(cell) and cells.code(cell):
            source = [division("\n\n".join([fenced(cells.code(cell), "python"), *self.printed(cell)]),
                               "source" + " .open" * shown)]
        elif shown:
            source = [fenced(fit(cells.code(cell)), "python"), *self.printed(cell)]
        else:
            source = []
        return "\n\n".join([*source, *self.outputs(cell, at)])

    def markdown(self, keep=lambda cell: True):
        """The cells for which `keep(cell)` holds, as one Markdown text, each in a division that says where it is."""
        parts = []  # [at, kind of cell or label of the figure it draws, Markdown]
        unwanted = {"no-pdf"} if self.meta["html"] else {"no-pdf", "solution"}
        left_out = 7  # level of the heading whose section is left out; 7 is none
        for cell in self.nb.cells:
            at = f"{self.path.name} cell {cell.id}"
            heading = re.match(r"(#+) +(.*)", cell.source) if cell.cell_type == "markdown" else None
            if heading and len(heading[1]) <= left_out:
                listed = heading[2].strip() in self.meta.get("leave-out", []) and not self.meta["html"]
                whole = len(heading[1]) > 1 and "no-pdf" in cells.tags(cell)
                left_out = len(heading[1]) if listed or whole else 7
            if left_out < 7 or cell.cell_type == "raw" or cells.tags(cell) & unwanted or not keep(cell):
                continue
            text = cell.source.strip() if cell.cell_type == "markdown" else self.code(cell, at)
            d = cells.directives(cell) if cell.cell_type == "code" else {}
            label = d.get("label", "")
            if text:
                numbered = label.startswith("fig-") or label.startswith("tbl-") and "tbl-cap" in d
                parts.append([at, label if numbered else cell.cell_type, text])
            elif parts and parts[-1][1] == "markdown":  # the code that this text leads up to is not printed
                parts[-1][2] = re.sub(r":$", ".", parts[-1][2])
        point_to_figures(parts)
        return "\n\n".join(division(text, "cell", at=at) for at, _, text in parts)


def point_to_figures(parts):
    """Let text that speaks of "the figure below" name the figure's number, and of a table likewise; `parts` as in
    Notebook.markdown."""
    kinds = [kind for _, kind, _ in parts]
    for i, part in enumerate(parts):
        if part[1] != "markdown":
            continue
        for phrase, start, side in POINTERS:
            places = [(j - i, kind) for j, kind in enumerate(kinds) if kind.startswith(start)]
            near = min((p for p in places if p[0] * side >= 0), key=lambda p: (abs(p[0]), p[0]), default=None)
            if near:
                part[2] = phrase.sub(f"@{near[1]}", part[2])


def markdown(meta, root, folder, only=None):
    """The whole report as Markdown."""
    nbs, parts = Path(root, "nbs"), []
    index = nbs / "index.ipynb"
    if only is None and index.exists():
        intro = Notebook(index, folder, root, meta).markdown(lambda cell: "intro" in cells.tags(cell))
        if intro:
            intro = re.sub(r"^#+ +Introduction *$", "", intro, flags=re.M)
            intro = re.sub(r"^#+ +(.+)$", r"## \1 {.unnumbered .unlisted}", intro, flags=re.M)
            parts.append("# Introduction {.unnumbered}\n\n" + intro)
    for number, name in enumerate(meta["chapters"], 1):
        if only is not None and name not in only:
            continue
        path = nbs / f"{name}.ipynb"
        if not path.exists():
            raise BuildError("report/metadata.yaml", f"chapter {name}: {path} does not exist")
        parts.append(f"[]{{.chapter name={name} number={number}}}\n\n" + Notebook(path, folder, root, meta).markdown())
    return "\n\n".join(parts) + "\n\n# References {.unnumbered}\n\n::: {#refs}\n:::\n"
