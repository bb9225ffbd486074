"""What does each setting do? One is changed alone, three draws: `python -m experiments.options [SEED ...]`.

Dimensions, beta, dropout, the number of unlabelled images, and whether the target keeps its pose. Otherwise the default
recipe. Stored are the accuracy on the official test images, read once a run after training, and on development images:
accuracy, that of five neighbours with all labels of the training images, and the terms of the loss in nats an image
(reconstruction at z = mu, KL term against the mixture with one drawn z). About six minutes a run on one core;
`VAE_GMM_DATA` leads to MNIST. Draw 0 has all runs; what read most development images there has been drawn again.
"""
import sys

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
import torch

from experiments import runs
from experiments.baselines import labels_of
from vae_gmm.data import as_images, straighten
from vae_gmm.vae import evaluate, posterior, reparameterize

OPTIONS = {  # values beside those of the recipe, which is the first run
    "default": [None], "beta": [0.1, 1.0, 2.0, 4.0], "latent_dim": [2, 4, 16], "dropout": [0.0, 0.5],
    "images": [150, 300, 600], "target": ["turned with the input"]}


def terms(clf, images):
    """Means of reconstruction and KL term, in nats."""
    x = straighten(as_images(images))[0]
    mu, logvar = posterior(clf.vae_, x)
    torch.manual_seed(0)
    kl = clf.prior_.kl(mu, logvar, reparameterize(mu, logvar)).mean()
    return dict(reconstruction=round(evaluate(clf.vae_, x)[0], 3), kl=round(float(kl), 3))


def one(option, value, seed):
    """Accuracies and terms of one draw with one change."""
    X, *labelled = runs.draw(seed)
    if option == "images":
        X = X[np.sort(np.random.default_rng(seed).permutation(len(X))[:value])]
    changes = {"beta": dict(beta=value), "target": dict(vary_pose=False, augment=True)}.get(option, {})
    arguments = {option: value} if option in ("latent_dim", "dropout") else {}
    clf = runs.trained(seed, (X, *labelled), changes, **arguments)
    images, labels = runs.development_images()
    near = KNeighborsClassifier(5).fit(clf.encode(X), labels_of(X))
    return dict(test=clf.score(*runs.test_images()), development=clf.score(images, labels),
                neighbours=near.score(clf.encode(images), labels), **terms(clf, images), seconds=runs.seconds(clf))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(option=option, value=value, seed=seed) for seed in seeds
                            for option, values in OPTIONS.items() for value in values], one)
