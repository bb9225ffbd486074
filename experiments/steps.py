"""What is each step worth? Each is taken away alone, three draws: `python -m experiments.steps [SEED ...]`.

About twenty minutes a draw on one core; `VAE_GMM_DATA` leads to MNIST. The whole method is in accuracy.json.
"""
import sys

from experiments import runs
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig

WITHOUT = {  # what is taken away: arguments of VAEGMM, changes of the recipe
    "straightening": (dict(straighten=False), {}),
    "varied pose": ({}, dict(vary_pose=False)),
    "mixture as prior": ({}, dict(prior_epochs=0)),
    "agreement of two views": ({}, dict(agreement=0.0)),
}


def one(seed, without):
    """Accuracy of one draw without one step."""
    arguments, changes = WITHOUT[without]
    X, X_lab, y_lab = runs.draw(seed)
    clf = VAEGMM(config=TrainConfig.fast(**changes), random_state=seed, **arguments).fit_labelled(X, X_lab, y_lab)
    seconds = sum(row["seconds"] for row in clf.history_.rows)
    return dict(test=clf.score(*runs.test_images()), development=clf.score(*runs.development_images()),
                seconds=round(seconds))


if __name__ == "__main__":
    seeds = [int(seed) for seed in sys.argv[1:]] or range(3)
    runs.measure(__file__, [dict(seed=seed, without=without) for seed in seeds for without in WITHOUT], one)
