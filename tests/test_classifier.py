"""Files of the first edition spelled out; names, metrics, decision; settings, state and session of a fit."""
import copy
import hashlib
import inspect
import itertools
import json
import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors.numpy
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from vae_gmm import classifier
from vae_gmm.classifier import VAEGMM, classification_metrics, name_components, wilson_interval
from vae_gmm.config import TrainConfig
from vae_gmm.data import embedded_digits, load_npz, straighten, write_course_files
from vae_gmm.figures import similarity
from vae_gmm.files import InputError
from vae_gmm.gmm import Mixture, e_step, fit_mixture
from vae_gmm.model_files import (load_gmm, load_vae, model_id, read_settings, safetensors_header, save_gmm,
                                 save_vae)
from vae_gmm.vae import VAE

TENSORS = {  # of the network in the files of the first edition
    "conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (128, 64, 3, 3), "conv4": (128, 128, 3, 3),
    "conv5": (256, 128, 3, 3), "fc1": (512, 12544), "fc_mu": (2, 512), "fc_logvar": (2, 512), "fc2": (12544, 2),
    "deconv1": (256, 128, 3, 3), "deconv2": (128, 128, 3, 3), "deconv3": (128, 64, 3, 3), "deconv4": (64, 32, 3, 3),
    "deconv5": (32, 1, 3, 3)}
HEADER = {  # and what their header says
    "format": "vae_gmm model 1", "version": "0.1.0",
    "architecture": "convolutions 1-32-64-128-128-256, dense 512, mirrored",
    "latent_dim": 2, "dropout": 0.2, "pixels": "grey values / 255, rows first"}
CONFIG = {  # the settings file of the first edition, every setting unlike the usual one
    "package": "vae_gmm", "version": "0.1.0", "latent_dim": 2, "dropout": 0.2, "classes": [1, 4, 8],
    "per_class": 3, "n_init": 7, "random_state": 5,
    "config": {"epochs": 2, "batch_size": 24, "lr": 0.002, "schedule": "onecycle", "lr_factor": 0.25, "lr_patience": 4,
               "stop_patience": 999, "beta": 0.75, "beta_warmup": 3, "train_share": 0.7, "augment": True, "flip": True,
               "noise_std": 0.2, "precision": "bfloat16", "max_minutes": 30.0, "seed": 9}}
def first_mixture(K=66):
    """Arrays as the first edition had them: eleven solutions of six components, each divided among the digits."""
    rng = np.random.default_rng(1)
    A = rng.normal(0, 0.1, (K, 2, 2))
    return dict(weights=rng.dirichlet(np.ones(K)), means=rng.normal(0, 0.1, (K, 2)),
                covariances=A @ A.swapaxes(1, 2) + 0.01 * np.eye(2), classes=np.array([1, 4, 8]),
                shares=rng.dirichlet([0.5] * 3, K))


MIXTURE = first_mixture()


@pytest.fixture(scope="module")
def weights():
    """A network's arrays, drawn without the network: small numbers, from the last layer to the first."""
    rng, arrays = np.random.default_rng(0), {}
    for layer, shape in TENSORS.items():
        fan_in = np.prod(shape[1:])
        width = shape[1] if layer.startswith("deconv") else shape[0]
        arrays[f"{layer}.weight"] = rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
        arrays[f"{layer}.bias"] = rng.normal(0, 0.05, width).astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def first_edition(weights, tmp_path_factory):
    """A folder as `VAEGMM.save` of the first edition wrote it, made without this package."""
    folder = tmp_path_factory.mktemp("first_edition")
    digest = hashlib.sha256(b"".join(name.encode() + value.tobytes() for name, value in sorted(weights.items())))
    safetensors.numpy.save_file(weights, folder / "vae.safetensors", {"vae_gmm": json.dumps(HEADER)})
    np.savez(folder / "gmm.npz", format=np.array("vae_gmm mixture 1"), **MIXTURE,
             model_id=np.array(digest.hexdigest()[:16]))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folder


def posterior(z):
    """p(digit | z) of the mixture in the files, by SciPy's densities."""
    joint = np.stack([w * multivariate_normal.pdf(z, mean, cov) for w, mean, cov in
                      zip(MIXTURE["weights"], MIXTURE["means"], MIXTURE["covariances"])], axis=1)
    return joint / joint.sum(1, keepdims=True) @ MIXTURE["shares"]


def test_files_of_the_first_edition_load(first_edition, weights, digits):
    images = digits[0][:20]
    clf = VAEGMM.load(first_edition)
    network = VAE(2).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        z = network.encode(torch.from_numpy(images[:, None] / np.float32(255)))[0].double().numpy()
    np.testing.assert_allclose(clf.encode(images), z, atol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(images), posterior(clf.encode(images)), rtol=1e-9)
    np.testing.assert_array_equal(clf.predict(images), clf.classes_[posterior(clf.encode(images)).argmax(1)])
    assert not clf.vae_.training and (clf.latent_dim, clf.dropout, clf.straighten) == (2, 0.2, False)
    assert (clf.n_components, clf.random_state, clf.config.prior_epochs) == (None, 5, 0)
    assert clf.config == TrainConfig(**CONFIG["config"])
    assert clf.component_labels_.tolist() == clf.classes_[MIXTURE["shares"].argmax(1)].tolist()
    assert clf.reconstruct(images).shape == (20, 1, 28, 28) and set(clf.sample(9, label=4)[1]) == {4}


