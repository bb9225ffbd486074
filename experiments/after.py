"""What hangs on the mixture that is fitted at the end, and on the number of labels? `python -m experiments.after`.

The networks of draws 0 to 4 as accuracy.py has trained them. First their mixture is fitted in other ways; then it is
named by 1 to 20 labelled images a digit, 200 times each, drawn from the unlabelled images. Seconds a draw.
"""
import sys

import numpy as np
import torch

from experiments import runs
from experiments.baselines import labels_of
from vae_gmm.classifier import name_components
from vae_gmm.data import as_images, straighten
from vae_gmm.gmm import MixturePrior, e_step, fit_mixture
from vae_gmm.vae import posterior

LABELS, TIMES = (1, 2, 3, 5, 10, 20), 200


def refitted(clf, mu, logvar, equal_weights=True, shrinkage=0.6):
    """The mixture that five EM steps make of the classifier's, on these latents."""
    prior = MixturePrior(len(clf.shares_), equal_weights, shrinkage, weight_prior=0)
    prior.load_state_dict(clf.mixture_._asdict())
    prior.refit(mu, logvar, steps=5)
    return prior.mixture


def one(seed):
    """Accuracies on the official test images, by the final mixture, and by the number of labels."""
    X, X_lab, y_lab = images = runs.draw(seed)
    clf, (X_test, y_test) = runs.trained(seed, images), runs.test_images()
    mu, logvar = posterior(clf.vae_, straighten(as_images(X))[0])
    drawn = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
    points = torch.full_like(mu, -60.0)  # the log-variance of what is no Gaussian but a point
    z_lab, z_test = (torch.from_numpy(clf.encode(images)) for images in (X_lab, X_test))

    def accuracy(mixture, z=z_lab, y=y_lab):
        names = name_components(e_step(z, *mixture)[0].numpy(), y)
        return float((names[e_step(z_test, *mixture)[0].argmax(1).numpy()] == y_test).mean())

    mixtures = {f"shrunk by {a:g}": refitted(clf, mu, logvar, shrinkage=a) for a in (0.0, 0.3, 0.6, 1.0)}
    mixtures |= {"without the encoder's variance": refitted(clf, mu, points),
                 "on drawn points": refitted(clf, drawn, points),
                 "learned weights": refitted(clf, mu, logvar, equal_weights=False),
                 "plain EM on the means": fit_mixture(mu.double(), clf.mixture_, max_iter=500, tol=1e-4)[0]}
    y, rng = labels_of(X), np.random.default_rng(seed)
    resp, answers = (e_step(z, *clf.mixture_)[0].numpy() for z in (mu.double(), z_test))
    named = {}
    for n in LABELS:
        scores = []
        for _ in range(TIMES):
            few = np.concatenate([rng.choice(np.flatnonzero(y == d), n, replace=False) for d in runs.DIGITS])
            scores.append((name_components(resp[few], y[few])[answers.argmax(1)] == y_test).mean())
        named[str(n)] = dict(mean=float(np.mean(scores)), named_rightly=float(np.mean(np.array(scores) > 0.9)))
    return dict(mixtures={name: accuracy(mixture) for name, mixture in mixtures.items()}, labels=named)


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(5)], one)
