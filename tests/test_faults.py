"""What users of other projects have stumbled over, and its siblings: forms of images and labels, torch's defaults."""
import os
import re

import numpy as np
import pandas as pd
import pytest
import torch

from vae_gmm import checkpoint, data, explorer, files, info, model_files, scans, small, uses, vae
from vae_gmm.classifier import VAEGMM, classification_metrics
from vae_gmm.config import History, TrainConfig
from vae_gmm.data import SubsetImagesFromNPZ, as_images
from vae_gmm.files import InputError
from vae_gmm.gmm import Mixture, MixturePrior, discriminant_plane, k_means_mixture
from vae_gmm.mixture import GaussianMixture, fit_best
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


# every argument of every function -------------------------------------------------------------------------------------

ANYWHERE = [object(), 1j, {"a": 1}, len, np.array(["a", "b"]), b"ab", torch.zeros(3, device="meta"), [[]],
            np.ones((2, 3))]
PATHS = [None, True, 3, 2.5, "a\0b"]
NUMBERS = [True, "3", float("nan"), -1, 2**70, np.float64(0.5)]
SHARES = [True, "3", float("nan"), -1, float("inf")]
SWITCHES = [None, "no", 1, 0.0]


def entered(make):
    def call(**given):
        with make(**given): pass
    return call


