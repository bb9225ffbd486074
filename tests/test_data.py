"""What the course project did with its images, and what was set right: filter, values, variation, noise, split."""
import copy
import gzip
import os
import pickle
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import DataLoader

from vae_gmm.data import SubsetImagesFromNPZ, add_noise, affine_batch, as_images, augment_batch, load_npz, put_back
from vae_gmm.data import split_indices, straighten, write_course_files
from vae_gmm.figures import similarity
from vae_gmm.files import InputError, check_labels, mnist_digits, npz_headers


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
    for flatten in (False, True):
        data = SubsetImagesFromNPZ(file, noise_std=0.5, augment=True, flip=True, flatten=flatten)
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
    with pytest.raises(InputError, match="noise_std is -0.1; expected a number from 0 to"):
        SubsetImagesFromNPZ(file, noise_std=-0.1)


# --- the pose, out and in again ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def x(digits):
    return as_images(digits[0])


def test_the_pose_is_what_others_measure(x):
    for image, pose in zip(x[:, 0].double().numpy(), straighten(x)[1].tolist()):
        mass, (down, right) = image.sum(), ndimage.center_of_mass(image)
        rows, columns = np.indices(image.shape)
        cov = np.cov(columns.ravel(), rows.ravel(), aweights=image.ravel(), ddof=0)
        assert pose == pytest.approx([right - 13.5, down - 13.5, cov[0, 1] / cov[1, 1]], abs=1e-4) and mass > 0


def test_straight_digits_have_no_pose_left(x):
    straight, pose = straighten(x)
    left = straighten(straight)[1].abs()
    assert (left.mean(0) < torch.tensor([0.02, 0.03, 0.005])).all() and left.max() < 0.25
    assert pose[:, 2].abs().mean() > 20 * left[:, 2].mean()


def test_the_pose_put_back_gives_the_image(x):
    ssim = similarity(x, put_back(*straighten(x))).ssim
    assert ssim.mean() > 0.97 and ssim.min() > 0.9
    assert similarity(x, straighten(x)[0]).ssim.mean() < 0.8  # the two steps do something


@pytest.mark.parametrize("right, down, slant", [(0, 0, 0.4), (0, 0, -0.4), (2, -1, 0), (-1.5, 1, -0.3)])
def test_a_copy_in_another_pose_becomes_the_same_image(x, right, down, slant):
    upright = straighten(x)[0]
    posed = put_back(upright, torch.tensor([[right, down, slant]]).expand(len(x), 3))
    again, pose = straighten(posed)
    assert (pose.mean(0) - torch.tensor([right, down, slant])).abs().max() < 0.03
    same, other = (similarity(upright, copies).ssim.mean() for copies in (again, posed))
    assert same > 0.97 and same > other + 0.15


def test_a_slant_by_hand(x):
    stroke = torch.tensor([[0, 0, 1], [0, 0.5, 0.5], [0, 1, 0]])[None, None]
    straight, pose = straighten(stroke)
    assert pose[0].tolist() == pytest.approx([0.5, 0, -0.5])
    right = torch.tensor([[0, 1, 0], [0.25, 19 / 32, 0.25], [0, 1, 0]])  # a cubic weighs by -3, 19, 19, -3 of 32
    torch.testing.assert_close(straight[0, 0], right)
    angle = torch.atan(torch.tensor([0.5]))  # to the right, as handwriting leans: a negative slant
    leaning = affine_batch(straighten(x[:1])[0], torch.zeros(1), torch.ones(1), torch.zeros(1, 2), angle)
    assert straighten(leaning)[1][0, 2].item() == pytest.approx(-0.5, abs=0.02)


