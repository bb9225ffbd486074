"""What is each part worth? Each is taken away or changed alone, three draws: `python -m experiments.steps [SEED ...]`.

About five minutes a run on one core, seconds on a GPU; `VAE_GMM_DATA` leads to MNIST. Nothing is chosen by the results.
"""
import sys

import numpy as np

from experiments import runs
from vae_gmm.config import TrainConfig

WHOLE = TrainConfig.fast()
CHANGES = {  # arguments of VAEGMM, changes of the recipe
    "the whole method": ({}, {}),
    "no straightening": (dict(straighten=False), {}),
    "no varied pose": ({}, dict(vary_pose=False)),
    "input and target in one varied pose": ({}, dict(vary_pose=False, augment=True)),
    "no mixture as prior": ({}, dict(prior_epochs=0)),
    "no mixture as prior, as many epochs": ({}, dict(prior_epochs=0, epochs=WHOLE.epochs + WHOLE.prior_epochs)),
    "no agreement of two views": ({}, dict(agreement=0.0)),
    "learned weights": ({}, dict(equal_weights=False, weight_prior=0.0)),
    **{f"covariances shrunk by {a:g}": ({}, dict(shrinkage=a)) for a in (0.0, 0.3, 1.0)},
    **{f"{D} dimensions": (dict(latent_dim=D), {}) for D in (2, 4, 16, 32)},
    **{f"beta {beta:g}": ({}, dict(beta=beta)) for beta in (0.1, 1.0, 2.0, 4.0)},
    **{f"dropout {share:g}": (dict(dropout=share), {}) for share in (0.0, 0.5)},
    "products in float32": ({}, dict(precision="float32")),
    **{f"{n} images": ({}, {}) for n in (150, 300, 600)},
}


def one(change, seed):
    """Accuracy of one draw with one change."""
    arguments, changes = CHANGES[change]
    X, *labelled = runs.draw(seed)
    n = int(change.split()[0]) if change.endswith("images") else len(X)
    some = np.sort(np.random.default_rng(seed).permutation(len(X))[:n])
    clf = runs.trained(seed, (X[some], *labelled), changes, **arguments)
    return dict(test=clf.score(*runs.test_images()), development=clf.score(*runs.development_images()),
                seconds=runs.seconds(clf))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(change=change, seed=seed) for change in CHANGES for seed in seeds], one)
