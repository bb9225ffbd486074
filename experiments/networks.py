"""Is a deeper network better, or one with attention? `python -m experiments.networks [NAME=VALUE ...] [part=I/N]`.

The three networks of the room `networks`, otherwise the default recipe. What is measured, in this order:
- `pace`: seconds an epoch in either stage, alone on the machine; those of other runs may be disturbed by neighbours.
- `tuning`: three step sizes each, in a draw of its own; the one with the highest bound on development images is taken.
- `draws`: draws 0, 1 and 2 with that step size, 24 + 24 epochs.
- `epochs`: the same with half as many epochs, and the course's network with twice as many as well: a schedule that ends
  early is not a long one that is stopped, so equal seconds are compared at the ends of schedules.
- `dimensions`: draw 0 with D = 2, 4, 16 and 32 at the step size tuned for 8.

Each run keeps four checkpoints in either stage: epoch, seconds, and on development images the bound with the prior of
the stage, SSIM, accuracy by the mixture, named by 15 labels, and by the 5 nearest training images with all labels. At
its end the same and log p(x) by importance weighting, and the accuracies on the official test images, which are read
then and decide about nothing. Words after the command choose among the runs: `what=draws network=residual seed=1`;
`part=0/4` is every fourth of them, for four processes side by side; `list` only prints them. So, on a GPU:

    export VAE_GMM_DEVICE=cuda OMP_NUM_THREADS=1
    python -m experiments.networks what=pace
    for i in 0 1 2 3 4 5 6 7 8; do python -m experiments.networks what=tuning part=$i/9 & done; wait
    for i in 0 1 2 3 4 5 6 7 8 9 10; do python -m experiments.networks part=$i/11 & done; wait
"""
import json
from functools import lru_cache
from pathlib import Path
import sys

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
import torch

from experiments import runs
from vae_gmm.classifier import VAEGMM
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, embedded_digits, straighten
from vae_gmm.figures import similarity
from vae_gmm.gmm import Mixture, MixturePrior
from vae_gmm.networks import NETWORKS
from vae_gmm.training import fit_vae
from vae_gmm.uses import log_evidence
from vae_gmm.vae import VAE

STEP_SIZES, DIMENSIONS, EPOCHS, SEEDS, TUNING_SEED = (5e-4, 1e-3, 2e-3), (2, 4, 16, 32), 24, (0, 1, 2), 9
MEASURED = 500  # images for bound and SSIM; accuracies are of all
read_once = lru_cache(lambda images: (straighten(as_images(images()[0]))[0], images()[1]))


def rounded(**values):
    """Numbers as they are stored."""
    return {name: round(float(value), 4) for name, value in values.items()}


def names_of(images):
    """All labels of embedded images, which the training does not see."""
    known = {image.tobytes(): label for image, label in zip(*embedded_digits())}
    return np.array([known[image.tobytes()] for image in images])


