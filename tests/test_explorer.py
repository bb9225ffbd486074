"""The page to draw into, in a browser: it computes what the package does, and works by mouse, touch and keys."""
import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pypandoc
import pytest
import torch
from click.testing import CliRunner
from test_html import BROWSER, DESK, PHONE, browser, faults, show  # noqa: F401: two of them are fixtures

from report import build, cells
from vae_gmm.checkpoint import kept
from vae_gmm.classifier import VAEGMM
from vae_gmm.data import as_images, augment_batch, embedded_digits, load_npz, put_back, straighten, write_course_files
from vae_gmm.explorer import write_explorer
from vae_gmm.files import InputError
from vae_gmm.gmm import Mixture, e_step, fit_mixture, m_step
from vae_gmm.small import load_small
from vae_gmm.uses import anomaly_score, conformal_p_value

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (ROOT / "vae_gmm" / "explorer.html").read_text(encoding="utf-8")
BY_SIGHT = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

# From 784 bytes for each image, in base64: a list of lists of grey values.
IMAGES = """const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
            const images = Array.from({length: bytes.length / 784}, (_, i) =>
                Float32Array.from(bytes.subarray(784 * i, 784 * (i + 1)), byte => byte / 255));"""


def packed(images):
    return base64.b64encode(np.ascontiguousarray(images, dtype=np.uint8).tobytes()).decode()


def weights_in(page, folder):
    """The network that a page holds, read as the package reads it."""
    text = page.read_text(encoding="utf-8").partition('id="weights">')[2].partition("</script>")[0]
    (folder / "small").write_bytes(gzip.decompress(base64.b64decode(text)))
    return load_small(folder / "small")[0]


@pytest.fixture(scope="module")
def clf():
    return VAEGMM.pretrained()


@pytest.fixture(scope="module")
def file(clf, tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write_explorer(clf, path)
    return path


@pytest.fixture
def page(show, file):  # noqa: F811
    page = show(file)
    page.evaluate("ready.then(() => true)")
    return page


@pytest.fixture(scope="module")
def some_digits():
    return embedded_digits()[0][::250]


def test_the_page_is_one_file_of_four_megabytes_at_most(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) <= 4e6 and "{{" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)


def test_its_program_can_be_read():
    lines = TEMPLATE.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(TEMPLATE.partition('"use strict"')[2].splitlines()) <= 800


def test_its_equations_are_those_of_chapter_3():
    text = "\n".join(c.source for c in cells.read(ROOT / "nbs" / "03_gmm.ipynb").cells if c.cell_type == "markdown")

    def plain(html):
        return re.sub(r"\s+", " ", re.sub(r"\s*(</?[^>]+>)\s*", r"\1", html))

    found = re.findall(r'data-number="(\S+)">\s*(<math.*?</math>)\s*<span class="number">\((\S+)\)</span>', TEMPLATE,
                       re.S)
    assert [number for number, _, shown in found if number == shown] == ["3.6", "3.11", "3.14", "3.16", "3.7"]
    for number, math, _ in found:
        tex = re.search(r"\$\$([^$]*?)\\tag\{%s\}\s*\$\$" % re.escape(number), text)[1].strip()
        made = pypandoc.convert_text(f"$${tex}$$", "html", format="markdown", extra_args=["--mathml"])
        assert plain(math) == plain(re.search(r"<math.*</math>", made, re.S)[0])
    every = "\n".join(c.source for path in cells.notebooks() for c in cells.read(path).cells)
    assert set(re.findall(r"\((\d\.\d+)\)", TEMPLATE)) <= set(re.findall(r"\\tag\{(\d\.\d+)\}", every))


@BY_SIGHT
@pytest.mark.parametrize("width, scheme", [(1440, "dark"), (DESK, "light"), (PHONE, "dark")])
def test_nothing_is_missing_nothing_too_wide_and_all_can_be_read(show, file, width, scheme):  # noqa: F811
    page = show(file, width, scheme)
    page.evaluate("ready.then(() => true)")
    page.locator("#digits button").first.click()
    page.locator("#em-start").click()
    page.locator("#em-e").click()
    for scheme in (scheme, *{"light", "dark"} - {scheme}):  # as evening comes
        page.emulate_media(color_scheme=scheme)
        assert faults(page)[0] == []
        assert page.evaluate(FAINT) == []


