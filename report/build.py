"""Build report.pdf from the notebooks as they are stored: `python -m report.build`. Nothing is executed.

The notebooks become one Markdown text, pandoc reads it, what the report adds (formulas with their numbers and links to
them, figures, tables, citations) is done on pandoc's document tree, and Typst sets the pages (report/layout.typ).
report/metadata.yaml holds the title page and the list of chapters.

What is printed of a notebook:
- its text, except cells tagged `no-pdf` or `solution`; on a cell that begins with a heading, `no-pdf` leaves out the
  whole section;
- figures (`#| label: fig-x` and `#| fig-cap:`) and tables (`#| label: tbl-x` and `#| tbl-cap:`) of cells that are
  neither hidden (`#| hide`) nor tagged `no-pdf`;
- code that carries out an equation (a line that is no assertion and says `# eq. (`) and code tagged `pdf`, with what
  it printed. Cells that draw a figure, or are longer than MAX_LINES, show their code only with the tag. With
  `code: tagged` in report/metadata.yaml the tag alone decides.

An unknown equation, a missing figure, an unresolved citation or a formula that cannot be set ends the build with a
message that names the notebook and the cell.
"""
import base64
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import click
import pypandoc
import typst
import yaml

from report import cells
from report.run import vector_file

MAX_LINES = 25     # longer cells are not printed without the tag pdf
MAX_COLUMNS = 98   # characters of code that fit on a line
READER = "markdown-implicit_header_references"
WRITER = "typst-citations"
PLACEHOLDER = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="160"><rect width="400" height="160" fill="#ddd"/></svg>'
ASSERTION = re.compile(r"\s*(assert\b|test_\w+\(|(np|torch)\.testing\.|with (pytest\.raises|ExceptionExpected))")
NUMBERED = re.compile(r"\\tag\{([\w.]+)\}")
EQUATIONS = re.compile(r"(?:^|\W)(?:eqs?\.|equations?)$", re.I)  # a word after which "(3.7)" is an equation's number
BETWEEN = {"and", "or", "to", "through"}  # words that may stand between two numbers

POINTERS = [  # how a notebook speaks of a figure beside the text; in the report, where figures float, by its number
    (re.compile(r"\b[Tt]he (?:figure below|next figure|following figure)\b"), 1),
    (re.compile(r"\b[Tt]he (?:figure above|last figure)\b"), -1),
    (re.compile(r"\bThe figure(?= \w+s\b)"), -1),
]


class BuildError(click.ClickException):
    """Something in the notebooks cannot be printed; `at` says where it is."""

    def __init__(self, at, message):
        super().__init__(f"{at}: {message}" if at else message)


# ---------------------------------------------------------------- pandoc

