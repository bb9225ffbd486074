"""What users of other projects have stumbled over, and its siblings: forms of images and labels, torch's defaults."""
import numpy as np
import pandas as pd
import pytest
import torch

from vae_gmm.classifier import VAEGMM, classification_metrics
from vae_gmm.config import TrainConfig
from vae_gmm.data import SubsetImagesFromNPZ, as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import Mixture, MixturePrior, discriminant_plane, k_means_mixture
from vae_gmm.mixture.missing import missing_sums
from vae_gmm.mixture.steps import Parameters, precision_cholesky
from vae_gmm.training import fit_vae
from vae_gmm.vae import VAE


# missing values -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6], ids=str)
def test_patterns_of_gaps_together_give_what_each_point_gives_alone(kind, share):
    rng, K, D = np.random.default_rng(0), 3, 9  # nine gaps do not fit into one byte
    S = np.stack([(A := rng.normal(size=(D, D))) @ A.T + np.eye(D) for _ in range(K)])
    S = {"full": S, "tied": S[0], "diag": np.diagonal(S, axis1=1, axis2=2), "spherical": S[:, 0, 0]}[kind]
    p = Parameters(np.array([0.5, 0.5, 0.0]), rng.normal(size=(K, D)), S, precision_cholesky(S, kind))
    Z, w = rng.normal(size=(D, 80)), rng.random(80)
    Z[rng.random(Z.shape) < share] = np.nan
    Z[:, 7] = np.nan  # nothing was seen of it
    alone = [missing_sums(Z[:, [i]], w[[i]], p, kind) for i in range(80)]
    together = missing_sums(Z, w, p, kind)
    for name, a, b in zip("loglik N f".split(), map(sum, zip(*alone)), together):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9, err_msg=name)
    if kind in ("full", "tied"): np.testing.assert_allclose(together[3], sum(each[3] for each in alone), atol=1e-8)


# images and labels ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("names, right", [
    (lambda i: f"pixel{i}", True), (lambda i: i, True), (lambda i: f"{i // 28 + 1}x{i % 28 + 1}", True),
    (lambda i: f"pixel{783 - i}", False), (lambda i: sorted(map(str, range(784)))[i], False),
    (lambda i: f"{i % 28 + 1}x{i // 28 + 1}", False), (lambda i: chr(1000 + i), True),
], ids=["pixel", "number", "row x column", "backwards", "alphabet", "column x row", "no numbers"])
def test_a_table_of_pixels_in_another_order_is_refused(digits, names, right):
    table = pd.DataFrame(digits[0][:3].reshape(3, 784), columns=[names(i) for i in range(784)])
    if right:
        assert torch.equal(as_images(table), as_images(digits[0][:3]))
    else:
        with pytest.raises(InputError, match="not in the order of their numbers; expected row by row"):
            as_images(table)


def test_a_tensor_that_only_notes_its_sign_is_read_as_it_is(digits):
    x = as_images(digits[0][:3])
    noted = torch.conj((-1j * x).to(torch.complex64)).imag
    assert noted.is_neg() and torch.equal(as_images(noted), x)


@pytest.mark.parametrize("labels, complaint", [
    (["1", "4", "8"], "y_pred: holds labels of type <U1"), ([1.0, 4.0, 8.0], "y_pred: holds labels of type float64"),
    ([1, None, 8], "y_pred: holds labels of type object"), (np.eye(9)[[1, 4, 8]], r"y_pred: has shape \(3, 9\)"),
    ([[1], [4], [8]], r"y_pred: has shape \(3, 1\); expected one label an image, shape \(n,\)"),
    (None, "y_pred: cannot be read"), (4, "y_pred: cannot be read"), ({1: 1}, "y_pred: cannot be read"),
    (np.ma.masked_equal([1, 4, 8], 4), "y_pred: cannot be read .it has masked entries"),
    (torch.ones(3, requires_grad=True), "y_pred: holds labels of type float32"),
    ([1, 4], "y_true: holds 3 labels for 2 images"),
    ([1, 4, -1], "y_pred: holds -1"), ([True, False, True], "y_pred: holds labels of type bool"),
], ids=repr)
def test_predicted_labels_are_checked_as_true_ones_are(labels, complaint):
    with pytest.raises(InputError, match=complaint):
        classification_metrics([1, 4, 8], labels)
    assert classification_metrics([1, 4, 8], torch.tensor([1, 4, 4]))["accuracy"] == pytest.approx(2 / 3)


