"""The plots of vae_gmm.figures: edge cases, what they refuse, what they leave alone, and the size of the files."""
import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from vae_gmm import figures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(30, 28, 28), dtype=np.uint8)
DIGIT = np.array([1, 4, 8])[np.arange(30) % 3]
MEANS = np.array([[-2.0, -0.5], [1.2, 1.4], [0.8, -1.6]])
COVARIANCES = np.array([[[0.15, 0.1], [0.1, 0.9]], [[0.7, -0.3], [-0.3, 0.5]], [[0.5, 0.2], [0.2, 0.4]]])
Z = MEANS[np.arange(30) % 3] + RNG.normal(scale=0.5, size=(30, 2))
HISTORY = pd.DataFrame({"epoch": range(1, 6), "lr": 1e-3, **{f"{part}_{term}": np.array([5.0, 4, 3, 1, 2]) + shift
                        for part, shift in (("train", 0), ("val", 1)) for term in ("loss", "reconstruction", "kl")}})
STEP = (np.full(3, 1 / 3), MEANS, COVARIANCES)
STAGES = HISTORY.drop(columns=[c for c in HISTORY if c.startswith("val")]).assign(
    stage=[1, 1, 1, 2, 2], train_disagreement=[np.nan] * 3 + [0.2, 0.1])


def told(point=Z[0], labels=DIGIT, names=(1, 4, 8), resp=(0.1, 0.7, 0.2)):
    "The story of one of the images."
    return figures.story(IMAGES[0], IMAGES[1], IMAGES[2], point, Z, labels, MEANS, COVARIANCES, names, resp)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def sheet(fig):
    "The one picture of a figure, as an array."
    return np.asarray(fig.axes[0].images[0].get_array())


@pytest.mark.parametrize("shape", [(30, 28, 28), (30, 784), (30, 1, 28, 28)])
@pytest.mark.parametrize("form", [lambda a: a, lambda a: a.astype(int), lambda a: a / 255,
                                  lambda a: (a / 255).astype(np.float32), torch.as_tensor,
                                  lambda a: torch.as_tensor(a) / 255])
def test_every_usual_form_of_an_image(shape, form):
    given = form(IMAGES.reshape(shape))
    fig = figures.digit_grid(given, columns=6)
    assert np.allclose(sheet(fig)[31:59, 31:59], IMAGES[7] / 255)
    assert figures.similarity(given, given).to_numpy() == pytest.approx(1)


def test_tensors_and_arrays_draw_the_same():
    tensors = [tuple(torch.as_tensor(p) for p in STEP)] * 3
    for draw in (lambda t: figures.latent_scatter(t(Z), t(DIGIT), t(MEANS), t(COVARIANCES), t(DIGIT[:3])),
                 lambda t: figures.misclassified(t(IMAGES), t(DIGIT), t(DIGIT[::-1].copy()), t(Z)),
                 lambda t: figures.em_steps(t(Z), tensors if t is torch.as_tensor else [STEP] * 3,
                                            [t(np.array(-3.0))] * 3),
                 lambda t: figures.story(t(IMAGES[0]), t(IMAGES[0]), t(IMAGES[0]), t(Z[0]), t(Z), t(DIGIT), t(MEANS),
                                         t(COVARIANCES), t(DIGIT[:3]), t(np.full(3, 1 / 3)))):
        pixels = []
        for form in (np.asarray, torch.as_tensor):
            canvas = draw(form).canvas
            canvas.draw()
            pixels.append(np.asarray(canvas.buffer_rgba()).copy())
        assert np.array_equal(*pixels)


def test_nothing_given_is_changed_and_settings_stay():
    import seaborn
    seaborn.set_theme(style="darkgrid", font_scale=2)
    before = dict(mpl.rcParams)
    given = [a.copy() for a in (IMAGES, DIGIT, Z, MEANS, COVARIANCES)]
    try:
        fig = figures.latent_scatter(Z, DIGIT, MEANS, COVARIANCES)
        assert fig.axes[0].xaxis.label.get_fontsize() == 8 and fig.axes[0].get_facecolor() == (1, 1, 1, 1)
        figures.digit_grid(IMAGES, DIGIT, IMAGES)
        figures.misclassified(IMAGES, DIGIT, DIGIT[::-1], Z)
        told()
        assert dict(mpl.rcParams) == before
    finally:
        mpl.rcdefaults()
    assert all(np.array_equal(a, b) for a, b in zip(given, (IMAGES, DIGIT, Z, MEANS, COVARIANCES)))


