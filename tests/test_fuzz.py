"""10,000 damaged files through the loaders: each gives a result or an `InputError`, soon, in little memory.

Nothing in them runs. The files are small good ones with a few changes: bits turned over, bytes replaced, pieces cut
out, doubled or moved, numbers in headers exchanged. Half of the npz files are damaged as they are, where the checksum
usually notices; in the other half an array is damaged and the archive around it made anew. The random
numbers are seeded.
"""
import io
import json
import pickle
import re
import resource
import signal
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vae_gmm.checkpoint import CHECKPOINT_FORMAT
from vae_gmm.classifier import read_settings
from vae_gmm.data import load_npz
from vae_gmm.files import InputError, read_npz
from vae_gmm.info import describe
from vae_gmm.mixture.estimator import GaussianMixture
from vae_gmm.model_files import load_gmm, load_vae, save_gmm, save_vae
from vae_gmm.training import TrainConfig
from vae_gmm.vae import VAE

# of damaged files in each run of a test
COUNTS = dict(images=1250, mixture=1000, network=2000, checkpoint=1000, settings=200)
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
seen_events = []


def watch(event, args):
    """Note what a file that runs code would have to do; a hook cannot be removed, so it only watches while asked."""
    if watch.on and event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn",
                              "os.fork", "socket.connect"):
        seen_events.append((event, str(args)[:100]))


watch.on = False
sys.addaudithook(watch)


def damaged(good, rng):
    """A copy of the bytes with one to four changes."""
    bad = bytearray(good)
    for _ in range(rng.integers(1, 5)):
        if not bad:
            break
        at, kind = int(rng.integers(len(bad))), rng.integers(8)
        size = int(min(rng.integers(1, 40), len(bad) - at))
        if kind == 0:
            bad[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            bad[at:at + size] = rng.bytes(size)
        elif kind == 2:
            del bad[at:at + size]
        elif kind == 3:
            bad[at:at] = bad[at:at + size]
        elif kind == 4:
            del bad[at:]
        elif kind == 5:
            width = int(rng.choice([1, 2, 4, 8]))
            bad[at:at + width] = (EDGES[rng.integers(len(EDGES))] % 256**width).to_bytes(width, "little")
        elif kind == 6:
            to = int(rng.integers(len(bad)))
            bad[to:to + size] = bad[at:at + size]
        else:  # another number, where the bytes are text
            numbers = list(re.finditer(rb"\d+", bytes(bad)))
            if numbers:
                found = numbers[rng.integers(len(numbers))]
                others = [-1, 0, 1, 7, 28, 784, 10**6, 10**12, 2**31, 2**62]
                bad[slice(*found.span())] = str(rng.choice(others)).encode()
    return bytes(bad)


def damaged_inside(good, rng):
    """An npz file with one array damaged, in a good archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        names = old.namelist()
        victim = names[rng.integers(len(names))]
        for name in names:
            new.writestr(name, damaged(old.read(name), rng) if name == victim else old.read(name))
    return out.getvalue()


def safetensors_bytes(header, body=b""):
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def npz_bytes(write, **arrays):
    file = io.BytesIO()
    write(file, **arrays)
    return file.getvalue()


@contextmanager
def limits(memory):
    """At most so many bytes of memory more than now, and ten seconds of computing until `limits.renew` is called."""
    def too_long(*_):
        raise AssertionError("ten seconds of computing on one file")

    statm = Path("/proc/self/statm")  # on Linux, the memory in use in pages
    now = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, too_long)
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, before[1]))
    watch.on = True
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, 10)
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(loaders, good, n, change, path, seed):
    """Damage `good` n times and load it: how many were loaded, and the errors' texts without names and numbers."""
    rng, loaded, sentences = np.random.default_rng(seed), 0, set()
    for load in loaders:  # what they import and set up is not the file's doing
        path.write_bytes(good)
        try: load(path)
        except InputError: pass
    seen_events.clear()
    with limits(2**29) as renew:
        for i in range(n):
            bad = change(good, rng)
            path.unlink()  # some file systems are slow to write over a file
            path.write_bytes(bad)
            for load in loaders:
                renew()
                try:
                    load(path)
                    loaded += 1
                except InputError as err:
                    assert "MemoryError" not in str(err) and "\n" not in str(err), (i, err)
                    assert str(err).startswith(str(path)) and len(str(err)) < 4000, (i, err)
                    sentences.add(re.sub(r"\d+|'.*?'|\(.*\)", "#", str(err).removeprefix(str(path))))
                except BaseException as err:
                    raise AssertionError(f"{load.__name__}: file {i}: {type(err).__name__}: {err}") from err
    assert not seen_events
    return loaded, sentences


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return dict(data=rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), labels=np.array([1, 4, 8]))


@pytest.fixture
def mixture(tmp_path):
    gmm = GaussianMixture.from_parameters(np.full(3, 1 / 3), np.arange(6.0).reshape(3, 2), np.stack([np.eye(2)] * 3))
    save_gmm(gmm, np.array([1, 4, 8]), np.eye(3), tmp_path / "gmm", "0123456789abcdef")
    return (tmp_path / "gmm").read_bytes()


@pytest.mark.parametrize("change", [damaged, damaged_inside])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images(images, tmp_path, write, change):
    good = npz_bytes(write, **images)
    loaded, sentences = fuzz([load_npz, describe], good, COUNTS["images"], change, tmp_path / "a", 1)
    assert loaded and len(sentences) > 5  # the changes are neither too coarse nor too fine