def cases(clf, images, labels):
    "{name: (function, its right arguments, {argument: what is wrong there beside ANYWHERE})}."
    net, mix, x = clf.vae_, clf.mixture_, as_images(images)
    P = np.random.default_rng(0).normal(size=(40, 2))
    g = GaussianMixture(2, random_state=0).fit(P)
    good = dict(weights=[0.5, 0.5], means=np.eye(2), covariances=np.stack([np.eye(2)] * 2))
    brief = dict(latent_dim=2, config=TrainConfig(epochs=1))
    return {
        "load_npz": (data.load_npz, dict(path="a.npz"), dict(path=PATHS, require_labels=SWITCHES, read_labels=SWITCHES,
                                                             keep_labels=[True, "148", 0.5, ()])),
        "course_paths": (data.course_paths, dict(out_dir="o"), dict(out_dir=PATHS, digits=[None, True, 0.5])),
        "write_course_files": (data.write_course_files, dict(out_dir="o"), dict(
            out_dir=PATHS, digits=[None, True, 0.5], root=PATHS[1:], labels_per_digit=NUMBERS, test_per_digit=NUMBERS,
            seed=NUMBERS)),
        "SubsetImagesFromNPZ": (SubsetImagesFromNPZ, dict(npz_file="a.npz"), dict(
            npz_file=PATHS, noise_std=SHARES, seed=NUMBERS, keep_labels=[True, "148"], augment=SWITCHES, flip=SWITCHES,
            flatten=SWITCHES, straighten=SWITCHES)),
        "split_indices": (data.split_indices, dict(n=10), dict(n=NUMBERS, train_share=SHARES, seed=NUMBERS)),
        "mnist_digits": (files.mnist_digits, dict(root="nowhere"), dict(root=PATHS[1:], train=SWITCHES)),
        "first_bytes": (files.first_bytes, {}, dict(path=PATHS)), "read_npz": (files.read_npz, {}, dict(path=PATHS)),
        "npz_headers": (files.npz_headers, {}, dict(path=PATHS)),
        "replacing": (entered(files.replacing), {}, dict(path=PATHS)),
        "write_npz": (files.write_npz, dict(path="w.npz", a=np.ones(3)), dict(path=PATHS)),
        "describe": (info.describe, {}, dict(path=PATHS)), "read_images": (scans.read_images, {}, dict(path=PATHS)),
        "save_vae": (model_files.save_vae, dict(vae=net, path="v"), dict(path=PATHS, vae=[None, 3])),
        "load_vae": (model_files.load_vae, {}, dict(path=PATHS)),
        "load_gmm": (model_files.load_gmm, {}, dict(path=PATHS)),
        "safetensors_header": (model_files.safetensors_header, {}, dict(path=PATHS)),
        "read_settings": (model_files.read_settings, {}, dict(path=PATHS)),
        "save_gmm": (model_files.save_gmm, dict(mixture=mix, classes=clf.classes_, shares=clf.shares_, path="g"), dict(
            mixture=[None, 3], classes=[None, True], shares=[None, "x"], path=PATHS, calibration=["x"])),
        "small_bytes": (small.small_bytes, dict(vae=net), dict(vae=[None, 3], rank=[*NUMBERS, 0])),
        "load_small": (small.load_small, {}, dict(path=PATHS)),
        "write_explorer": (explorer.write_explorer, dict(clf=clf, path="e.html", train=images, unseen=(images, labels),
                                                         rank=4), dict(clf=[None, VAEGMM], unseen=[True], path=PATHS,
                                                                       rank=[*NUMBERS, 0])),
        "kept": (entered(lambda **k: checkpoint.kept(1, **k)), {}, dict(folder=PATHS[1:])),
        "to_csv": (History([dict(epoch=1)], 1).to_csv, {}, dict(path=PATHS)),
        "fit_vae": (fit_vae, dict(model=VAE(), train=images, config=TrainConfig(epochs=1)), dict(
            model=[None, 3], train=[None, 3], val=[3], config=[None], prior=[3], labelled=[3],
            checkpoint=PATHS[1:], resume=SWITCHES, callback=[3])),
        "posterior": (vae.posterior, dict(model=net, images=x), dict(
            model=[None], images=[None], batch_size=[0, True])),
        "decode": (vae.decode, dict(model=net, z=np.zeros((2, 2))), dict(model=[None], batch_size=[0, None])),
        "evaluate": (vae.evaluate, dict(model=net, images=x), dict(model=[None], images=[None], batch_size=[-1, 0.5])),
        "log_evidence": (uses.log_evidence, dict(vae=net, mixture=mix, images=images), dict(
            images=[None], draws=[*NUMBERS, 0], seed=NUMBERS)),
        "VAEGMM": (lambda **k: VAEGMM(**brief | k).fit_labelled(images, images, labels), {}, dict(
            latent_dim=[*NUMBERS, 0], n_components=[*NUMBERS, 1], random_state=NUMBERS, straighten=SWITCHES,
            dropout=[None, "x", 1, -1, float("nan")], device=["nowhere", 99])),
        "fit": (VAEGMM(**brief).fit_labelled, dict(X=images, X_lab=images, y_lab=labels), dict(
            X=[None], X_lab=[None], y_lab=[None, True])),
        "save": (clf.save, {}, dict(folder=PATHS)), "load": (VAEGMM.load, {}, dict(folder=PATHS)),
        "from_files": (VAEGMM.from_files, dict(vae_file="v", gmm_file="g"), dict(vae_file=PATHS)),
        "sample": (clf.sample, dict(n=2), dict(n=[*NUMBERS, 0], label=[True, 4.5], random_state=NUMBERS)),
        "interpolate": (clf.interpolate, dict(a=images[0], b=images[1]), dict(a=[None], b=[3], steps=[*NUMBERS, 1])),
        "GaussianMixture": (lambda **k: GaussianMixture(**{"n_components": 2} | k).fit(P), {}, dict(
            n_components=[*NUMBERS, 0], tol=SHARES[:3], reg_covar=SHARES[:3], max_iter=NUMBERS[:3], n_init=[True, 0],
            random_state=["x", -1], weights_init=["x", ["a", "b"], 3], means_init=["x", 3], precisions_init=["x", 3])),
        "fit_blocks": (GaussianMixture(2).fit_blocks, {}, dict(blocks=[None, 3, "x"])),
        "score": (g.score, dict(X=P), dict(X=[None], sample_weight=[True, float("nan"), 1j])),
        "bic": (g.bic, dict(X=P), dict(X=[None, 3], sample_weight=[True, float("nan")])),
        "GaussianMixture.sample": (g.sample, {}, dict(n_samples=[*NUMBERS, 0])),
        "from_parameters": (GaussianMixture.from_parameters, good, dict(
            weights=["x", None], means=["x", None], covariances=["x", 3])),
        "fit_best": (fit_best, dict(X=P), dict(X=[None], criterion=[None, "x"], n_components=[None, 3, ()])),
    }


