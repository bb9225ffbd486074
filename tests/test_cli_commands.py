"""The commands that draw, search and open, and what --json says."""
import json
import re

import numpy as np
import pytest
from commands import call, environment, run
from PIL import Image

MODEL = "--model", "vae.pth", "--gmm", "gmm.pkl"


@pytest.fixture
def here(good, tmp_path):
    """A folder with links to the good files."""
    for path in good.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_json(here):
    """One object on standard output, nothing else there; the numbers of the lines."""
    def said(*words):
        code, out, err = call(here, *words, "--json")
        assert code == 0 and out.count("\n") == 1, err
        return json.loads(out)

    found = said("test_classifier", "test.npz", *MODEL)
    labels, predicted = np.load(here / "test.npz")["labels"], np.loadtxt(here / "vae.csv", int, skiprows=1)
    assert found["metrics"]["accuracy"] == pytest.approx(np.mean(labels == predicted), abs=1e-6)
    assert found["right"] == (labels == predicted).sum() and found["scored"] == found["images"] == 50
    table = [[int(((labels == t) & (predicted == p)).sum()) for p in (1, 4, 8)] for t in (1, 4, 8)]
    assert found["labels"] == [1, 4, 8] and found["confusion"] == table
    assert found["interval"][0] < found["metrics"]["accuracy"] < found["interval"][1]
    assert (found["model"], found["gmm"], found["predictions"]) == ("vae.pth", "gmm.pkl", "vae.csv")
    found = said("test_reconstruction", "recon.npz", *MODEL[:2])
    assert len(found["images"]) == 4 and set(found["mean"]) == {"ssim", "one_minus_mse"}
    assert found["mean"]["ssim"] == pytest.approx(np.mean([row["ssim"] for row in found["images"]]), abs=1e-6)
    assert said("info", "val.npz") == dict(file="val.npz", kind="images", data="(9, 28, 28) uint8",
                                           labels={"1": 3, "4": 3, "8": 3})
    assert said("info", "gmm.pkl")["labels"] == [1, 4, 8]
    found = said("data", "--digits", "3,0-1", "--labels-per-digit", "2")
    assert found["val"] == dict(file="mnist_0_1_3_val.npz", images=6, labels=True) and not found["train"]["labels"]
    found = said(*"train train.npz val.npz --epochs 1 --model new.pth --gmm new.pkl --checkpoint state".split())
    assert found == dict(epochs=2, stopped="all epochs done", images=60, labelled_images=9, labels=[1, 4, 8],
                         components=3, model="new.pth", gmm="new.pkl")
    found = said("info", "state")
    assert found["settings"]["epochs"] == 1 and found["kind"].startswith("checkpoint after 2 of 2 epochs")