@pytest.mark.parametrize("change", [damaged, damaged_inside])
def test_mixture(mixture, tmp_path, change):
    loaded, sentences = fuzz([load_gmm, describe], mixture, COUNTS["mixture"], change, tmp_path / "a", 2)
    assert loaded and len(sentences) > 5


def test_network(tmp_path):
    """A header as `save_vae` writes it, with the right names and too small tensors: the way to the shapes is open."""
    header = {"__metadata__": {"vae_gmm": json.dumps(dict(format="vae_gmm model 1", latent_dim=2, dropout=0.2))}}
    for i, name in enumerate(VAE().state_dict()):
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
    good = safetensors_bytes(header, bytes(4 * (len(header) - 1)))
    _, sentences = fuzz([load_vae, describe], good, COUNTS["network"], damaged, tmp_path / "a", 3)
    assert any("tensors are not this network's" in s for s in sentences) and len(sentences) > 3


def test_checkpoint(tmp_path):
    from dataclasses import asdict
    meta = dict(format=CHECKPOINT_FORMAT, config=asdict(TrainConfig()),
                history=dict(rows=[{}], best_epoch=1, stopped=""))
    good = safetensors_bytes({"__metadata__": {"vae_gmm": json.dumps(meta)},
                              "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    loaded, _ = fuzz([describe, load_vae], good, COUNTS["checkpoint"], damaged, tmp_path / "a", 4)
    assert loaded


def test_settings(tmp_path):
    from dataclasses import asdict
    good = json.dumps(dict(config=asdict(TrainConfig()), per_class=4, n_init=20, random_state=0), indent=2).encode()
    loaded, sentences = fuzz([describe, read_settings], good, COUNTS["settings"], damaged, tmp_path / "config.json", 7)
    assert loaded and len(sentences) > 1


def test_ten_thousand_npz_and_safetensors_files():
    """Four runs over images, two over mixtures, one over networks and one over checkpoints."""
    assert 4 * COUNTS["images"] + 2 * COUNTS["mixture"] + COUNTS["network"] + COUNTS["checkpoint"] >= 10_000


def test_complete_network(tmp_path):
    """Real files of 33 MB, damaged in the header or in the tensors."""
    save_vae(VAE(), tmp_path / "vae")
    good = (tmp_path / "vae").read_bytes()
    size = 8 + int.from_bytes(good[:8], "little")
    path, rng, loaded = tmp_path / "a", np.random.default_rng(5), 0
    for i in range(20):
        bad = damaged(good[:size], rng) + good[size:] if i % 2 else good[:size] + rng.bytes(50) + good[size + 50:]
        path.write_bytes(bad)
        try:
            assert load_vae(path).latent_dim >= 1
            loaded += 1
        except InputError:
            pass
    assert loaded


class Trap:
    def __reduce__(self):
        return open, (Trap.path, "w")


def test_torch_files(tmp_path):
    """Damaged files of torch.save, with plain tensors and with code in them."""
    import torch
    Trap.path = str(tmp_path / "fired")
    names = list(VAE().state_dict())
    total = 0
    for content in ({name: torch.zeros(1) for name in names[:4]}, {"conv1.weight": Trap()}, Trap()):
        torch.save(content, tmp_path / "good")
        good = (tmp_path / "good").read_bytes()
        for change in (damaged, damaged_inside):
            _, sentences = fuzz([load_vae], good, 60, change, tmp_path / "a", 6)
            total += len(sentences)
    assert total > 6 and not (tmp_path / "fired").exists()


def test_nothing_loaded_runs(images, mixture, tmp_path):
    """A trap at every place of every kind of file."""
    Trap.path = str(tmp_path / "fired")
    trap, path = np.array([Trap()], dtype=object), tmp_path / "a"
    pickled = pickle.dumps(trap)
    files = [pickled, pickle.dumps(trap, protocol=0), b"\x93NUMPY" + pickled]
    files += [npz_bytes(np.savez, **{**images, key: trap}) for key in images]
    with np.load(io.BytesIO(mixture)) as arrays:
        files += [npz_bytes(np.savez, **{**arrays, key: trap}) for key in arrays]
    for name in ("data", "labels", "format"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:  # members that are no npy files, which numpy.load would hand over
            archive.writestr(f"{name}.npy", pickled)
        files.append(out.getvalue())
    for file in files:
        path.write_bytes(file)
        for load in (load_npz, read_npz, load_gmm, load_vae, describe):
            with pytest.raises(InputError):
                load(path)
    assert not (tmp_path / "fired").exists()


def test_memory_for_declared_sizes(tmp_path):
    """A few bytes that declare gigabytes are refused before memory is taken: in arrays, their headers, and tensors."""
    import tracemalloc
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w") as archive, archive.open("data.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 28, 28)})
    header = io.BytesIO()
    with zipfile.ZipFile(header, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("data.npy", b"\x93NUMPY\x02\x00" + (10**8).to_bytes(4, "little") + b" " * 10**8)
    tensor = safetensors_bytes({"x": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}})
    path = tmp_path / "a"
    for file, load in ((small.getvalue(), load_npz), (header.getvalue(), load_npz), (header.getvalue(), describe),
                       (tensor, load_vae)):
        path.write_bytes(file)
        tracemalloc.start()
        with pytest.raises(InputError):
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22
