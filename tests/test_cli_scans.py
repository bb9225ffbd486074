"""Digits as people have them: folders of scans, through `read_images` and through the commands."""
import io
import json
import os

import numpy as np
import pytest
from commands import call
from PIL import Image

from vae_gmm.files import InputError
from vae_gmm.scans import image_files, read_image, read_images


def enlarged(image, rng, dark=True, light=0.3, noise=0.05, ink=0.6):
    """A digit of MNIST as a scan: of another size, on grey paper under a lamp at one side, with margins and noise."""
    side = int(rng.integers(40, 200))
    large = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) / 255
    large = np.pad(large, rng.integers(0, side // 4, (2, 2)))
    v, u = np.mgrid[-1:1:large.shape[0] * 1j, -1:1:large.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = light / 2 * (u * np.cos(angle) + v * np.sin(angle))
    paper = 0.8 - light / 2 + slope if dark else 0.2 + light / 2 + slope
    grey = paper * (1 - ink * large) if dark else paper + (1 - paper) * ink * large
    return Image.fromarray((255 * (grey + noise * rng.standard_normal(grey.shape)).clip(0, 1)).round().astype(np.uint8))


def alike(image, other):
    """The correlation of two images."""
    return np.corrcoef(image.ravel().astype(float), other.ravel().astype(float))[0, 1]


@pytest.fixture(scope="module")
def eight(digits):
    """An 8, (28, 28) uint8."""
    images, labels = digits
    return images[labels == 8][0]


def saved(path, image, *args, **options):
    image.save(path, *args, **options)
    return path


def test_what_has_the_form_keeps_it(digits, tmp_path):
    """An image of MNIST, as PNG, comes out as it was, but for a few grey values and grains; so does its negative."""
    images, labels = digits
    for i, (image, label) in enumerate(zip(images[:40], labels)):
        Image.fromarray(255 - image if i % 2 else image).save(tmp_path / f"{label}_{i:02}.png")
    found = read_images(tmp_path)
    order = sorted(range(40), key=lambda i: f"{labels[i]}_{i:02}")
    np.testing.assert_array_equal(found.labels, labels[order])
    assert found.images.shape == (40, 28, 28) and found.images.dtype == np.uint8 and "20 of them dark" in found.done
    differences = np.abs(found.images.astype(int) - images[order])
    assert (differences.max((1, 2)) <= 16).mean() > 0.8 and differences.mean() < 3


@pytest.mark.parametrize("options", [dict(), dict(dark=False), dict(light=0.4, noise=0.1, ink=0.5),
                                     dict(light=0, noise=0, ink=1)], ids=str)
def test_scans_become_what_they_were_made_from(digits, tmp_path, options):
    rng, images = np.random.default_rng(0), digits[0][:30]
    for i, image in enumerate(images):
        enlarged(image, rng, **options).save(tmp_path / f"{i:02}.jpg", quality=85)
    found = read_images(tmp_path)
    assert found.labels is None and found.names == [f"{i:02}.jpg" for i in range(30)]
    assert f"{30 if options.get('dark', True) else 0} of them dark on light" in found.done
    assert np.median([alike(*pair) for pair in zip(found.images, images)]) > 0.8
    rows, columns = (found.images.astype(float).sum(axis) for axis in (2, 1))
    for sums in (rows, columns):  # the centre of mass is nearest to pixel 14, except where the box meets the edge
        assert (np.abs(sums @ np.arange(28) / sums.sum(1) - 14) <= 0.51).mean() > 0.9
    assert all(np.ptp(np.flatnonzero(image.any(1))) < 20 for image in found.images)
    assert (found.images.max((1, 2)) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_modes(mode, eight, tmp_path):
    """Black and white, grey, with a palette, in colour, of 16 bits, for a press: all the same digit."""
    large = Image.fromarray(255 - eight).resize((120, 120), Image.Resampling.BICUBIC)
    image = (Image.fromarray(np.asarray(large).astype(np.uint16) * 257) if mode == "I;16" else
             large.convert("RGB").convert(mode) if mode != "1" else large.convert("1", dither=Image.Dither.NONE))
    path = saved(tmp_path / ("8.jpg" if mode == "CMYK" else "8.png"), image)
    assert Image.open(path).mode in (mode, "I")
    digit, dark = read_image(path)
    assert dark and alike(digit, eight) > (0.85 if mode == "P" else 0.95)  # of few colours


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(ink, eight, tmp_path):
    """Dark ink or light ink on nothing, whatever colour the transparent pixels have."""
    large = Image.fromarray(eight).resize((120, 120))
    alpha = np.asarray(large)
    for colour in ((0, 0, 0), (90, 200, 30)):
        rgb = np.where(alpha[..., None] > 0, ink, np.array(colour)).astype(np.uint8)
        digit, dark = read_image(saved(tmp_path / "8.png", Image.fromarray(np.dstack([rgb, alpha]))))
        assert dark == (ink == 0) and alike(digit, eight) > 0.9


def test_turned_by_the_camera(eight, tmp_path):
    """What EXIF says about the orientation is obeyed."""
    large = Image.fromarray(255 - eight).resize((120, 120)).rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    digit, _ = read_image(saved(tmp_path / "8.jpg", large, exif=exif))
    assert alike(digit, eight) > 0.95


def test_a_large_photograph(eight, tmp_path):
    """Twelve million pixels, the digit in a corner."""
    image = Image.new("L", (4000, 3000), 230)
    image.paste(Image.fromarray(np.minimum(255 - eight, 230)).resize((700, 700), Image.Resampling.BICUBIC), (200, 1900))
    for name in ("8.jpg", "8.png"):
        assert alike(read_image(saved(tmp_path / name, image))[0], eight) > 0.85


def test_blank_paper(tmp_path):
    """Noise, a gradient and both are no digit."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0.3, 0.9, 100) * np.ones((100, 1))
    for grey in (slope, 0.7 + 0.05 * rng.standard_normal((100, 100)), slope + 0.05 * rng.standard_normal((100, 100))):
        with pytest.raises(InputError, match="8.png: is blank"):
            read_image(saved(tmp_path / "8.png", Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8))))


def test_labels_and_names(eight, tmp_path):
    """In sub-folders or before the first `_`; all or none; in the order of the names, without what systems add."""
    image = Image.fromarray(eight)
    for name in ("8/b.png", "8/1_a.JPG", "4/x/1_c.jpeg", "1_d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
    for name in (".DS_Store", "8/._b.png", "Thumbs.db", "8/desktop.ini", "__MACOSX/8/b.png", ".cache/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    found = read_images(tmp_path)
    assert found.names == ["1_d.png", "4/x/1_c.jpeg", "8/1_a.JPG", "8/b.png"]
    assert found.labels.tolist() == [1, 1, 8, 8] and found.done.endswith("labels from the names")
    assert read_images(tmp_path, keep_labels="8").names == found.names[2:]
    assert read_images(tmp_path, read_labels=False).labels is None
    image.save(tmp_path / "scan.png")
    found = read_images(tmp_path)
    assert found.labels is None and found.done.endswith("no labels in the names, as scan.png has none")
    with pytest.raises(InputError, match="has no label for scan.png; expected 8_NAME.png"):
        read_images(tmp_path, require_labels=True)
    assert len(image_files(tmp_path)) == 5


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_in_the_commands(good, digits, tmp_path):
    """Wherever an npz file is taken; the table of predictions has the names, whatever is in them."""
    images, labels = digits
    rng = np.random.default_rng(1)
    names = []
    for i in range(100, 130):
        name = f"{labels[i]}_{i}" + {101: ", \"x\"\n", 102: "\udce9", 103: " Übung"}.get(i, "") + ".png"
        (tmp_path / "scans").mkdir(exist_ok=True)
        enlarged(images[i], rng).save(file := io.BytesIO(), "PNG")
        (tmp_path / "scans" / name).write_bytes(file.getvalue())
        names.append(name)
    model = ["--model", good / "vae.pth", "--gmm", good / "gmm.pkl"]
    code, out, err = call(tmp_path, "test_classifier", "scans", *model)
    assert code == 0 and err.startswith("scans: 30 scans brought to MNIST's form, 30 of them dark on light"), err
    assert "of 30 right" in out and "Predictions: vae.csv, 30 images" in out
    import pandas as pd
    table = pd.read_csv(tmp_path / "vae.csv", encoding_errors="surrogateescape")
    assert list(table) == ["Predicted_Label", "File"] and table.File.tolist() == sorted(names)
    code, out, _ = call(tmp_path, "info", "vae.csv", "--json")
    assert code == 0 and sum(json.loads(out)["labels"].values()) == 30
    code, out, err = call(tmp_path, "test_reconstruction", "scans", *model[:2], "--quiet")
    assert (code, err) == (0, "") and out.startswith("mean ")
    assert np.load(tmp_path / "vae_reconstructed.npz")["data"].shape == (30, 28, 28)
    words = "train scans scans --epochs 1 --model new.pth --gmm new.pkl --batch-size 30 --keep-labels 1,4".split()
    code, out, err = call(tmp_path, *words)
    assert code == 0 and err.count("scans brought to MNIST's form") == 2, err
    kept = sum(name[0] in "14" for name in names)
    assert f"on 30 images.\n2 components, named 1, 4 by {kept} labelled images." in out