FAINT = """() => {  // texts with a contrast below 4.5 to what is behind them
  const light = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) =>
    0.2126 * light(r / 255) + 0.7152 * light(g / 255) + 0.0722 * light(b / 255);
  const behind = node => {
    for (let n = node; n; n = n.parentElement) {
      const c = numbers(getComputedStyle(n).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
    if (!own || node.closest("script, noscript, annotation, :disabled")) continue;
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node), svg = node instanceof SVGElement;
    const pair = [luminance(numbers(svg ? style.fill : style.color)), luminance(behind(node))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) found.push(`${node.tagName} ${node.textContent.slice(0, 30)}: ${contrast}`);
  }
  return found;
}"""


@BY_SIGHT
def test_colours_of_digits_stand_out(show, file):  # noqa: F811
    page, papers = show(file), []
    for scheme in "light", "dark":
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate("""() => [...Array(10).keys()].map(d => `var(--d${d})`).concat("var(--paper)").map(c =>{
            document.body.style.color = c;
            return getComputedStyle(document.body).color.match(/\\d+/g).map(Number); })""")
        linear = np.array(colours) / 255
        linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
        light = linear @ (0.2126, 0.7152, 0.0722) + 0.05
        assert (np.maximum(light[:-1], light[-1]) / np.minimum(light[:-1], light[-1]) >= 3).all()
        papers.append(light[-1])
    assert papers[0] > 10 * papers[1]  # it was day, and night


