"""Files of the first edition spelled out; metrics, decision and honest scores of the course's protocol."""
import hashlib
import inspect
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from scipy.stats import multivariate_normal

from vae_gmm.classifier import VAEGMM, classification_metrics, label_shares, read_settings, wilson_interval
from vae_gmm.data import embedded_digits, load_npz, write_course_files
from vae_gmm.files import InputError
from vae_gmm.mixture import GaussianMixture
from vae_gmm.model_files import load_gmm, load_vae, model_id, safetensors_header
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
    for text in ("", "[", "{}", '{"config": {"run": 1}}', json.dumps(CONFIG | {"per_class": "many"}), "[" * 10**5):
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
