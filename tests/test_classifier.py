"""Files of the first edition spelled out; metrics, decision and honest scores; settings, state and session of a fit."""
import copy
import hashlib
import inspect
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
from sklearn.exceptions import NotFittedError

from vae_gmm import classifier
from vae_gmm.classifier import VAEGMM, classification_metrics, label_shares, read_settings, wilson_interval
from vae_gmm.data import embedded_digits, load_npz, write_course_files
from vae_gmm.files import InputError
from vae_gmm.mixture import GaussianMixture
from vae_gmm.model_files import load_gmm, load_vae, model_id, safetensors_header, save_gmm, save_vae
from vae_gmm.training import TrainConfig
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
MIXTURE = dict(
    weights=np.array([0.5, 0.3, 0.2]), means=np.array([[0.0, 0.1], [-0.1, 0.0], [0.1, -0.1]]),
    covariances=np.array([[[0.02, 0.0], [0.0, 0.03]], [[0.05, 0.01], [0.01, 0.04]], [[0.01, 0.0], [0.0, 0.01]]]),
    classes=np.array([1, 4, 8]), shares=np.array([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]))


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
    assert not clf.vae_.training and (clf.latent_dim, clf.dropout) == (2, 0.2)
    assert (clf.per_class, clf.n_init, clf.random_state) == (3, 7, 5)
    assert clf.config == TrainConfig(**CONFIG["config"])
    assert clf.component_labels_.tolist() == [1, 4, 8]


def test_the_command_lines_two_files_load(first_edition, tmp_path, digits):
    for old, new in (("vae.safetensors", "vae.pth"), ("gmm.npz", "gmm_params.pkl")):
        (tmp_path / new).write_bytes((first_edition / old).read_bytes())
    clf = VAEGMM.from_files(tmp_path / "vae.pth", tmp_path / "gmm_params.pkl")
    np.testing.assert_array_equal(clf.predict_proba(digits[0][:5]),
                                  VAEGMM.load(first_edition).predict_proba(digits[0][:5]))


def test_files_are_written_as_the_first_edition_wrote_them(first_edition, tmp_path):
    VAEGMM.load(first_edition).save(tmp_path / "again")
    old, new = ({path.name: path for path in folder.iterdir()} for folder in (first_edition, tmp_path / "again"))
    assert old.keys() == new.keys()
    assert json.loads(old["config.json"].read_text()) == json.loads(new["config.json"].read_text())
    assert safetensors_header(old["vae.safetensors"]) == safetensors_header(new["vae.safetensors"])
    with np.load(old["gmm.npz"]) as a, np.load(new["gmm.npz"]) as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    assert model_id(load_vae(old["vae.safetensors"])) == model_id(load_vae(new["vae.safetensors"]))


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
    assert read_settings(first_edition / "config.json").keys() == {"config", "per_class", "n_init", "random_state"}
    for text in ("", "[", "{}", '{"config": {"run": 1}}', "[" * 10**5, *(json.dumps(CONFIG | changed) for changed in (
            {"per_class": "many"}, {"n_init": -1}, {"per_class": None}, {"random_state": 2**32}))):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match="config.json"):
            read_settings(tmp_path / "config.json")


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
    clf.gmm_ = GaussianMixture.from_parameters([20 / 21, 1 / 21], [[0, 0], [2, 0]], [np.eye(2)] * 2)
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
    z, y = rng.normal(size=(2000, 2)), rng.choice([1, 4], 2000)
    z_lab, y_lab = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([1, 4])
    gmm = GaussianMixture(2, means_init=z_lab, random_state=0).fit(z)
    shares = label_shares(gmm.predict_proba(z_lab), y_lab, [1, 4])
    labelled, unseen = ((y_lab[(gmm.predict_proba(points) @ shares).argmax(1)] == labels).mean()
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
        latent_dim=2, dropout=0.2, config=None, per_class=2, n_init=10, random_state=0, device="cpu")
    images = digits[0][:10]
    with pytest.raises(InputError, match="holds one label only"):
        VAEGMM().fit(images, images[:2], [4, 4])
    with pytest.raises(InputError, match="y_val"):
        VAEGMM().fit(images, images[:2], [1, 4, 8])
    with pytest.raises(InputError, match="X_val"):
        VAEGMM().fit(images, images[:2] * 1.0, [1, 4])


