"""Build report.pdf from the notebooks as they are stored: `python -m report.build`. Nothing is executed.

The notebooks become one Markdown text (report/text.py, which says what is printed), pandoc reads it, what the report
adds is done on pandoc's document tree: formulas with numbers and links to them (report/formulas.py), figures, tables,
links, citations. Typst sets the pages (report/layout.typ). With --html the same tree becomes one HTML file that needs
nothing beside it (report/layout.html). report/metadata.yaml holds the title page and the list of chapters.

An unknown equation, a missing figure, an unresolved citation or a formula that cannot be set ends the build with a
message that names the notebook and the cell.
"""
import hashlib
import json
import re
import shutil
import tempfile
from html import escape
from pathlib import Path

import click
import typst
import yaml

from report import cells, mathml, text
from report.formulas import WRITER, Formulas, link_equations
from report.tree import BuildError, element, pandoc, plain, raw, read_markdown, rewrite, rewrite_lists

METADATA = "report/metadata.yaml"
TEXTS = "title", "subtitle", "course", "date", "abstract"  # in it: Markdown
LISTS = "authors", "keywords", "chapters", "leave-out"


def read_html(tables):
    """Tables written in HTML as pandoc blocks, by one run of pandoc."""
    if not tables:
        return {}
    source = "".join(f'<div id="table-{i}">{table}</div>' for i, table in enumerate(tables))
    blocks = json.loads(pandoc(source, "-f", "html", "-t", "json"))["blocks"]
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
    """Turn pandoc's tree of the whole report into one that a writer of pandoc can set; the parts common to both."""

    def __init__(self, root, folder, chapters, keys):
        self.root, self.folder, self.chapters, self.keys = root, folder, chapters, keys
        self.tables = {}   # HTML of a table: its blocks
        self.labels = {}   # label: where it stands
        self.numbers = {}  # label: Figure 3, Table 2
        self.alt = {}      # label or file of a figure: its caption as plain text

    def gather(self, node, at):
        """Before anything is changed: tables in HTML, labels with their numbers, captions as text."""
        if node["t"] == "RawBlock" and node["c"][0] == "html" and "<table" in node["c"][1]:
            self.tables[node["c"][1]] = None
        if node["t"] == "Image":
            self.alt[node["c"][2][0]] = plain(node["c"][1])
        kind = "".join(node["c"][0][1][:1]) if node["t"] == "Div" else ""
        if kind in ("figure", "table"):
            label = node["c"][0][0]
            if label in self.labels:
                raise BuildError(at, f"label {label} is already used in {self.labels[label]}")
            self.labels[label], self.alt[label] = at, plain(node["c"][1][0])
            count = sum(number.startswith(kind.title()) for number in self.numbers.values())
            self.numbers[label] = f"{kind.title()}\u00a0{count + 1}"

    def prepare(self, document):
        rewrite(document, self.gather)
        self.tables = read_html(list(self.tables))

    def copy_picture(self, target, at):
        """Copy a picture that a text cell shows, as vectors where there is such a file; its file name."""
        path = Path(self.root, "nbs", target)
        path = next((p for p in (path.with_suffix(".svg"), path) if p.exists()), None)
        if path is None:
            raise BuildError(at, f"picture {target} does not exist")
        name = hashlib.sha256(target.encode()).hexdigest()[:8] + "-" + path.name
        shutil.copy(path, Path(self.folder, name))
        return name

    def visit(self, node, at):
        kind, content = node["t"], node.get("c")
        if kind == "Div":
            (identifier, classes, pairs), blocks = content
            attributes = dict(pairs)
            inside = rewrite(blocks, self.visit, at)
            if "cell" in classes:
                return inside
            if "figure" in classes:
                alt = attributes["alt"] or self.alt[identifier]
                return [self.figure(attributes["file"], " ".join(alt.split()), inside[0]["c"], identifier)]
            if "table" in classes:
                return self.captioned_table(inside, identifier, at)
            if "source" in classes:
                return self.source(inside, "open" in classes)
        if kind == "Table":
            return [align_numbers({"t": "Table", "c": rewrite(content, self.visit, at)})]
        if kind == "RawBlock" and content[0] == "html" and content[1] in self.tables:
            return rewrite(self.tables[content[1]], self.visit, at)
        if kind in ("RawBlock", "RawInline") and content[0] == "html":
            return self.html(content[1], at)
        if kind == "Figure":
            (identifier, _, _), (_, caption), body = content
            _, alt, (target, _) = body[0]["c"][0]["c"]
            caption = rewrite(caption[0]["c"] if caption else alt, self.visit, at)
            return [self.figure(self.copy_picture(target, at), self.alt[target], caption, identifier)]
        if kind == "Image":
            return [self.picture(self.copy_picture(content[2][0], at), self.alt[content[2][0]])]
        if kind == "Link":
            return self.link(node, at)
        if kind == "Cite":
            key = content[0][0]["citationId"]
            if key in self.numbers:
                return [self.reference(key)]
            for key in (citation["citationId"] for citation in content[0]):
                if key not in self.keys:
                    raise BuildError(at, f"@{key} is neither in report/references.bib nor a figure's or table's label")
        return None

    def captioned_table(self, blocks, label, at):
        caption, *rest = blocks
        table = next((block for block in rest if block["t"] == "Table"), None)
        if table is None:
            raise BuildError(at, f"no table: the cell with label {label} has no stored table")
        table["c"][0][0], table["c"][1] = label, [None, [element("Plain", self.table_caption(caption["c"], label))]]
        return rest

    def link(self, node, at):
        """Links between notebooks become links between chapters; to other files of the project, plain text."""
        _, words, (target, _) = node["c"]
        if re.match(r"\w+:|#eq-", target):
            return None
        stem, _, suffix = target.partition("#")[0].rpartition("/")[2].partition(".")
        words = rewrite(words, self.visit, at)
        if suffix == "ipynb" and stem in self.chapters:
            return [element("Link", ["", [], []], words, [f"#sec-{stem}", ""])]
        return words

    def chapters_in(self, blocks):
        """Give each chapter's title the label that links between notebooks lead to, and set off the line below it."""
        out, name, title = [], None, False
        for block in blocks:
            span = block["c"][0] if block["t"] == "Para" and len(block["c"]) == 1 else {}
            if span.get("t") == "Span" and "chapter" in span["c"][0][1]:
                chapter = dict(span["c"][0][2])
                name, title = chapter["name"], False
                out += self.start_chapter(int(chapter["number"]))
            elif block["t"] == "Header" and block["c"][0] == 1 and name:
                block["c"][1][0], name, title = f"sec-{name}", None, True
                out.append(block)
            else:
                out += self.lead(block["c"]) if block["t"] == "BlockQuote" and title else [block]
                title = False
        return out


