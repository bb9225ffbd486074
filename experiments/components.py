"""Can the number of components be found without labels? Three draws: `python -m experiments.components [SEED ...]`.

Latent means after stage one, K from 2 to 20, three rules: the lowest BIC of a mixture; the highest K whose prediction
strength (Tibshirani and Walther, 2005: the groups of one half of the images, seen with the centres of the other half)
is at least 0.8; the K for which two views of each image get the same group most often (adjusted Rand index, k-means).
Minutes a draw; `VAE_GMM_DATA` is not needed.
"""
import sys

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
import torch

from experiments import runs
from vae_gmm.data import as_images, augment_batch, straighten
from vae_gmm.mixture import GaussianMixture
from vae_gmm.vae import posterior

DIGITS = {"1, 4, 8": runs.DIGITS, "0 to 9": tuple(range(10))}
KS = range(2, 21)


def strength(Z, K, seed):
    """Prediction strength: the least share, over groups of one half, of pairs that the other half's centres join."""
    order = np.random.default_rng(seed).permutation(len(Z))
    half, other = Z[order[::2]], Z[order[1::2]]
    fits = [KMeans(K, n_init=5, random_state=seed).fit(z) for z in (half, other)]
    own, foreign = fits[1].labels_, fits[0].predict(other)
    shares = []
    for group in range(K):
        n = (own == group).sum()
        counts = np.bincount(foreign[own == group])
        shares.append((counts * (counts - 1)).sum() / (n * (n - 1)) if n > 1 else 0.0)
    return float(min(shares))


def one(digits, seed):
    """For each K the three criteria; and the K that each would choose."""
    images = runs.draw(seed, DIGITS[digits])
    clf = runs.trained(seed, images, dict(prior_epochs=0))
    straight = straighten(as_images(images[0]))[0]
    torch.manual_seed(seed)
    Z, a, b = (posterior(clf.vae_, x)[0].double().numpy() for x in
               (straight, *(augment_batch(straight, shear=10.0) for _ in range(2))))
    bic, prediction, agreement = [], [], []
    for K in KS:
        bic.append(float(GaussianMixture(K, n_init=3, reg_covar=1e-3, random_state=seed).fit(Z).bic(Z)))
        prediction.append(strength(Z, K, seed))
        groups = KMeans(K, n_init=5, random_state=seed).fit(Z)
        agreement.append(float(adjusted_rand_score(groups.predict(a), groups.predict(b))))
    strong = [K for K, value in zip(KS, prediction) if value >= 0.8]
    return dict(chosen=dict(bic=KS[int(np.argmin(bic))], prediction=max(strong, default=1),
                            agreement=KS[int(np.argmax(agreement))]),
                bic=bic, prediction=prediction, agreement=agreement)


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(digits=digits, seed=seed) for seed in seeds for digits in DIGITS], one)