def test_predictions_without_any_label_to_score(here):
    code, out, err = call(here, "test_classifier", "recon.npz", *MODEL, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == dict(images=4, unknown=0, model="vae.pth", gmm="gmm.pkl", predictions="vae.csv")


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_show(here, digits):
    """A sheet of the images, their copies and what they were taken for; of few images, with a red text where wrong."""
    code, out, err = call(here, "show", "test.npz", *MODEL, "-n", "20")
    wrong = int(re.fullmatch(r"Sheet: show.png, 20 images, (\d+) of them misread\n", out)[1])
    assert (code, err) == (0, "") and size(here / "show.png")[0] == 1000
    code, out, _ = call(here, "test_classifier", "test.npz", *MODEL, "--json")
    predicted, labels = np.loadtxt(here / "vae.csv", int, skiprows=1), np.load(here / "test.npz")["labels"]
    assert wrong == (predicted != labels)[:20].sum()
    all_wrong = (predicted != labels).sum()
    code, out, _ = call(here, "show", "test.npz", *MODEL, "--misread", "--out", "misread.png")
    assert code == 0 and out == f"Sheet: misread.png, {all_wrong} images, {all_wrong} of them misread\n"
    for path, red in ((here / "misread.png", True), (here / "plain.png", False)):
        if not red:
            code, out, _ = call(here, "show", "recon.npz", *MODEL, "--out", path.name)
            assert code == 0 and out == "Sheet: plain.png, 4 images\n"
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert ((pixels[..., 0] - pixels[..., 2]) > 100).any() == red
    assert call(here, "show", "test.npz", *MODEL, "--keep-labels", "4", "--quiet") == (0, "", "")
    before = (here / "show.png").read_bytes()
    assert call(here, "show", "test.npz", *MODEL, "--keep-labels", "4", "--quiet") == (0, "", "")
    assert (here / "show.png").read_bytes() == before  # the same command, the same file
    (here / "rc").write_text("savefig.bbox: tight\nfont.family: serif\nfont.size: 20\nsavefig.facecolor: red\n")
    env = environment(MPLBACKEND="nonsense", MATPLOTLIBRC=str(here / "rc"))
    run(here, "show", "test.npz", *MODEL, "--keep-labels", "4", env=env)
    assert (here / "show.png").read_bytes() == before  # whatever the user has set
    (here / "rc").unlink()


def test_nothing_misread(here):
    code, _, _ = call(here, "test_classifier", "test.npz", *MODEL, "--quiet")
    predicted = np.loadtxt(here / "vae.csv", int, skiprows=1)
    np.savez(here / "right.npz", data=np.load(here / "test.npz")["data"], labels=predicted)
    code, out, _ = call(here, "show", "right.npz", *MODEL, "--misread")
    assert code == 0 and out == "right.npz: nothing was misread; no sheet was written\n"
    assert not (here / "show.png").exists()


def test_sample(here):
    """As many as asked for, of the label asked for; a seed decides, and another seed draws others."""
    sheets = []
    for i, words in enumerate(([], [], ["--seed", "1"], ["--label", "4"])):
        code, out, err = call(here, "sample", f"{i}.png", *MODEL, "-n", "20", *words)
        assert (code, out, err) == (0, f"Sheet: {i}.png, 20 digits\n", "")
        sheets.append((here / f"{i}.png").read_bytes())
    assert sheets[0] == sheets[1] and len(set(sheets)) == 3
    assert size(here / "0.png")[1] < size(here / "0.png")[0] == 1000


def test_anomalies(here, digits):
    """A p-value for each image, from the scores of the normal ones; noise is flagged, and the rate is kept."""
    rng = np.random.default_rng(0)
    np.savez(here / "normal.npz", data=np.concatenate([digits[0][:60], np.load(here / "test.npz")["data"][:20]]))
    np.savez(here / "odd.npz", data=rng.integers(0, 256, (10, 28, 28), dtype=np.uint8))
    code, out, err = call(here, "anomalies", "odd.npz", "--normal", "normal.npz", "--model", "pretrained")
    assert code == 0, err
    rows = [line.split(",") for line in (here / "anomalies.csv").read_text().splitlines()]
    assert rows[0] == ["Score", "P_Value", "Anomaly"] and len(rows) == 11
    assert all(float(p) == pytest.approx(1 / 81, abs=1e-5) and flag == "1" for _, p, flag in rows[1:])
    assert out.startswith("10 of 10 images flagged;") and "Table: anomalies.csv, beside 80 normal images" in out
    words = "anomalies", "normal.npz", "--normal", "normal.npz", "--false-alarms", "0.25", *MODEL, "--out", "all.csv"
    code, out, err = call(here, *words, "--json")
    found = json.loads(out)
    assert code == 0 and found["images"] == found["normal_images"] == 80 and 15 <= found["anomalies"] <= 20
    table = np.loadtxt(here / "all.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(table[:, 2], table[:, 1] <= 0.25)
    order = np.argsort(table[:, 0])
    assert (np.diff(table[order, 1]) <= 0).all()  # the higher the score, the lower the p-value


def test_explore(here, monkeypatch):
    """The page is written, and opened unless --no-open; where nothing can open it, the user is told."""
    import click
    opened = []
    monkeypatch.setattr(click, "launch", lambda url: opened.append(url) or 1)
    code, out, err = call(here, "explore", *MODEL, "--no-open")
    assert (code, out, err) == (0, "Page: explorer.html\n", "") and not opened
    assert (here / "explorer.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    code, out, err = call(here, "explore", *MODEL, "--out", "page.html")
    assert code == 0 and opened == [str((here / "page.html").resolve())] and "no browser was found" in err
    code, out, err = call(here, "explore", "pretrained", "--no-open", "--out", "third.html")  # the model by its place
    assert (code, out, err) == (0, "Page: third.html\n", "")
    assert (here / "third.html").read_bytes() != (here / "page.html").read_bytes()


def test_pretrained(here):
    """The network that comes with the package, by its name, in every command that needs one."""
    for words in ("test_classifier test.npz", "test_reconstruction recon.npz", "show recon.npz", "sample new.png -n 4",
                  "anomalies recon.npz --normal test.npz", "explore --no-open"):
        code, out, err = call(here, *words.split(), "--model", "pretrained")
        assert code == 0, err
    assert len(np.loadtxt(here / "vae.csv", int, skiprows=1)) == 50


def test_time_left():
    """By the pace of the last epochs, at most what the time limit leaves."""
    from vae_gmm.cli import minutes_left
    from vae_gmm.config import History, TrainConfig
    history = History([dict(seconds=s) for s in (300, 60, 60, 60)])
    assert minutes_left(history, TrainConfig(epochs=6, prior_epochs=4)) == pytest.approx(6)
    assert minutes_left(history, TrainConfig(epochs=6, prior_epochs=4, max_minutes=9)) == pytest.approx(1)
    assert minutes_left(history, TrainConfig(epochs=4, max_minutes=1)) == 0
