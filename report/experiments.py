"""The long measurements behind nbs/07_results.ipynb: `make experiments` writes figures/experiments.json.

Seeds, baselines and ablations on the embedded digits, each classifier scored on the held-out digits and on MNIST's
official test images, in the folder that VAE_GMM_DATA names. The file says when, with which versions and on what they ran.
"""
import datetime
import hashlib
import json
import os
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import vae_gmm
from vae_gmm.classifier import VAEGMM, as_unit, class_means, fit_mixture, name_components
from vae_gmm.data import embedded_digits, load_npz, mnist_digits, write_course_files
from vae_gmm.training import TrainConfig, encode

ROOT = Path(__file__).resolve().parent.parent
DIGITS = (1, 4, 8)
ABLATIONS = {"beta": (0.0, 1.0, 4.0), "latent_dim": (4, 16), "augment": (True,)}  # what differs from the recipe, one at a time


class Split:
    """The course's files for one seed as arrays, with the official test images and the hidden labels of the training file."""

    def __init__(self, seed, root=None):
        with tempfile.TemporaryDirectory() as folder:
            parts = {k: load_npz(p) for k, p in write_course_files(folder, DIGITS, seed=seed).items()}
        known = {image.tobytes(): label for image, label in zip(*embedded_digits())}
        official, labels = mnist_digits(root, train=False)
        keep = np.isin(labels, DIGITS)
        self.train, self.labelled, self.test = parts["train"].images, parts["val"].images, parts["test"].images
        self.y_labelled, self.y_test = parts["val"].labels, parts["test"].labels
        self.y_train = np.array([known[image.tobytes()] for image in self.train])
        self.official, self.y_official = official[keep], labels[keep]

    def score(self, predict):
        """Accuracy of `predict` on the held-out and on the official images."""
        return dict(held_out=float((predict(self.test) == self.y_test).mean()),
                    official=float((predict(self.official) == self.y_official).mean()))


def flat(images):
    """Images as float64 (n, 784) in [0, 1]."""
    return as_unit(images).double().numpy()


def neighbours(split, embed):
    """15 nearest neighbours with all training labels on `embed`ded images."""
    knn = KNeighborsClassifier(15).fit(embed(split.train), split.y_train)
    return lambda images: knn.predict(embed(images))


def mixture(split, embed, seed):
    """The mixture of chapter 5 on `embed`ded images, named by the labelled ones."""
    z, z_labelled, classes = embed(split.train), embed(split.labelled), np.array(DIGITS)
    gmm = fit_mixture(z, class_means(z_labelled, split.y_labelled, classes), random_state=seed)
    names = name_components(gmm.predict_proba(z_labelled), split.y_labelled, classes)
    return lambda images: names[gmm.predict(embed(images))]


def k_means(split, seed):
    """k-means on pixels, clusters named like components."""
    model = KMeans(3, n_init=20, random_state=seed).fit(flat(split.train))
    names = name_components(np.eye(3)[model.predict(flat(split.labelled))], split.y_labelled, np.array(DIGITS))
    return lambda images: names[model.predict(flat(images))]


def supervised(split, seed, epochs=15):
    """A small convolutional network trained with all labels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 28, 28)), torch.nn.Conv2d(1, 16, 3, 2, 1), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32 * 49, 3))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        x, y = as_unit(split.train), torch.from_numpy(np.searchsorted(DIGITS, split.y_train))
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
    return lambda images: np.array(DIGITS)[net(as_unit(images)).argmax(1).numpy()]


def fitted(split, seed, latent_dim=2, dropout=0.2, **config):
    """The classifier of the report, trained with one setting changed."""
    clf = VAEGMM(latent_dim, dropout, replace(TrainConfig.fast(seed=seed), **config), random_state=seed)
    return clf.fit(split.train, split.labelled, split.y_labelled)


def baselines_of(split, seed, clf):
    """Rows of the table of baselines."""
    rows = [dict(method="VAE and mixture (this report)", group=0, seed=seed, **split.score(clf.predict))]
    pca = {d: PCA(d, random_state=seed).fit(flat(split.train)) for d in (2, 32)}
    methods = {
        ("k-means on pixels", 0): k_means(split, seed),
        ("PCA to 2, mixture", 0): mixture(split, lambda x: pca[2].transform(flat(x)), seed),
        ("PCA to 32, mixture", 0): mixture(split, lambda x: pca[32].transform(flat(x)), seed),
        ("VAE, 15 nearest neighbours", 1): neighbours(split, lambda x: encode(clf.vae_, as_unit(x))),
        ("supervised CNN", 1): supervised(split, seed),
    }
    return rows + [dict(method=m, group=g, seed=seed, **split.score(predict)) for (m, g), predict in methods.items()]


def ablation_row(split, setting, value, clf):
    """One row of the table of settings."""
    return dict(setting=setting, value=value, **split.score(clf.predict),
                neighbours=split.score(neighbours(split, lambda x: encode(clf.vae_, as_unit(x))))["official"],
                reconstruction=clf.history_.best["val_reconstruction"], kl=clf.history_.best["val_kl"])


def rounded(value):
    """The same structure, floats to five decimals."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def store(path, **parts):
    """Replace parts of the stored results; what is done stays if a later part fails."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(rounded(stored | parts), indent=1) + "\n")


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Number of repetitions.")
@click.option("--only", type=click.Choice(["seeds", "ablations"]), help="One part; the other is kept as stored.")
def main(seeds, only):
    """Run the long measurements and write figures/experiments.json."""
    path = ROOT / "figures" / "experiments.json"
    split = Split(0)
    about = dict(date=datetime.date.today().isoformat(), version=vae_gmm.__version__, python=platform.python_version(),
                 torch=torch.__version__, threads=torch.get_num_threads(), machine=f"{platform.machine()}, {os.cpu_count()} processors",
                 data_sha256=hashlib.sha256(split.official.tobytes()).hexdigest()[:16])
    if only != "ablations":
        rows, baselines = [], []
        for seed in tqdm(range(seeds), desc="seeds"):
            split = Split(seed)
            clf = fitted(split, seed)
            if seed == 0:
                store(path, ablations=dict(about, seed=0, runs=[ablation_row(split, "recipe", None, clf)]))
            rows.append(dict(seed=seed, **split.score(clf.predict), val_loss=clf.history_.best["val_loss"]))
            baselines += baselines_of(split, seed, clf)
            store(path, seeds=dict(about, n_official=len(split.y_official), n_held_out=len(split.y_test), runs=rows),
                  baselines=dict(about, runs=baselines))
    if only != "seeds":
        split = Split(0)
        stored = json.loads(path.read_text()) if path.exists() else {}
        runs = stored.get("ablations", {}).get("runs", [])[:1]  # the recipe itself
        for setting, value in tqdm([(s, v) for s, values in ABLATIONS.items() for v in values], desc="ablations"):
            runs.append(ablation_row(split, setting, value, fitted(split, 0, **{setting: value})))
            store(path, ablations=dict(about, seed=0, runs=runs))


if __name__ == "__main__":
    main()