# --- the estimator's state, settings and surroundings ---------------------------------------------------------------
QUICK = dict(config=TrainConfig(epochs=1, batch_size=8), n_init=1)  # two steps of training, two starts of EM


@pytest.fixture(scope="module")
def small(digits):
    """20 unlabelled images; nine labelled ones and their labels."""
    images, labels = digits
    val = np.concatenate([np.flatnonzero(labels[60:] == d)[:3] for d in (1, 4, 8)]) + 60
    return images[:20], images[val], labels[val]


@pytest.fixture(scope="module")
def fitted(small):
    return VAEGMM(**QUICK).fit(*small)


@pytest.fixture
def untrained(monkeypatch):
    """Training is an error in this test."""
    def fit_vae(*args, **options): raise AssertionError("it trains")
    monkeypatch.setattr(classifier, "fit_vae", fit_vae)


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
def test_the_session_around_changes_nothing_and_is_not_changed(around, small, fitted, tmp_path):
    def session():
        return (torch.get_rng_state().tolist(), str(np.random.get_state()), torch.is_grad_enabled(), np.geterr(),
                torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
    with around():
        before = session()
        clf = VAEGMM(**QUICK).fit(*small)
        clf.save(tmp_path)
        loaded = VAEGMM.load(tmp_path)
        said = tells(clf, small[0]), tells(loaded, small[0])
        assert session() == before
    assert said == (tells(fitted, small[0]),) * 2
    logits, mu, _ = loaded.vae_(torch.rand(2, 1, 28, 28))
    (logits.sum() + mu.sum()).backward()  # a network that was loaded there can still be trained here


def test_fits_in_threads_are_fits_alone(small):
    def told(seed):
        config = TrainConfig(epochs=2, batch_size=8, seed=seed)
        return tells(VAEGMM(config=config, n_init=1, random_state=seed).fit(*small), small[0])
    alone = {seed: told(seed) for seed in (0, 1)}
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(told, (0, 1, 0))) == [alone[0], alone[1], alone[0]]


def test_random_numbers_follow_random_state(fitted):
    torch.manual_seed(1)
    np.random.seed(1)
    images, labels = fitted.sample(6)
    np.random.seed(2)
    for again in (fitted.sample(6), fitted.sample(6, random_state=0), fitted.sample(np.int64(6), np.int64(0))):
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], labels)
    assert (fitted.sample(6, random_state=1)[0] != images).any()
    free = copy.copy(fitted)
    free.random_state, before = None, str(np.random.get_state())
    assert (free.sample(6)[0] != free.sample(6)[0]).any() and str(np.random.get_state()) == before


NUMBERS = {
    "random_state": dict(random_state=np.int64(3)), "none": dict(random_state=None),
    "of the network": dict(latent_dim=np.int32(3), dropout=np.float32(0.1)),
    "of the mixture": dict(per_class=np.int8(1), n_init=np.uint8(0)),
    "of the recipe": dict(config=TrainConfig(epochs=np.int64(1), batch_size=np.int16(8), lr=np.float32(1e-3),
                                             beta=np.float64(0.5), train_share=np.float32(0.75), seed=np.uint32(5),
                                             augment=np.bool_(True), max_minutes=np.float32(9)))}