NAMED = dict(  # how a message names an argument, where it is not by the argument's own name
    train="train|images", vae=r"the \w+|vae", npz_file="path", vae_file="path", folder="folder|path",
    out_dir="out_dir|folder", blocks="blocks?|array|argument", X="X|array|n_samples", images="images?|array",
    shares="shares|classes", sample_weight="sample_weight|Sample weights|array",
    weights_init="weights(_init)?|feature", means_init="means(_init)?|feature", covariances="covariances?|feature",
    weights="weights|feature", means="means|weights|feature|covariance",
    precisions_init="precisions?(_init)?|feature", y_lab="y_lab|labels", callback="callback|History")
SCIKIT_LEARN = "The '", "Expected 2D array", "Found array"  # sentences of its own


def verdict(function, argument, given):
    "What is wrong with the answer to a wrong argument, or None."
    try: function(**given)
    except (ValueError, TypeError) as err: said = str(err)
    except Exception as err: return f"{type(err).__name__}: {err}"
    else: return "was taken"
    named = re.search(rf"\b({NAMED.get(argument, argument)})\b", said)
    return None if named and ("\n" not in said or said.startswith(SCIKIT_LEARN)) else f"says {said!r}"


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_an_argument_is_said_in_a_sentence_that_names_it(clf, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = digits[0][:12], digits[1][:12]
    np.savez("a.npz", data=images, labels=labels)
    faults = []
    for name, (function, good, wrong) in cases(clf, images, labels).items():
        for argument, values in wrong.items():
            for value in [*ANYWHERE[:-1 if argument == "blocks" else None], *values]:  # the last one is a block
                if found := verdict(function, argument, good | {argument: value}):
                    faults.append(f"{name}({argument}={value!r}) {found}")
        if left := set(os.listdir()) - {"a.npz"}: faults.append(f"{name} has left {left}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("command", ["test_classifier", "test_reconstruction", "show", "info"])
def test_a_name_that_is_too_long_for_the_disk_is_the_one_that_is_said(command, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from vae_gmm.cli import vae_gmm
    monkeypatch.chdir(tmp_path)
    model = [] if command == "info" else ["--model", "pretrained"]
    result = CliRunner().invoke(vae_gmm, [command, "n" * 300, *model])
    assert result.exit_code == 1 and result.output.startswith("Error: nnn") and not os.listdir()
    with pytest.raises(InputError, match="^nnn"):
        scans.read_images("n" * 300)


def test_columns_of_one_name_and_dates_as_labels():
    with pytest.raises(ValueError, match="^block 0 has two columns of one name: .'a', 'a'.$"):
        GaussianMixture(2).fit_blocks([pd.DataFrame(np.zeros((9, 2)), columns=["a", "a"])])
    with pytest.raises(InputError, match="expected whole numbers$"):
        files.check_labels(pd.Series(pd.to_datetime([1, 4])), 2)


def test_a_wrong_type_closes_nobodys_file(tmp_path):
    """`open(3)` opens what has the number 3, and closes it."""
    with open(tmp_path / "mine", "w") as mine:
        for read in (files.first_bytes, model_files.safetensors_header, info.describe, checkpoint.open_tensors):
            with pytest.raises(InputError, match="^path is "):
                with read(mine.fileno()): pass
        mine.write("still open")
    assert (tmp_path / "mine").read_text() == "still open"
