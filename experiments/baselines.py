"""What do other ways read, given the same help? Five draws: `python -m experiments.baselines [SEED ...]`.

Each sees the draw's 1,185 unlabelled images and has its groups named by the same 15 labels; "straightened" ones see
what the method's encoder sees. Ways that train take the method's steps, batches and varied poses. Two ceilings may see
all 1,200 labels: five nearest neighbours on latents, and a convolutional network. About ten minutes a draw on one core,
if accuracy.py has run before. With `full` for a word, the ways without a network see all 18,420 images of full.py
instead, in five minutes a draw. `VAE_GMM_DATA` leads to MNIST. Nothing here was tuned.
"""
import sys

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
import torch

from experiments import runs
from vae_gmm.classifier import name_components
from vae_gmm.data import as_images, augment_batch, embedded_digits, straighten
from vae_gmm.files import mnist_digits
from vae_gmm.gmm import MixturePrior, e_step
from vae_gmm.mixture import GaussianMixture

K, FEW, ALL = len(runs.DIGITS), 1185, 18420  # groups; unlabelled images of a draw, and of all MNIST


def labels_of(images):
    """The labels of embedded images."""
    known = {image.tobytes(): label for image, label in zip(*embedded_digits())}
    return np.array([known[image.tobytes()] for image in images])


def shrunk(X, seed):
    """The method's final fit on points, as a function: EM from k-means, covariances shrunk, weights equal."""
    prior, X = MixturePrior(K), torch.from_numpy(X)
    prior.start(X, seed)
    prior.refit(X, torch.full_like(X, -60.0), steps=20)  # the log-variance of what is no Gaussian but a point
    return lambda Z: e_step(torch.from_numpy(Z).double(), *prior.mixture)[0].numpy()


def by_groups(points, y_lab, y_test, seed):
    """Accuracy of k-means and of mixtures on points: those to learn from, the labelled ones, those to test on."""
    X, X_lab, X_test = points
    kind = "full" if X.shape[1] < 100 else "diag"  # 784 grey values leave no full covariance from 1,185 images
    means = KMeans(K, n_init=10, random_state=seed).fit(X)
    mixture = GaussianMixture(K, covariance_type=kind, n_init=10, reg_covar=1e-3, random_state=seed).fit(X)
    groups = {"k-means": lambda Z: np.eye(K)[means.predict(Z)], "EM": mixture.predict_proba}
    if kind == "full": groups["EM, shrunk"] = shrunk(X, seed)
    names = {way: name_components(resp(X_lab), y_lab) for way, resp in groups.items()}
    return {way: float((names[way][resp(X_test).argmax(1)] == y_test).mean()) for way, resp in groups.items()}


def supervised(X, y, X_test, y_test, seed, vary, epochs=40, digits=runs.DIGITS):
    """Accuracy of a convolutional network trained on labelled images (n, 1, 28, 28), with or without varied poses."""
    from torch import nn
    torch.manual_seed(seed)
    digits, y = np.unique(y, return_inverse=True)
    net = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(),
                        nn.Dropout(0.5), nn.Linear(128, len(digits))).to(runs.DEVICE)
    X, y = X.to(runs.DEVICE), torch.from_numpy(y).to(runs.DEVICE)
    batches = [index for _ in range(epochs) for index in torch.randperm(len(X)).split(32)]
    adam = torch.optim.Adam(net.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=len(batches) + 1)
    for index in batches:
        x = augment_batch(X[index], shear=10.0) if vary else X[index]
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y[index]).backward()
        adam.step()
        cycle.step()
    with torch.no_grad():
        said = torch.cat([net.eval()(x.to(runs.DEVICE)).argmax(1) for x in X_test.split(500)]).cpu()
    return float((digits[said] == y_test).mean())


def all_of_mnist(few):
    """The MNIST training images of the three digits without some."""
    X, known = runs.of_digits(*mnist_digits(train=True))[0], {image.tobytes() for image in few}
    return X[[image.tobytes() not in known for image in X]]


def one(seed, n):
    """Accuracies of one draw on the official test images, from n unlabelled ones."""
    X, X_lab, y_lab = runs.draw(seed)
    if n > len(X): X = all_of_mnist(X_lab)
    assert len(X) == n
    X_test, y_test = runs.test_images()
    sets = list(map(as_images, (X, X_lab, X_test)))
    forms, result = {"pixels": sets, "straightened pixels": [straighten(x)[0] for x in sets]}, {}
    for form, images in forms.items():
        points = [x.flatten(1).double().numpy() for x in images]
        pca = PCA(16, random_state=seed).fit(points[0])
        result[form] = by_groups(points, y_lab, y_test, seed)
        result[f"16 principal components of {form}"] = by_groups(list(map(pca.transform, points)), y_lab, y_test, seed)
    if n > FEW: return result
    y = labels_of(X)
    for form, images in forms.items():
        all_images, all_labels = torch.cat(images[:2]), np.concatenate([y, y_lab])
        result[f"CNN, all labels, {form}"] = {
            "pose as it is": supervised(all_images, all_labels, images[2], y_test, seed, False),
            "pose varied": supervised(all_images, all_labels, images[2], y_test, seed, True)}
    for form, changes in (("latents of an autoencoder", dict(prior_epochs=0, beta=0.0)),
                          ("latents after stage one", dict(prior_epochs=0)), ("latents of the method", {})):
        clf = runs.trained(seed, (X, X_lab, y_lab), changes)
        points = [clf.encode(x) for x in (X, X_lab, X_test)]
        result[form] = by_groups(points, y_lab, y_test, seed)
        near = KNeighborsClassifier(5).fit(points[0], y)
        result[form]["5 neighbours, all labels"] = float(near.score(points[2], y_test))
    return result


if __name__ == "__main__":
    seeds = [int(word) for word in sys.argv[1:] if word != "full"] or range(5)
    runs.measure(__file__, [dict(seed=seed, n=ALL if "full" in sys.argv else FEW) for seed in seeds], one)
