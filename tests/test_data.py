"""What the course project did with its images, and what was set right: filter, values, variation, noise, split."""
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vae_gmm.data import SubsetImagesFromNPZ, as_images, augment_batch, split_indices, write_course_files
from vae_gmm.files import InputError


@pytest.fixture(scope="module")
def file(tmp_path_factory, digits):
    """The 150 digits and, so that there is something to filter, as many images called 7."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images, labels = digits
    np.savez(path, data=np.concatenate([images, images[::-1]]), labels=np.concatenate([labels, np.full(150, 7)]))
    return path


def all_of(dataset):
    """Input, target and labels of the whole data set."""
    return dataset.sample(torch.arange(len(dataset)))


def test_only_the_labels_asked_for(file, digits):
    data = SubsetImagesFromNPZ(file)
    assert len(data) == 150 and set(data.labels.tolist()) == {1, 4, 8}
    assert [data[i][1] for i in range(5)] == digits[1][:5].tolist()
    assert set(SubsetImagesFromNPZ(file, keep_labels=(8,)).labels.tolist()) == {8}
    assert len(SubsetImagesFromNPZ(file, keep_labels=None)) == 300
    with pytest.raises(InputError, match="holds no image labelled 3; its labels are 1, 4, 7, 8"):
        SubsetImagesFromNPZ(file, keep_labels=(3,))


def test_without_labels_all_images_stay(tmp_path, digits):
    np.savez(tmp_path / "bare.npz", data=digits[0])
    data = SubsetImagesFromNPZ(tmp_path / "bare.npz")
    assert len(data) == 150 and data.labels.tolist() == [-1] * 150 and data[0][1] == -1


def test_values_are_shares_of_ink(file, digits):
    images = SubsetImagesFromNPZ(file).images
    assert images.dtype == torch.float32 and images.shape == (150, 1, 28, 28)
    assert images.min() == 0 and images.max() == 1
    assert np.array_equal(images[:, 0].numpy(), digits[0].astype(np.float32) / 255)
    for data in (SubsetImagesFromNPZ(file, noise_std=0.5, augment=True, flip=True, flatten=flat) for flat in (0, 1)):
        assert all(0 <= part.min() and part.max() <= 1 for part in all_of(data)[:2])


def test_flattened_as_in_the_course_project(file):
    options = dict(noise_std=0.2, augment=True, flip=True, seed=3)
    pictures, vectors = SubsetImagesFromNPZ(file, **options), SubsetImagesFromNPZ(file, flatten=True, **options)
    assert vectors.images.shape == (150, 784) and vectors[0][0].shape == (784,) and pictures[0][0].shape == (1, 28, 28)
    for picture, vector in zip(all_of(pictures), all_of(vectors)):  # row by row, and the same random numbers
        assert torch.equal(picture.reshape(vector.shape), vector)


@pytest.mark.parametrize("flatten, shape", [(False, (16, 1, 28, 28)), (True, (16, 784))])
def test_batches_from_torch(file, flatten, shape):
    x, label = next(iter(DataLoader(SubsetImagesFromNPZ(file, augment=True, flatten=flatten), batch_size=16)))
    assert x.shape == shape and label.shape == (16,)


def test_variation_is_drawn_anew_and_follows_the_seed(file):
    data, again = (SubsetImagesFromNPZ(file, augment=True, seed=5) for _ in range(2))
    assert len(data) == 150  # no copies are kept: nothing for a later split to mix up
    first, second = all_of(data)[1], all_of(data)[1]
    assert torch.equal(first, all_of(again)[1]) and not torch.equal(first, second)
    assert not torch.equal(first, data.images)
    plain = SubsetImagesFromNPZ(file)
    assert torch.equal(all_of(plain)[0], plain.images)


def test_turned_by_a_small_angle():
    bar = torch.zeros(200, 1, 28, 28)
    bar[:, :, 4:24, 13:15] = 1  # upright
    turned = augment_batch(bar, torch.Generator().manual_seed(0), rotation=10, scale=0, shift=0)[:, 0]
    along = torch.arange(28) - 13.5
    slope = (turned * along[:, None] * along).sum((1, 2)) / (turned * along[:, None] ** 2).sum((1, 2))
    angle = torch.rad2deg(torch.atan(slope))
    assert angle.abs().max() < 10.5 and angle.min() < -9 and angle.max() > 9
    still = augment_batch(bar, rotation=0, scale=0, shift=0)
    torch.testing.assert_close(still, bar, atol=1e-5, rtol=0)


def test_flips_only_if_asked_for_and_then_one_half(file):
    x = SubsetImagesFromNPZ(file).images
    without = augment_batch(x, torch.Generator().manual_seed(1))
    mixed = augment_batch(x, torch.Generator().manual_seed(1), flip=True)
    mirrored = (mixed - without.flip(3)).abs().amax((1, 2, 3)) == 0
    assert 50 < mirrored.sum() < 100
    assert torch.equal(mixed[~mirrored], without[~mirrored])
    flips = SubsetImagesFromNPZ(file, augment=True, flip=True, seed=2), SubsetImagesFromNPZ(file, augment=True, seed=2)
    assert not torch.equal(*(all_of(data)[1] for data in flips))
    assert torch.equal(all_of(SubsetImagesFromNPZ(file, flip=True))[1], x)  # a part of the variation


@pytest.mark.parametrize("augment", [False, True])
def test_noise_is_on_the_input_and_not_on_the_target(file, augment):
    noisy, clean = (SubsetImagesFromNPZ(file, noise_std=std, augment=augment, seed=4) for std in (0.2, 0))
    x, target, _ = all_of(noisy)
    assert torch.equal(target, all_of(clean)[1])  # turned as it is without noise, and nothing else
    inner = (target > 0.45) & (target < 0.55)  # far from where the noise is cut off
    assert abs((x - target)[inner].std() - 0.2) < 0.01 and abs((x - target)[inner].mean()) < 0.01
    plain_input, plain_target, _ = all_of(clean)
    assert torch.equal(plain_input, plain_target)


def test_no_negative_noise(file):
    with pytest.raises(InputError, match="noise_std is -0.1; expected a number that is not negative"):
        SubsetImagesFromNPZ(file, noise_std=-0.1)


def test_the_split_comes_before_the_copies():
    train, val = split_indices(1185, seed=0)
    assert len(train) == 948 and len(val) == 237  # 80:20
    assert sorted([*train, *val]) == list(range(1185))
    assert not np.array_equal(train, split_indices(1185, seed=1)[0])
    original = np.tile(np.arange(1185), 4)  # the other way round, four copies each, nearly every image is on both sides
    train_copies, val_copies = split_indices(len(original))
    assert np.isin(original[val_copies], original[train_copies]).mean() > 0.95


def test_one_door_for_every_usual_form(digits):
    images = digits[0][:9]
    x = as_images(images)
    assert x.dtype == torch.float32 and x.shape == (9, 1, 28, 28)
    shares = images.astype(np.float32) / 255
    forms = (images.reshape(9, 784), images[:, None], images.astype(np.int64), images.astype(">u2"),
             np.asfortranarray(images), images[::-1].copy()[::-1], torch.from_numpy(images), shares,
             images / 255, shares.reshape(9, 784), torch.from_numpy(shares)[:, None], x, x.double(), list(images))
    for form in forms:
        assert torch.equal(as_images(form), x)


@pytest.mark.parametrize("change, why", [
    (lambda x: x[0], r"shape \(28, 28\); expected \(n, 28, 28\), \(n, 784\) or \(n, 1, 28, 28\)"),
    (lambda x: x[:, None, None], r"shape \(9, 1, 1, 28, 28\)"),
    (lambda x: x[:, 1:], r"shape \(9, 27, 28\)"),
    (lambda x: x[:0], "holds no image"),
    (lambda x: x * 1.0, "values from 0 to 2[0-9]+; expected fractions from 0 to 1 or whole numbers to 255"),
    (lambda x: x / 255 - 0.1, "values from -0.1"),
    (lambda x: x * np.nan, "values from nan"),
    (lambda x: x.astype(int) - 1, "values from -1 to 25[0-9]; expected 0 to 255"),
    (lambda x: x > 127, "type bool; expected whole numbers"),
    (lambda x: x.astype(str), "type <U3; expected whole numbers"),
])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_the_door_turns_away_the_rest(digits, change, why, kind):
    wrong = change(digits[0][:9])
    if kind is torch.as_tensor:
        if wrong.dtype.kind == "U":
            pytest.skip("no tensor of text")
        wrong = torch.as_tensor(wrong)
    with pytest.raises(InputError, match=f"^X_val: (has|holds).*{why.removeprefix('holds ')}"):
        as_images(wrong, "X_val")


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)


def test_a_file_runs_no_code(tmp_path):
    np.savez(tmp_path / "trap.npz", data=np.array([Trap(str(tmp_path / "sprung"))], dtype=object))
    with pytest.raises(InputError, match="Python objects, which are never loaded"):
        SubsetImagesFromNPZ(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


def test_the_three_files_share_no_image(tmp_path):
    parts = {name: dict(np.load(path)) for name, path in write_course_files(tmp_path).items()}
    assert "labels" not in parts["train"]
    assert np.bincount(parts["val"]["labels"])[[1, 4, 8]].tolist() == [5, 5, 5]
    seen = [image.tobytes() for part in parts.values() for image in part["data"]]
    assert len(seen) == len(set(seen)) == 1500
