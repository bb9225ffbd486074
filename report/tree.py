"""Running pandoc, and the filter on its document tree (panflute): figures, tables, code, links and citations."""
import hashlib
import io
import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import click
import panflute as pf
import pypandoc

READER = "markdown-implicit_header_references"
pf.elements.RAW_FORMATS |= {"typst"}  # which panflute 2.3 does not know
NUMBER = re.compile(r"[-+−±~<>≈]?[\d.,]+ ?(%|[±–-] ?[\d.,]+ ?%?)?|[-–—]?|nan")  # in a table


class BuildError(click.ClickException):
    """Something in the notebooks cannot be printed; `at` says where it is."""

    def __init__(self, at, message):
        super().__init__(f"{at}: {message}" if at else message)


def pandoc(text, *options, folder=None):
    """Run pandoc on `text` in `folder`; a warning of pandoc is an error here."""
    done = subprocess.run([pypandoc.get_pandoc_path(), "--fail-if-warnings", *map(str, options)],
                          input=text, capture_output=True, encoding="utf-8", cwd=folder)
    if done.returncode:
        raise BuildError("", done.stderr.strip())
    return done.stdout


def read(text, *options, folder=None):
    """The tree of a text, Markdown unless `options` say otherwise."""
    return pf.load(io.StringIO(pandoc(text, "-f", READER, "-t", "json", *options, folder=folder)))


def place(element):
    """Where `element` stands, as "notebook cell id": text.py puts each cell in a division that says so."""
    while element is not None and "at" not in getattr(element, "attributes", {}):
        element = element.parent
    return element.attributes["at"] if element else ""


def plain(element):
    """The text of an element without its markup, in one line; formulas as TeX."""
    return " ".join(pf.stringify(element).split())


def typst(text, kind=pf.RawInline):
    return kind(text, format="typst")


def align_numbers(table):
    """Columns of numbers to the right, the others to the left, as wide as the contents need."""
    rows = [[plain(cell) for cell in row.content] for body in table.content for row in body.content]
    columns = [[row[i] for row in rows if i < len(row)] for i in range(table.cols)]
    numbers = [any(column) and all(map(NUMBER.fullmatch, column)) for column in columns]
    table.colspec = [("AlignRight" if number else "AlignLeft", "ColWidthDefault") for number in numbers]
    for row in (row for part in (table.head, *table.content) for row in part.content):
        for cell in row.content:
            cell.alignment = "AlignDefault"