def test_images_without_a_slant():
    empty, pixel, row = torch.zeros(3, 1, 1, 28, 28)
    pixel[0, 0, 3, 20] = row[0, 0, 5, 4:12] = 1
    straight, pose = straighten(torch.cat([empty, pixel, row, pixel * 1e-3]))
    assert pose.tolist() == [[0, 0, 0], [6.5, -10.5, 0], [-6, -8.5, 0], pytest.approx([6.5, -10.5, 0], abs=1e-4)]
    assert torch.equal(straight[:1], empty) and straight[1:].isfinite().all()
    assert straight[1, 0, 13:15, 13:15].sum() > 0.8
    back = put_back(straight, pose)
    assert back[1].argmax() == pixel.argmax() and similarity(row[0], back[2]).ssim.item() > 0.9
    assert straighten(torch.ones(1, 1, 28, 28))[1].abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_shapes_types_and_values_stay(x, n, dtype):
    given = x[:n].to(dtype)
    before = given.clone()
    straight, pose = straighten(given)
    back = put_back(straight, pose)
    assert straight.shape == back.shape == (n, 1, 28, 28) and pose.shape == (n, 3)
    assert straight.dtype == back.dtype == pose.dtype == dtype and torch.equal(given, before)
    assert all(part.numel() == 0 or 0 <= part.min() and part.max() <= 1 for part in (straight, back))
    assert n == 0 or torch.allclose(straighten(given[:1])[0], straight[:1])  # an image by itself is moved the same
    assert augment_batch(given, shear=10.0).shape == (n, 1, 28, 28)


@pytest.mark.parametrize("wrong", [lambda x: x[0], lambda x: x[:, 0], lambda x: x[..., 1:], lambda x: x.flatten(1),
                                   lambda x: (255 * x).byte(), lambda x: x.numpy(), lambda x: None])
def test_no_images_to_straighten(x, wrong):
    for function in straighten, lambda given: put_back(given, torch.zeros(9, 3)):
        with pytest.raises(InputError, match=r"^x: has (shape|type) .*; expected a tensor of floats \(n, 1, 28, 28\)"):
            function(wrong(x[:9]))


@pytest.mark.parametrize("wrong", [torch.zeros(9, 2), torch.zeros(8, 3), torch.zeros(3), np.zeros((9, 3)), None])
def test_no_pose_to_put_back(x, wrong):
    with pytest.raises(InputError, match=r"^pose: has (shape|type) .*; expected a tensor \(9, 3\), as straighten"):
        put_back(x[:9], wrong)


def test_the_data_set_straightens_if_asked_to(file, x):
    plain, straight = SubsetImagesFromNPZ(file), SubsetImagesFromNPZ(file, straighten=True)
    assert torch.equal(plain.images, x)  # not by itself
    assert torch.equal(straight.images, straighten(x)[0]) and torch.equal(straight.labels, plain.labels)
    flat = SubsetImagesFromNPZ(file, straighten=True, flatten=True)
    assert torch.equal(flat.images, straight.images.flatten(1))


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


# --- other forms of images, labels and indices, and what a session may have set ---------------------------------------
@pytest.fixture
def read_only(digits):
    images = digits[0][:9].copy()
    images.setflags(write=False)
    return images


@pytest.mark.parametrize("form", [
    lambda x: x[..., None],
    lambda x: torch.tensor(x)[..., None],
    lambda x: x,  # read-only
    lambda x: np.broadcast_to(x.astype(np.float32) / 255, x.shape),
    lambda x: torch.tensor(x).to_sparse(),
    lambda x: as_images(x).to_sparse(),
    lambda x: as_images(x).requires_grad_(),
    lambda x: torch.nn.Parameter(as_images(x)),
    lambda x: as_images(x).to(memory_format=torch.channels_last),
    lambda x: x / 255 * (1 + 1e-15),  # rounding
    lambda x: np.ma.masked_array(x),  # nothing is masked
])
def test_more_forms_of_the_same_images(read_only, form):
    torch.set_warn_always(True)
    try: result = as_images(form(read_only))
    finally: torch.set_warn_always(False)
    assert torch.equal(result, as_images(read_only.copy())) and not result.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_other_widths(read_only, dtype):
    x = as_images(read_only)
    result = as_images(x.to(dtype))
    assert result.dtype == torch.float32 and torch.equal(result, x.to(dtype).float())