def test_the_command_lines_two_files_load(first_edition, tmp_path, digits):
    for old, new in (("vae.safetensors", "vae.pth"), ("gmm.npz", "gmm_params.pkl")):
        (tmp_path / new).write_bytes((first_edition / old).read_bytes())
    clf = VAEGMM.from_files(tmp_path / "vae.pth", tmp_path / "gmm_params.pkl")
    np.testing.assert_array_equal(clf.predict_proba(digits[0][:5]),
                                  VAEGMM.load(first_edition).predict_proba(digits[0][:5]))


def test_files_of_the_first_edition_survive_a_round_trip(first_edition, tmp_path, digits):
    old = VAEGMM.load(first_edition)
    old.save(tmp_path / "again")
    new = VAEGMM.load(tmp_path / "again")
    assert tells(new, digits[0][:20]) == tells(old, digits[0][:20]) and new.get_params() == old.get_params()
    (header, shapes), (now, same) = (safetensors_header(folder / "vae.safetensors")
                                     for folder in (first_edition, tmp_path / "again"))
    assert shapes == same and now.items() >= {**header, "version": now["version"], "straightened": False}.items()
    with np.load(first_edition / "gmm.npz") as a, np.load(tmp_path / "again" / "gmm.npz") as b:
        assert sorted(a.files) == sorted(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_mixture_of_another_network_is_refused(first_edition, tmp_path):
    arrays = dict(np.load(first_edition / "gmm.npz")) | {"model_id": np.array("0" * 16)}
    np.savez(tmp_path / "gmm.npz", **arrays)
    with pytest.raises(InputError, match="belongs to another model"):
        VAEGMM.from_files(first_edition / "vae.safetensors", tmp_path / "gmm.npz")
    assert load_gmm(tmp_path / "gmm.npz")[3] == "0" * 16


def test_weights_of_the_course_program_load(weights, tmp_path):
    """`torch.save(model.state_dict())`, with the course's name of the layer of log-variances."""
    state = {name.replace("fc_logvar", "fc_log_sigma"): torch.from_numpy(value) for name, value in weights.items()}
    assert {"fc_log_sigma.weight", "fc_log_sigma.bias"} < state.keys() and "fc_logvar.weight" not in state
    torch.save(state, tmp_path / "vae.pth")
    loaded = load_vae(tmp_path / "vae.pth")
    assert (loaded.latent_dim, loaded.dropout, loaded.training) == (2, 0.2, False)
    assert loaded.state_dict().keys() == weights.keys()
    for name, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])


def test_settings_that_are_not_settings_are_refused(first_edition, tmp_path):
    assert read_settings(first_edition / "config.json").keys() == {
        "config", "n_components", "straighten", "random_state"}
    for text in ("", "[", "{}", '{"config": {"run": 1}}', "[" * 10**5, *(json.dumps(CONFIG | changed) for changed in (
            {"n_components": "many"}, {"n_components": 1}, {"n_components": 2.0}, {"straighten": 1},
            {"straighten": None}, {"random_state": 2**32}, {"config": None}))):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match="config.json"):
            read_settings(tmp_path / "config.json")


def test_the_prior_has_the_settings_of_the_recipe():
    settings = dict(equal_weights=False, weight_prior=0.5, shrinkage=0.25)
    assert classifier._prior(4, TrainConfig(**settings)).settings == settings | {"n_components": 4}


# --- names ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("C, K", [(2, 2), (3, 3), (4, 4), (2, 3), (3, 5)])
def test_names_are_the_best_of_all_assignments(C, K):
    rng = np.random.default_rng(C * K)
    for _ in range(20):
        y = np.concatenate([np.arange(C), rng.integers(0, C, 7)])  # one label or more for each digit, not equally many
        resp = rng.dirichlet(np.full(K, 0.5), len(y))
        mean = np.stack([resp[y == d].mean(0) for d in range(C)])
        best = max(itertools.permutations(range(K), C), key=lambda to: sum(mean[d, c] for d, c in enumerate(to)))
        names = name_components(resp, y)
        assert names[list(best)].tolist() == list(range(C))
        left = [c for c in range(K) if c not in best]
        assert names[left].tolist() == mean[:, left].argmax(0).tolist()


def test_each_digit_has_one_voice_however_many_its_labels():
    """Nine images of 1 lie mostly in the first component, one of 4 entirely; by sums the 4 would lose it."""
    resp, y = np.array([[0.6, 0.4]] * 9 + [[1.0, 0.0]]), np.array([1] * 9 + [4])
    assert name_components(resp, y).tolist() == [4, 1]
    sums = np.stack([resp[y == d].sum(0) for d in (1, 4)])
    assert sums[0, 0] + sums[1, 1] > sums[0, 1] + sums[1, 0]


def test_labels_and_components_that_do_not_match(small, fitted, untrained):
    with pytest.raises(InputError, match="^n_components is 2; expected one or more for each of the 3 labels"):
        name_components(np.full((3, 2), 0.5), [1, 4, 8])
    for fit in VAEGMM(n_components=2).fit_labelled, copy.copy(fitted).set_params(n_components=2).fit_gmm:
        with pytest.raises(InputError, match="^n_components is 2; expected one or more for each of the 3 labels"):
            fit(*small)
    X, X_lab, y_lab = small
    clf = copy.copy(fitted).set_params(n_components=3).fit_gmm(X, X_lab[y_lab != 8], y_lab[y_lab != 8])
    assert clf.classes_.tolist() == [1, 4] and len(clf.component_labels_) == 3  # a digit without a label has no name
    assert set(clf.predict(X)) <= {1, 4}
    clf = copy.copy(fitted).set_params(n_components=7).fit_gmm(*small)
    assert clf.shares_.shape == (7, 3) and set(clf.component_labels_) == {1, 4, 8}
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1)