# torch's default device -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def fitted(digits):
    images, labels = digits
    config = TrainConfig.fast(epochs=1, prior_epochs=1)
    return images[:12], lambda: VAEGMM(2, config=config).fit_labelled(images[:12], images[20:50], labels[20:50])


def test_torchs_default_device_changes_nothing(fitted, tmp_path):
    """The device "meta" holds no numbers, so whatever is made there by mistake is noticed."""
    images, fit = fitted
    clf = fit()
    answers = [clf.predict_proba(images), clf.sample(3)[0], clf.sample(2, label=4)[0], clf.reconstruct(images)]
    with torch.device("meta"):
        other = fit()
        other.save(tmp_path)
        for each in (other, VAEGMM.load(tmp_path)):
            now = each.predict_proba(images), each.sample(3)[0], each.sample(2, label=4)[0], each.reconstruct(images)
            for before, after in zip(answers, now): np.testing.assert_allclose(after, before, atol=1e-6)


def test_the_chapters_mixture_whatever_torchs_default_device():
    z = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 20 * i for i in range(2)])
    three = Mixture(torch.full((3,), 1 / 3), torch.eye(3), torch.stack([torch.eye(3)] * 3))
    def results():
        prior = MixturePrior(2)
        prior.start(z)
        prior.refit(z, -z.abs())
        return [*k_means_mixture(z, 2), *prior.mixture, prior.log_resp(z), *discriminant_plane(three)]
    before = results()
    with torch.device("meta"):
        after = results()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# arguments ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def clf(fitted): return fitted[1]()


@pytest.mark.parametrize("n", [0, -1, 2.0, 0.5, None, "3", True, np.array([3]), float("nan"), 2**40, [3]], ids=repr)
def test_a_number_of_images_is_a_whole_number_above_zero(clf, n):
    with pytest.raises(InputError, match="^n is .*; expected a whole number from 1 to"):
        clf.sample(n)


@pytest.mark.parametrize("label", [4, 4.0, "4", np.uint8(4), np.array(4), torch.tensor(4), [4]], ids=repr)
def test_a_label_in_any_form_that_is_a_whole_number(clf, label):
    assert set(clf.sample(np.int64(3), label=label)[1]) == {4}


@pytest.mark.parametrize("label", [True, "four", 4.5, float("nan"), object, 7, -1, ()], ids=repr)
def test_another_label_is_refused(clf, label):
    with pytest.raises(InputError, match="^label is .*; expected"):
        clf.sample(3, label=label)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "nowhere", "", 99, 2**70, "cuda:99"], ids=repr)
def test_a_device_that_holds_no_numbers_is_refused_by_name(fitted, device, tmp_path):
    clf = VAEGMM(device=device)
    with pytest.raises(InputError, match="^device is .*; expected one that is in this machine"):
        clf.fit_vae(fitted[0])
    with pytest.raises(InputError, match="^device is "):
        VAEGMM.load(tmp_path, device=device)


@pytest.mark.parametrize("wrap", [lambda m: m.to("meta"), torch.nn.DataParallel, torch.nn.Sequential, lambda m: m.fc1],
                         ids=["meta", "DataParallel", "Sequential", "a layer"])
def test_a_network_that_could_not_be_trained_to_the_end_is_refused(fitted, wrap):
    with pytest.raises(InputError, match="^model"):
        fit_vae(wrap(VAE()), fitted[0], config=TrainConfig.fast(epochs=1), prior=MixturePrior(2))


@pytest.mark.parametrize("name", ["augment", "flip", "flatten", "straighten"])
@pytest.mark.parametrize("value", ["no", "False", None, 1, 0.0, [True]], ids=repr)
def test_a_switch_of_a_data_set_is_true_or_false(digits, tmp_path, name, value):
    np.savez(tmp_path / "some.npz", data=digits[0][:4])
    with pytest.raises(InputError, match=f"^{name} is .*; expected True or False"):
        SubsetImagesFromNPZ(tmp_path / "some.npz", **{name: value})
    assert len(SubsetImagesFromNPZ(tmp_path / "some.npz", **{name: np.bool_(True)})) == 4


def test_uses_whatever_torchs_default_device(clf, fitted):
    images = fitted[0]
    def results(): return [clf.anomaly_score(images), clf.interpolate(images[0], images[1], 3)]
    before = results()
    with torch.device("meta"): after = results()
    for a, b in zip(before, after, strict=True): np.testing.assert_allclose(b, a, atol=1e-6)
