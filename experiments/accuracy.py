"""How well are 1, 4 and 8 read by default options? Draws 0 to 19: `python -m experiments.accuracy [SEED ...]`.

Draw of data, draw of labels and seed change together. Beside it, with the same labels, k-means on pixels and on
straightened pixels. About six minutes a draw on one core with units for bfloat16, less than one on a GPU
(`VAE_GMM_DEVICE=cuda`), which has rows of its own; `VAE_GMM_DATA` leads to MNIST.
"""
import sys

from sklearn.cluster import KMeans
import torch

from experiments import runs
from vae_gmm.classifier import name_components
from vae_gmm.data import as_images, straighten


def k_means(X, X_lab, y_lab, X_test, y_test, seed, straight):
    """Accuracy of k-means on pixels, its groups named by the labelled images."""
    images = map(as_images, (X, X_lab, X_test))
    X, X_lab, X_test = ((straighten(x)[0] if straight else x).flatten(1).numpy() for x in images)
    groups = KMeans(len(runs.DIGITS), n_init=10, random_state=seed).fit(X)
    names = name_components(torch.eye(len(runs.DIGITS))[groups.predict(X_lab)].numpy(), y_lab)
    return float((names[groups.predict(X_test)] == y_test).mean())


def one(seed, device):
    """Accuracies of one draw, trained on this device."""
    X, X_lab, y_lab = images = runs.draw(seed)
    clf, test = runs.trained(seed, images), runs.test_images()
    return dict(test=clf.score(*test), development=clf.score(*runs.development_images()), seconds=runs.seconds(clf),
                other_pens={name: clf.score(*images) for name, images in runs.other_pens().items()},
                k_means_pixels=k_means(X, X_lab, y_lab, *test, seed, False),
                k_means_straightened=k_means(X, X_lab, y_lab, *test, seed, True))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed), device=runs.DEVICE) for seed in sys.argv[1:] or range(20)], one)