class TypstPrinter(Printer):
    """For report.pdf: what report/layout.typ defines, around pandoc's own Typst."""

    def figure(self, file, alt, caption, label):
        start = f"#figure({self.picture_source(file, alt)}, caption: ["
        return element("Para", [raw(start), *caption, raw("])" + (f" <{label}>" if label else ""))])

    def picture(self, file, alt):
        return raw("#" + self.picture_source(file, alt))

    @staticmethod
    def picture_source(file, alt):
        return f"picture({json.dumps(file)}, {json.dumps(alt, ensure_ascii=False)})"

    def table_caption(self, caption, label):
        return caption

    def source(self, blocks, is_open):
        return blocks

    def reference(self, label):
        return raw(f"#ref(<{label}>)")

    def html(self, source, at):
        if re.search(r"<(img|table|svg)\b", source):
            raise BuildError(at, f"this HTML cannot be printed, write Markdown instead: {source[:80]}")
        return []

    def start_chapter(self, number):
        return [raw(f"#start-chapter({number})", "RawBlock")]

    def lead(self, blocks):
        return [raw("#lead[", "RawBlock"), *blocks, raw("]", "RawBlock")]


class HtmlPrinter(Printer):
    """For report.html."""

    def figure(self, file, alt, caption, label):
        number = [element("Strong", [element("Str", self.numbers[label] + ".")]), {"t": "Space"}] if label else []
        return element("Figure", [label, [], []], [None, [element("Plain", number + caption)]],
                       [element("Plain", [self.picture(file, alt)])])

    def picture(self, file, alt):
        return element("Image", ["", [], []], [element("Str", alt)], [file, ""])

    def table_caption(self, caption, label):
        return [element("Strong", [element("Str", self.numbers[label] + ".")]), {"t": "Space"}, *caption]

    def source(self, blocks, is_open):
        code = plain(blocks[0])
        name = re.search(r"^(?:def|class) (\w+)", code, re.M) or re.search(r"^\s*(.+)", code)
        start = (f'<details class="source"{" open" * is_open}>'
                 f'<summary>Code <code>{escape(name[1])}</code></summary>')
        return [raw(start, "RawBlock", "html"), *blocks, raw("</details>", "RawBlock", "html")]

    def reference(self, label):
        return element("Link", ["", [], []], [element("Str", self.numbers[label])], [f"#{label}", ""])

    def html(self, source, at):
        return None

    def start_chapter(self, number):
        return []

    def lead(self, blocks):
        return [element("Div", ["", ["lead"], []], blocks)]


