"""10,000 damaged files through the loaders: each gives a result or an `InputError`, soon, in little memory.

Lines of words through the commands, some with a damaged file among them: each does its work, or says in one line why
not, and leaves nothing half written. Nothing in the files runs. The files are small good ones with a few changes: bits
turned over, bytes replaced, pieces cut out, doubled or moved, numbers in headers exchanged. Half of the npz files are
damaged as they are, where the checksum usually notices; in the other half an array is damaged and the archive around it
made anew. The random numbers are seeded.
"""
import io
import json
import os
import pickle
import re
import resource
import signal
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vae_gmm.checkpoint import CHECKPOINT_FORMAT
from vae_gmm.config import TrainConfig
from vae_gmm.data import load_npz
from vae_gmm.files import InputError, read_npz
from vae_gmm.gmm import Mixture
from vae_gmm.info import describe
from vae_gmm.model_files import load_gmm, load_vae, read_settings, save_gmm, save_vae
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
def limits(memory, seconds=10):
    """At most so many bytes of memory more than now, and so many seconds of computing until the function is called."""
    def too_long(*_):
        raise AssertionError(f"{seconds} seconds of computing on one file")

    statm = Path("/proc/self/statm")  # on Linux, the memory in use in pages
    now = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGPROF, too_long)
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, before[1]))
    watch.on = True
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, seconds)
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
    gmm = Mixture(np.full(3, 1 / 3), np.arange(6.0).reshape(3, 2), np.stack([np.eye(2)] * 3))
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
    meta = dict(format="vae_gmm model 1", latent_dim=2, dropout=0.2, straightened=True)
    header = {"__metadata__": {"vae_gmm": json.dumps(meta)}}
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
    settings = dict(config=asdict(TrainConfig.fast()), n_components=3, straighten=True, random_state=0)
    good = json.dumps(settings, indent=2).encode()
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


# --- lines of words for the commands --------------------------------------------------------------------------------
LINES = int(os.environ.get("FUZZ_LINES", 100))  # a longer run: FUZZ_LINES=1000 pytest tests/test_fuzz.py -k lines
GOOD_LINES = [line.split() for line in (
    "train train.npz val.npz --model new.pth --gmm new.pkl", "train.npz val.npz train new.pth new.pkl --epochs 1",
    "train train.npz val.npz --recipe course --checkpoint state --seed 1 --beta 0.5 --dropout 0 --keep-labels 1,4",
    "test_classifier test.npz --model vae.pth --gmm gmm.pkl", "test.npz test_classifier vae.pth gmm.pkl",
    "test_classifier test.npz --model vae.pth --gmm gmm.pkl --keep-labels 1,8 --out-dir out --device cpu",
    "test_reconstruction recon.npz --model vae.pth", "recon.npz test_reconstruction vae.pth --out-dir out",
    "train train.npz val.npz --latent-dim 1 --no-straighten --epochs 1 --max-minutes 1",
    "data --digits 1,4 --labels-per-digit 3 --seed 2 --out-dir out", "data --force --root .", "info vae.pth",
    "info gmm.pkl", "info train.npz", "info vae.csv", "--help", "train --help", "--version")]
PLACES = ["train.npz", "val.npz", "test.npz", "recon.npz", "vae.pth", "gmm.pkl", "bad", ".", "out", "nowhere",
          "nowhere/x", "new", "/dev/null", "", "-", "--", "-x", "ü 'x'", "\x1b[2J", "caf\udce9",
          "n" * 300, "out of memory"]
VALUES = ["0", "1", "-1", "2", "0.5", "1e-320", "1e308", "1e999", "nan", "-inf", "4294967295", "4294967296", "9" * 30,
          "0x1", "1_0", "½", "1,4", "1,4,8", "4,4", "-1,9", ",", "9" * 5000, "cpu", "cuda:9", "auto", "course", "fast"]