class Judge:
    """Says how good a network is after an epoch; its images are straight already."""

    def __init__(self, model, prior, config, draw):
        X, X_lab, self.y_lab = draw
        self.model, self.prior, self.config, self.names, self.checkpoints = model, prior, config, names_of(X), []
        self.X, self.X_lab = (straighten(as_images(images))[0] for images in (X, X_lab))

    def classifier(self):
        """The network as it is now, with a mixture."""
        clf = VAEGMM(config=self.config, n_components=len(runs.DIGITS), straighten=False)
        clf.vae_, clf.config_ = self.model, self.config
        if self.prior.mixture:
            clf.prior_ = self.prior
        return clf.fit_gmm(self.X, self.X_lab, self.y_lab)

    def accuracies(self, clf, images, labels):
        """By the mixture, and by neighbours with all labels."""
        near = KNeighborsClassifier(5).fit(clf.encode(self.X), self.names)
        return rounded(mixture=clf.score(images, labels), neighbours=near.score(clf.encode(images), labels))

    def marks(self, draws, stage=2):
        """All that is measured on development images."""
        clf, D, (x, labels) = self.classifier(), self.model.latent_dim, read_once(runs.development_images)
        normal = Mixture(torch.ones(1), torch.zeros(1, D), torch.eye(D)[None])
        prior = Mixture(*(part.double() for part in (normal if stage == 1 else clf.mixture_)))
        bound, log_p = log_evidence(self.model, prior, x[:MEASURED], draws)
        ssim = similarity(x[:MEASURED], clf.reconstruct(x[:MEASURED])).ssim.mean()
        return rounded(bound=bound.mean(), log_p=log_p.mean(), ssim=ssim) | self.accuracies(clf, x, labels)

    def __call__(self, history):
        stage, epochs = history.rows[-1]["stage"], self.config.epochs
        if (done := history.rows[-1]["epoch"] - epochs * (stage == 2)) % max(1, epochs // 4) and done < epochs:
            return
        seconds = sum(row["seconds"] for row in history.rows)
        when = dict(epoch=len(history.rows), stage=stage) | rounded(seconds=seconds)
        self.checkpoints.append(when | self.marks(4, stage))


def one(what, network, lr, latent_dim, epochs, seed):
    """One training, measured."""
    config = TrainConfig.fast(epochs=epochs, lr=lr, prior_lr=lr, seed=seed)
    torch.manual_seed(seed)
    model = VAE(latent_dim, network=network).to(runs.DEVICE)
    prior = MixturePrior(len(runs.DIGITS), config.equal_weights, config.shrinkage)
    judge = Judge(model, prior, config, runs.draw(seed))
    history = fit_vae(model, judge.X, config=config, prior=prior, callback=None if "pace" in what else judge)
    stages = [[row["seconds"] for row in history.rows if row["stage"] == stage] for stage in (1, 2)]
    times = rounded(seconds=sum(map(sum, stages)))
    times["seconds_an_epoch"] = [round(float(np.median(stage[1:] or stage)), 4) for stage in stages]
    if "pace" in what:
        return times | dict(parameters=sum(p.numel() for p in model.parameters()))
    found = times | dict(checkpoints=judge.checkpoints, development=judge.marks(50))
    if what == "tuning":
        return found
    return found | dict(test=judge.accuracies(judge.classifier(), *read_once(runs.test_images)))


def best_step_size(network):
    """The one with the highest bound on development images; None as long as it is not known."""
    path = Path(__file__).with_suffix(".json")
    stored = json.loads(path.read_text())["runs"] if path.exists() else []
    tried = {run["lr"]: run["development"]["bound"] for run in stored
             if run["what"] == "tuning" and run["network"] == network}
    return max(tried, key=tried.get) if len(tried) == len(STEP_SIZES) else None


def keys():
    """All runs, in the order in which they are wanted."""
    def key(what, network, lr, latent_dim=8, epochs=EPOCHS, seed=0):
        return dict(what=what, network=network, lr=lr, latent_dim=latent_dim, epochs=epochs, seed=seed)
    best = {network: lr for network in NETWORKS if (lr := best_step_size(network))}
    yield from (key(f"pace on {runs.DEVICE}", network, 1e-3, epochs=4) for network in NETWORKS)
    yield from (key("tuning", network, lr, seed=TUNING_SEED) for network in NETWORKS for lr in STEP_SIZES)
    yield from (key("draws", network, lr, seed=seed) for seed in SEEDS for network, lr in best.items())
    yield from (key("epochs", network, lr, epochs=epochs, seed=seed) for seed in SEEDS for network, lr in best.items()
                for epochs in (EPOCHS // 2, 2 * EPOCHS) if epochs < EPOCHS or network == "course")
    yield from (key("dimensions", network, lr, latent_dim=D) for D in DIMENSIONS for network, lr in best.items())


def chosen(words):
    """The runs that the words on the command line name."""
    wanted = dict(word.split("=") for word in words if "=" in word)
    i, n = map(int, wanted.pop("part", "0/1").split("/"))
    return [key for key in keys() if all(str(key[name]).startswith(value) for name, value in wanted.items())][i::n]


if __name__ == "__main__":
    if "list" in sys.argv:
        print("\n".join(map(str, chosen(sys.argv[1:]))))
    else:
        runs.measure(__file__, chosen(sys.argv[1:]), one)