def bibliography(folder):
    """The entries of references.bib: {key: family names of the authors}."""
    entries = json.loads(pandoc("", "-f", "bibtex", "-t", "csljson", "references.bib", folder=folder))
    return {entry["id"]: {author.get("family") for author in entry.get("author", [])} for entry in entries}


def name_once(authors):
    """A function for `rewrite_lists`: after the author's name in the text, a citation gives the year alone."""
    def cites(nodes, at):
        for before, space, node in zip(nodes, nodes[1:], nodes[2:]):
            if node["t"] == "Cite" and space["t"] in ("Space", "SoftBreak") and before["t"] == "Str":
                citation = node["c"][0][0]
                if before["c"] in authors.get(citation["citationId"], set()) | {"others"}:
                    citation["citationMode"] = {"t": "SuppressAuthor"}
        return nodes

    return cites


def fill(words, root):
    """Replace {{a.b}} and {{a.b:format}} by values of figures/results.json."""
    path = Path(root, "figures", "results.json")

    def value(m):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for key in m[1].split("."):
                found = found[int(key) if isinstance(found, list) else key]
            return format(found, m[2] or "")
        except (OSError, LookupError, TypeError, ValueError):
            raise BuildError(METADATA, f"{m[0]} is not a value of figures/results.json") from None

    return re.sub(r"\{\{\s*([\w.-]+)\s*(?::([^}]*))?\}\}", value, words)