KNOWN = {  # true labels, answers: accuracy, macro precision, recall and F1, micro F1, by hand
    "one 4 read as 8": ([1, 1, 4, 4, 8, 8], [1, 1, 4, 8, 8, 8],
                        (5 / 6, (1 + 1 + 2 / 3) / 3, (1 + 1 / 2 + 1) / 3, (1 + 2 / 3 + 4 / 5) / 3, 5 / 6)),
    "few 4s": ([1] * 8 + [4] * 2, [1] * 8 + [1, 4],
               (9 / 10, (8 / 9 + 1) / 2, (1 + 1 / 2) / 2, (16 / 17 + 2 / 3) / 2, 9 / 10)),
    "8 never answered": ([1, 4, 8], [1, 4, 4], (2 / 3, (1 + 1 / 2 + 0) / 3, 2 / 3, (1 + 2 / 3 + 0) / 3, 2 / 3)),
    "all right": ([1, 4, 8], [1, 4, 8], (1, 1, 1, 1, 1))}


@pytest.mark.parametrize("true, answers, values", KNOWN.values(), ids=KNOWN)
def test_five_metrics(true, answers, values):
    names = ["accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro"]
    found = classification_metrics(np.array(true), np.array(answers))
    assert list(found) == names and all(type(value) is float for value in found.values())
    assert list(found.values()) == pytest.approx(values, abs=1e-12)


def test_the_decision_weighs_the_components():
    """Two unit normals at 0 and 2, the first 20 times as frequent: the border lies at 1 + log(20) / 2, not at 1."""
    clf = VAEGMM()
    clf.classes_, clf.shares_ = np.array([1, 4]), np.eye(2)
    clf.mixture_ = Mixture(*map(torch.from_numpy, (np.array([20, 1]) / 21, np.array([[0.0, 0], [2, 0]]),
                                                   np.stack([np.eye(2)] * 2))))
    clf.encode = lambda X: X  # points stand for images
    x = np.array([-1.0, 0.9, 1.1, 2.0, 2.49, 2.51, 4.0])
    points = np.stack([x, np.zeros_like(x)], axis=1)
    np.testing.assert_allclose(clf.predict_proba(points)[:, 1], 1 / (1 + 20 * np.exp(2 - 2 * x)), rtol=1e-9)
    assert clf.predict(points).tolist() == [1, 1, 1, 1, 1, 4, 4]
    by_density = [multivariate_normal.logpdf(points, mean) for mean in ([0, 0], [2, 0])]
    assert clf.classes_[np.argmax(by_density, axis=0)].tolist() == [1, 1, 4, 4, 4, 4, 4]  # as the course had it


def test_all_labelled_images_right_is_no_score():
    """The points have nothing to do with their labels; those that named the components are right all the same."""
    rng = np.random.default_rng(0)
    z, y = torch.from_numpy(rng.normal(size=(2000, 2))), rng.choice([1, 4], 2000)
    z_lab, y_lab = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double(), np.array([1, 4])
    mixture = fit_mixture(z, (torch.tensor([0.5, 0.5]).double(), z_lab, torch.eye(2).double().repeat(2, 1, 1)))[0]
    names = name_components(e_step(z_lab, *mixture)[0].numpy(), y_lab)
    labelled, unseen = ((names[e_step(points, *mixture)[0].argmax(1)] == labels).mean()
                        for points, labels in ((z_lab, y_lab), (z, y)))
    assert labelled == 1 and abs(unseen - 0.5) < 0.04
    assert wilson_interval(2, 2)[0] < 0.5
    assert wilson_interval(15, 15) == pytest.approx((15 / (15 + 1.959964**2), 1), abs=1e-6)  # from 79.6 %


def test_scores_are_taken_on_images_that_took_no_part(tmp_path):
    paths = write_course_files(tmp_path, seed=3)
    parts = {part: {image.tobytes() for image in load_npz(path).images} for part, path in paths.items()}
    assert {part: len(images) for part, images in parts.items()} == {"train": 1185, "val": 15, "test": 300}
    assert len(set.union(*parts.values())) == 1500
    known = {image.tobytes() for image, label in zip(*embedded_digits()) if label in (1, 4, 8)}
    assert set.union(*parts.values()) == known


def test_one_classifier_for_every_form_of_an_image(good, digits):
    clf, images = VAEGMM.from_files(good / "vae.pth", good / "gmm.pkl"), digits[0][:12]
    expected = clf.predict_proba(images)
    unit = images / np.float32(255)
    for X in (images.reshape(12, 784), images[:, None], unit, unit.reshape(12, 784), torch.from_numpy(images),
              torch.from_numpy(unit[:, None])):
        np.testing.assert_array_equal(clf.predict_proba(X), expected)
    new, labels = clf.sample(7, random_state=0)
    for made, n in ((new, 7), (clf.reconstruct(images), 12)):
        assert made.shape == (n, 1, 28, 28) and made.dtype == np.float32 and 0 <= made.min() <= made.max() <= 1
    assert set(labels) <= set(clf.classes_) and clf.encode(images).dtype == np.float64
    assert clf.score_samples(images).shape == (12,)


def test_the_constructor_and_what_fit_refuses(digits):
    parameters = inspect.signature(VAEGMM).parameters
    assert {name: value.default for name, value in parameters.items()} == dict(
        latent_dim=None, dropout=0.2, config=None, n_components=None, straighten=True, random_state=0, device="cpu",
        network="course")
    images = digits[0][:10]
    with pytest.raises(InputError, match="holds one label only"):
        VAEGMM().fit_labelled(images, images[:2], [4, 4])
    with pytest.raises(InputError, match="^y_lab"):
        VAEGMM().fit_labelled(images, images[:2], [1, 4, 8])
    for X_lab in (images[:2] * 1.0, None, []):
        with pytest.raises(InputError, match="^X_lab"):
            VAEGMM().fit_labelled(images, X_lab, [1, 4])
    with pytest.raises(InputError, match="^n_components is None; expected the number of digits"):
        VAEGMM().fit_vae(images)