@pytest.mark.parametrize("settings", NUMBERS.values(), ids=NUMBERS)
def test_settings_may_be_numbers_of_numpy(settings, small, tmp_path):
    clf = VAEGMM(**QUICK | settings).fit(*small)
    clf.save(tmp_path)
    loaded = VAEGMM.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict_proba(small[0]), clf.predict_proba(small[0]))
    for name in ("latent_dim", "dropout", "per_class", "n_init", "random_state", "config"):
        assert getattr(loaded, name) == getattr(clf, name)
    assert all(type(value).__module__ != "numpy" for value in (*vars(loaded).values(), *asdict(loaded.config).values())
               if not isinstance(value, np.ndarray))


def test_without_a_seed_the_recipe_that_was_used_is_kept(small, tmp_path, monkeypatch):
    train = classifier.fit_vae
    monkeypatch.setattr(classifier, "fit_vae", lambda model, train_part, val, config: train(
        model, train_part, val, TrainConfig(epochs=1, batch_size=8, seed=config.seed)))
    clfs = [VAEGMM(n_init=0, random_state=None).fit(*small) for _ in range(2)]
    assert clfs[0].config_.seed != clfs[1].config_.seed and model_id(clfs[0].vae_) != model_id(clfs[1].vae_)
    clfs[0].save(tmp_path)
    loaded = VAEGMM.load(tmp_path)
    assert loaded.random_state is None and loaded.config == clfs[0].config_
    assert model_id(loaded.fit_vae(small[0]).vae_) == model_id(clfs[0].vae_)


REFUSED = [dict(latent_dim=2.0), dict(latent_dim=0), dict(latent_dim=2000), dict(latent_dim=True), dict(dropout=1),
           dict(dropout="0.2"), dict(dropout=np.nan), dict(dropout=None), dict(per_class=0), dict(per_class="2"),
           dict(n_init=-1), dict(n_init=1.5), dict(n_init=None), dict(random_state=-1), dict(random_state=2**32),
           dict(random_state="0"), dict(random_state=1.0), dict(random_state=np.random.RandomState(0)),
           dict(random_state=np.random.default_rng(0)), dict(config={}), dict(config="fast"), dict(config=TrainConfig)]


@pytest.mark.parametrize("setting", REFUSED, ids=str)
def test_settings_that_cannot_be_kept_are_refused_before_training(setting, small, fitted, tmp_path, untrained):
    (name, value), clf = *setting.items(), copy.copy(fitted)
    setattr(clf, name, value)
    for use in (lambda: clf.fit(*small), lambda: clf.fit_vae(small[0]), lambda: clf.save(tmp_path / "model")):
        with pytest.raises(InputError, match=rf"^{name} is .*; expected "):
            use()
    assert not (tmp_path / "model").exists()
    setattr(clf, name, getattr(fitted, name))
    assert tells(clf, small[0]) == tells(fitted, small[0])  # the earlier fit is still there


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


def test_what_is_not_there_is_not_there(small, fitted):
    clf = VAEGMM()
    assert not any(hasattr(clf, name) for name in ("vae_", "gmm_", "classes_", "component_labels_", "vae"))
    with pytest.raises(AttributeError) as caught:
        clf.predicts
    assert not isinstance(caught.value, NotFittedError)
    for again in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert tells(again, small[0]) == tells(fitted, small[0])


def test_nothing_of_an_earlier_fit_survives(small, fitted):
    clf = copy.copy(fitted)
    clf.left_ = "of an earlier fit"
    clf.fit_vae(small[0])
    assert {name for name in vars(clf) if name.endswith("_")} == {"vae_", "config_", "history_"}
    with pytest.raises(NotFittedError):
        clf.predict(small[0])
    clf = copy.copy(fitted)
    with pytest.raises(ZeroDivisionError):
        clf.fit(*small, callback=lambda history: 1 / 0)
    assert not any(name.endswith("_") for name in vars(clf))