SETTINGS = {
    "numbers": {"font.size": 20, "savefig.dpi": 50, "figure.figsize": (2, 2), "savefig.bbox": "tight",
                "font.family": "serif", "savefig.facecolor": "red", "axes.unicode_minus": False,
                "axes.formatter.limits": (0, 0),
                "mathtext.fontset": "stix", "path.simplify": False, "path.sketch": (1, 100, 2), "svg.fonttype": "none",
                "image.interpolation": "bicubic", "text.usetex": False, "figure.autolayout": True,
                "axes.prop_cycle": mpl.cycler(color="r"), "savefig.transparent": True, "savefig.format": "pdf"},
    "style": "dark_background"}


def test_files_are_the_same_bytes_whatever_the_settings(tmp_path):
    draw = dict(
        scatter=lambda: figures.latent_scatter(Z, DIGIT, MEANS, COVARIANCES, (1, 4, 8)), story=told,
        grid=lambda: figures.digit_grid(IMAGES[:3], DIGIT[:3]), runs=lambda: figures.accuracy_runs({"a": [0.9, 0.95]}))

    def files():
        found = {}
        for name, function in draw.items():
            figure = function()
            found[name] = [path.read_bytes() for path in figures.savefig(figure, name, tmp_path)]
            plt.close(figure)
        return found

    plain = files()
    for settings in SETTINGS.values():
        try:
            plt.style.use(settings)
            before = dict(mpl.rcParams), mpl.get_backend(), plt.get_fignums()
            now = files()
            assert [name for name in draw if now[name] != plain[name]] == []
            assert (dict(mpl.rcParams), mpl.get_backend(), plt.get_fignums()) == before
        finally:
            mpl.rcdefaults()


def test_digit_grid():
    fig = figures.digit_grid(IMAGES[:3])
    assert fig.get_size_inches()[0] == pytest.approx(figures.WIDTH * (3 * 31 - 3) / 307) and not fig.axes[0].texts
    assert [t.get_text() for t in figures.digit_grid(IMAGES[:3], DIGIT[:3]).axes[0].texts] == ["1", "4", "8"]


