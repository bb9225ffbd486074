"""What if one digit is rare? 400, 200 and 67 images of 1, 4 and 8, three draws: `python -m experiments.unbalanced`.

The weights of the mixture are equal, learned, or learned under a Dirichlet prior, eq. (3.31), with imagined points in
each component: a tenth, or all, of the n / K points that a component has on average. Hypothesis: a component that is
held above zero does not die, and the weights come out nearer to the true shares. The labels say which images to leave
out, and nothing else. About three minutes a run on one core; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

import numpy as np
import torch

from experiments import runs
from experiments.baselines import labels_of
from vae_gmm.classifier import VAEGMM, name_components
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.gmm import MixturePrior, e_step
from vae_gmm.training import fit_vae
from vae_gmm.vae import VAE, posterior

IMAGES = dict(zip(runs.DIGITS, (400, 200, 67)))
WEIGHTS = {"equal": None, "learned": 0.0, "Dirichlet prior, a tenth": 0.1, "Dirichlet prior, all": 1.0}


def one(seed, weights):
    """Accuracy on the official test images, as they are, and the weights that the mixture ends with."""
    X, X_lab, y_lab = runs.draw(seed)
    y, K = labels_of(X), len(runs.DIGITS)
    chosen = np.sort(np.concatenate([np.flatnonzero(y == digit)[:n] for digit, n in IMAGES.items()]))
    straight, few, test = (straighten(as_images(images))[0] for images in (X[chosen], X_lab, runs.test_images()[0]))
    used, imagined = TrainConfig.fast().shrinkage, WEIGHTS[weights]
    prior = MixturePrior(K, equal_weights=imagined is None, shrinkage=used, weight_prior=imagined or 0.0)
    torch.manual_seed(seed)
    network = VAE(8, VAEGMM().dropout).to(runs.DEVICE)
    history = fit_vae(network, straight, None, TrainConfig.fast(seed=seed), prior)
    prior.refit(*posterior(network, straight), steps=5)
    resp = [e_step(posterior(network, images)[0].double(), *prior.mixture)[0].numpy() for images in (few, test)]
    names = name_components(resp[0], y_lab)
    share = {int(name): float(weight) for name, weight in zip(names, prior.mixture.weights)}
    return dict(test=float((names[resp[1].argmax(1)] == runs.test_images()[1]).mean()), final=share,
                seconds=round(sum(row["seconds"] for row in history.rows)))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(seed=seed, weights=weights) for seed in seeds for weights in WEIGHTS], one)