@pytest.mark.parametrize("mode", ["r", "c"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_memory_maps(read_only, tmp_path, mode, kind):
    images = read_only if kind == np.uint8 else (as_images(read_only)[:, 0].numpy().astype(kind))
    np.save(tmp_path / "x.npy", images)
    torch.set_warn_always(True)
    try: result = as_images(np.load(tmp_path / "x.npy", mmap_mode=mode))
    finally: torch.set_warn_always(False)
    assert torch.equal(result, as_images(read_only))


@pytest.mark.parametrize("change, why", [
    (lambda x: np.pad(x, ((0, 0), (2, 2), (2, 2))), r"shape \(9, 32, 32\); expected \(n, 28, 28\)"),
    (lambda x: np.stack([x] * 3, 3), r"shape \(9, 28, 28, 3\)"),
    (lambda x: x // 128, "holds 0 and 1 only"),
    (lambda x: torch.tensor(x // 128).long(), "holds 0 and 1 only"),
    (lambda x: x / 255 / 255, "divided by 255 twice"),
    (lambda x: np.ma.masked_equal(x, 0), "masked entries"),
    (lambda x: x.astype(object), "type object"),
    (lambda x: x + 0j, "type complex128"),
    (lambda x: [x[0], x[1][:20]], "cannot be read"),
    (lambda x: torch.zeros(2, 784, device="meta"), "cannot be read"),
    (lambda x: as_images(x)[:0], "holds no image"),
    (lambda x: x * 1e300, "values from 0 to inf"),
    (lambda x: None, "of type NoneType"),
    (lambda x: "digits.npz", "of type str"),
])
def test_one_sentence_for_other_images(read_only, change, why):
    with np.errstate(all="ignore"):
        wrong = change(read_only)
    with np.errstate(all="raise"), pytest.raises(InputError, match=f"^X: .*{why}") as caught:
        as_images(wrong, "X")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("invert", [lambda x: 255 - x, lambda x: 1 - x / 255, lambda x: 1 - as_images(x),
                                    lambda x: (255 - x).reshape(-1, 784), lambda x: np.concatenate([x, 255 - x[:1]])])
def test_exchanged_ink_and_paper_are_questioned(digits, invert):
    with pytest.warns(UserWarning, match="ink and paper were exchanged"):
        as_images(invert(digits[0]))


@pytest.mark.filterwarnings("error")
def test_right_images_are_not_questioned(digits):
    x = as_images(digits[0])
    g = torch.Generator().manual_seed(0)
    strong = dict(rotation=45, scale=0.4, shift=6, flip=True)
    for images in (digits[0] * 0, torch.rand(50, 784), torch.ones(3, 784), (digits[0] > 127) * 1.0,
                   add_noise(augment_batch(x, g, **strong), 0.5, g), *(x[i:i + 1] for i in range(0, 150, 10))):
        as_images(images)


@pytest.mark.parametrize("given, right", [
    ([1, -12, 8], [1, -12, 8]), ((1, 4, 8), [1, 4, 8]), (torch.tensor([1, 4, 8]), [1, 4, 8]),
    (np.array([1, 4, 8], ">u2"), [1, 4, 8]), (np.array([1, 4, 8], np.uint64), [1, 4, 8]),
    (["1", "4", "8"], "type <U1; expected whole numbers .convert"),
    ([b"1"] * 3, "type |S1; expected whole numbers"),
    ([1.0, 4.0, 8.0], "type float64; expected whole numbers .convert"),
    (torch.tensor([1.0, 4, 8], requires_grad=True), "type float32; expected whole numbers"),
    (np.array([1, 4, 8], object), "type object; expected whole numbers .convert"),
    ([1, 4.5, 8], "expected whole numbers, as 4.5 is none"), ([1, np.nan, 8], "as nan is none"),
    ([1, None, 8], "as None is none"), ([True, False, True], "type bool"),
    ([[1], [4], [8]], r"shape \(3, 1\); expected one label an image, shape \(3,\)"),
    (np.eye(3, dtype=int), r"shape \(3, 3\); expected one label an image, shape \(3,\)"),
    ([1, 4], "holds 2 labels for 3 images; expected one each"), ([], "holds 0 labels for 3 images"),
    ([1, -1, 8], "holds -1, which stands for no label"), (np.array([1, 4, 2**63], np.uint64), "less than 2..63"),
    (np.ma.masked_equal([1, 4, 8], 4), "masked entries"), ({1, 4, 8}, "of type set"), (None, "of type NoneType"),
    (4, "of type int"), ([[1], [4, 8]], "cannot be read"),
])
def test_labels_are_right_or_one_sentence(given, right):
    if isinstance(right, str):
        with pytest.raises(InputError, match=f"^y_val: .*{right}"):
            check_labels(given, 3, "y_val")
    else:
        labels = check_labels(given, 3, "y_val")
        assert labels.dtype == np.int64 and labels.tolist() == right


def test_missing_labels_of_pandas():
    pd = pytest.importorskip("pandas")
    for missing in (pd.Series([1, None, 8], dtype="Int64"), pd.Series([1, pd.NA, 8]), pd.Series([1, None, 8])):
        with pytest.raises(InputError, match="^labels: holds labels of type .*; expected whole numbers, as .* is none"):
            check_labels(missing, 3)
    assert check_labels(pd.Series([1, 4, 8], index=[7, 8, 9]), 3).tolist() == [1, 4, 8]


@pytest.mark.parametrize("keep, right", [
    (4, [4]), ((4,), [4]), ("4", [4]), ("1,4,8", [1, 4, 8]), ("1, 4, 8", [1, 4, 8]), ("1 4 8", [1, 4, 8]),
    (("1", "4"), [1, 4]), ({1, 4}, [1, 4]), (range(5), [1, 4]), (iter([1, 4]), [1, 4]), (4.0, [4]),
    (np.array([1, 4]), [1, 4]), (np.int64(4), [4]), (np.array(["1", "4"]), [1, 4]), (torch.tensor([1, 4]), [1, 4]),
    (torch.tensor(4), [4]), (None, [1, 4, 7, 8]),
    *((wrong, None) for wrong in ("148", "", "four", "1;4", [], 4.5, np.nan, np.inf, True, np.array([True, False]),
                                  [None], [(1, 4), (8,)], b"148", ["1,4"], object())),
])
def test_labels_to_keep(file, keep, right):
    if right is None:
        with pytest.raises(InputError, match=r"^keep_labels is .*; expected whole numbers, such as \(1, 4, 8\)"):
            SubsetImagesFromNPZ(file, keep)
    else:
        assert sorted(set(SubsetImagesFromNPZ(file, keep).labels.tolist())) == right


def test_the_same_forms_for_the_course_files(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("vae_gmm.data.embedded_digits", lambda: digits)
    for chosen in (4, "1,4", ("1", "4"), torch.tensor([1, 4])):
        assert all(path.exists() for path in write_course_files(tmp_path, chosen, test_per_digit=np.int64(9)).values())
    for wrong in (dict(digits="148"), dict(labels_per_digit=-1), dict(labels_per_digit=0), dict(test_per_digit=5.0)):
        with pytest.raises(InputError, match=f"^{list(wrong)[0]} is .*; expected .*whole number"):
            write_course_files(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("index", [
    slice(0, 3), slice(None, None, -1), slice(5, 2), [0, 1, -1], [], (0, 1), range(3), np.array([1, 2], np.uint8),
    torch.tensor([3, 1]), np.arange(150) % 2 == 0, torch.arange(150) % 2 == 0, [True] * 150])
def test_many_at_once(file, index):
    data, rows = SubsetImagesFromNPZ(file), list(range(150))
    if not isinstance(index, slice):
        rows = np.arange(150)[np.array(list(index), dtype=None if len(index) else int)]
    else:
        rows = rows[index]
    x, labels = data[index]
    assert torch.equal(x, data.images[list(rows)]) and torch.equal(labels, data.labels[list(rows)])


@pytest.mark.parametrize("index", [3, -147, np.int8(3), np.array(3), torch.tensor(3)])
def test_one_at_a_time(file, index):
    data = SubsetImagesFromNPZ(file)
    x, label = data[index]
    assert torch.equal(x, data.images[3]) and label == int(data.labels[3]) and type(label) is int


@pytest.mark.parametrize("index", [150, -151, [150], 2**70, 1.0, [1.0], "1", None, ..., True, [True] * 3, {1, 2},
                                   [[0, 1], [2, 3]], [[1], [2, 3]], slice(0, 1.5), torch.tensor([1.0])])
def test_no_other_index(file, index):
    with pytest.raises(IndexError, match="expected an index from -150 to 149, a slice, a list or a mask$"):
        SubsetImagesFromNPZ(file)[index]


@pytest.mark.parametrize("wrong", [dict(noise_std=np.nan), dict(noise_std=np.inf), dict(noise_std="0.1"),
                                   dict(noise_std=None), dict(seed=-1), dict(seed=1.5), dict(seed="a")])
def test_settings_out_of_range(file, wrong):
    with pytest.raises(InputError, match=f"^{list(wrong)[0]} is .*; expected a .*number from 0 to"):
        SubsetImagesFromNPZ(file, **wrong)


def test_settings_from_numpy(file):
    data = SubsetImagesFromNPZ(file, noise_std=np.float64(0.2), seed=np.int64(3))
    assert torch.equal(data[:9][0], SubsetImagesFromNPZ(file, noise_std=0.2, seed=3)[:9][0])
    assert not torch.equal(*(SubsetImagesFromNPZ(file, noise_std=0.2, seed=None)[:9][0] for _ in range(2)))
    for share in (np.nan, -1, 2, "half", None):
        with pytest.raises(InputError, match="train_share is .*; expected a number from 0 to 1"):
            split_indices(10, share)


@contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("session", [
    default_type, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    lambda: np.errstate(all="raise"), lambda: torch.device("meta")])
def test_whatever_the_session_has_set(file, digits, session):
    def results():
        data = SubsetImagesFromNPZ(file, noise_std=0.2, augment=True, flip=True, seed=4, straighten=True)
        return *data.sample(torch.arange(40, device="cpu")), as_images(digits[0] / 255), data.images, data.labels
    right = results()
    with session():
        found = results()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, right))
    assert not any(made.is_inference() for made in found[3:])  # they can be trained on


@pytest.fixture
def eight(tmp_path, digits):
    np.savez(tmp_path / "same.npz", data=np.repeat(digits[0][:1], 8, 0))
    return tmp_path / "same.npz"


def epochs(path, seed=5, data=None, n=2, **how):
    """n epochs of eight equal images, which noise and variation make different."""
    data = data or SubsetImagesFromNPZ(path, noise_std=0.3, augment=True, seed=seed)
    loader = DataLoader(data, batch_size=1, **how)
    return [torch.cat([x for x, _ in loader]) for _ in range(n)]


def test_workers_draw_their_own_random_numbers(eight):
    streams = {}
    for name, how in dict(none={}, two=dict(num_workers=2), persistent=dict(num_workers=2, persistent_workers=True),
                          spawned=dict(num_workers=2, multiprocessing_context="spawn", n=1)).items():
        streams[name] = epochs(eight, **how)
        assert len(torch.cat(streams[name]).flatten(1).unique(dim=0)) == 8 * len(streams[name]), name
    torch.manual_seed(1)  # another seed of the session, the same of the data set
    again = epochs(eight, num_workers=2)
    assert all(torch.equal(*pair) for pair in zip(again, streams["two"]))
    assert all(torch.equal(*pair) for pair in zip(streams["spawned"], streams["two"]))
    assert torch.equal(streams["persistent"][0], streams["two"][0])
    assert not torch.equal(epochs(eight, seed=6, num_workers=2, n=1)[0], again[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data)),
                                    lambda data: torch.utils.data.Subset(data, range(8))])
def test_copies_go_on_as_the_data_set_would(eight, copied):
    data = SubsetImagesFromNPZ(eight, noise_std=0.3, augment=True, seed=5)
    assert all(torch.equal(*pair) for pair in zip(epochs(eight, data=copied(data)), epochs(eight)))
    data = SubsetImagesFromNPZ(eight, noise_std=0.3, augment=True, seed=5)
    assert len(torch.cat(epochs(eight, data=copied(data), num_workers=2)).flatten(1).unique(dim=0)) == 16


# --- files ------------------------------------------------------------------------------------------------------------
def test_what_an_operating_system_adds_to_an_archive(file, tmp_path):
    notes = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(90)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "more.npz", "w") as new:
        for name in ("__MACOSX/._data.npy", "._labels.npy", ".DS_Store", "Thumbs.db", "desktop.ini", "sub/"):
            new.writestr(name, notes)
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert list(npz_headers(tmp_path / "more.npz")) == ["data", "labels"]
    assert torch.equal(SubsetImagesFromNPZ(tmp_path / "more.npz").images, SubsetImagesFromNPZ(file).images)


@pytest.mark.parametrize("names, there", [
    (["images", "y"], "it holds 'images', 'y'"), (["a folder/data"], "it holds 'a folder/data'"),
    ([], "it holds no array"), (["two\nlines", "ü"], r"it holds 'two\\nlines', 'ü'")])
def test_the_arrays_that_are_there_are_named(tmp_path, digits, names, there):
    np.savez(tmp_path / "x.npz", **dict.fromkeys(names, digits[0]))
    with pytest.raises(InputError, match=rf"has no array 'data' \({there}\); expected 'data' \(n, 28, 28\)"):
        load_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", data=digits[0], y=digits[1])
    with pytest.raises(InputError, match=r"no array 'labels' \(it holds 'data', 'y'\); expected one label"):
        load_npz(tmp_path / "x.npz", require_labels=True)


def test_the_way_out_for_files_of_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with pytest.raises(InputError, match="expected the four MNIST files in .*raw$"):
        mnist_digits(tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + bytes(100))
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(100)))
    with pytest.raises(InputError, match="unpacked: type gunzip -k"):
        mnist_digits(tmp_path)
    for ending, why in (("", "bytes in the format of MNIST"), (".gz", "packed with gzip")):
        with pytest.raises(InputError, match=f"{why}; expected an npz file.*folder MNIST/raw"):
            load_npz(raw / f"train-images-idx3-ubyte{ending}")


@pytest.mark.parametrize("change, why", [
    (lambda x: x // 128, "'data': holds 0 and 1 only"),
    (lambda x: np.pad(x, ((0, 0), (2, 2), (2, 2))), r"'data': has shape \(150, 32, 32\)"),
    (lambda x: x[..., None], None), (lambda x: x[:, None], None), (lambda x: 255 - x, "exchanged")])
def test_files_are_judged_as_arrays_are(tmp_path, digits, change, why):
    np.savez(tmp_path / "x.npz", data=change(digits[0]))
    if why == "exchanged":
        with pytest.warns(UserWarning, match=why): load_npz(tmp_path / "x.npz")
    elif why:
        with pytest.raises(InputError, match=why): load_npz(tmp_path / "x.npz")
    else:
        assert np.array_equal(load_npz(tmp_path / "x.npz").images, digits[0])