@pytest.mark.parametrize("epochs", [0, 1])
def test_ctrl_c_leaves_nothing_that_looks_fitted(epochs, small, fitted, monkeypatch):
    step, steps = torch.optim.Adam.step, []
    def interrupted(self, *args, **options):
        steps.append(1)
        if len(steps) % (2 * epochs + 2) == 0:  # the second step of the epoch after
            raise KeyboardInterrupt
        return step(self, *args, **options)
    clf = copy.copy(fitted)
    clf.config = replace(clf.config, epochs=3)
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(*small)
    for _ in range(2):
        assert clf.history_.stopped == "interrupted" and len(clf.history_.rows) == epochs
        for use in (clf.predict, clf.encode, clf.reconstruct):
            with pytest.raises(NotFittedError):
                use(small[0])
        clf.fit_vae(small[0])  # the command line asks the history


def test_without_a_finite_loss_there_is_no_network(small):
    clf = VAEGMM(config=TrainConfig(epochs=2, batch_size=8, lr=1e30), n_init=1)
    with pytest.raises(FloatingPointError, match="not finite .*; expected"), pytest.warns(RuntimeWarning):
        clf.fit(*small)
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
        assert given in LIKE_LABELS.values() and re.match("y_val: .*; expected ", str(err))
        return
    clf.save(tmp_path)
    assert clf.classes_.dtype == np.int64 and clf.classes_.tolist() == [1, 4, 8]
    for one in (clf, VAEGMM.load(tmp_path)):
        np.testing.assert_array_equal(one.predict_proba(X), fitted.predict_proba(X))
    resp = fitted.gmm_.predict_proba(fitted.encode(X_val))
    np.testing.assert_array_equal(label_shares(resp, given(y_val), [1, 4, 8]), label_shares(resp, y_val, [1, 4, 8]))
    assert classification_metrics(given(y_val), y_val)["accuracy"] == 1


@pytest.mark.parametrize("given", NO_LABELS.values(), ids=NO_LABELS)
def test_other_labels_are_refused_before_training(given, small, fitted, untrained):
    X, X_val, y_val = small
    clf = copy.copy(fitted)
    for fit in clf.fit, clf.fit_gmm:
        with pytest.raises(InputError, match="^y_val: .*; expected "):
            fit(X, X_val, given(y_val))
    assert tells(clf, X) == tells(fitted, X)
    with pytest.raises(InputError, match="^y: .*; expected "):
        label_shares(np.ones((9, 2)), given(y_val), [1, 4, 8])


def test_too_few_images_are_refused_before_training(small, untrained):
    for n, said in (0, "X: holds no image"), (2, "X: holds 2 images; expected"):
        with pytest.raises(InputError, match=said):
            VAEGMM(**QUICK).fit(small[0][:n], *small[1:])


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
    points = np.random.default_rng(0).normal(size=(50, 2))
    gmm, path = GaussianMixture(2, random_state=0).fit(points), tmp_path / "gmm.npz"
    diagonal = GaussianMixture(2, covariance_type="diag").fit(points)
    for mixture, classes, shares in ((diagonal, [1, 4], np.eye(2)), (gmm, [1, 1], np.eye(2)), (gmm, [1], np.eye(2)),
                                     (gmm, [1, 4], np.ones((2, 2))), (gmm, [1, 4, 8], np.eye(3)),
                                     (gmm, [1, 4], np.full((2, 2), np.nan)), (gmm, [1.5, 4], np.eye(2))):
        with pytest.raises(InputError, match="expected"):
            save_gmm(mixture, classes, shares, path)
    with pytest.raises(NotFittedError):
        save_gmm(GaussianMixture(2), [1, 4], np.eye(2), path)
    assert list(tmp_path.iterdir()) == []
    gmm.covariances_ = gmm.covariances_ * 0 + 1e-310 * np.eye(2)
    with warnings.catch_warnings(), np.errstate(all="raise"), pytest.raises(InputError, match="too small"):
        warnings.simplefilter("error")
        save_gmm(gmm, [1, 4], np.eye(2), path)
    single = GaussianMixture(2, random_state=0).fit(points.astype(np.float32))
    save_gmm(single, [1, 4], np.eye(2, dtype=int), path)
    np.testing.assert_array_equal(load_gmm(path)[0].means_, single.means_)


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