OPTIONS = ["--model", "--gmm", "--out-dir", "--epochs", "--batch-size", "--beta", "--dropout", "--max-minutes",
           "--seed", "--keep-labels", "--checkpoint", "--device", "--quiet", "-q", "--recipe", "--digits", "--root",
           "--labels-per-digit", "--force", "--latent-dim", "--no-straighten", "--help", "-h", "--no", "train",
           "test_classifier", "info"]


def changed(line, rng):
    """A line with up to three of its words replaced, mostly by others of their kind, dropped, doubled or new."""
    line = list(line)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at, kind = int(rng.integers(len(line) + 1)), rng.integers(10)
        old = line[at:at + 1]
        kinds = OPTIONS, VALUES, PLACES, ["bad"] * len(PLACES)
        right = 0 if old and old[0] in OPTIONS else 1 if old and old[0] in VALUES else 2 + rng.integers(2)
        word = str(rng.choice(kinds[right if rng.random() < 0.8 else rng.integers(3)]))
        line[at:at + 1] = ([[word]] * 7 + [[word, *old], [], old * 2])[kind]
    return line


def listing(folder):
    """What can change about the files in a folder and those below."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (s.st_size, s.st_mtime_ns, s.st_ino) for path, s in stats.items() if not path.is_dir()}


@pytest.fixture
def commands(good, tmp_path, monkeypatch):
    """A folder to be in, commands that are soon done, and a function that makes the folder as it was."""
    from vae_gmm import cli, data
    train_network, (keep, folder) = cli.train_network, (tmp_path / "keep", tmp_path / "here")

    def briefly(clf, *args):
        clf.config = replace(clf.config, epochs=1, prior_epochs=min(1, clf.config.prior_epochs),
                             batch_size=max(clf.config.batch_size, 16))
        train_network(clf, *args)

    monkeypatch.setattr(cli, "train_network", briefly)
    monkeypatch.setattr(data, "embedded_digits", cache(data.embedded_digits))
    keep.mkdir()
    for path in good.iterdir():
        if path.is_file():  # not the folder or the pipe that another test has put there
            os.link(path, keep / path.name)
    (keep / "vae.csv").write_text("Predicted_Label\n4\n")

    def renew():
        for path in folder.glob("*"):
            path.unlink() if path.is_file() or path.is_symlink() else [x.unlink() for x in path.iterdir()]
        (folder / "out").mkdir(parents=True, exist_ok=True)
        for path in keep.iterdir():
            os.link(path, folder / path.name)

    renew()
    monkeypatch.chdir(folder)
    return renew


@pytest.mark.filterwarnings("ignore")
def test_lines(commands):
    from vae_gmm.cli import vae_gmm
    folder, runner, rng, codes = Path.cwd(), CliRunner(), np.random.default_rng(8), []
    sources = [path.read_bytes()[:10**6] for path in sorted(folder.iterdir()) if path.is_file()]
    for words in GOOD_LINES[:2]:  # what they import and set up is not the line's doing
        runner.invoke(vae_gmm, words)
        commands()
    seen_events.clear()
    with limits(2**31, 60) as renew:
        for i in range(LINES):
            Path("bad").write_bytes(damaged(sources[rng.integers(len(sources))], rng))
            words, before = changed(GOOD_LINES[rng.integers(len(GOOD_LINES))], rng), listing(folder)
            renew()
            result = runner.invoke(vae_gmm, words, prog_name="vae_gmm")
            codes.append(result.exit_code)
            assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
            assert result.exit_code in (0, 1, 2) and "Traceback" not in result.output, words
            after = listing(folder)
            assert not [path for path in after if path.name.endswith(".part")], words
            if result.exit_code:
                assert result.output.splitlines()[-1].startswith("Error: "), (words, result.output)
                assert {k: v for k, v in after.items() if k.name != "state"} == before, words  # a checkpoint stays
            commands()
    assert not seen_events and {0, 1, 2} == set(codes)
    print({code: codes.count(code) for code in (0, 1, 2)})