class Filter:
    """What makes pandoc's tree of the whole report one that a writer of pandoc can set.

    `shape` goes through it first and numbers what has a number, `link` follows; `formulas` (formulas.py) sets the
    formulas, `authors` are the entries of references.bib with their authors' names.
    """

    def __init__(self, meta, root, folder, chapters, authors, formulas):
        self.html, self.root, self.folder, self.chapters = meta["html"], Path(root), Path(folder), chapters
        self.authors, self.formulas = authors, formulas
        self.labels = {}  # label of a figure or table: (where it stands, Figure 3)

    def apply(self, document):
        return document.walk(self.shape).walk(self.link)

    def shape(self, element, document):
        if isinstance(element, pf.Math):
            self.formulas.find(element, place(element))
        elif isinstance(element, pf.Table):
            align_numbers(element)
        elif isinstance(element, (pf.RawBlock, pf.RawInline)) and element.format == "html":
            return self.raw_html(element)
        elif isinstance(element, pf.Header) and element.level == 1:
            return self.chapter(element)
        elif isinstance(element, pf.BlockQuote) and isinstance(element.prev, pf.Header) and element.prev.level == 1:
            if self.html:
                return pf.Div(*element.content, classes=["lead"])
            return [typst("#lead[", pf.RawBlock), *element.content, typst("]", pf.RawBlock)]
        elif isinstance(element, pf.Figure):  # a picture in the text
            image = element.content[0].content[0]
            return self.figure(self.copy(image), plain(image), element.caption.content[0].content, element.identifier)
        elif isinstance(element, pf.Image) and not isinstance(element.parent.parent, pf.Figure):
            return self.picture(self.copy(element), plain(element))
        elif isinstance(element, pf.Div):
            for kind in {"figure", "table", "source"} & set(element.classes):
                return getattr(self, f"{kind}_cell")(element)
        return None

    def figure_cell(self, div):
        caption, = div.content
        self.number(div, "Figure")
        return self.figure(div.attributes["file"], " ".join(div.attributes["alt"].split()) or plain(caption),
                           caption.content, div.identifier)

    def table_cell(self, div):
        caption, *blocks = div.content
        table = next((block for block in blocks if isinstance(block, pf.Table)), None)
        if table is None:
            raise BuildError(place(div), f"no table: the cell with label {div.identifier} has no stored table")
        self.number(div, "Table")
        table.identifier = div.identifier
        table.caption = pf.Caption(pf.Plain(*self.start(div.identifier), *caption.content))
        return blocks

    def source_cell(self, div):
        """Code, folded away in HTML: what it defines is its title, or else its first line."""
        blocks = list(div.content)
        code = blocks[0].text
        name = re.search(r"^(?:def|class) (\w+)", code, re.M) or re.search(r"^\s*(.+)", code)
        is_open = " open" * ("open" in div.classes)
        start = f'<details class="source"{is_open}><summary>Code <code>{escape(name[1])}</code></summary>'
        return [pf.RawBlock(start), *blocks, pf.RawBlock("</details>")]

    def number(self, div, kind):
        """Give a figure or table that has a label its number."""
        label, at = div.identifier, place(div)
        if label in self.labels:
            raise BuildError(at, f"label {label} is already used in {self.labels[label][0]}")
        count = sum(name.startswith(kind) for _, name in self.labels.values())
        self.labels[label] = at, f"{kind}\u00a0{count + 1}"

    def start(self, label):
        """How a caption starts; Typst counts by itself."""
        return [pf.Strong(pf.Str(self.labels[label][1] + ".")), pf.Space] if self.html and label in self.labels else []

    def figure(self, file, alt, caption, label):
        caption = pf.Caption(pf.Plain(*self.start(label), *caption))
        return pf.Figure(pf.Plain(self.picture(file, alt)), caption=caption, identifier=label)

    def picture(self, file, alt):
        if self.html:
            return pf.Image(pf.Str(alt), url=file)
        return typst(f"#picture({json.dumps(file)}, {json.dumps(alt, ensure_ascii=False)})")

    def copy(self, image):
        """Copy a picture that a text cell shows, as vectors where there is such a file; its file name."""
        path = self.root / "nbs" / image.url
        path = next((p for p in (path.with_suffix(".svg"), path) if p.exists()), None)
        if path is None:
            raise BuildError(place(image), f"picture {image.url} does not exist")
        name = hashlib.sha256(image.url.encode()).hexdigest()[:8] + "-" + path.name
        shutil.copyfile(path, self.folder / name)
        return name

    def raw_html(self, element):
        """A table in HTML becomes one of pandoc's; other HTML is for report.html alone."""
        if "<table" in element.text and isinstance(element, pf.RawBlock):
            return list(read(element.text, "-f", "html").walk(self.shape).content)
        if not self.html and re.search(r"<(img|table|svg)\b", element.text):
            raise BuildError(place(element), "this HTML cannot be printed, write Markdown instead: "
                             + element.text[:80])
        return None if self.html else []

    def chapter(self, header):
        """Give a chapter's title the label that links between notebooks lead to, and the chapter its number."""
        cell = header.parent
        if "chapter" not in getattr(cell, "attributes", {}):
            return None
        header.identifier = f"sec-{cell.attributes['chapter']}"
        if self.html:
            return None
        return [typst(f"#start-chapter({cell.attributes['number']})", pf.RawBlock), header]

    def link(self, element, document):
        if isinstance(element, pf.Math):
            return self.formulas.set(element)
        if isinstance(element, pf.Link):
            return self.target(element)
        if isinstance(element, pf.Cite):
            return self.cite(element)
        if isinstance(element, pf.Div) and "cell" in element.classes:
            return list(element.content)
        return None

    def target(self, link):
        """Links between notebooks become links between chapters; to other files of the project, plain text."""
        if link.url.startswith("#eq-"):
            return self.formulas.target(link, place(link))
        if re.match(r"\w+:", link.url):
            return None
        stem, _, suffix = link.url.partition("#")[0].rpartition("/")[2].partition(".")
        if suffix == "ipynb" and stem in self.chapters:
            return pf.Link(*link.content, url=f"#sec-{stem}")
        return list(link.content)

    def cite(self, cite):
        """`@fig-x` names a figure; after the author's name in the text, a citation gives the year alone."""
        first = cite.citations[0]
        if first.id in self.labels:
            name = pf.Str(self.labels[first.id][1])
            return pf.Link(name, url=f"#{first.id}") if self.html else typst(f"#ref(<{first.id}>)")
        for key in (citation.id for citation in cite.citations):
            if key not in self.authors:
                raise BuildError(place(cite), f"@{key} is neither in report/references.bib nor a figure's or table's "
                                 "label")
        before = cite.offset(-2)
        if isinstance(cite.prev, (pf.Space, pf.SoftBreak)) and isinstance(before, pf.Str):
            if before.text in self.authors[first.id] | {"others"}:
                first.mode = "SuppressAuthor"
        return None
