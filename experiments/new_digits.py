"""Are new digits digits, and are all kinds among them? Three draws: `python -m experiments.new_digits [SEED ...]`.

The networks are those of accuracy.py; 500 samples of each of 1, 4 and 8. A small convolutional network that knows all
ten digits, trained with labels on 12,000 straightened MNIST training images that are not embedded, says what each
sample is. Its 64 features measure coverage and density (Naeem et al., 2020), with 5 neighbours: 1,500 official test
images of 1, 4 and 8 are the real ones, and the samples are held against 1,500 other test images in their place. Nothing
was chosen by the result. Beside it, in draw 0: samples of a network of stage one alone, from its prior N(0, I). No
copies: the distance of a sample to the nearest of the images that were trained on, beside that of real test images.
"""
import sys

import numpy as np
from sklearn.neighbors import NearestNeighbors
import torch
from torch import nn
import torch.nn.functional as F

from experiments import runs
from vae_gmm.data import as_images, straighten
from vae_gmm.vae import decode

def upright(images):
    """Straightened images, (n, 1, 28, 28)."""
    return straighten(as_images(images))[0]


def reader(x, labels, epochs=5, seed=0):
    """A network of two convolutions that reads ten digits: (what makes features, what reads them)."""
    torch.manual_seed(seed)
    features = nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Flatten(),
                             nn.Dropout(0.25), nn.Linear(32 * 49, 64), nn.ReLU())
    answer, labels = nn.Linear(64, 10), torch.from_numpy(labels)
    weights = [*features.parameters(), *answer.parameters()]
    optimizer, steps = torch.optim.Adam(weights, 3e-3), epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(answer(features(x[batch])), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return features.eval(), answer


def density_and_coverage(real, made, k=5):
    """Naeem et al. (2020): balls around the real points, as wide as the distance to the k-th nearest other real one."""
    near = NearestNeighbors(n_neighbors=k + 1).fit(real)
    radius = near.kneighbors(real)[0][:, k]
    inside = np.linalg.norm(real[:, None] - made[None], axis=2) < radius[:, None]  # (real, made)
    return float(inside.sum() / (k * len(made))), float(inside.any(1).mean())


def nearest(x, known):
    """Median distance to the nearest of the known images."""
    distance = NearestNeighbors(n_neighbors=1).fit(known.flatten(1).numpy()).kneighbors(x.flatten(1).numpy())[0]
    return round(float(np.median(distance)), 3), round(float(distance.min()), 3)


@torch.no_grad()
def judged(x, meant, real, features, answer):
    """Share read as what was meant, and density and coverage among the features of the real images."""
    found = features(x)
    right = {} if meant is None else dict(recognised=round(float((answer(found).argmax(1).numpy() == meant).mean()), 4))
    one_of = np.isin(answer(found).argmax(1).numpy(), runs.DIGITS).mean()
    density, coverage = density_and_coverage(features(real).numpy(), found.numpy())
    return right | dict(one_of_the_three=round(float(one_of), 4), density=round(density, 4),
                        coverage=round(coverage, 4))


def one(seed):
    """What the reader makes of samples, of real images, and in draw 0 of samples of stage one."""
    images, labels = runs.outside_images()
    chosen = np.random.default_rng(seed).permutation(len(images))[:12000]
    features, answer = reader(upright(images[chosen]), labels[chosen], seed=seed)
    test, names = runs.test_images()
    order = np.random.default_rng(seed).permutation(len(test))[:3000]
    x, names = upright(test[order]), names[order]
    real, other = x[:1500], x[1500:]
    draw = runs.draw(seed)
    clf, known = runs.trained(seed, draw), upright(draw[0])
    parts = [clf.sample(500, label=d, random_state=seed) for d in runs.DIGITS]
    new, meant = torch.from_numpy(np.concatenate([p[0] for p in parts])), np.concatenate([p[1] for p in parts])
    found = dict(new=judged(new, meant, real, features, answer) | dict(nearest=nearest(new, known)),
                 real=judged(other, names[1500:], real, features, answer) | dict(nearest=nearest(other, known)))
    with torch.no_grad():
        by_digit = {d: round(float((answer(features(new)).argmax(1).numpy() == d)[meant == d].mean()), 4)
                    for d in runs.DIGITS}
    if seed == 0:
        first = runs.trained(seed, draw, dict(prior_epochs=0))
        z = torch.randn(1500, first.latent_dim, generator=torch.Generator().manual_seed(seed))
        plain = torch.from_numpy(decode(first.vae_, z))
        found["stage_one"] = judged(plain, None, real, features, answer) | dict(nearest=nearest(plain, known))
    return found | dict(by_digit=by_digit, relative_coverage=round(found["new"]["coverage"] / found["real"]["coverage"], 4))


if __name__ == "__main__":
    runs.measure(__file__, [dict(seed=int(seed)) for seed in sys.argv[1:] or range(3)], one)
