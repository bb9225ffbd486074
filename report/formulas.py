"""The report's formulas: found in pandoc's tree, set in Typst, numbered, and linked from the text."""
import json
import re

from report.tree import BuildError, element, pandoc, raw, rewrite

WRITER = "typst-citations"
NUMBERED = re.compile(r"\\tag\{([\w.]+)\}")
EQUATIONS = re.compile(r"(?:^|\W)(?:eqs?\.|equations?)$", re.I)  # a word after which "(3.7)" is an equation's number
BETWEEN = {"and", "or", "to", "through"}  # words that may stand between two numbers

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
OPERATOR = re.compile(r'(?<!upright\()(?<!bold\()(?<!italic\()("\w+")')  # in pandoc's Typst; op(...) sets it as a name


def tex_source(tex):
    for wrong, right in TEX_FIXES:
        for _ in range(3):  # pairs of brackets stand in one another
            tex = re.sub(wrong, right, tex, flags=re.S)
    return re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", lambda m: m[0].replace("&", r"&\quad "), tex, flags=re.S)


class Formulas:
    """All formulas of a document: found, set by one run of pandoc, and put in their places with numbers."""

    def __init__(self, document):
        self.found = {}    # (display, TeX without its number): where it stands first
        self.numbers = {}  # number: where it stands
        rewrite(document, self.find)
        self.set = dict(zip(self.found, self.convert(list(self.found))))

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

    def convert(self, keys):
        """The formulas `keys` in Typst, in their order."""
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
            return self.convert(keys[:half]) + self.convert(keys[half:])
        return [OPERATOR.sub(r"op(\1)", part.strip()) for part in text.split(mark)[:-1]]

    def to_typst(self, node, at):
        """A visitor for `rewrite`: formulas become Typst."""
        if node["t"] != "Math":
            return None
        tex, display = self.source(node), node["c"][0]["t"] == "DisplayMath"
        alt, body = json.dumps(" ".join(tex.split()), ensure_ascii=False), self.set[display, tex]
        if not display:  # a line may end at a relation, but not at the bar of p(x | z)
            body = re.sub(r"\bdivides\b", 'thick class("normal", divides) thick', body)
            return [raw(f"#inline-math({alt}, {body})")]
        number = next(iter(NUMBERED.findall(node["c"][1])), None)
        label = f" <eq-{number}>" if number else ""
        return [raw(f"#display-math({alt}, {json.dumps(number) if number else 'none'}, {body}){label}")]

    def to_html(self, node, at):
        """A visitor for `rewrite`: numbered formulas get their number and a place to link to."""
        if node["t"] != "Math":
            return None
        math = element("Math", node["c"][0], tex_source(self.source(node)))
        if node["c"][0]["t"] == "InlineMath":
            return [math]
        number = next(iter(NUMBERED.findall(node["c"][1])), None)
        parts = [math, element("Span", ["", ["number"], []], [element("Str", f"({number})")])] if number else [math]
        return [element("Span", [f"eq-{number}" if number else "", ["equation"], []], parts)]


def link_equations(numbers, strict=True):
    """A function for `rewrite_lists` that turns the numbers after "eq." in a list of inlines into links."""
    def link(text, at):
        parts = re.split(r"\(([1-9A-Z]\d*\.\d+[a-z]?)\)", text)
        for i, part in enumerate(parts):
            if i % 2 == 0:
                if part:
                    yield element("Str", part)
            elif part in numbers:
                yield element("Link", ["", [], []], [element("Str", f"({part})")], [f"#eq-{part}", ""])
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