# --- a scikit-learn estimator ---------------------------------------------------------------------------------------
def partly(small):
    """All of `small` as one set: images, and labels with -1 where there is none."""
    X, X_lab, y_lab = small
    return np.concatenate([X, X_lab]), np.concatenate([np.full(len(X), -1), y_lab])


def test_fit_with_minus_one_is_fit_labelled(small):
    X, y = partly(small)
    clf = VAEGMM(**QUICK).fit(X, y)
    assert tells(clf, X) == tells(VAEGMM(**QUICK).fit_labelled(X, X[y != -1], y[y != -1]), X)
    assert clf.classes_.tolist() == [1, 4, 8] and is_classifier(clf)
    assert clf.score(X, y) == (clf.predict(X) == y)[y != -1].mean() == clf.score(*small[1:])
    for use in clf.fit, clf.score:
        with pytest.raises(InputError, match="^y: holds no label; expected"):
            use(X, np.full(len(X), -1))


def test_its_settings_are_scikit_learns(small, fitted):
    clf = VAEGMM(latent_dim=3, config=TrainConfig.fast(epochs=2), straighten=False)
    params = clf.get_params()
    assert clone(clf).get_params() == params and clone(fitted).get_params() == fitted.get_params()
    assert not any(name.endswith("_") for name in vars(clone(fitted)))
    assert clf.set_params(n_components=4, random_state=None) is clf and clf.get_params()["n_components"] == 4
    with pytest.raises(ValueError, match="per_class"):
        clf.set_params(per_class=2)
    assert repr(VAEGMM(latent_dim=4)) == "VAEGMM(latent_dim=4)"


def test_in_a_pipeline(small, fitted):
    X, y = partly(small)
    pipeline = make_pipeline(FunctionTransformer(lambda X: X.reshape(-1, 28, 28)), VAEGMM(**QUICK)).fit(
        X.reshape(-1, 784), y)
    clf = VAEGMM(**QUICK).fit(X, y)
    np.testing.assert_array_equal(pipeline.predict_proba(X.reshape(-1, 784)), clf.predict_proba(X))
    assert pipeline.score(X.reshape(-1, 784), y) == clf.score(X, y)


