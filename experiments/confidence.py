"""Is the posterior too sure, and can that be mended without labels? Five draws: `python -m experiments.confidence`.

Hypothesis: the answer for one view of an unlabelled image is nearly a label for another view of it. So the temperature
T that makes the posterior of one view predict the answer of the other best, softmax(log-joint / T), should do for test
images too. Beside it the temperature that fits the labels of development images, which no method without labels can
know. Seconds a draw after accuracy.py has run; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

import numpy as np
from scipy.optimize import minimize_scalar
import torch

from experiments import runs
from vae_gmm.data import as_images, augment_batch, straighten
from vae_gmm.gmm import log_joint
from vae_gmm.vae import posterior


def best_temperature(logits, answers):
    """The T for which softmax(logits / T) gives these answers the highest likelihood; logits (n, K)."""
    def loss(log_t):
        return torch.nn.functional.cross_entropy(logits / np.exp(log_t), answers).item()
    return float(np.exp(minimize_scalar(loss, bounds=(-2, 4), method="bounded").x))


def facts(logits, answers, temperature):
    """Mean probability of the answer, expected calibration error in 15 bins, and log-loss in nats."""
    p = torch.softmax(logits / temperature, 1)
    sure, right = p.max(1).values.numpy(), (p.argmax(1) == answers).numpy()
    bins = np.minimum((sure * 15).astype(int), 14)
    gap = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    loss = torch.nn.functional.cross_entropy(logits / temperature, answers).item()
    return dict(temperature=temperature, sure=float(sure.mean()), calibration_error=float(gap), log_loss=loss)


def one(seed):
    """The three temperatures of one draw, none, by views and by labels, and what each does on the test images."""
    X, X_lab, y_lab = images = runs.draw(seed)
    clf = runs.trained(seed, images)

    def logits(straight):
        return log_joint(posterior(clf.vae_, straight)[0].double(), *clf.mixture_)

    def labelled(images, labels):
        components = np.array([np.flatnonzero(clf.component_labels_ == label)[0] for label in labels])
        return logits(straighten(as_images(images))[0]), torch.from_numpy(components)

    torch.manual_seed(seed)
    straight = straighten(as_images(X))[0]
    one_view, other = (logits(augment_batch(straight, shear=10.0)) for _ in range(2))
    test = labelled(*runs.test_images())
    temperatures = {"as it is": 1.0, "by two views": best_temperature(one_view, other.argmax(1)),
                    "by labels of development images": best_temperature(*labelled(*runs.development_images()))}
    return dict(accuracy=float((test[0].argmax(1) == test[1]).double().mean()),
                **{name: facts(*test, T) for name, T in temperatures.items()})


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(5)], one)
