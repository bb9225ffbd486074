"""The report's formulas: what pandoc's writers need and leave to do, numbers, links from the text, a font for HTML."""
import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import panflute as pf
from fontTools import subset
from fontTools.ttLib import TTFont

from report.tree import BuildError, typst

NUMBERED = re.compile(r"\\tag\{([\w.]+)\}")
_NUMBER = r"\(([1-9A-Z]\d*\.\d+[a-z]?)\)"
# In Markdown: code and display formulas, which stay; "eqs. (3.1), (3.2) and (3.4)".
_MENTION = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$|`[^`\n]+`|\$\$.*?\$\$"
                      rf"|\b(?P<mention>(?:eqs?\.|equations?)\s+{_NUMBER}"
                      rf"(?:(?:,|\s*[–-]|)\s*(?:(?:and|or|to|through)\s+)?{_NUMBER})*)", re.M | re.S | re.I)

# What texmath and pandoc's Typst writer get wrong or set badly, and what is written instead.
TEX_FIXES = [
    (r"\\!", ""),
    (r"\\;", r"\\:"),
    (r"\\mathrm\{([A-Za-z]{2,})\}", r"\\operatorname{\1}"),
    (r"\\(left|right)\s*\\(\||[lr]?Vert)", r"\\\1 \\Vert "),
    (r"\\[bB]igg?l(?![a-zA-Z])((?:(?!\\[bB]igg?[lr]|&|\\\\).)*)\\[bB]igg?r(?![a-zA-Z])", r"\\left\1\\right"),
    (r"\\[bB]igg?[lrm]?(?![a-zA-Z])", ""),
    (r"(?<!\\left)(?<!\\right)\\([lr])vert(?![a-zA-Z])", lambda m: {"l": r"\left|", "r": r"\right|"}[m[1]]),
    (r"(?<!\\left)(?<!\\right)(?<!\\)\|((?:[^|(){}]|\{[^{}|]*\}|\([^()|]*\))+)\|",
     r"\\left|\1\\right|"),  # |a|: a pair, not two relations
]
# A formula in the Typst source, and what is written there: names of functions are operators to be spaced, and a line
# may end at a relation, but not at the bar of p(x | z).
_TYPST = re.compile(r'(?<=-math\()("(?:[^"\\]|\\.)*", (?:none, |"[\w.]+", )?)(\$.*?(?<!\\)\$)(?=\))', re.S)
_OPERATOR = re.compile(r'(?<!upright\()(?<!bold\()(?<!italic\()("\w+")')
HTML_FIXES = [
    ("<mo accent=\"true\">\u0302</mo>", '<mo accent="true" stretchy="false">\u02c6</mo>'),  # in the middle of a letter
    ("<mo accent=\"true\">\u0303</mo>", '<mo accent="true" stretchy="false">\u02dc</mo>'),
]
MATHML = "http://www.w3.org/1998/Math/MathML"
ET.register_namespace("", MATHML)
SIGNS = "}mo", "}mspace"
# The letters that a browser shows for a variable of one letter: italic Latin and Greek.
ITALIC = {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)}


def mend(text, fixes, times=1):
    for wrong, right in fixes:
        for _ in range(times):
            text = re.sub(wrong, right, text, flags=re.S)
    return text


def mend_tex(tex):
    tex = mend(tex, TEX_FIXES, 3)  # pairs of brackets stand in one another
    return re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", lambda m: m[0].replace("&", r"&\quad "), tex, flags=re.S)


def mend_typst(source):
    def formula(m):
        body = _OPERATOR.sub(r"op(\1)", m[2])
        if body[1] != " ":  # not a display
            body = re.sub(r"\bdivides\b", 'thick class("normal", divides) thick', body)
        return m[1] + body

    return _TYPST.sub(formula, source)


def space_names(formula):
    """A formula of MathML with thin spaces around names of functions, as TeX has them: none beside an operator."""
    def first(node, *through):
        while len(node) and node.tag.rpartition("}")[2] in through:
            node = node[0]
        return node

    def is_name(node):
        node = first(node, "mrow", "msub", "msup", "munder", "munderover")
        return node.tag.endswith("}mi") and node.get("mathvariant") == "normal" and len(node.text) > 1

    root = ET.fromstring(re.sub("<mo>(\u2061|&#8289;)</mo>", "", formula))  # the invisible sign of application
    for row in root.iter():
        for before, node in list(zip(row, row[1:])) if row.tag.endswith(("}mrow", "}mtd", "}mstyle", "}math")) else ():
            if (is_name(node) and not before.tag.endswith(SIGNS)
                    or is_name(before) and not first(node, "mrow").tag.endswith(SIGNS)):
                row.insert(list(row).index(node), ET.Element(f"{{{MATHML}}}mspace", width="0.167em"))
    return ET.tostring(root, encoding="unicode")


def mend_html(page):
    """The page with its formulas' spaces, and with a font for them."""
    page = re.sub(r"<math.*?</math>", lambda m: space_names(mend(m[0], HTML_FIXES)), page, flags=re.S)
    page = re.sub(r"(?<=</math>)(?=[,.;:!?)\]’”])", "\u2060", page)  # no comma alone at the start of a line
    return page.replace("<style>\n", f"<style>\n{font(page)}\n", 1)


def link_mentions(markdown):
    """`markdown` with links where it speaks of "eq. (3.7)"; a lone (3.7) is none."""
    return _MENTION.sub(lambda m: re.sub(_NUMBER, r"[(\1)](#eq-\1)", m[0]) if m["mention"] else m[0], markdown)


class Formulas:
    """The formulas of a document and their numbers."""

    def __init__(self, html, draft):
        self.html, self.draft = html, draft
        self.numbers = {}  # number: where it stands
        self.places = {}   # TeX: where it stands first

    def find(self, math, at):
        for number in NUMBERED.findall(math.text):
            if number in self.numbers:
                raise BuildError(at, f"equation ({number}) is already numbered so in {self.numbers[number]}")
            self.numbers[number] = at
        self.places.setdefault(mend_tex(NUMBERED.sub("", math.text).strip()), at)

    def target(self, link, at):
        """A link to an equation as it is, if there is one."""
        number = link.url.removeprefix("#eq-")
        if number in self.numbers:
            return None
        if not self.draft:
            raise BuildError(at, f"eq. ({number}) is mentioned, but no equation has this number")
        return list(link.content)

    def set(self, math):
        """A formula as the writer needs it: with its number, and its TeX for those who cannot see it."""
        number = next(iter(NUMBERED.findall(math.text)), "")
        tex, display = NUMBERED.sub("", math.text).strip(), math.format == "DisplayMath"
        math.text = mend_tex(tex)
        if self.html and display:
            shown = [pf.Span(pf.Str(f"({number})"), classes=["number"])] if number else []
            return pf.Span(math, *shown, identifier=number and f"eq-{number}", classes=["equation"])
        if self.html:
            return math
        alt = json.dumps(" ".join(tex.split()), ensure_ascii=False)
        if not display:
            return [typst(f"#inline-math({alt}, "), math, typst(")")]
        shown, label = (f'"{number}"', f" <eq-{number}>") if number else ("none", "")
        return [typst(f"#display-math({alt}, {shown}, "), math, typst(f"){label}")]

    def blame(self, error):
        """The `error` of a writer of pandoc, with the place of the formula that it is about."""
        tex = re.search(r"Could not convert TeX math (.*?), rendering as TeX", error.message, re.S)
        return BuildError(self.places.get(tex[1], ""), f"a formula cannot be set: {error.message}") if tex else error


def font(page):
    """A rule of CSS that holds the font for the formulas of an HTML page, cut down to what it uses.

    A browser sets MathML with a font that has OpenType's MATH table; without one, sums stay small and brackets do not
    grow. Most phones have none. STIX Two Math comes from the package ziamath, under the SIL Open Font License.
    """
    formulas = re.sub(r"<annotation.*?</annotation>|<[^>]+>", "",
                      " ".join(re.findall(r"<math.*?</math>", page, re.S)), flags=re.S)
    if not formulas:
        return ""
    face = TTFont(Path(find_spec("ziamath").origin).with_name("fonts") / "STIXTwoMath-Regular.ttf",
                  recalcTimestamp=False)
    cutter = subset.Subsetter(subset.Options(layout_features=["*"], notdef_outline=True))
    cutter.populate(unicodes=ITALIC | set(map(ord, unescape(formulas))))
    cutter.subset(face)
    face.flavor, file = "woff", io.BytesIO()
    face.save(file)
    data = base64.b64encode(file.getvalue()).decode()
    return f'@font-face {{ font-family: "Formulas"; src: url(data:font/woff;base64,{data}) format("woff"); }}'
