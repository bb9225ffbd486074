"""What chapter 7 cannot show: forms of images, wrong input, what is forgotten and kept, scores of small networks."""
import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from sklearn.exceptions import NotFittedError

from vae_gmm import uses
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.files import InputError, read_npz, write_npz
from vae_gmm.gmm import Mixture
from vae_gmm.model_files import load_gmm, save_gmm
from vae_gmm.uses import anomaly_score, conformal_p_value, interpolate, log_evidence, new_digits, rebuild, surprise

QUICK = dict(config=TrainConfig.fast(epochs=1, batch_size=8))


@pytest.fixture(scope="module")
def few(digits):
    """20 unlabelled images; six labelled ones and their labels."""
    images, labels = digits
    val = np.concatenate([np.flatnonzero(labels[60:] == d)[:2] for d in (1, 4, 8)]) + 60
    return images[:20], images[val], labels[val]


@pytest.fixture
def clf(good):
    """A classifier of an epoch in each stage."""
    return VAEGMM.from_files(good / "vae.pth", good / "gmm.pkl")


class Linear(torch.nn.Module):
    """A model that can be solved by hand: x is one number, z + noise; N(0, 1) is the prior, (0.8, 0.3) the guess."""
    straightened, training = False, False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def solved(monkeypatch, x):
    """Let `log_evidence` see the model above."""
    def loss(a, given): return 0.5 * (np.log(2 * np.pi) + (given.flatten(1)[:, 0] - a[:, 0])**2)
    monkeypatch.setattr(uses, "seen", lambda vae, images: (torch.tensor(images)[:, None], None))
    monkeypatch.setattr(uses, "posterior", lambda vae, x: (torch.full((len(x), 1), 0.8),
                                                           torch.full((len(x), 1), 2 * np.log(0.3))))
    monkeypatch.setattr(uses, "decoded", lambda vae, z: z)
    monkeypatch.setattr(uses, "reconstruction_loss", loss)
    return norm(0, np.sqrt(2)).logpdf(x)


def test_the_evidence_of_a_model_that_can_be_solved(monkeypatch):
    x = np.array([0.5, 1.5, 3.0])
    exact = solved(monkeypatch, x)
    prior = Mixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.eye(1)[None].double())
    bound, narrow = log_evidence(Linear(), prior, x, draws=200)
    q, s2 = 0.8, 0.09  # the bound by hand: E log p(x | z) + E log p(z) + entropy
    by_hand = -np.log(2 * np.pi) - ((x - q)**2 + q**2 + 2 * s2) / 2 + 0.5 * (1 + np.log(2 * np.pi * s2))
    np.testing.assert_allclose(bound, by_hand, atol=0.15)
    assert (bound < exact).all() and (narrow > bound).all()
    wide = log_evidence(Linear(), prior, x, draws=20000, widen=4)[1]
    np.testing.assert_allclose(wide, exact, atol=0.05)


def test_more_draws_raise_the_estimate_in_the_mean(monkeypatch):
    exact = solved(monkeypatch, np.array([2.5]))[0]
    prior = Mixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.eye(1)[None].double())
    means = [log_evidence(Linear(), prior, np.full(4000, 2.5), draws=m)[1].mean() for m in (1, 2, 5, 20)]
    assert means == sorted(means) and means[-1] < exact + 0.02  # eq. (7.8)


def test_scores_do_not_hang_on_the_form_of_an_image_or_on_its_neighbours(clf, digits):
    images = digits[0][:6]
    score = clf.anomaly_score(images)
    assert score.shape == (6,) and score.dtype == np.float64 and np.isfinite(score).all()
    for X in (images.reshape(6, 784), images[:, None], images / np.float32(255), torch.from_numpy(images)):
        np.testing.assert_allclose(clf.anomaly_score(X), score, rtol=1e-6)
    np.testing.assert_allclose(clf.anomaly_score(images[2:3]), score[2:3], rtol=1e-4)
    parts = surprise(clf.vae_, clf.mixture_, images)
    assert (parts.excess >= 0).all() and (parts.spread > 0).all()
    np.testing.assert_allclose(parts.place, -clf.score_samples(images))
    np.testing.assert_array_equal(anomaly_score(clf.vae_, clf.mixture_, images), score)
    assert np.isfinite(clf.anomaly_score(np.stack([np.zeros((28, 28)), np.ones((28, 28))]))).all()


def test_the_pose_of_an_image_does_not_count_if_images_are_straightened(clf, digits):
    images = as_images(digits[0][:8])
    moved = torch.roll(images, (1, -1), (2, 3))
    np.testing.assert_allclose(clf.anomaly_score(moved), clf.anomaly_score(images), rtol=0.02)


@pytest.mark.parametrize("m", [1, 9, 99])
def test_p_values_of_exchangeable_scores_are_uniform(m):
    rng = np.random.default_rng(m)
    p = np.array([conformal_p_value(s[-1:], np.sort(s[:-1]))[0] for s in rng.gamma(2, size=(5000, m + 1))])
    assert set(np.round(p * (m + 1)).astype(int)) <= set(range(1, m + 2))
    assert kstest(p - rng.uniform(0, 1 / (m + 1), len(p)), "uniform").pvalue > 0.01