@BY_SIGHT
def test_make_html_writes_one_with_a_font_for_its_formulas(show, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(build, "build_html", lambda out, *how: out.write_text("the report"))
    done = CliRunner().invoke(build.main, ["--html", "--out", str(tmp_path / "report.html")])
    assert done.exit_code == 0, done.output
    page = show(tmp_path / "explorer.html")
    page.evaluate("ready.then(() => document.fonts.ready)")
    assert page.evaluate("[...document.fonts].map(f => f.family + ' ' + f.status)") == ["Formulas loaded"]
    assert faults(page)[0] == [] and (tmp_path / "explorer.html").stat().st_size <= 4e6


@BY_SIGHT
def test_without_javascript_there_is_a_word(browser, file):  # noqa: F811
    page = browser.new_page(java_script_enabled=False)
    page.goto(file.as_uri())
    assert page.locator("noscript p").is_visible()  # its text is left out by the search for texts
    page.close()


@BY_SIGHT
def test_poses_are_those_of_chapter_1(page, some_digits):
    x = as_images(some_digits)
    straight, pose = straighten(x)
    found = page.evaluate("text => {" + IMAGES + """return images.map(x => {
        const pose = poseOf(x), straight = straighten(x, pose);
        return [[pose.right, pose.down, pose.slant], [...straight], [...putBack(straight, pose)]];
        })}""", packed(some_digits))
    for part, expected in zip(zip(*found), (pose, straight, put_back(straight, pose))):
        assert np.abs(np.array(part) - expected.flatten(1).numpy()).max() < 1e-4


@BY_SIGHT
def test_encoder_decoder_and_score_are_the_packages(page, file, clf, some_digits, tmp_path):
    vae, (x, _) = weights_in(file, tmp_path), straighten(as_images(some_digits))
    with torch.no_grad():
        z = vae.encode(x)[0]
        logits = vae.decode(z)
    found = page.evaluate("text => {" + IMAGES + """return images.map(x => {
        const straight = straighten(x), {z, score, resp, proba} = read(x);
        return [z, [...decode(z)], [score], resp, proba]; })}""", packed(some_digits))
    mine = [np.array(part) for part in zip(*found)]
    assert np.abs(mine[0] - z.numpy()).max() < 1e-3
    assert np.abs(mine[1] - logits.flatten(1).numpy()).max() < 1e-2
    assert np.abs(mine[2][:, 0] - anomaly_score(vae, clf.mixture_, some_digits)).max() < 0.01
    resp = e_step(z.double(), *clf.mixture_)[0].numpy()
    assert np.abs(mine[3] - resp).max() < 1e-2 and np.abs(mine[4] - resp @ clf.shares_).max() < 1e-2


@BY_SIGHT
def test_500_digits_get_the_names_that_the_full_network_gives(show, tmp_path):  # noqa: F811
    """Digits that it has not been trained on, as they are and in another pose; 500 of them, drawn by seed."""
    paths = write_course_files(tmp_path)
    X, few, test = load_npz(paths["train"]).images, load_npz(paths["val"]), load_npz(paths["test"])
    full = VAEGMM()
    with kept(full, X) as path:  # the network of chapter 6
        full.fit_labelled(X, few.images, few.labels, checkpoint=path, resume=True)
    unseen = as_images(np.concatenate([few.images, test.images]))
    both = torch.cat([unseen, augment_batch(unseen, torch.Generator().manual_seed(0))])
    chosen = both[torch.from_numpy(np.random.default_rng(0).permutation(len(both))[:500])]
    images = (chosen * 255).round().to(torch.uint8)[:, 0].numpy()
    write_explorer(full, tmp_path / "full.html")
    page = show(tmp_path / "full.html")
    page.evaluate("ready.then(() => true)")
    names = page.evaluate("text => {" + IMAGES + """return images.map(x => {
        const {resp: [r]} = eStep([encode(straighten(x))], mixture);
        const proba = data.classes.map((_, d) => r.reduce((s, v, c) => s + v * data.shares[c][d], 0));
        return data.classes[proba.indexOf(Math.max(...proba))]; })}""", packed(images))
    assert len(names) == 500 and np.mean(full.predict(images) == names) >= 0.99


@BY_SIGHT
def test_the_p_value_counts_digits_that_are_at_least_as_odd(page):
    found = page.evaluate("""() => data.digits.map(d => {
        const {score, p} = read(Float32Array.from(atob(d.image), c => c.charCodeAt(0) / 255));
        return [score, p]; })""")
    scores = np.array(page.evaluate("data.scores"))
    for score, p in found:
        assert p == pytest.approx(conformal_p_value(np.array([score]), scores)[0])
    assert 0.2 < np.median([p for _, p in found]) < 0.8
    noise = page.evaluate("() => read(Float32Array.from({length: 784}, (_, i) => i % 2)).p")
    assert noise == pytest.approx(1 / (len(scores) + 1))


def stroke(page, *places):
    """Draw a line with the mouse through places in the pad, each from 0 to 1."""
    box = page.locator("#pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


SAID = "document.getElementById('said').textContent"


@BY_SIGHT
def test_what_is_drawn_is_read(page):
    stroke(page, (0.5, 0.1), (0.46, 0.9))
    assert page.evaluate(SAID).startswith("1 with probability")
    assert page.locator("#p").inner_text() != "–"
    page.locator("#clear").click()
    assert page.evaluate(SAID).startswith("Draw one of")
    assert page.locator("#p").inner_text() == "–"
    stroke(page, (0.3, 0.1), (0.25, 0.5), (0.75, 0.5))
    stroke(page, (0.7, 0.1), (0.68, 0.9))
    assert page.evaluate(SAID).startswith("4 with probability")
    page.locator("#undo").click()
    page.locator("#undo").click()
    assert page.evaluate(SAID).startswith("Draw one of")
    assert page.heard == []


@BY_SIGHT
def test_a_drawing_takes_the_form_of_mnist(page):
    strokes = [[[0.1, 0.1], [0.9, 0.3]], [[0.2, 0.2], [0.3, 0.6]]]
    image = np.array(page.evaluate("strokes => [...imageOf(strokes)]", strokes)).reshape(28, 28)
    rows, columns = np.nonzero(image > 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
    at = np.arange(28) - 13.5
    assert abs(image.sum(0) @ at / image.sum()) < 0.1 and abs(image.sum(1) @ at / image.sum()) < 0.1


@BY_SIGHT
def test_a_finger_draws(show, file):  # noqa: F811
    page = show(file, PHONE)
    page.evaluate("ready.then(() => true)")
    box, devtools = page.locator("#pad").bounding_box(), page.context.new_cdp_session(page)
    for kind, y in (("touchStart", 0.1), ("touchMove", 0.5), ("touchMove", 0.9), ("touchEnd", None)):
        points = [] if y is None else [{"x": box["x"] + box["width"] / 2, "y": box["y"] + y * box["height"]}]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.evaluate(SAID).startswith("1 with probability")
    assert page.evaluate("scrollY") == 0


@BY_SIGHT
def test_keys_draw_choose_and_walk(page):
    page.locator("#pad").focus()
    for key in ("ArrowUp", "ArrowUp", "Space", *["ArrowDown"] * 9, "Space"):
        page.keyboard.press(key)
    assert page.evaluate(SAID).startswith("1 with probability")
    page.keyboard.press("Escape")
    assert page.evaluate(SAID).startswith("Draw one of")
    page.locator("#digits button").nth(3).focus()
    page.keyboard.press("Enter")
    label = page.evaluate("data.digits[3].label")
    assert page.evaluate(SAID).startswith(f"{label} with probability")
    page.locator("#map").focus()
    before, picture = page.evaluate("[walker, document.getElementById('walked').toDataURL()]")
    for key in ("ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_function("!wanted")
    after, other = page.evaluate("[walker, document.getElementById('walked').toDataURL()]")
    assert after[0] > before[0] and after[1] > before[1] and other != picture
    assert page.heard == []


@BY_SIGHT
def test_the_picture_at_a_place_is_the_decoders(page, file, tmp_path):
    vae = weights_in(file, tmp_path)
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.wait_for_function("!wanted")
    z, image = page.evaluate("""() => [lift(walker), [...document.getElementById("walked").getContext("2d")
        .getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 3)]""")
    with torch.no_grad():
        expected = torch.sigmoid(vae.decode(torch.tensor([z]))).flatten().numpy()
    assert np.abs(np.array(image) / 255 - expected).max() < 0.01


@BY_SIGHT
def test_the_two_steps_are_those_of_chapter_3(page):
    found = page.evaluate("""() => {
        const start = emStart(data.points, 3, 7), {resp, logs} = eStep(data.points, start);
        return {start, resp, logs, next: mStep(data.points, resp), points: data.points}; }""")
    z = torch.tensor(found["points"], dtype=torch.float64)
    start, after = (Mixture(*(torch.tensor(found[key][name], dtype=torch.float64) for name in Mixture._fields))
                    for key in ("start", "next"))
    resp, logs = e_step(z, *start)
    assert torch.allclose(torch.tensor(found["resp"], dtype=torch.float64), resp, atol=1e-9)
    assert torch.allclose(torch.tensor(found["logs"], dtype=torch.float64), logs, atol=1e-9)
    for a, b in zip(after, m_step(z, resp, reg_covar=1e-6)):
        assert torch.allclose(a, b, atol=1e-9)


@BY_SIGHT
def test_em_is_stepped_and_the_likelihood_rises(page):
    assert page.locator("#em-e").is_disabled() and page.locator("#em-m").is_disabled()
    page.locator("#em-start").click()
    start, points = page.evaluate("[em.mixture, data.points]")
    for _ in range(5):
        page.locator("#em-e").click()
        assert page.locator("#em-e").is_disabled() and "log-likelihood" in page.locator("#em-said").inner_text()
        page.locator("#em-m").click()
    rise = page.evaluate("em.rise")
    assert all(b >= a for a, b in zip(rise, rise[1:])) and rise[-1] > rise[0] + 1
    z = torch.tensor(points, dtype=torch.float64)
    start = Mixture(*(torch.tensor(start[name], dtype=torch.float64) for name in Mixture._fields))
    expected = np.array(fit_mixture(z, start, max_iter=4, tol=0)[1]) * len(z)
    assert np.allclose(rise, expected, atol=1e-6)
    page.locator("#em-run").click()
    page.wait_for_function("!em.timer && em.rise.length > 5")
    assert "settled" in page.locator("#em-said").inner_text()
    assert page.heard == []


@BY_SIGHT
@pytest.mark.parametrize("changes", [dict(latent_dim=2, straighten=False), dict(latent_dim=3)])
def test_other_models_have_a_page_too(show, good, tmp_path, changes):  # noqa: F811
    from vae_gmm.config import TrainConfig
    with np.load(good / "train.npz") as train, np.load(good / "val.npz") as val:
        clf = VAEGMM(config=TrainConfig.fast(epochs=1), **changes)
        clf.fit_labelled(train["data"], val["data"], val["labels"])
    write_explorer(clf, tmp_path / "page.html", train=clf.sample(30)[0], unseen=clf.sample(20))
    page = show(tmp_path / "page.html")
    page.evaluate("ready.then(() => true)")
    page.locator("#digits button").first.click()
    assert "with probability" in page.evaluate(SAID) and faults(page)[0] == []
    assert page.evaluate("data.points.length") == 30 and page.evaluate("data.scores.length") == 10


@pytest.mark.parametrize("given, words", [
    (dict(train=np.zeros((3, 5))), "train: has shape"),
    (dict(unseen=(np.zeros((3, 28, 28), np.uint8), [1])), "unseen: holds 1 labels for 3 images"),
    (dict(path="nowhere/page.html"), "the folder nowhere does not exist")])
def test_what_cannot_be_used_gets_a_sentence_and_no_page(clf, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        write_explorer(clf, **{"path": "page.html"} | given)
    assert not list(tmp_path.iterdir())


def test_the_data_in_the_page_end_where_they_end(file):
    data = json.loads(file.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])
    assert len(data["points"]) == 600 and data["classes"] == [1, 4, 8]
