"""The formulas of report.html: a font for them inside the page, and the spaces around log and its like.

A browser sets MathML with a font that knows how (OpenType's MATH table); without one, sums stay small and brackets do
not grow. Most phones have none. The font is STIX Two Math, cut down to what the page uses; it comes from the package
ziamath, and its licence is the SIL Open Font License.
"""
import base64
import io
import re
import xml.etree.ElementTree as ET
from html import unescape
from importlib.util import find_spec
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

MATHML = "http://www.w3.org/1998/Math/MathML"
ET.register_namespace("", MATHML)
# The letters that a browser shows for a variable of one letter: italic Latin and Greek.
ITALIC = {0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)}


def characters(page):
    """The characters in the formulas of an HTML page."""
    formulas = " ".join(re.findall(r"<math.*?</math>", page, re.S))
    return set(unescape(re.sub(r"<annotation.*?</annotation>|<[^>]+>", "", formulas, flags=re.S)))


def font(page):
    """A rule of CSS that holds the font for the formulas of `page`; empty where there are none."""
    if "<math" not in page:
        return ""
    fonts = Path(find_spec("ziamath").origin).with_name("fonts")
    face = TTFont(fonts / "STIXTwoMath-Regular.ttf", recalcTimestamp=False)
    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=ITALIC | set(map(ord, characters(page))))
    cutter.subset(face)
    face.flavor = options.flavor
    file = io.BytesIO()
    face.save(file)
    data = base64.b64encode(file.getvalue()).decode()
    return f'@font-face {{ font-family: "Formulas"; src: url(data:font/woff;base64,{data}) format("woff"); }}'


def is_name(node):
    """Whether a node of MathML is the name of a function, with or without limits: log, max over a."""
    with_limits = "}msub", "}msup", "}munder", "}munderover"
    while node.tag.endswith(with_limits) or node.tag.endswith("}mrow") and len(node) == 1:
        node = node[0]
    return node.tag.endswith("}mi") and node.get("mathvariant") == "normal" and len(node.text or "") > 1


def starts_with_operator(node):
    """Whether a node begins with a bracket or another operator."""
    while node.tag.endswith("}mrow") and len(node):
        node = node[0]
    return node.tag.endswith("}mo")


def space_names(page):
    """The page with thin spaces around the names of functions, as TeX sets them: none beside operators and brackets."""
    def spaced(m):
        root = ET.fromstring(re.sub("<mo>(\u2061|&#8289;)</mo>", "", m[0]))  # the invisible sign of application
        for parent in root.iter():
            children = list(parent) if parent.tag.endswith(("}mrow", "}mtd", "}mstyle", "}math")) else []
            for before, child in zip(children, children[1:]):
                if (is_name(child) and not before.tag.endswith(("}mo", "}mspace"))
                        or is_name(before) and not starts_with_operator(child)):
                    parent.insert(list(parent).index(child), ET.Element(f"{{{MATHML}}}mspace", width="0.167em"))
        return ET.tostring(root, encoding="unicode")

    return re.sub(r"<math.*?</math>", spaced, page, flags=re.S)


ACCENTS = {"\u0302": "\u02c6", "\u0303": "\u02dc"}  # hat and tilde: marks that combine, and such as stand by themselves


def centre_accents(page):
    """The page with hats and tildes above the middle of a letter and no wider than it."""
    return re.sub("<mo[^>]*>([\u0302\u0303])</mo>",
                  lambda m: f'<mo accent="true" stretchy="false">{ACCENTS[m[1]]}</mo>', page)


def keep_punctuation(page):
    """The page with commas and the like never alone at the start of a line, after a formula at the end of one."""
    return re.sub(r"(?<=</math>)(?=[,.;:!?)\]’”])", "\u2060", page)  # a word joiner