@pytest.mark.parametrize("n", [1, 7, 13])
def test_reconstructions(n):
    rebuilt = IMAGES[::-1].copy()
    fig = figures.digit_grid(IMAGES[:n], reconstructed=rebuilt[:n], columns=6)
    assert len(fig.axes[0].texts) == 2 * n + 4 * -(-n // 6)  # two scores a pair, four names a row
    row, column = divmod(n - 1, 6)
    last = sheet(fig)[80 * row:80 * row + 59, 31 * column:31 * column + 28]
    assert np.allclose(last, np.vstack([IMAGES[n - 1] / 255, np.zeros((3, 28)), rebuilt[n - 1] / 255]))


def test_latent_scatter():
    for z, labels in ((Z, None), (Z, np.full(30, -1)), (Z[:1], [4]), (Z[:3], ["a", "b", "c"])):
        figures.latent_scatter(z, labels)
    flat = figures.latent_scatter(Z[:5], DIGIT[:5], MEANS[:1], np.zeros((1, 2, 2)), ["?"])  # a component without extent
    assert len(flat.axes[0].lines) == 2
    fig, axes = plt.subplots(1, 2)
    assert figures.latent_scatter(Z, DIGIT, ax=axes[1]) is fig
    assert len(axes[1].collections) == 1 and not axes[0].collections
    ax = figures.latent_scatter(Z, axes=("$a$", "$b$")).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$a$", "$b$")


def test_story():
    axes = told().axes
    for i, image in zip((0, 2, 10), IMAGES):  # as it came, straightened, rebuilt
        assert np.allclose(axes[i].images[0].get_array(), image / 255)
    assert np.array_equal(axes[4].lines[-1].get_xydata(), Z[:1])
    assert [bar.get_height() for bar in axes[6].patches] == [0.1, 0.7, 0.2]
    assert axes[8].texts[0].get_text() == "4"
    axes = told(names=(4, 8, 8), labels=None, resp=[0.45, 0.3, 0.25]).axes  # two components of one digit
    assert [bar.get_height() for bar in axes[6].patches] == pytest.approx([0.45, 0.55])
    assert axes[8].texts[0].get_text() == "8"


def test_manifold():
    fig = figures.manifold(lambda z: np.tile((z > 0).all(1)[:, None], 784).astype(float), n=2)
    assert sheet(fig)[:28, 28:].all() and sheet(fig).sum() == 784  # the point right and up stands top right
    figures.manifold(lambda z: np.zeros((len(z), 28, 28)), n=1)


def test_training_curves():
    axes = figures.training_curves(HISTORY).axes
    assert np.array_equal(axes[0].lines[1].get_ydata(), HISTORY.val_loss)
    assert axes[0].lines[2].get_xdata()[0] == 4
    for part in (HISTORY[:1], HISTORY[:2], HISTORY.assign(val_loss=np.nan), HISTORY.assign(lr=np.geomspace(1, 99, 5))):
        figures.training_curves(part)


def test_training_curves_of_two_stages_and_without_validation():
    axes = figures.training_curves(STAGES).axes
    assert [ax.get_title() for ax in axes] == ["reconstruction", "KL divergence", "disagreement of two views",
                                               "step size"]
    assert all(ax.lines[-1].get_xdata()[0] == 3.5 for ax in axes)  # between the third epoch and the fourth
    axes = figures.training_curves(HISTORY[["epoch", "lr", "train_loss", "train_reconstruction", "train_kl"]]).axes
    assert [len(ax.lines) for ax in axes] == [1] * 4


def test_em_steps():
    for n, shown in ((1, None), (3, None), (31, [0, 30, 99])):
        figures.em_steps(Z, [STEP] * n, np.arange(n), shown)
    assert figures._responsibilities(Z, *STEP).sum(1) == pytest.approx(1)
    far = figures._responsibilities(np.array([[1e3, 1e3]]), *STEP)
    assert far.shape == (1, 3) and np.isfinite(far).all()


def test_confusion():
    for matrix, classes in (([[5]], [1]), (np.zeros((2, 2), int), "ab"), (np.eye(10, dtype=int) * 987, range(10))):
        figures.confusion(matrix, list(classes))
    shown = [[t.get_text() for t in figures.confusion(matrix, (1, 4)).axes[0].texts]
             for matrix in ([[1234567, 8], [0, 9]], [[0.5, 8], [0, 9.25]])]
    assert shown == [["1,234,567", "8", "0", "9"], ["0.5", "8", "0", "9.25"]]


def test_misclassified():
    axes = figures.misclassified(IMAGES, DIGIT, np.where(np.arange(30) % 2, DIGIT, 0), Z, ("$a$", "$b$")).axes
    assert len(axes[0].texts) == 15 and axes[0].texts[0].get_text() == "1 → 0" and axes[1].get_xlabel() == "$a$"
    axes = figures.misclassified(IMAGES, DIGIT, DIGIT, Z).axes  # nothing wrong: no pictures
    assert axes[0].get_title() == "0 of 30 read wrongly" and not axes[0].texts and not axes[0].images
    many = [np.tile(a, (50, *[1] * (a.ndim - 1))) for a in (IMAGES, DIGIT, DIGIT * 0, Z)]
    assert figures.misclassified(*many).axes[0].get_title() == "1,500 of 1,500 read wrongly, 25 of them shown"


def test_accuracy_runs():
    ax = figures.accuracy_runs({"one": [0.9, 0.98, 1.0], "another": [0.5]}).axes[0]
    assert ax.lines[0].get_xdata() == pytest.approx([(0.1 + 0.02 + 1e-4) / 3, 0.5])  # no error is drawn as 0.01%
    assert [t.get_text() for t in ax.texts[1:]] == ["0.960   0.900", "0.500   0.500"]


@pytest.mark.parametrize("draw, message", [
    (lambda: figures.digit_grid(IMAGES[:0]), "images is empty"),
    (lambda: figures.digit_grid(IMAGES[:3], [1]), "labels must hold one value for each of the 3"),
    (lambda: figures.digit_grid(np.full((1, 784), np.nan)), "fractions within"),
    (lambda: figures.digit_grid(np.full((1, 784), 255.0)), "fractions within .* got float64 from 255 to 255"),
    (lambda: figures.similarity(IMAGES[:3], IMAGES[:2]), "must be equally many, got 3 and 2"),
    (lambda: figures.similarity(IMAGES[:3], IMAGES[:3, :25]), "reconstructed must have shape"),
    (lambda: figures.latent_scatter(np.zeros((10, 3))), r"z must have shape \(n, 2\) .* got \(10, 3\)"),
    (lambda: figures.latent_scatter(Z[:0]), "z is empty"),
    (lambda: figures.latent_scatter(Z, DIGIT[:-1]), "labels must hold one value"),
    (lambda: figures.latent_scatter(Z, DIGIT, MEANS, np.ones((3, 2))), r"covariances must have shape \(3, 2, 2\)"),
    (lambda: figures.latent_scatter(Z, DIGIT, np.ones((3, 4)), COVARIANCES), r"means must have shape \(n, 2\)"),
    (lambda: figures.latent_scatter(Z, DIGIT, MEANS, COVARIANCES, (1, 4)), "names must hold one value"),
    (lambda: figures.manifold(lambda z: IMAGES[:5], n=2), "decode must return 4 images, got 5"),
    (lambda: figures.manifold(lambda z: IMAGES[:0], n=0), "n must be at least 1"),
    (lambda: figures.training_curves(HISTORY.drop(columns=["lr", "train_kl"])), r"lacks the column\(s\) lr, train_kl"),
    (lambda: figures.training_curves(HISTORY[:0]), "history is empty"),
    (lambda: figures.em_steps(Z, [STEP] * 3, [1, 2]), "log_likelihoods must hold one value for each of the 3"),
    (lambda: figures.em_steps(Z, [], []), "steps is empty"),
    (lambda: figures.confusion(np.ones((2, 3)), (1, 4)), r"square and not empty, got shape \(2, 3\)"),
    (lambda: figures.confusion(np.eye(3), (1, 4)), "classes must hold one value for each of the 3"),
    (lambda: figures.confusion([[1, -1], [0, 1]], (1, 4)), "negative"),
    (lambda: figures.misclassified(IMAGES, DIGIT, DIGIT[:29], Z), "predicted must hold one value for each of the 30"),
    (lambda: figures.misclassified(IMAGES, DIGIT, DIGIT, Z[:29]), "one point for each of the 30 images, got 29"),
    (lambda: figures.accuracy_runs({"a": [0.9], "b": [1.1]}), "b: expected one accuracy or more, each from 0 to 1"),
    (lambda: figures.accuracy_runs({"a": []}), "a: expected one accuracy"),
    (lambda: figures.accuracy_runs({}), "runs is empty"),
    (lambda: told(names=(1, 4)), "names must hold one value for each of the 3"),
    (lambda: told(resp=[1.0]), "resp must hold one value for each of the 3"),
    (lambda: told(point=[1, 2, 3]), r"point must have shape \(n, 2\)"),
    (lambda: told(labels=DIGIT[:-1]), "labels must hold one value for each of the 30"),
])
def test_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_saved_figures_are_the_same_bytes_without_a_warning(tmp_path):
    written = []
    for _ in range(2):
        for name, fig in (("grid", figures.digit_grid(IMAGES, DIGIT, IMAGES)), ("plane", figures.latent_scatter(Z))):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                written.append([p.read_bytes() for p in figures.savefig(fig, name, tmp_path)])
    assert written[:2] == written[2:]
    fig = figures.digit_grid(IMAGES, DIGIT, IMAGES)  # fills its page each time that it is saved
    assert [[p.read_bytes() for p in figures.savefig(fig, "grid", tmp_path)] for _ in range(2)] == written[:1] * 2


@pytest.mark.parametrize("name", ["../test", "a/b", "", "a b"])
def test_savefig_refuses_paths(name, tmp_path):
    with pytest.raises(ValueError, match="name must consist of letters"):
        figures.savefig(plt.figure(), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_dense_figures_are_small_enough_to_print(tmp_path):
    """10,000 points are a picture inside the vector file; the manifold is stored in 32 greys."""
    z = np.repeat(MEANS, 3334, axis=0) + RNG.normal(size=(10_002, 2))
    strokes = lambda z: np.exp(-((np.arange(784) / 392 - 1 - z[:, :1] / 2) ** 2) * 9)
    for name, fig in {"scatter": figures.latent_scatter(z, np.repeat([1, 4, 8], 3334)),
                      "em": figures.em_steps(z, [STEP] * 30, np.arange(30)),
                      "manifold": figures.manifold(strokes)}.items():
        png, svg = figures.savefig(fig, name, tmp_path)
        assert svg.stat().st_size < 300_000 and png.stat().st_size < 500_000, name