def test_in_a_grid_search(small):
    X, y = partly(small)
    search = GridSearchCV(VAEGMM(**QUICK), {"latent_dim": [2, 3]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_["latent_dim"] in (2, 3) and search.best_estimator_.encode(X).shape[1] in (2, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all() and search.predict(X).shape == (len(X),)


def test_the_course_projects_system(small):
    clf = VAEGMM.course()
    assert (clf.latent_dim, clf.straighten, clf.config) == (2, False, TrainConfig()) and clf.config.prior_epochs == 0
    assert VAEGMM.course(random_state=3, latent_dim=4).get_params()["latent_dim"] == 4
    clf = VAEGMM.course(config=TrainConfig(epochs=2, batch_size=8)).fit_labelled(*small)
    assert clf.vae_.straightened is False and [row["stage"] for row in clf.history_.rows] == [1, 1]
    assert "val_loss" in clf.history_.rows[0] and clf.mixture_.weights.shape == (3,)
    z = torch.from_numpy(clf.encode(small[0]))
    means = [e_step(z, *clf.mixture_)[1].mean(), fit_mixture(z, clf.mixture_, tol=0, max_iter=50)[1][-1]]
    assert means[1] - means[0] < 1e-2  # it is where EM ends


def test_straightened_or_not(small, fitted):
    X = small[0]
    loose = VAEGMM(**QUICK, straighten=False).fit_labelled(*small)
    assert fitted.vae_.straightened and not loose.vae_.straightened
    with torch.no_grad():
        x = torch.from_numpy(X[:, None] / np.float32(255))
        for clf, seen in ((fitted, straighten(x)[0]), (loose, x)):
            np.testing.assert_allclose(clf.encode(X), clf.vae_.encode(seen)[0], atol=1e-6)
            assert clf.reconstruct(X).shape == (12, 1, 28, 28)
        as_they_are = torch.sigmoid(loose.vae_.decode(torch.from_numpy(loose.encode(X)).float()))
    np.testing.assert_allclose(loose.reconstruct(X), as_they_are, atol=1e-6)


class Mirror(VAE):
    """A network that gives back what it sees: the images it encoded last."""
    def encode(self, x):
        self.seen = x
        return torch.zeros(len(x), self.latent_dim), torch.zeros(len(x), self.latent_dim)

    def decode(self, z): return torch.logit(self.seen, eps=1e-6)


def test_a_reconstruction_has_its_images_pose(digits):
    clf, X = VAEGMM(), digits[0][:60]
    clf.vae_ = Mirror(8)
    clf.vae_.straightened = True
    straight, pose = straighten(torch.from_numpy(X[:, None] / np.float32(255)))
    assert pose.abs().amax(0)[2] > 0.2  # some of them lean
    back, upright = similarity(X, clf.reconstruct(X)).ssim, similarity(X, straight.numpy()).ssim
    assert back.mean() > 0.97 and back.mean() > upright.mean() + 0.1 and (back >= upright - 0.02).all()


def test_new_digits_of_one_label(fitted):
    for label in (1, 4, 8, np.int64(4), "4"):
        images, labels = fitted.sample(5, label)
        assert images.shape == (5, 1, 28, 28) and labels.tolist() == [int(label)] * 5
    for label, expected in ((7, r"one of \[1, 4, 8\]"), (4.5, "whole numbers"), ("four", "whole numbers")):
        with pytest.raises(InputError, match=f"^label is .*; expected {expected}"):
            fitted.sample(5, label)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu", 1.5])
def test_a_device_that_is_not_there(device, small, fitted, tmp_path, untrained):
    fitted.save(tmp_path)
    for use in (lambda: VAEGMM(device=device).fit_labelled(*small), lambda: VAEGMM.load(tmp_path, device=device)):
        with pytest.raises(InputError, match="^device is .*; expected one that is in this machine") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_random_state_governs_every_bit(small):
    def told(**settings): return tells(VAEGMM(**QUICK | settings).fit_labelled(*small), small[0])
    torch.manual_seed(3)
    one = told(random_state=5)
    torch.manual_seed(4)
    np.random.seed(4)
    assert told(random_state=5) == one
    others = [told(random_state=random_state) for random_state in (6, None, None)]
    assert all(this != that for this, that in zip(one, others[0]))
    for a, b in itertools.combinations([one, *others], 2):
        assert all(this != that for i, (this, that) in enumerate(zip(a, b)) if i != 2)  # probabilities may be 0 and 1
    assert told(random_state=5, config=replace(QUICK["config"], seed=9)) == one  # the recipe's own seed does not count


# --- the estimator's state, settings and surroundings ---------------------------------------------------------------
QUICK = dict(config=TrainConfig.fast(epochs=1, batch_size=4))  # an epoch of each stage, three steps


@pytest.fixture(scope="module")
def small(digits):
    """12 unlabelled images; nine labelled ones and their labels."""
    images, labels = digits
    val = np.concatenate([np.flatnonzero(labels[60:] == d)[:3] for d in (1, 4, 8)]) + 60
    return images[:12], images[val], labels[val]


@pytest.fixture(scope="module")
def fitted(small):
    return VAEGMM(**QUICK).fit_labelled(*small)


@pytest.fixture(scope="module")
def told(small, fitted):
    """All that it says of the unlabelled images."""
    return tells(fitted, small[0])


@pytest.fixture
def untrained(monkeypatch):
    """Training is an error in this test."""
    def fit_vae(*args, **options): raise AssertionError("it trains")
    monkeypatch.setattr(classifier, "fit_vae", fit_vae)


def same_parts(clf, parts):
    """Whether a classifier has these attributes and no others, each the very same object."""
    return vars(clf).keys() == parts.keys() and all(value is parts[name] for name, value in vars(clf).items())


def tells(clf, X):
    """All that a classifier says."""
    return [model_id(clf.vae_), *(f(X).tobytes() for f in (clf.encode, clf.predict_proba, clf.score_samples,
                                                           clf.reconstruct)), clf.sample(4)[0].tobytes()]


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def other_seeds():
    torch.manual_seed(5)
    np.random.seed(5)
    yield


AROUND = {
    "float64 by default": lambda: default_dtype(torch.float64), "half by default": lambda: default_dtype(torch.half),
    "no_grad": torch.no_grad, "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "NumPy raises": lambda: np.errstate(all="raise"), "other seeds": other_seeds}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_the_session_around_changes_nothing_and_is_not_changed(around, small, told, tmp_path):
    def session():
        return (torch.get_rng_state().tolist(), str(np.random.get_state()), torch.is_grad_enabled(), np.geterr(),
                torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
    with around():
        before = session()
        clf = VAEGMM(**QUICK).fit_labelled(*small)
        clf.save(tmp_path)
        loaded = VAEGMM.load(tmp_path)
        said = tells(clf, small[0]), tells(loaded, small[0])
        assert session() == before
    assert said == (told, told)
    logits, mu, _ = loaded.vae_(torch.rand(2, 1, 28, 28))
    (logits.sum() + mu.sum()).backward()  # a network that was loaded there can still be trained here


def test_fits_in_threads_are_fits_alone(small):
    def told(seed):
        config = TrainConfig.fast(epochs=2, batch_size=8, seed=seed)
        return tells(VAEGMM(config=config, random_state=seed).fit_labelled(*small), small[0])
    alone = {seed: told(seed) for seed in (0, 1)}
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(told, (0, 1, 0))) == [alone[0], alone[1], alone[0]]


def test_random_numbers_follow_random_state(fitted):
    torch.manual_seed(1)
    np.random.seed(1)
    images, labels = fitted.sample(6)
    np.random.seed(2)
    for again in (fitted.sample(6), fitted.sample(6, random_state=0), fitted.sample(np.int64(6), None, np.int64(0))):
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], labels)
    assert (fitted.sample(6, random_state=1)[0] != images).any()
    free = copy.copy(fitted)
    free.random_state, before = None, str(np.random.get_state())
    assert (free.sample(6)[0] != free.sample(6)[0]).any() and str(np.random.get_state()) == before


NUMBERS = {
    "random_state": dict(random_state=np.int64(3)), "none": dict(random_state=None),
    "of the network": dict(latent_dim=np.int32(3), dropout=np.float32(0.1)),
    "of the mixture": dict(n_components=np.int8(4), straighten=np.bool_(False)),
    "of the recipe": dict(config=TrainConfig(epochs=np.int64(1), batch_size=np.int16(8), lr=np.float32(1e-3),
                                             beta=np.float64(0.5), train_share=np.float32(0.75), seed=np.uint32(5),
                                             augment=np.bool_(True), max_minutes=np.float32(9),
                                             prior_epochs=np.int8(1), shrinkage=np.float32(0.25)))}


@pytest.mark.parametrize("settings", NUMBERS.values(), ids=NUMBERS)
def test_settings_may_be_numbers_of_numpy(settings, small, tmp_path):
    clf = VAEGMM(**QUICK | settings).fit_labelled(*small)
    clf.save(tmp_path)
    loaded = VAEGMM.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(small[0]), clf.predict_proba(small[0]))
    for name in ("dropout", "n_components", "straighten", "random_state"):
        assert getattr(loaded, name) == getattr(clf, name)
    assert (loaded.latent_dim, loaded.config) == (clf.latent_dim or 8, clf.config_)
    assert all(type(value).__module__ != "numpy" for value in (*vars(loaded).values(), *asdict(loaded.config).values())
               if not isinstance(value, np.ndarray))


def test_without_a_seed_the_recipe_that_was_used_is_kept(small, tmp_path, monkeypatch):
    def recipe(n_images): return TrainConfig(epochs=1, batch_size=8)
    monkeypatch.setattr(classifier.TrainConfig, "fast", recipe)
    clfs = [VAEGMM(random_state=None).fit_labelled(*small) for _ in range(2)]
    assert clfs[0].config_.seed != clfs[1].config_.seed and model_id(clfs[0].vae_) != model_id(clfs[1].vae_)
    clfs[0].save(tmp_path)
    loaded = VAEGMM.load(tmp_path)
    assert loaded.random_state is None and loaded.config == clfs[0].config_


def test_what_follows_from_the_data(digits):
    """As many dimensions as components, but eight at the least; a shorter stage two if there are many images."""
    images, labels = digits
    ten = [np.flatnonzero(labels == digit)[0] for digit in (1, 4, 8)] + list(range(7))
    for settings, D in (({}, 10), (dict(latent_dim=3), 3), (dict(config=TrainConfig(epochs=1)), 10)):
        assert VAEGMM(**QUICK | settings).fit_vae(images[:12], images[ten], np.arange(10)).vae_.latent_dim == D
    assert VAEGMM(**QUICK, n_components=9).fit_vae(images[:12]).vae_.latent_dim == 9
    assert [classifier._settings(VAEGMM(), n)["config"].prior_epochs for n in (40, 2400, 60_000)] == [24, 12, 8]
    assert classifier._settings(VAEGMM(**QUICK), 60_000)["config"].prior_epochs == 1


@pytest.mark.parametrize("few, message", [
    ((3, 3), "X_lab: "), ((None, [1]), "X_lab"), (("images", None), "y_lab"), (("images", [1, 2]), "y_lab: ")], ids=str)
def test_labelled_images_of_the_first_half_are_checked(few, message, small, untrained):
    few = [small[0][:3] if part == "images" else part for part in few]
    with pytest.raises(InputError, match=f"^{message}"):
        VAEGMM().fit_vae(small[0], *few)


REFUSED = [dict(latent_dim=2.0), dict(latent_dim=0), dict(latent_dim=2000), dict(latent_dim=True), dict(dropout=1),
           dict(dropout="0.2"), dict(dropout=np.nan), dict(dropout=None), dict(n_components=1),
           dict(n_components="3"), dict(n_components=3.0), dict(n_components=True), dict(straighten=None),
           dict(straighten=1), dict(straighten="yes"), dict(random_state=-1), dict(random_state=2**32),
           dict(random_state="0"), dict(random_state=1.0), dict(random_state=np.random.RandomState(0)),
           dict(random_state=np.random.default_rng(0)), dict(config={}), dict(config="fast"), dict(config=TrainConfig)]


@pytest.mark.parametrize("setting", REFUSED, ids=str)
def test_settings_that_cannot_be_kept_are_refused_before_training(setting, small, fitted, tmp_path, untrained):
    (name, value), clf = *setting.items(), copy.copy(fitted)
    setattr(clf, name, value)
    before = dict(vars(clf))
    for use in (lambda: clf.fit_labelled(*small), lambda: clf.fit_vae(small[0]), lambda: clf.save(tmp_path / "model")):
        with pytest.raises(InputError, match=rf"^{name} is .*; expected "):
            use()
    assert not (tmp_path / "model").exists()
    assert same_parts(clf, before)  # the earlier fit is still there


USES = {"predict": lambda clf, X, folder: clf.predict(X), "predict_proba": lambda clf, X, folder: clf.predict_proba(X),
        "score_samples": lambda clf, X, folder: clf.score_samples(X), "sample": lambda clf, X, folder: clf.sample(2),
        "component_labels_": lambda clf, X, folder: clf.component_labels_,
        "save": lambda clf, X, folder: clf.save(folder)}
OF_THE_NETWORK = {"encode": lambda clf, X, folder: clf.encode(X), "history_": lambda clf, X, folder: clf.history_,
                  "reconstruct": lambda clf, X, folder: clf.reconstruct(X),
                  "fit_gmm": lambda clf, X, folder: clf.fit_gmm(X, X[:2], [1, 4])}


@pytest.mark.parametrize("use", (USES | OF_THE_NETWORK).values(), ids=USES | OF_THE_NETWORK)
def test_unfitted_use_is_an_error_of_its_own(use, small, fitted, tmp_path):
    half = VAEGMM()
    half.vae_, half.history_ = fitted.vae_, fitted.history_
    for clf in (VAEGMM(), half) if use in USES.values() else (VAEGMM(),):
        with pytest.raises(NotFittedError, match="there after fit"):
            use(clf, small[0], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_not_there_is_not_there(small, fitted, told):
    clf = VAEGMM()
    assert not any(hasattr(clf, name) for name in ("vae_", "mixture_", "classes_", "component_labels_", "vae"))
    with pytest.raises(AttributeError) as caught:
        clf.predicts
    assert not isinstance(caught.value, NotFittedError)
    for again in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert tells(again, small[0]) == told


def test_nothing_of_an_earlier_fit_survives(small, fitted):
    clf = copy.copy(fitted)
    clf.left_ = "of an earlier fit"
    clf.set_params(n_components=3).fit_vae(small[0])
    assert {name for name in vars(clf) if name.endswith("_")} == {"vae_", "prior_", "config_", "history_"}
    with pytest.raises(NotFittedError):
        clf.predict(small[0])
    clf = copy.copy(fitted)
    with pytest.raises(ZeroDivisionError):
        clf.fit_labelled(*small, callback=lambda history: 1 / 0)
    assert not any(name.endswith("_") for name in vars(clf))


@pytest.mark.parametrize("epochs", [0, 1, 4])  # in the first stage, or in the second
def test_ctrl_c_leaves_nothing_that_looks_fitted(epochs, small, fitted, monkeypatch):
    step, steps = torch.optim.Adam.step, []
    def interrupted(self, *args, **options):
        steps.append(1)
        if len(steps) % (3 * epochs + 2) == 0:  # the second step of the epoch after
            raise KeyboardInterrupt
        return step(self, *args, **options)
    clf = copy.copy(fitted)
    clf.n_components, clf.config = 3, replace(clf.config, epochs=3, prior_epochs=3)
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit_labelled(*small)
    for _ in range(2):
        assert clf.history_.stopped == "interrupted" and len(clf.history_.rows) == epochs
        for use in (clf.predict, clf.encode, clf.reconstruct):
            with pytest.raises(NotFittedError):
                use(small[0])
        clf.fit_vae(small[0])  # the command line asks the history


def test_without_a_finite_loss_there_is_no_network(small):
    clf = VAEGMM(config=TrainConfig(epochs=2, batch_size=8, lr=1e30))
    with pytest.raises(FloatingPointError, match="not finite .*; expected"), pytest.warns(RuntimeWarning):
        clf.fit_labelled(*small)
    with pytest.raises(NotFittedError):
        clf.encode(small[0])


LABELS = {  # as they may be given, from whole numbers (9,)
    "a list": np.ndarray.tolist, "a tensor": torch.from_numpy, "int8": lambda y: y.astype(np.int8)}
LIKE_LABELS = {  # taken as the whole numbers that they mean, or refused
    "strings": lambda y: y.astype(str), "objects of str": lambda y: y.astype(str).astype(object),
    "floats": lambda y: y.astype(float), "objects": lambda y: y.astype(object), "a column": lambda y: y[:, None]}
NO_LABELS = {
    "one too few": lambda y: y[:-1], "one too many": lambda y: np.append(y, 1), "none": lambda y: None,
    "one-hot": lambda y: np.eye(10, dtype=int)[y], "-1": lambda y: np.where(y == 1, -1, y),
    "NaN": lambda y: np.where(y == 1, np.nan, y), "halves": lambda y: y + 0.5, "words": lambda y: ["one"] * len(y),
    "missing ones": lambda y: [None, *y[1:]], "masked": lambda y: np.ma.masked_equal(y, 1), "empty": lambda y: [],
    "one label": lambda y: y * 0 + 4}


@pytest.mark.parametrize("given", (LABELS | LIKE_LABELS).values(), ids=LABELS | LIKE_LABELS)
def test_labels_in_any_form_are_whole_numbers(given, small, fitted, tmp_path):
    X, X_val, y_val = small
    clf = copy.copy(fitted)
    try:
        clf.fit_gmm(X, X_val, given(y_val))
    except InputError as err:
        assert given in LIKE_LABELS.values() and re.match("y_lab: .*; expected ", str(err)) and "\n" not in str(err)
        return
    clf.save(tmp_path)
    assert clf.classes_.dtype == np.int64 and clf.classes_.tolist() == [1, 4, 8]
    for one in (clf, VAEGMM.load(tmp_path)):
        np.testing.assert_array_equal(one.predict_proba(X), fitted.predict_proba(X))
    resp = np.random.default_rng(0).dirichlet(np.ones(3), len(y_val))
    np.testing.assert_array_equal(name_components(resp, given(y_val)), name_components(resp, y_val))
    assert classification_metrics(given(y_val), y_val)["accuracy"] == 1


@pytest.mark.parametrize("given", NO_LABELS.values(), ids=NO_LABELS)
def test_other_labels_are_refused_before_training(given, small, fitted, untrained):
    X, X_val, y_val = small
    clf = copy.copy(fitted)
    for fit in clf.fit_labelled, clf.fit_gmm:
        with pytest.raises(InputError, match="^y_lab: .*; expected "):
            fit(X, X_val, given(y_val))
    assert same_parts(clf, vars(fitted))
    if given is not NO_LABELS["one label"]:
        with pytest.raises(InputError, match="^y: .*; expected "):
            name_components(np.ones((9, 3)), given(y_val))
    if given is not NO_LABELS["-1"]:
        with pytest.raises(InputError, match="^y(_lab)?: .*; expected "):
            clf.fit(X_val, given(y_val))


def test_too_few_images_are_refused_before_training(small, untrained):
    for n, said in (0, "X: holds no image"), (2, "X: holds 2 images; expected"):
        with pytest.raises(InputError, match=said):
            VAEGMM(**QUICK).fit_labelled(small[0][:n], *small[1:])


# --- files: what is written can be read -----------------------------------------------------------------------------
def changed(change):
    """A network after a change, whatever the change returns."""
    def make():
        network = VAE(2)
        return change(network) or network
    return make


def compiled(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about itself
        return torch.compile(network)


@torch.no_grad()
def with_weight(value):
    network = VAE(2).double()
    network.conv1.weight[0, 0, 0, 0] = value
    return network


def made_in_inference_mode():
    with torch.inference_mode():
        return VAE(2).half()


NETWORKS = {
    "half": lambda: VAE(2).half(), "bfloat16": lambda: VAE(2).bfloat16(), "double": lambda: VAE(2).double(),
    "partly half": changed(lambda v: v.fc1.half() and None), "frozen": changed(lambda v: v.requires_grad_(False)),
    "compiled": lambda: compiled(VAE(2)), "compiled, half": lambda: compiled(VAE(2).half()),
    "a layer compiled": changed(lambda v: setattr(v, "conv1", compiled(v.conv1))),
    "shared weights": changed(lambda v: setattr(v.fc_logvar, "weight", v.fc_mu.weight)),
    "inference mode": made_in_inference_mode, "numbers of NumPy": lambda: VAE(np.int64(3), np.float32(0.1)),
    "dropout set": changed(lambda v: setattr(v, "dropout", np.float32(0.1)))}
NO_NETWORKS = {
    "NaN": (lambda: with_weight(np.nan), "not finite"), "beyond float32": (lambda: with_weight(1e300), "not finite"),
    "on no device": (lambda: VAE(2).to("meta"), "on meta"), "too wide": (lambda: VAE(1025), "1025 latent dimensions"),
    "other weights": (lambda: changed(lambda v: torch.nn.utils.parametrizations.weight_norm(v.fc1) and None)(),
                      "fc1.weight is missing"),
    "wrapped": (lambda: torch.nn.DataParallel(VAE(2)), "expected a VAE"), "its weights": (VAE(2).state_dict, "VAE")}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_any_network_is_saved_as_plain_numbers(make, tmp_path):
    network = make()
    save_vae(network, tmp_path / "vae.pth")
    loaded, state = load_vae(tmp_path / "vae.pth"), network.state_dict()
    assert (loaded.latent_dim, loaded.dropout) == (network.latent_dim, network.dropout)
    assert model_id(loaded) == model_id(network)
    for name, value in zip(loaded.state_dict(), state.values(), strict=True):
        assert torch.equal(loaded.state_dict()[name], value.float()), name


@pytest.mark.parametrize("make, said", NO_NETWORKS.values(), ids=NO_NETWORKS)
def test_a_network_that_could_not_be_read_is_not_written(make, said, fitted, tmp_path):
    network, clf = make(), copy.copy(fitted)
    clf.vae_ = network
    for write in (lambda: save_vae(network, tmp_path / "vae.pth"), lambda: clf.save(tmp_path / "model")):
        with pytest.raises(InputError, match=said):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_in_other_precision_is_saved(small, fitted, tmp_path):
    for change in (torch.nn.Module.half, torch.nn.Module.double, compiled):
        clf = copy.deepcopy(fitted)
        clf.vae_ = change(clf.vae_)
        clf.save(tmp_path)
        loaded = VAEGMM.load(tmp_path)
        np.testing.assert_allclose(loaded.predict_proba(small[0]), clf.predict_proba(small[0]), atol=0.01)


def test_a_mixture_that_could_not_be_read_is_not_written(tmp_path):
    def mixture(K=2, D=2, width=1.0):
        return Mixture(torch.full((K,), 1 / K).double(), torch.arange(K * D).reshape(K, D).double(),
                       width * torch.eye(D).double().repeat(K, 1, 1))
    path, good = tmp_path / "gmm.npz", mixture()
    flat = good._replace(covariances=torch.ones(2, 2).double())
    for given, classes, shares in ((flat, [1, 4], np.eye(2)), (good, [1, 1], np.eye(2)), (good, [1], np.eye(2)),
                                   (good, [1, 4], np.ones((2, 2))), (good, [1, 4, 8], np.eye(3)),
                                   (good, [1, 4], np.full((2, 2), np.nan)), (good, [1.5, 4], np.eye(2))):
        with pytest.raises(InputError, match="expected"):
            save_gmm(given, classes, shares, path)
    for given in (mixture(width=-1.0), mixture(width=np.nan), good._replace(weights=torch.ones(2).double()),
                  good._replace(means=torch.zeros(3, 2).double())):
        with pytest.raises(InputError, match="damaged mixture"):
            save_gmm(given, [1, 4], np.eye(2), path)
    with warnings.catch_warnings(), np.errstate(all="raise"), pytest.raises(InputError, match="too small"):
        warnings.simplefilter("error")
        save_gmm(mixture(width=1e-310), [1, 4], np.eye(2), path)
    assert list(tmp_path.iterdir()) == []
    save_gmm(Mixture(*(a.float() for a in good)), [1, 4], np.eye(2, dtype=int), path)
    for a, b in zip(load_gmm(path)[0], good, strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b)


def test_a_folder_is_written_whole_or_not_at_all(fitted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/model"):
        with pytest.raises(InputError, match="expected the name of a folder"):
            fitted.save(tmp_path / folder)
    (tmp_path / "model" / "gmm.npz").mkdir(parents=True)
    with pytest.raises(InputError, match="gmm.npz: cannot be written"):
        fitted.save(tmp_path / "model")
    def full(*args, **options): raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match="No space left"):
        fitted.save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["gmm.npz"]
    assert list((tmp_path / "other").iterdir()) == []
