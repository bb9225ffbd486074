"""What is each part worth? Each is taken away alone, three draws: `python -m experiments.steps [SEED ...]`.

About five minutes a run on one core, seconds on a GPU; `VAE_GMM_DATA` leads to MNIST. Nothing is chosen by the results.
"""
import sys

from experiments import runs
from vae_gmm.config import TrainConfig

WHOLE = TrainConfig.fast()
CHANGES = {  # arguments of VAEGMM, changes of the recipe
    "the whole method": ({}, {}),
    "no straightening": (dict(straighten=False), {}),
    "no varied pose": ({}, dict(vary_pose=False)),
    "no mixture as prior": ({}, dict(prior_epochs=0)),
    "no mixture as prior, as many epochs": ({}, dict(prior_epochs=0, epochs=WHOLE.epochs + WHOLE.prior_epochs)),
    "no agreement of two views": ({}, dict(agreement=0.0)),
    "learned weights": ({}, dict(equal_weights=False, weight_prior=0.0)),
    **{f"covariances shrunk by {a:g}": ({}, dict(shrinkage=a)) for a in (0.0, 0.3, 1.0)},
    "products in float32": ({}, dict(precision="float32")),
}


def one(change, seed):
    """Accuracy of one draw with one change."""
    arguments, changes = CHANGES[change]
    clf = runs.trained(seed, runs.draw(seed), changes, **arguments)
    return dict(test=clf.score(*runs.test_images()), development=clf.score(*runs.development_images()),
                seconds=runs.seconds(clf))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(change=change, seed=seed) for change in CHANGES for seed in seeds], one)