def read_metadata(root, html=False, draft=False):
    """report/metadata.yaml, with the values of results.json in its texts; `authors` become a list of dicts."""
    try:
        meta = yaml.safe_load(Path(root, METADATA).read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as err:
        raise BuildError(METADATA, f"cannot be read: {err}") from None
    except yaml.YAMLError as err:
        line = err.problem_mark.line + 1 if getattr(err, "problem_mark", None) else "?"
        raise BuildError(f"{METADATA}, line {line}", f"{getattr(err, 'problem', err)}. A text with a colon, or one "
                         "that begins with a sign, needs quotes: title: 'Digits: a report'") from None
    if not isinstance(meta, dict) or not meta.get("title"):
        raise BuildError(METADATA, "there is no title: write title: 'My report'")
    for key in TEXTS:
        if isinstance(meta.get(key), (dict, list)):
            raise BuildError(METADATA, f"{key} must be a text, not {meta[key]}: put it in quotes")
    meta |= {key: fill(str(meta[key]), root) for key in TEXTS if meta.get(key)}
    for key in LISTS:
        value = meta.get(key)
        meta[key] = value if isinstance(value, list) else [] if value is None else [value]
    meta["authors"] = [author if isinstance(author, dict) else {"name": author} for author in meta["authors"]]
    if not all(author.get("name") for author in meta["authors"]):
        raise BuildError(METADATA, "an author has no name: write `- name: Ann Lee` for each, or leave out authors")
    return meta | {"html": html, "draft": draft}


def chosen(meta, only):
    """The chapters that `only` names, with or without their numbers, which may have changed; None is all."""
    def bare(name):
        return re.sub(r"^\d+_|\.ipynb$", "", str(name))

    if only is None:
        return None
    for name in only:
        if bare(name) not in map(bare, meta["chapters"]):
            raise BuildError("--only", f"there is no chapter {name}; there are {', '.join(map(str, meta['chapters']))}")
    return [chapter for chapter in meta["chapters"] if bare(chapter) in map(bare, only)]


def typst_string(words):
    """A text as a string of Typst, in a template of pandoc's."""
    return json.dumps(str(words), ensure_ascii=False).replace("$", "$$")


def typst_template(meta):
    """The Typst source around the text: settings as code, title and abstract as text that pandoc fills in."""
    lang, _, region = meta.get("language", "en-GB").partition("-")
    authors = "".join("(" + "".join(f"{key}: {typst_string(author[key])}, " for key in ("name", "affiliation", "email")
                                    if author.get(key)) + "), " for author in meta["authors"])
    keywords = "".join(typst_string(word) + ", " for word in meta["keywords"])
    texts = "".join(f"  {key}: [${key}$],\n" for key in TEXTS if meta.get(key))
    return (f'#import "layout.typ": *\n#show: report.with(\n{texts}  authors: ({authors}),\n  keywords: ({keywords}),\n'
            f'  paper: "{meta.get("paper", "a4")}", font-size: {meta.get("font-size", "10pt")},\n'
            f'  margin: {meta.get("margin", "2.2cm")}, lang: "{lang}", region: "{region or "GB"}",\n)\n\n$body$\n')


def document_tree(meta, root, folder, only=None):
    """The whole report as pandoc's tree, ready for the writer; its pictures lie in `folder` afterwards."""
    texts = {key: meta[key] for key in TEXTS if meta.get(key)}
    Path(folder, "texts.yaml").write_text(yaml.safe_dump(texts, allow_unicode=True), encoding="utf-8")
    for name in "layout.typ", "layout.html", "references.bib":
        shutil.copyfile(Path(root, "report", name), Path(folder, name))
    document = read_markdown(text.markdown(meta, root, folder, only), "--metadata-file=texts.yaml", folder=folder)

    authors = bibliography(folder)
    printer = (HtmlPrinter if meta["html"] else TypstPrinter)(root, folder, only or meta["chapters"], authors.keys())
    printer.prepare(document)
    formulas = Formulas(document)
    document = rewrite_lists(document, link_equations(formulas.numbers, strict=not meta["draft"]))
    document = rewrite_lists(document, name_once(authors))
    document = rewrite(document, formulas.to_html if meta["html"] else formulas.to_typst)
    document = rewrite(document, printer.visit)
    document["blocks"] = printer.chapters_in(document["blocks"])
    return document


def write_document(document, meta, folder, template, *options):
    """The tree as text in a target format, with citations. Pandoc works in `folder`, whatever that is called."""
    return pandoc(json.dumps(document), "-f", "json", "--standalone", f"--template={template}", "--wrap=none",
                  "--citeproc", "--bibliography=references.bib", "--metadata=link-citations:true",
                  f"--metadata=lang:{meta.get('language', 'en-GB')}", *options, folder=folder)


def typst_source(meta, root, folder, only=None):
    """Write report.typ and what it needs to `folder`."""
    document = document_tree(meta, root, folder, only)
    Path(folder, "template.typ").write_text(typst_template(meta), encoding="utf-8")
    source = write_document(document, meta, folder, "template.typ", "-t", WRITER, "--syntax-highlighting=idiomatic")
    Path(folder, "report.typ").write_text(source, encoding="utf-8")


def write(out, content):
    """Write the finished report."""
    try:
        Path(out).write_bytes(content)
    except OSError as err:
        raise BuildError(out, f"cannot be written: {err.strerror}") from None


def build_pdf(out, root=cells.ROOT, only=None, source=None, draft=False):
    """Build the PDF `out`; `source` is a folder in which to keep the Typst source too."""
    meta = read_metadata(root, draft=draft or only is not None)
    with tempfile.TemporaryDirectory() as folder:
        typst_source(meta, root, folder, chosen(meta, only))
        if source:
            shutil.copytree(folder, source, dirs_exist_ok=True)
        try:
            pdf = typst.compile(str(Path(folder, "report.typ")), root=folder, ignore_system_fonts=True,
                                pdf_standards=["ua-1"])
        except typst.TypstError as err:
            raise BuildError("", f"Typst cannot set the report:\n{err.diagnostic}") from None
    write(out, pdf)


def build_html(out, root=cells.ROOT, only=None, draft=False):
    """Build the HTML file `out`, with pictures and styles inside it."""
    meta = read_metadata(root, html=True, draft=draft or only is not None)
    with tempfile.TemporaryDirectory() as folder:
        document = document_tree(meta, root, folder, chosen(meta, only))
        page = write_document(document, meta, folder, "layout.html", "-t", "html5", "--mathml", "--embed-resources",
                              "--toc", "--toc-depth=2", "--number-sections",
                              f"--variable=pagetitle:{escape(plain(document['meta']['title']))}",
                              *(f"--variable=author:{escape(str(author['name']))}" for author in meta["authors"]))
    page = mathml.keep_punctuation(mathml.centre_accents(mathml.space_names(page)))
    page = page.replace("<style>\n", "<style>\n" + mathml.font(page) + "\n", 1)
    write(out, page.encode())


@click.command()
@click.option("--html", is_flag=True, help="Build report.html instead.")
@click.option("--out", default=None, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--only", multiple=True, metavar="CHAPTER", help="A draft of these chapters alone, e.g. gmm.")
@click.option("--draft", is_flag=True, help="Put up with figures and equations that are missing.")
@click.option("--source", type=click.Path(file_okay=False, path_type=Path), help="Keep the Typst source here.")
@click.option("--root", default=cells.ROOT, type=click.Path(file_okay=False, path_type=Path), help="Project folder.")
def main(html, out, only, draft, source, root):
    """Build report.pdf from the notebooks as they are stored."""
    out = out or Path(root, "report.html" if html else "report.pdf")
    if html:
        build_html(out, root, only or None, draft)
    else:
        build_pdf(out, root, only or None, source, draft)
    click.echo(f"{out} written")


if __name__ == "__main__":
    main()