def test_equal_scores_count_as_higher():
    np.testing.assert_allclose(conformal_p_value(np.array([2.0, 1.0, 3.0, 5.0]), np.array([1.0, 2.0, 2.0])),
                               [3 / 4, 1, 1 / 4, 1 / 4])


def test_a_p_value_needs_calibration(clf, digits):
    with pytest.raises(NotFittedError, match="has no calibration_; it is there after calibrate"):
        clf.anomaly_p_value(digits[0][:3])
    assert clf.calibrate(digits[0][100:120]) is clf
    assert (np.diff(clf.calibration_) >= 0).all() and len(clf.calibration_) == 20
    p = clf.anomaly_p_value(digits[0][:9])
    assert p.shape == (9,) and (p >= 1 / 21).all() and (p <= 1).all()
    for wrong in (None, np.zeros((0, 28, 28)), digits[0][:3, :5]):
        with pytest.raises(InputError):
            clf.calibrate(wrong)
    assert len(clf.calibration_) == 20
    with pytest.raises(NotFittedError, match="vae_"):
        VAEGMM().anomaly_score(digits[0][:3])


def test_calibration_is_kept_in_files_and_forgotten_by_a_new_fit(clf, few, digits, tmp_path):
    X = digits[0][:9]
    clf = VAEGMM(**QUICK).fit_labelled(*few)
    clf.save(tmp_path / "before")
    assert load_gmm(tmp_path / "before" / "gmm.npz")[4] is None  # as files of earlier versions are
    assert "calibration_" not in vars(VAEGMM.load(tmp_path / "before"))
    clf.calibrate(digits[0][100:120]).save(tmp_path / "after")
    again = VAEGMM.load(tmp_path / "after")
    np.testing.assert_array_equal(again.anomaly_p_value(X), clf.anomaly_p_value(X))
    assert "calibration_" not in vars(again.fit_gmm(*few))
    assert "calibration_" not in vars(clf.fit_labelled(*few))


def test_a_damaged_calibration_is_refused(clf, tmp_path):
    path = tmp_path / "gmm.npz"
    for scores in (np.array([2.0, 1.0]), np.array([np.nan]), np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(InputError, match="expected 'calibration' to hold finite numbers, sorted"):
            save_gmm(clf.mixture_, clf.classes_, clf.shares_, path, calibration=scores)
        assert not path.exists()
    save_gmm(clf.mixture_, clf.classes_, clf.shares_, path, calibration=np.array([1.0, 2.0]))
    arrays = read_npz(path, ("format", "weights", "means", "covariances", "classes", "shares", "model_id"))
    write_npz(path, **arrays, calibration=np.array(["1", "2"]))
    with pytest.raises(InputError, match="damaged mixture; expected 'calibration'"):
        load_gmm(path)


def test_new_digits_follow_the_weights_and_the_seed(clf):
    names = clf.component_labels_
    one, labels = new_digits(clf.vae_, clf.mixture_, names, 40, seed=3)
    again = new_digits(clf.vae_, clf.mixture_, names, 40, seed=3)
    np.testing.assert_array_equal(one, again[0])
    np.testing.assert_array_equal(labels, again[1])
    assert (one != new_digits(clf.vae_, clf.mixture_, names, 40, seed=4)[0]).any()
    assert one.shape == (40, 1, 28, 28) and set(labels) <= {1, 4, 8}
    skewed = clf.mixture_._replace(weights=torch.tensor([0.0, 1.0, 0.0]).double())
    assert set(new_digits(clf.vae_, skewed, names, 40)[1]) == {names[1]}
    with pytest.raises(InputError, match="label is 7; expected one of"):
        new_digits(clf.vae_, clf.mixture_, names, 2, label=7)


@pytest.mark.parametrize("straight", [True, False])
def test_the_ends_of_a_way_are_the_reconstructions(few, digits, straight):
    clf = VAEGMM(**QUICK, straighten=straight).fit_labelled(*few)
    a, b = digits[0][100], digits[0][101]
    way = clf.interpolate(a, b, steps=4)
    assert way.shape == (4, 1, 28, 28) and 0 <= way.min() <= way.max() <= 1
    np.testing.assert_allclose(way[[0, -1]], clf.reconstruct(np.stack([a, b])), atol=1e-5)
    np.testing.assert_allclose(way, clf.interpolate(b, a, 4)[::-1], atol=1e-5)
    np.testing.assert_allclose(way, interpolate(clf.vae_, torch.from_numpy(a), b.reshape(784), 4), atol=1e-5)
    np.testing.assert_allclose(rebuild(clf.vae_, a[None]), way[:1], atol=1e-5)
    if straight:  # the pose goes the way too
        slants = straighten(torch.from_numpy(clf.interpolate(a, b, 9)))[1]
        assert slants.isfinite().all()


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, "8", None])
def test_steps_that_are_none(clf, digits, steps):
    with pytest.raises(InputError, match="^steps is .*; expected a whole number from 2 to"):
        clf.interpolate(digits[0][0], digits[0][1], steps)


def test_images_that_are_none(clf, digits):
    one = digits[0][0]
    for a, b, name in ((digits[0][:2], one, "a"), (one, one[:5], "b"), (None, one, "a")):
        with pytest.raises(InputError, match=f"^{name}"):
            clf.interpolate(a, b)