def pandoc(text, *options, at=""):
    """Run pandoc on `text`; a warning of pandoc is an error here."""
    done = subprocess.run([pypandoc.get_pandoc_path(), "--fail-if-warnings", *map(str, options)],
                          input=text, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise BuildError(at, done.stderr.strip())
    return done.stdout


def read_markdown(text, *options):
    return json.loads(pandoc(text, "-f", READER, "-t", "json", *options))


def element(kind, *content):
    return {"t": kind, "c": content[0] if len(content) == 1 else list(content)}


def raw(text, kind="RawInline"):
    """A piece of Typst source as a pandoc element."""
    return element(kind, "typst", text)


def plain(node):
    """The text of a pandoc node without its markup; formulas as TeX."""
    if isinstance(node, list):
        return "".join(map(plain, node))
    if not isinstance(node, dict):
        return ""
    kind, content = node.get("t"), node.get("c")
    if kind == "Str":
        return content
    if kind in ("Space", "SoftBreak", "LineBreak"):
        return " "
    if kind in ("Code", "Math", "RawInline"):
        return content[1]
    if kind == "Cite":
        return plain(content[1])
    return plain(content)


def rewrite(node, visit, at=""):
    """A copy of `node` where each element that `visit(element, at)` answers with a list is replaced by that list.

    `at` is the cell in which the element stands, as "notebook cell id".
    """
    if isinstance(node, dict):
        return {key: rewrite(value, visit, at) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    out = []
    for child in node:
        if isinstance(child, dict) and "t" in child:
            here = dict(child["c"][0][2]).get("at", at) if child["t"] == "Div" else at
            new = visit(child, here)
            out += [rewrite(child, visit, here)] if new is None else new
        else:
            out.append(rewrite(child, visit, at))
    return out


# ---------------------------------------------------------------- notebooks to Markdown

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
        if png is not None:
            places.insert(0, vector_file(png, self.root))
        for path in places:
            if path.exists():
                return self.picture(label or cell.id, path.read_bytes(), ".svg")
        if png is None and self.meta.get("draft"):
            return self.picture(label, PLACEHOLDER, ".svg")
        if png is None:
            raise BuildError(at, f"no figure: the cell with label fig-{label} has no stored picture, "
                                 f"and figures/{label}.svg does not exist")
        return self.picture(label or cell.id, base64.b64decode(png), ".png")

    def figure(self, cell, at):
        d = cells.directives(cell)
        if not d.get("label", "").startswith("fig-") or not d.get("fig-cap"):
            raise BuildError(at, "a figure needs `#| label: fig-name` and `#| fig-cap: ...` (or the tag no-pdf)")
        return division(d["fig-cap"], "figure", d["label"], file=self.figure_file(cell, at),
                        alt=d.get("fig-alt", "").replace('"', "'"))

    def outputs(self, cell, at, shown):
        """The cell's outputs as Markdown: its figure, tables, and, if the code is shown, text."""
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
            elif shown and (out.get("name") == "stdout" or "text/plain" in data):
                yield fenced(out.get("text") or data["text/plain"], "output")
        if "fig-cap" in d and not done:
            yield self.figure(cell, at)

    def code(self, cell, at):
        """A code cell as Markdown; empty if nothing of it is printed."""
        if cells.hidden(cell):
            return ""
        shown = shows_code(cell, self.meta.get("code", "equations"))
        source = [fenced(fit(cells.code(cell)), "python")] if shown else []
        return "\n\n".join([*source, *self.outputs(cell, at, shown)])

    def markdown(self, keep=lambda cell: True):
        """The cells for which `keep(cell)` holds, as one Markdown text, each in a division that says where it is."""
        parts = []  # [at, kind of cell or label of the figure it draws, Markdown]
        left_out = 7  # level of the heading whose section is left out; 7 is none
        for cell in self.nb.cells:
            at = f"{self.path.name} cell {cell.id}"
            heading = re.match(r"(#+) +(.*)", cell.source) if cell.cell_type == "markdown" else None
            if heading and len(heading[1]) <= left_out:
                exercises = heading[2].startswith("Exercises") and not self.meta.get("exercises", True)
                whole = len(heading[1]) > 1 and "no-pdf" in cells.tags(cell)
                left_out = len(heading[1]) if exercises or whole else 7
            if left_out < 7 or cell.cell_type == "raw" or cells.tags(cell) & {"no-pdf", "solution"} or not keep(cell):
                continue
            text = cell.source.strip() if cell.cell_type == "markdown" else self.code(cell, at)
            label = cells.directives(cell).get("label", "") if cell.cell_type == "code" else ""
            if text:
                parts.append([at, label if label.startswith("fig-") else cell.cell_type, text])
            elif parts and parts[-1][1] == "markdown":  # the code that this text leads up to is not printed
                parts[-1][2] = re.sub(r":$", ".", parts[-1][2])
        point_to_figures(parts)
        return "\n\n".join(division(text, "cell", at=at) for at, _, text in parts)


def point_to_figures(parts):
    """Let text that speaks of "the figure below" name the figure's number; `parts` as in Notebook.markdown."""
    kinds = [kind for _, kind, _ in parts]
    for i, part in enumerate(parts):
        if part[1] != "markdown":
            continue
        after = next((kind for kind in kinds[i + 1:] if kind.startswith("fig-")), None)
        before = next((kind for kind in reversed(kinds[:i]) if kind.startswith("fig-")), None)
        for phrase, side in POINTERS:
            label = after if side > 0 else before
            if label:
                part[2] = phrase.sub(f"@{label}", part[2])


# ---------------------------------------------------------------- formulas

# What texmath and pandoc's Typst writer get wrong or set badly, and what is written instead.
TEX_FIXES = [
    (r"\\!", ""),
    (r"\\;", r"\\:"),
    (r"\\mathrm\{([A-Za-z]{2,})\}", r"\\operatorname{\1}"),
    (r"\\(left|right)\s*\\(\||[lr]?Vert)", r"\\\1 \\Vert "),
    (r"\\[bB]igg?l(?![a-zA-Z])((?:(?!\\[bB]igg?[lr]|&|\\\\).)*)\\[bB]igg?r(?![a-zA-Z])", r"\\left\1\\right"),
    (r"\\[bB]igg?[lrm]?(?![a-zA-Z])", ""),
    (r"(?<!\\left)(?<!\\right)(?<!\\)\|((?:[^|(){}]|\{[^{}|]*\}|\([^()|]*\))+)\|", r"\\left|\1\\right|"),  # |a|: a pair, not two relations
]
OPERATOR = re.compile(r'(?<!upright\()(?<!bold\()(?<!italic\()("\w+")')  # in pandoc's Typst; op(...) sets it as a name


def tex_source(tex):
    for wrong, right in TEX_FIXES:
        for _ in range(3):  # pairs of brackets stand in one another
            tex = re.sub(wrong, right, tex, flags=re.S)
    return re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", lambda m: m[0].replace("&", r"&\quad "), tex, flags=re.S)


class Formulas:
    """All formulas of a document: found, set in Typst by one run of pandoc, and put in their places with numbers."""

    def __init__(self, document):
        self.found = {}    # (display, TeX without its number): where it stands first
        self.numbers = {}  # number: where it stands
        rewrite(document, self.find)
        self.typst = self.convert()

    def find(self, node, at):
        if node["t"] != "Math":
            return None
        display = node["c"][0]["t"] == "DisplayMath"
        for number in NUMBERED.findall(node["c"][1]):
            if number in self.numbers:
                raise BuildError(at, f"equation ({number}) is already numbered so in {self.numbers[number]}")
            self.numbers[number] = at
        self.found.setdefault((display, self.source(node)), at)
        return [node]

    @staticmethod
    def source(node):
        return NUMBERED.sub("", node["c"][1]).strip()

    def convert(self):
        """{(display, TeX): Typst}"""
        keys = list(self.found)
        texts = self.to_typst(keys)
        return dict(zip(keys, texts))

    def to_typst(self, keys):
        mark = "// formula"
        blocks = []
        for display, tex in keys:
            kind = {"t": "DisplayMath" if display else "InlineMath"}
            blocks += [element("Plain", [element("Math", kind, tex_source(tex))]), raw(mark, "RawBlock")]
        document = {"pandoc-api-version": [1, 23, 1], "meta": {}, "blocks": blocks}
        try:
            text = pandoc(json.dumps(document), "-f", "json", "-t", WRITER, "--wrap=none")
        except BuildError as err:
            if len(keys) == 1:
                raise BuildError(self.found[keys[0]], f"a formula cannot be set: {keys[0][1]}\n{err.message}") from None
            half = len(keys) // 2  # find out which
            return self.to_typst(keys[:half]) + self.to_typst(keys[half:])
        return [OPERATOR.sub(r"op(\1)", part.strip()) for part in text.split(mark)[:-1]]

    def place(self, node, at):
        """The Typst source for a formula."""
        if node["t"] != "Math":
            return None
        tex, display = self.source(node), node["c"][0]["t"] == "DisplayMath"
        alt, body = json.dumps(" ".join(tex.split()), ensure_ascii=False), self.typst[display, tex]
        if not display:
            return [raw(f"#inline-math({alt}, {body})")]
        number = next(iter(NUMBERED.findall(node["c"][1])), None)
        label = f" <eq-{number}>" if number else ""
        return [raw(f"#display-math({alt}, {json.dumps(number) if number else 'none'}, {body}){label}")]


def link_equations(numbers, strict=True):
    """A function that turns the numbers after "eq." in a list of inlines into links; for `rewrite_lists`."""
    def link(text, at):
        parts = re.split(r"\(([1-9A-Z]\d*\.\d+[a-z]?)\)", text)
        for i, part in enumerate(parts):
            if i % 2 == 0:
                if part:
                    yield element("Str", part)
            elif part in numbers:
                yield raw(f"#link(<eq-{part}>)[({part})]")
            elif strict:
                raise BuildError(at, f"eq. ({part}) is mentioned, but no equation has this number")
            else:
                yield element("Str", f"({part})")

    def inlines(nodes, at):
        out, inside = [], False  # inside: after "eq." and before a word that is no number
        for node in nodes:
            text = node.get("c", "") if node["t"] == "Str" else ""
            if not text:
                inside = inside and node["t"] in ("Space", "SoftBreak")
                out.append(node)
                continue
            word, gap, rest = text.partition("\u00a0")  # pandoc binds "eq." to what follows
            if gap and EQUATIONS.search(word):
                out.append(element("Str", word + gap))
                text, inside = rest, True
            number = re.search(r"\([1-9A-Z]\d*\.\d+[a-z]?\)", text)
            if inside and number:
                out += link(text, at)
                inside = not re.search(r"[.;:]$", text)
            else:
                out.append(element("Str", text))
                inside = bool(EQUATIONS.search(text)) or inside and (text.strip(",–—-") in BETWEEN | {""})
        return out

    return inlines


def rewrite_lists(node, change, at=""):
    """A copy of `node` where each list of inlines has gone through `change(list, at)`."""
    if isinstance(node, dict):
        if node.get("t") == "Div":
            at = dict(node["c"][0][2]).get("at", at)
        return {key: rewrite_lists(value, change, at) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    if any(isinstance(n, dict) and n.get("t") == "Str" for n in node) and all(isinstance(n, dict) for n in node):
        node = change(node, at)
    return [rewrite_lists(n, change, at) for n in node]


# ---------------------------------------------------------------- figures, tables, links

def caption_of(blocks):
    """The inlines of a division's first paragraph, and the blocks after it."""
    return blocks[0]["c"], blocks[1:]


def figure(file, alt, caption, label=""):
    """A figure as a pandoc block: Typst around the caption."""
    alt = json.dumps(" ".join(alt.split()), ensure_ascii=False)
    start = f"#figure(picture({json.dumps(file)}, {alt}), caption: ["
    return element("Para", [raw(start), *caption, raw("])" + (f" <{label}>" if label else ""))])


def read_html(tables):
    """Tables written in HTML as pandoc blocks, by one run of pandoc."""
    if not tables:
        return {}
    text = "".join(f'<div id="table-{i}">{table}</div>' for i, table in enumerate(tables))
    blocks = json.loads(pandoc(text, "-f", "html", "-t", "json"))["blocks"]
    return {table: block["c"][1] for table, block in zip(tables, blocks)}


def align_numbers(table):
    """Columns of numbers to the right, the others to the left, as wide as the contents need."""
    specs, bodies = table["c"][2], table["c"][4]
    rows = [row[1] for body in bodies for row in body[3]]
    for i, spec in enumerate(specs):
        column = [plain(row[i][4]).strip() for row in rows if i < len(row)]
        number = all(re.fullmatch(r"[-+−±~<>≈]?[\d.,]+ ?(%|[±–-] ?[\d.,]+ ?%?)?|[-–—]?|nan", c) for c in column)
        spec[1] = {"t": "ColWidthDefault"}
        spec[0] = {"t": "AlignRight" if number and any(column) else "AlignLeft"}
    for cell in (cell for head in [table["c"][3][1], *(b[3] for b in bodies)] for row in head for cell in row[1]):
        cell[1] = {"t": "AlignDefault"}
    return table


class Printer:
    """Turn pandoc's tree of the whole report into one that its Typst writer can set."""

    def __init__(self, root, folder, chapters, keys):
        self.root, self.folder, self.chapters, self.keys = root, folder, chapters, keys
        self.html, self.labels = {}, {}
        self.alt = {}  # label or file of a figure: its caption as plain text

    def gather(self, node, at):
        """Before anything is changed: the HTML tables, the labels, and the captions as text."""
        if node["t"] == "Div" and "figure" in node["c"][0][1]:
            self.alt[node["c"][0][0]] = plain(node["c"][1][0])
        if node["t"] == "Image":
            self.alt[node["c"][2][0]] = plain(node["c"][1])
        if node["t"] == "RawBlock" and node["c"][0] == "html" and "<table" in node["c"][1]:
            self.html[node["c"][1]] = None
        identifier = node["c"][0][0] if node["t"] == "Div" else ""
        if identifier:
            if identifier in self.labels:
                raise BuildError(at, f"label {identifier} is already used in {self.labels[identifier]}")
            self.labels[identifier] = at
        return None

    def copy_picture(self, target, at):
        """Copy a picture that a text cell shows, as vectors where there is such a file; its file name."""
        path = Path(self.root, "nbs", target)
        path = next((p for p in (path.with_suffix(".svg"), path) if p.exists()), None)
        if path is None:
            raise BuildError(at, f"picture {target} does not exist")
        name = hashlib.sha256(target.encode()).hexdigest()[:8] + "-" + path.name
        shutil.copy(path, Path(self.folder, name))
        return name

    def link(self, node, at):
        """Links between notebooks become links between sections; to other files of the project, plain text."""
        attr, text, (target, title) = node["c"]
        if re.match(r"\w+:", target):
            return None
        stem, _, suffix = target.partition("#")[0].rpartition("/")[2].partition(".")
        if suffix == "ipynb" and stem in self.chapters:
            return [raw(f"#link(<sec-{stem}>)["), *rewrite(text, self.visit, at), raw("]")]
        return rewrite(text, self.visit, at)

    def visit(self, node, at):
        kind, content = node["t"], node.get("c")
        if kind == "Div":
            (identifier, classes, pairs), blocks = content
            attributes = dict(pairs)
            if "cell" in classes:
                return rewrite(blocks, self.visit, at)
            if "figure" in classes:
                caption, _ = caption_of(rewrite(blocks, self.visit, at))
                return [figure(attributes["file"], attributes["alt"] or self.alt[identifier], caption, identifier)]
            if "table" in classes:
                caption, rest = caption_of(rewrite(blocks, self.visit, at))
                table = next((b for b in rest if b["t"] == "Table"), None)
                if table is None:
                    raise BuildError(at, f"no table: the cell with label {identifier} has no stored table")
                table["c"][0][0], table["c"][1] = identifier, [None, [element("Plain", caption)]]
                return rest
        if kind == "Table":
            return [align_numbers(node)]
        if kind == "RawBlock" and content[0] == "html" and content[1] in self.html:
            return rewrite(self.html[content[1]], self.visit, at)
        if kind in ("RawBlock", "RawInline") and content[0] == "html":
            if re.search(r"<(img|table|svg)\b", content[1]):
                raise BuildError(at, f"this HTML cannot be printed, write Markdown instead: {content[1][:80]}")
            return []
        if kind == "Figure":
            (identifier, _, _), (_, caption), body = content
            attr, alt, (target, _) = body[0]["c"][0]["c"]
            caption = rewrite(caption[0]["c"] if caption else alt, self.visit, at)
            return [figure(self.copy_picture(target, at), self.alt[target], caption, identifier)]
        if kind == "Image":
            target = content[2][0]
            return [raw(f"#picture({json.dumps(self.copy_picture(target, at))}, {json.dumps(self.alt[target])})")]
        if kind == "Link":
            return self.link(node, at)
        if kind == "Cite":
            for citation in content[0]:
                key = citation["citationId"]
                if key.startswith(("fig-", "tbl-")) and key in self.labels:
                    return [raw(f"#ref(<{key}>)")]
                if key not in self.keys:
                    raise BuildError(at, f"@{key} is neither in report/references.bib nor the label of a figure or table")
        return None


# ---------------------------------------------------------------- the whole report

def bibliography_keys(path):
    return {entry["id"] for entry in json.loads(pandoc("", "-f", "bibtex", "-t", "csljson", path))}


def fill(text, root):
    """Replace {{a.b}} and {{a.b:format}} in `text` by values of figures/results.json."""
    path = Path(root, "figures", "results.json")

    def value(m):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for key in m[1].split("."):
                found = found[int(key) if isinstance(found, list) else key]
        except (OSError, LookupError, ValueError):
            raise BuildError("report/metadata.yaml", f"{m[0]} is not a value of figures/results.json") from None
        return format(found, m[2] or "")

    return re.sub(r"\{\{\s*([\w.-]+)\s*(?::([^}]*))?\}\}", value, text)


def typst_string(text):
    return json.dumps(str(text), ensure_ascii=False)


def header(meta):
    """The lines that open the Typst source: settings as code, title and abstract as text that pandoc fills in."""
    lang, _, region = meta.get("language", "en-GB").partition("-")
    authors = "".join("(" + "".join(f"{key}: {typst_string(author[key])}, " for key in ("name", "affiliation", "email")
                                    if author.get(key)) + "), " for author in meta["authors"])
    keywords = "".join(typst_string(word) + ", " for word in meta.get("keywords", []))
    texts = "".join(f"  {key}: [${key}$],\n" for key in ("title", "subtitle", "course", "date", "abstract")
                    if meta.get(key))
    return (f'#import "layout.typ": *\n#show: report.with(\n{texts}  authors: ({authors}),\n  keywords: ({keywords}),\n'
            f'  paper: "{meta.get("paper", "a4")}", font-size: {meta.get("font-size", "10pt")},\n'
            f'  margin: {meta.get("margin", "2.2cm")}, lang: "{lang}", region: "{region or "GB"}",\n)\n\n$body$\n')


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
        parts.append(f"```{{=typst}}\n#start-chapter({number})\n```")
        parts.append(f"[]{{.chapter name={name}}}\n\n" + Notebook(path, folder, root, meta).markdown())
    return "\n\n".join(parts) + "\n\n# References {.unnumbered}\n\n::: {#refs}\n:::\n"


def chapter_heads(blocks):
    """Give each chapter's title the label that links between notebooks lead to, and set off the line below it."""
    out, name, title = [], None, False
    for block in blocks:
        span = block["c"][0] if block["t"] == "Para" and len(block["c"]) == 1 else {}
        if span.get("t") == "Span" and "chapter" in span["c"][0][1]:
            name = dict(span["c"][0][2])["name"]
            continue
        if block["t"] == "Header" and block["c"][0] == 1 and name:
            block["c"][1][0], name, title = f"sec-{name}", None, True
        elif block["t"] == "BlockQuote" and title:
            out += [raw("#lead[", "RawBlock"), *block["c"], raw("]", "RawBlock")]
            title = False
            continue
        else:
            title = False
        out.append(block)
    return out


def typst_source(meta, root, folder, only=None):
    """The Typst source of the report; its pictures lie in `folder` afterwards."""
    bib = Path(root, "report", "references.bib")
    texts = {key: fill(str(meta[key]), root) for key in ("title", "subtitle", "course", "date", "abstract")
             if meta.get(key)}
    Path(folder, "texts.yaml").write_text(yaml.safe_dump(texts, allow_unicode=True), encoding="utf-8")
    document = read_markdown(markdown(meta, root, folder, only), f"--metadata-file={Path(folder, 'texts.yaml')}")

    printer = Printer(root, folder, only or meta["chapters"], bibliography_keys(bib))
    rewrite(document, printer.gather)
    printer.html = dict.fromkeys(printer.html) | read_html(list(printer.html))
    formulas = Formulas(document)
    document = rewrite_lists(document, link_equations(formulas.numbers, strict=not meta.get("draft")))
    document = rewrite(document, formulas.place)
    document = rewrite(document, printer.visit)
    document["blocks"] = chapter_heads(document["blocks"])

    template = Path(folder, "template.typ")
    template.write_text(header(meta), encoding="utf-8")
    return pandoc(json.dumps(document), "-f", "json", "-t", WRITER, "--standalone", f"--template={template}",
                  "--citeproc", f"--bibliography={bib}", "--metadata=link-citations:true",
                  "--syntax-highlighting=idiomatic", "--wrap=none")


def build(out, root=cells.ROOT, only=None, source=None, draft=False):
    """Build the PDF `out`; `source` keeps the Typst source too."""
    root = Path(root)
    meta = yaml.safe_load(Path(root, "report", "metadata.yaml").read_text(encoding="utf-8"))
    meta["draft"] = draft or only is not None
    with tempfile.TemporaryDirectory() as folder:
        text = typst_source(meta, root, folder, only)
        main = Path(folder, "report.typ")
        main.write_text(text, encoding="utf-8")
        shutil.copy(Path(root, "report", "layout.typ"), folder)
        if source:
            shutil.copytree(folder, source, dirs_exist_ok=True)
        try:
            typst.compile(str(main), output=str(out), root=folder, ignore_system_fonts=True, pdf_standards=["ua-1"])
        except typst.TypstError as err:
            raise BuildError("", f"Typst cannot set the report:\n{err.diagnostic}") from None


@click.command()
@click.option("--out", default=None, type=click.Path(dir_okay=False, path_type=Path), help="PDF file to write.")
@click.option("--only", multiple=True, metavar="CHAPTER", help="A draft of these chapters alone, e.g. 02_gmm.")
@click.option("--draft", is_flag=True, help="Put up with figures and equations that are missing.")
@click.option("--source", type=click.Path(file_okay=False, path_type=Path), help="Keep the Typst source in this folder.")
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(out, only, draft, source, root):
    """Build report.pdf from the notebooks as they are stored."""
    out = out or Path(root, "report.pdf")
    build(out, root, only or None, source, draft)
    click.echo(f"{out} written")


if __name__ == "__main__":
    main()
