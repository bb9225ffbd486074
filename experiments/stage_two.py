"""How should stage two go when there are more images and digits? `python -m experiments.stage_two [SEED ...]`.

The 3,950 unlabelled images of ten digits of a draw, ten dimensions, 24 epochs of stage one, and from there stage two in
several ways. Only development images are read, every sixth MNIST training image outside the embedded ones: by the final
mixture, and by five neighbours with all labels on the same latents. Ten minutes for stage one and five and more for
each stage two on one core; `VAE_GMM_DATA` leads to MNIST.
"""
import copy
import sys
from dataclasses import replace

from sklearn.neighbors import KNeighborsClassifier
import torch

from experiments import runs
from experiments.baselines import labels_of
from vae_gmm.config import TrainConfig
from vae_gmm.data import as_images, straighten
from vae_gmm.devices import products, seeded
from vae_gmm.gmm import MixturePrior
from vae_gmm.training import Run, begin_stage_two, finish, run_epochs

DIGITS = tuple(range(10))
WAYS = [dict(epochs=8, lr=1e-3, shrinkage=0.6), dict(epochs=14, lr=1e-3, shrinkage=0.6),
        dict(epochs=8, lr=5e-4, shrinkage=0.6), dict(epochs=8, lr=5e-4, shrinkage=0.3)]


def one(seed, epochs, lr, shrinkage):
    """Accuracies on development images after a stage two of this length, step size and shrinkage."""
    X, X_lab, y_lab = draw = runs.draw(seed, DIGITS)
    clf = copy.deepcopy(runs.trained(seed, draw, dict(prior_epochs=0), latent_dim=10))
    x, device = straighten(as_images(X))[0], torch.device("cpu")
    config = TrainConfig.fast(seed=seed, beta_warmup=0, prior_epochs=epochs, prior_lr=lr, shrinkage=shrinkage)
    prior = MixturePrior(len(DIGITS), config.equal_weights, shrinkage)
    with seeded(seed, device), products(config.precision, device) as precision, torch.inference_mode(False):
        run = Run(clf.vae_, replace(config, precision=precision), len(x), prior)  # the warm-up was in stage one
        begin_stage_two(run, x)
        run_epochs(run, x, None, model=clf.vae_, step=None, record=lambda step: step)
    clf.history_, clf.config_, clf.prior_ = finish(run, clf.vae_), config, prior
    clf.fit_gmm(X, X_lab, y_lab)
    images, labels = runs.development_images(6, DIGITS)
    near = KNeighborsClassifier(5).fit(clf.encode(X), labels_of(X))
    return dict(development=round(clf.score(images, labels), 4), n=len(labels),
                neighbours=round(float(near.score(clf.encode(images), labels)), 4), seconds=runs.seconds(clf))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed), **way) for seed in sys.argv[1:] or range(1) for way in WAYS], one)
