"""The network that comes with the package: what is in its file, how it reads, and what is not taken for it."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_gmm.classifier import _PRETRAINED, VAEGMM
from vae_gmm.data import as_images, embedded_digits, load_npz, straighten, write_course_files
from vae_gmm.files import InputError
from vae_gmm.model_files import load_gmm, load_vae, model_id
from vae_gmm.small import load_small, small_bytes

PRETRAINED = Path(_PRETRAINED)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "figures" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clf():
    return VAEGMM.pretrained()


@pytest.fixture(scope="module")
def header():
    return load_small(PRETRAINED)[2]


def test_it_is_small():
    assert PRETRAINED.stat().st_size <= 2.5e6


def test_it_reads_unseen_digits_as_its_header_says(clf, header, tmp_path):
    test = load_npz(write_course_files(tmp_path)["test"])
    right = int((clf.predict(test.images) == test.labels).sum())
    said = header["right"]["test images"]
    assert said["n"] == len(test.labels) and abs(right - said["small"]) <= 1  # processors round differently
    assert right / said["n"] >= 0.97 and said["small"] >= said["full"] - 2


def test_it_is_the_network_of_the_report(header):
    assert header["right"]["test images"]["full"] == RESULTS["test"]["right"]
    assert header["config"]["epochs"] == RESULTS["training"]["stage_one"]
    assert header["config"]["prior_epochs"] == RESULTS["training"]["stage_two"]


def test_the_card_has_the_same_figures(header):
    card = (PRETRAINED.parent / "PRETRAINED.md").read_text(encoding="utf-8")
    for name, scores in header["right"].items():
        for kind in ("full", "small"):
            assert f"{scores[kind]:,} of {scores['n']:,}" in card
        assert name in card
    for word in ("**Data.**", "**Recipe.**", "**Form.**", "**Limits.**"):
        assert word in card


def test_everything_works_that_works_with_a_network(clf, tmp_path):
    images = embedded_digits()[0][:5]
    assert clf.predict_proba(images).shape == (5, 3)
    assert clf.reconstruct(images).shape == (5, 1, 28, 28)
    assert clf.sample(2, label=4)[1].tolist() == [4, 4]
    clf.save(tmp_path / "saved")
    assert np.array_equal(VAEGMM.load(tmp_path / "saved").predict_proba(images), clf.predict_proba(images))
    assert all(p.requires_grad for p in clf.vae_.parameters())


def test_one_file_is_both_network_and_mixture(clf):
    vae, (mixture, classes, shares, written_for, _) = load_vae(PRETRAINED), load_gmm(PRETRAINED)
    assert written_for == model_id(vae) == model_id(clf.vae_)
    assert classes.tolist() == [1, 4, 8] and shares.shape == (3, 3)
    assert all(torch.equal(a, b) for a, b in zip(mixture, clf.mixture_))


def test_a_network_that_was_small_stays_as_it_is_when_it_is_made_small_again(clf, tmp_path):
    (tmp_path / "again").write_bytes(small_bytes(clf.vae_))
    x = straighten(as_images(embedded_digits()[0][:20]))[0]
    z, other = (vae.encode(x)[0] for vae in (clf.vae_, load_small(tmp_path / "again")[0]))
    assert (z - other).abs().max() < 0.1


def test_a_mixture_of_another_network_is_refused(good):
    with pytest.raises(InputError, match="belongs to another model|dimensions"):
        VAEGMM.from_files(good / "vae.pth", PRETRAINED)


CONTENT = PRETRAINED.read_bytes()


def arrays():
    return load_small(PRETRAINED)[1]


@pytest.mark.parametrize("change, words", [
    (lambda: CONTENT[:-1], "safetensors"),
    (lambda: CONTENT[:1000], "safetensors"),
    (lambda: CONTENT.replace(b"small model 1", b"small model 9"), "expected a header"),
    (lambda: CONTENT.replace(rb'\"rank\": 64', rb'\"rank\": 63'), "fc1.left"),
    (lambda: CONTENT.replace(rb'\"latent_dim\": 8', rb'\"latent_dim\": 0'), "damaged settings"),
    (lambda: CONTENT.replace(rb'\"straightened\": true', rb'\"straightened\": 1234'), "damaged settings"),
    (lambda: CONTENT.replace(b'"conv1.bias"', b'"conv9.bias"'), "conv1.bias"),
    (lambda: CONTENT.replace(b'"I8"', b'"U8"', 1), "expected"),
    (lambda: b"\x80\x04.", "pickle"),
    (lambda: small_bytes(VAEGMM.pretrained().vae_), "expected an array 'weights'"),
    (lambda: small_bytes(VAEGMM.pretrained().vae_, arrays() | {"weights": np.ones(3)}), "do not sum to one"),
    (lambda: small_bytes(VAEGMM.pretrained().vae_, arrays() | {"classes": np.ones(3, int)}), "different labels"),
])
def test_a_damaged_file_gets_one_sentence(tmp_path, change, words):
    file = tmp_path / "small.safetensors"
    file.write_bytes(change())
    assert file.read_bytes() != CONTENT
    with pytest.raises(InputError, match=words) as caught:
        VAEGMM.from_files(file, file)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    vae = VAEGMM.pretrained().vae_
    with torch.no_grad():
        vae.fc_mu.bias[0] = float("inf")
    with pytest.raises(InputError, match="fc_mu.bias is not finite"):
        small_bytes(vae)
