"""Every kind of source gives the same kind of data, and a bad one says what is wrong with it."""

from __future__ import annotations

import gzip
import math
import os
import random
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastvae import noise
from fastvae.data import Data, datasets, files, open_data
from fastvae.data.frames import check_columns
from fastvae.errors import DrawnOnceWarning

CPU = torch.device("cpu")


def everything(data: Data, batch_size: int = 64, **options) -> torch.Tensor:
    """All samples in natural order."""
    return torch.cat([x for x, _ in data.batches(batch_size, order=None, device=CPU, **options)])


def write_idx(path: Path, array: np.ndarray, code: int = 0x08) -> None:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# What a batch is


def test_batches_follow_the_order_and_name_their_rows():
    values = torch.arange(30.0).reshape(10, 3)
    data = open_data(values)
    order = noise.permutation(10, 5)
    batches = list(data.batches(4, order=order, device=CPU))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert data.batch_count(4) == 3
    assert torch.equal(torch.cat([rows for _, rows in batches]), order)
    assert torch.equal(torch.cat([x for x, _ in batches]), values[order])


@pytest.mark.parametrize("order", [None, torch.arange(6)])
def test_writing_into_a_batch_leaves_the_users_array_alone(order):
    values = torch.ones(6, 2)
    for x, _ in open_data(values).batches(6, order=order, device=CPU):
        x.zero_()
    assert bool((values == 1).all())


def test_a_batch_of_one_keeps_its_axes():
    data = open_data(np.zeros((9, 4, 4), np.float32))
    assert [tuple(x.shape) for x, _ in data.batches(8, order=None, device=CPU)] == [(8, 4, 4), (1, 4, 4)]


def test_take_gives_the_named_rows():
    data = open_data(torch.arange(10.0)[:, None])
    assert data.take(torch.tensor([7, 0, 7])).flatten().tolist() == [7, 0, 7]
    assert data.take(torch.tensor([], dtype=torch.int64)).shape == (0, 1)
    with pytest.raises(IndexError, match=r"rows must lie in \[0, 10\), got 10"):
        data.take(torch.tensor([3, 10]))
    with pytest.raises(IndexError, match="got -1"):
        data.take(torch.tensor([-1]))


# Splitting


def test_split_is_disjoint_complete_and_reproducible():
    values = torch.arange(101.0)[:, None]
    rest, held_out = open_data(values).split(0.1, seed=3)
    assert len(held_out) == 10
    both = torch.cat([everything(rest), everything(held_out)]).flatten()
    assert torch.equal(both.sort().values, values.flatten())
    again, _ = open_data(values).split(0.1, seed=3)
    other, _ = open_data(values).split(0.1, seed=4)
    assert torch.equal(everything(rest), everything(again))
    assert not torch.equal(everything(rest), everything(other))


def test_a_split_counts_its_own_rows():
    rest, _ = open_data(torch.arange(50.0)[:, None]).split(0.5, seed=0)
    order = noise.permutation(25, 1)
    visited = [(x, rows) for x, rows in rest.batches(4, order=order, device=CPU)]
    assert torch.equal(torch.cat([rows for _, rows in visited]), order)
    assert torch.equal(torch.cat([x for x, _ in visited]), rest.take(order))


def test_a_split_takes_the_labels_along():
    data = open_data(TensorDataset(torch.arange(40.0)[:, None], torch.arange(40)))
    rest, held_out = data.split(0.25, seed=2)
    for part in (rest, held_out):
        assert torch.equal(part.labels, everything(part).flatten().long())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_an_impossible_fraction(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        open_data(torch.zeros(4, 1)).split(fraction, seed=0)


def test_split_always_leaves_a_sample_on_either_side():
    assert [len(part) for part in open_data(torch.zeros(2, 1)).split(0.01, seed=0)] == [1, 1]
    assert [len(part) for part in open_data(torch.zeros(2, 1)).split(0.99, seed=0)] == [1, 1]
    with pytest.raises(ValueError, match="one sample cannot be divided"):
        open_data(torch.zeros(1, 1)).split(0.5, seed=0)


# Values and ranges


def test_8_bit_values_are_pixels():
    raw = pixels(20, 5)
    data = open_data(raw)
    assert data.pixels
    assert torch.equal(everything(data), torch.from_numpy(raw).float() / 255)


def test_8_bit_zeros_and_ones_stay_as_they_are():
    raw = (pixels(20, 5) > 99).astype(np.uint8)
    data = open_data(raw)
    assert data.is_binary()
    assert data.value_range() == (0.0, 1.0)
    assert open_data(raw, pixels=True).value_range() == (0.0, pytest.approx(1 / 255))
    assert open_data(raw.astype(np.float32), pixels=True).value_range() == (0.0, 1.0), "only bytes are scaled"


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float32", "float64", ">f4", ">i8"])
def test_other_numbers_are_taken_as_they_are(dtype):
    data = open_data(np.array([[0, 3], [100, 7]], dtype=dtype))
    x = everything(data)
    assert x.dtype == torch.float32
    assert x.tolist() == [[0, 3], [100, 7]]
    assert data.value_range() == (0, 100)
    assert not data.is_binary()


def test_bools_are_zero_and_one():
    assert open_data(np.array([[True, False]])).is_binary()
    assert everything(open_data(torch.tensor([[True, False]]))).tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_tensors_of_any_number_type(dtype):
    assert everything(open_data(torch.tensor([[2.0, 5.0]], dtype=dtype))).tolist() == [[2, 5]]


def test_strange_memory_layouts_give_the_same_values():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = torch.from_numpy(base[::-1, ::2].copy())
    readonly = base[::-1, ::2].copy()
    readonly.flags.writeable = False
    for array in (base[::-1, ::2], np.asfortranarray(base[::-1, ::2]), readonly):
        assert torch.equal(everything(open_data(array)), expected)
    grown = torch.ones(3, 1).expand(3, 4).requires_grad_()
    assert torch.equal(everything(open_data(grown)), torch.ones(3, 4))


def test_non_finite_values_are_reported_with_their_rows():
    values = np.zeros((100, 3))
    values[[7, 30]] = np.nan
    values[31, 1] = 1e300  # infinite as float32
    with pytest.raises(
        ValueError, match=r"3 of 100 samples hold NaN or infinite values \(row 7, 30, 31, counted from 0\)"
    ):
        open_data(values).value_range()
    with pytest.raises(ValueError, match=r"\(row 0, 1, 2, 3, 4, \.\.\., counted from 0\)"):
        open_data(np.full((100, 3), np.inf)).value_range()


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (np.array([[object()]]), TypeError, "array of numbers, got dtype object"),
        (np.array([["a", "b"]]), TypeError, "array of numbers, got dtype <U1"),
        (np.zeros((2, 2), "datetime64[s]"), TypeError, "array of numbers"),
        (np.zeros((2, 2), [("a", "f4")]), TypeError, "array of numbers"),
        (np.zeros((2, 2), complex), TypeError, "real numbers, got complex128"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "real numbers"),
        (np.ma.masked_array(np.zeros((2, 2)), True), TypeError, "masked array"),
        (torch.zeros(2, 2).to_sparse(), TypeError, "dense tensor"),
        (torch.zeros(2, 2, device="meta"), TypeError, "dense tensor"),
        (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), TypeError, "a nested tensor"),
        (np.ones(()), ValueError, "a single number"),
        (np.zeros(5), ValueError, r"use x\[:, None\]"),
        (np.zeros((0, 5)), ValueError, "no samples"),
        (np.zeros((5, 0)), ValueError, "samples are empty"),
        ([[1.0, 2.0]], TypeError, "got list; numpy.asarray"),
        (None, TypeError, "got NoneType"),
        (3, TypeError, "got int"),
        (b"digits", TypeError, "got bytes"),
        ({"x": 1}, TypeError, "got dict"),
    ],
)
def test_what_is_no_data_says_so(data, error, text):
    with pytest.raises(error, match=text):
        open_data(data)


def test_error_texts_use_the_callers_name():
    with pytest.raises(ValueError, match=r"^validation: there are no samples"):
        open_data(np.zeros((0, 5)), name="validation")


@pytest.mark.parametrize("workers", [-1, True, 1.0])
def test_workers_must_be_a_count(workers):
    with pytest.raises((TypeError, ValueError), match="workers must"):
        open_data(np.zeros((5, 5)), workers=workers)


def test_data_is_given_back_as_it_is():
    data = open_data(torch.zeros(2, 2))
    assert open_data(data) is data


# Names


def test_digits():
    data = open_data("digits")
    assert (len(data), data.shape, data.name) == (1797, (1, 8, 8), "digits")
    assert data.value_range() == (0.0, 1.0)
    assert not data.is_binary()
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("typo", ["digts", "Digits", "digit"])
def test_a_mistyped_name_gets_a_suggestion(typo):
    with pytest.raises(FileNotFoundError, match='did you mean "digits"'):
        open_data(typo)


def test_a_missing_path_gets_no_suggestion():
    with pytest.raises(FileNotFoundError, match=r"no file, folder or bundled data set 'runs/none\.npy'$"):
        open_data("runs/none.npy")


def test_digits_without_scikit_learn_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "fastvae\[data\]"'):
        open_data("digits")


# NumPy files


def test_npy(tmp_path):
    raw = pixels(12, 4, 4)
    np.save(tmp_path / "a.npy", raw)
    assert torch.equal(everything(open_data(tmp_path / "a.npy")), torch.from_numpy(raw) / 255)
    assert open_data(str(tmp_path / "a.npy")).shape == (4, 4)


def test_a_large_npy_is_mapped_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESIDENT_BYTES", 100)
    raw = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", raw)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", None)
        data = open_data(tmp_path / "a.npy")
    assert torch.equal(everything(data), torch.from_numpy(raw))


def test_npz_takes_the_only_array_or_the_one_with_a_known_name(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 2))
    np.savez(tmp_path / "one.npz", whatever=x)
    np.savez_compressed(tmp_path / "named.npz", other=np.zeros(3), x=x, y=np.arange(6))
    np.savez(tmp_path / "unclear.npz", a=x, b=x)
    assert torch.equal(everything(open_data(tmp_path / "one.npz")), torch.from_numpy(x).float())
    named = open_data(tmp_path / "named.npz")
    assert torch.equal(everything(named), torch.from_numpy(x).float())
    assert named.labels.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"unclear\.npz: cannot tell .* found 'a', 'b'"):
        open_data(tmp_path / "unclear.npz")


def test_npz_with_a_test_set_beside_its_training_samples(tmp_path):
    """As Keras has its data sets."""
    x = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
    labels = {"y_train": np.arange(6), "y_test": np.arange(4)}
    np.savez(tmp_path / "both.npz", x_train=x[:6] * 5, x_test=x[6:] % 2, **labels)
    data = open_data(tmp_path / "both.npz")
    assert len(data) == 6
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.pixels
    assert everything(data.test).max() == np.float32(1 / 255), "scaled as the others are"
    np.savez(tmp_path / "odd.npz", x_train=x[:6], x_test=x[6:, 0])
    with pytest.raises(
        ValueError, match=r"'x_train' has samples of shape \(2, 2\), 'x_test' of shape \(2,\)"
    ):
        open_data(tmp_path / "odd.npz")
    np.savez(tmp_path / "scales.npz", x_train=x[:6] / 255, x_test=x[6:])
    with pytest.raises(ValueError, match=r"'x_train' is float64 and 'x_test' uint8; 8-bit values are scaled"):
        open_data(tmp_path / "scales.npz")
    np.savez(tmp_path / "several.npz", X=x, data=x)
    with pytest.raises(ValueError, match=r"cannot tell which .* found 'X', 'data'"):
        open_data(tmp_path / "several.npz")


def test_columns_of_one_name_are_refused():
    """Their order could not be looked at later."""
    frame = pd.DataFrame(np.ones((3, 4)), columns=["a", "b", "a", "c"])
    with pytest.raises(ValueError, match=r"several called 'a'; rename them"):
        open_data(frame)


def test_labels_that_are_no_classes_are_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.array([0.5, 1, 2]))
    assert open_data(tmp_path / "a.npz").labels is None


class Explosive:
    """An object that would run code when unpickled."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickles_are_never_loaded(tmp_path, suffix):
    objects = np.empty((2, 2), dtype=object)
    objects[:] = Explosive()
    path = tmp_path / f"evil{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, objects, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"evil\{suffix}: not a NumPy file of numbers; .*never loaded"):
        open_data(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("keep", [0, 1, 50, 90, 200])
def test_damaged_numpy_files_are_named(tmp_path, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, np.ones((40, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"cut\{suffix}"):
        open_data(path)


def test_foreign_and_mislabelled_numpy_files_are_named(tmp_path):
    (tmp_path / "text.npy").write_text("hello, world")
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "b.npy", np.ones((2, 2)))
    (tmp_path / "b.npy").rename(tmp_path / "plain.npz")
    expected = {"text.npy": "not a NumPy file", "archive.npy": "npz archive", "plain.npz": "npy file"}
    for name, text in expected.items():
        with pytest.raises(ValueError, match=f"{name}: .*{text}"):
            open_data(tmp_path / name)


def test_an_array_file_of_text_names_the_file(tmp_path):
    np.save(tmp_path / "names.npy", np.array([["a"], ["b"]]))
    with pytest.raises(TypeError, match=r"names\.npy: expected an array of numbers"):
        open_data(tmp_path / "names.npy")


@pytest.mark.parametrize("name", ["table.csv", "model.pt", "README"])
def test_other_files_say_what_is_expected(tmp_path, name):
    (tmp_path / name).write_text("1,2,3")
    with pytest.raises(ValueError, match=f"cannot read .*{name}; expected an .npy"):
        open_data(tmp_path / name)


# IDX files


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_folder(tmp_path, ending):
    train, test = pixels(7, 5, 4), pixels(3, 5, 4, seed=1)
    write_idx(tmp_path / f"train-images-idx3-ubyte{ending}", train)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", np.arange(7, dtype=np.uint8))
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{ending}", test)
    data = open_data(tmp_path)
    assert data.shape == (1, 5, 4)
    assert torch.equal(everything(data), torch.from_numpy(train)[:, None] / 255)
    assert torch.equal(everything(data.test), torch.from_numpy(test)[:, None] / 255)
    assert data.labels.tolist() == list(range(7))
    assert data.test.labels is None


def test_a_dark_idx_test_set_has_the_scale_of_the_training_set(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(7, 5, 4))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", np.ones((3, 5, 4), np.uint8))
    assert open_data(tmp_path).test.value_range() == (pytest.approx(1 / 255), pytest.approx(1 / 255))


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
def test_idx_files_of_other_numbers(tmp_path, code, dtype):
    values = np.array([[1, -2], [3, 4]], dtype=dtype)
    write_idx(tmp_path / "train-images-idx2-ubyte", values, code)
    assert everything(open_data(tmp_path / "train-images-idx2-ubyte")).tolist() == [[1, -2], [3, 4]]


def test_damaged_idx_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, pixels(7, 5, 4))
    whole = path.read_bytes()
    zipped = gzip.compress(whole)
    flipped = bytearray(zipped)
    flipped[len(flipped) // 2] ^= 0xFF
    huge = struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3)
    for content, text in [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file; it begins with 89 50 4e 47"),
        (b"\0\0\x0a\3" + whole[4:], "not an IDX file"),
        (b"\0\0\x08\x40" + b"\0\0\0\1" * 64 + b"\0", "not an IDX file"),
        (b"\0\0\x08\x50" + b"\0\0\0\1" * 80 + b"\0", "not an IDX file"),
        (whole[:9], "ends within its header"),
        (whole[:-1], r"promises 140 bytes .*only 139"),
        (whole + b"\0", r"promises 140 bytes .*there are more"),
        (huge + b"\0" * 50, "only 50"),
        (zipped[:-20], "gzip file is damaged or cut short"),
        (zipped[:20], "gzip file is damaged or cut short"),
        (bytes(flipped), "gzip file is damaged or cut short"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"train-images-idx3-ubyte: .*{text}"):
            open_data(tmp_path)


def test_idx_labels_must_fit_the_images(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(7, 5, 4))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(6, dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"train-labels-idx1-ubyte: expected one whole number for each of the 7"
    ):
        open_data(tmp_path)


def test_idx_folders_that_are_unclear_say_so(tmp_path):
    write_idx(tmp_path / "t10k-images-idx3-ubyte", pixels(3, 5, 4))
    with pytest.raises(ValueError, match="no training images in"):
        open_data(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4\), the test images \(1, 5, 4\)"):
        open_data(tmp_path)
    write_idx(tmp_path / "emnist-letters-train-images-idx3-ubyte", pixels(3, 4, 4))
    with pytest.raises(ValueError, match=r"several sets of IDX files .*'emnist-letters-'"):
        open_data(tmp_path)


# Image folders


def save_images(folder: Path, count: int, *, size=(6, 4), mode="RGB", suffix=".png", seed=0) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,)}[mode]
    arrays = pixels(count, size[1], size[0], *channels, seed=seed)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:02}{suffix}")
    return arrays


def test_colour_images_with_classes(tmp_path):
    cats = save_images(tmp_path / "cats", 3)
    dogs = save_images(tmp_path / "dogs" / "large", 2, seed=1)
    data = open_data(tmp_path)
    assert data.shape == (3, 4, 6)
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    expected = torch.from_numpy(np.concatenate([cats, dogs])).permute(0, 3, 1, 2) / 255
    assert torch.equal(everything(data), expected)


def test_gray_images_in_one_folder(tmp_path):
    arrays = save_images(tmp_path, 3, mode="L", suffix=".PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    save_images(tmp_path / ".thumbnails", 1, size=(1, 1))
    data = open_data(tmp_path)
    assert data.labels is None
    assert torch.equal(everything(data), torch.from_numpy(arrays)[:, None] / 255)


def test_dark_images_are_still_pixels(tmp_path):
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "a.png")
    assert open_data(tmp_path).value_range()[1] == pytest.approx(1 / 255)


def test_gray_and_colour_together_are_colour(tmp_path):
    save_images(tmp_path / "a", 1, mode="L")
    save_images(tmp_path / "b", 1)
    assert open_data(tmp_path).shape == (3, 4, 6)


def test_transparency_is_shown_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert everything(open_data(tmp_path)).min() == 1
    palette = Image.new("P", (2, 2))
    palette.save(tmp_path / "a.png", transparency=b"\0")
    assert everything(open_data(tmp_path)).min() == 1


def test_an_orientation_mark_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("L", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (4, 6)).save(tmp_path / "b.jpg")
    assert open_data(tmp_path).shape == (1, 6, 4)


def test_images_of_several_sizes_are_counted_with_examples(tmp_path):
    save_images(tmp_path, 3)
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.png")
    with pytest.raises(
        ValueError, match=r"found 2 sizes: 3 of 6x4 such as 00\.png; 1 of 9x9 such as odd\.png"
    ):
        open_data(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_damaged_images_are_named(tmp_path, keep):
    save_images(tmp_path, 2, size=(20, 20))
    broken = tmp_path / "00.png"
    broken.write_bytes(broken.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"00\.png: .*damaged"):
        open_data(tmp_path)


def test_images_of_16_bits_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: the image has more than 8 bits"):
        open_data(tmp_path)


def test_an_empty_folder_says_what_it_looked_for(tmp_path):
    with pytest.raises(ValueError, match="holds neither images nor IDX files"):
        open_data(tmp_path)


def test_images_without_pillow_say_how_to_get_it(tmp_path, monkeypatch):
    save_images(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "fastvae\[data\]"'):
        open_data(tmp_path)


def test_data_that_is_nearly_right_says_what_would_be(tmp_path):
    pair = (np.zeros((5, 3), np.float32), np.zeros(5))
    with pytest.raises(TypeError, match=r"got tuple; of \(samples, labels\) give the samples, data\[0\]"):
        open_data(pair)
    with pytest.raises(FileNotFoundError, match=r"bundled data set 'mnist'; bundled: digits$"):
        open_data("mnist")
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3]))
    with pytest.raises(
        ValueError, match="as a file of labels has; give the file of the images, or the folder"
    ):
        open_data(labels)


# Data frames


def test_data_frame():
    d = pd.array([1, 300], dtype="Int64")
    data = open_data(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False], "d": d}))
    assert data.feature_names == ["a", "b", "c", "d"]
    assert everything(data).tolist() == [[1, 0.5, 1, 1], [2, 1.5, 0, 300]]


def test_8_bit_columns_of_a_frame_are_numbers():
    assert open_data(pd.DataFrame({"a": np.array([0, 200], np.uint8)})).value_range() == (0, 200)


def test_columns_without_numbers_are_named():
    frame = pd.DataFrame({"age": [1], "city": ["Oslo"], "day": pd.to_datetime(["2020-01-01"])})
    with pytest.raises(TypeError, match=r"do not: 'city' \(.*\), 'day' \(datetime64.*pandas.get_dummies"):
        open_data(frame)


def test_missing_values_name_their_column():
    frame = pd.DataFrame({"age": [1.0, 2.0], "height": pd.array([3, None], dtype="Int64")})
    with pytest.raises(ValueError, match=r"1 of 2 samples .*\(row 1, counted from 0\), in column 'height'"):
        open_data(frame).value_range()


def test_a_number_too_large_for_float32_is_reported_with_its_column():
    with pytest.raises(ValueError, match=r"\(row 1, counted from 0\), in column 'a'"):
        open_data(pd.DataFrame({"a": [1.0, 1e300]})).value_range()


def test_the_columns_of_another_frame_have_to_be_the_same():
    check_columns(["a", "b"], ["a", "b"])
    check_columns(None, ["a", "b"])
    check_columns(["a", "b"], None)
    with pytest.raises(ValueError, match=r"another order than in the training: take frame\[\['a', 'b'\]\]"):
        check_columns(["a", "b"], ["b", "a"])
    differ = r"validation: the columns .*: without 'a'; with 'c', 'd', 'e', 'f', 'g', \.\.\.; frame.to_numpy"
    with pytest.raises(ValueError, match=differ):
        check_columns(["a", "b"], ["b", *"cdefgh"], name="validation")


@pytest.mark.parametrize("frame", [pd.DataFrame(), pd.DataFrame({"a": []}), pd.DataFrame(index=[1, 2])])
def test_an_empty_frame_says_so(frame):
    with pytest.raises(ValueError, match="data frame is empty"):
        open_data(frame)


# Torch data sets


class Noisy(Dataset):
    """Random items, as augmentation makes them, from all three global generators."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        drawn = torch.rand(()), np.random.rand(), random.random()  # noqa: NPY002
        return torch.tensor([index, *drawn]), index % 3


class Listed(Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


@pytest.mark.filterwarnings("ignore::fastvae.errors.DrawnOnceWarning")
@pytest.mark.parametrize("kept", [True, False])
def test_a_data_set_is_the_same_for_any_number_of_workers(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    order = noise.permutation(12, 3)
    runs = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        data = open_data(Noisy(), workers=workers)
        runs.append([x for x, _ in data.batches(5, order=order, device=CPU, seed=7)])
    assert torch.equal(torch.cat(runs[0])[:, 0], order.float())
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_a_streamed_data_set_draws_its_transforms_anew_for_another_seed(monkeypatch):
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = open_data(Noisy())
    first, again, other = (everything(data, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not (first == other)[:, 1:].any()
    assert torch.equal(everything(data, batch_size=5, seed=1), first), "it depends on the row, not the batch"


@pytest.mark.parametrize("rare", [False, True])
def test_random_items_that_are_kept_are_said_to_be_drawn_once(rare):
    class Rare(Noisy):
        def __getitem__(self, index: int):
            return super().__getitem__(index) if not rare or index % 2 else torch.full((4,), math.nan)

    text = r"^data: the Rare gives other items each time, .* DataLoader of it draws them anew in every epoch$"
    with pytest.warns(DrawnOnceWarning, match=text):
        open_data(Rare(100))


def test_items_that_are_not_random_are_read_once():
    class Counted(Listed):
        reads = 0

        def __getitem__(self, index: int):
            Counted.reads += 1
            return super().__getitem__(index)

    data = open_data(Counted([torch.full((3,), math.nan if index == 3 else 0.5) for index in range(100)]))
    assert Counted.reads == 1 + 2 * datasets.LOOKED_AT + 100
    everything(data)
    assert Counted.reads == 1 + 2 * datasets.LOOKED_AT + 100


def global_states() -> list[str]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [str(torch.get_rng_state().tolist()), str(numpy_state), str(random.getstate())]


@pytest.mark.filterwarnings("ignore::fastvae.errors.DrawnOnceWarning")
@pytest.mark.parametrize("make", [Noisy, lambda: DataLoader(Noisy(), 4, shuffle=True)])
@pytest.mark.parametrize("kept", [True, False])
def test_reading_leaves_the_callers_generators_alone(make, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    source = make()
    before = global_states()
    data = open_data(source)
    for _ in data.batches(4, order=None, device=CPU):
        assert global_states() == before, "also between two batches"
    assert global_states() == before


def test_items_may_be_images_arrays_or_tuples():
    raw = pixels(3, 4, 5)
    for items in (
        [Image.fromarray(a) for a in raw],
        [(Image.fromarray(a), i) for i, a in enumerate(raw)],
        [a[None] for a in raw],
        [[torch.from_numpy(a)[None], torch.tensor(i), "more"] for i, a in enumerate(raw)],
    ):
        data = open_data(Listed(items))
        assert torch.equal(everything(data), torch.from_numpy(raw)[:, None] / 255)
        labelled = isinstance(items[0], tuple | list)
        assert (data.labels.tolist() == [0, 1, 2]) if labelled else (data.labels is None)


@pytest.mark.parametrize("workers", [0, 1])
def test_items_that_differ_are_named(workers):
    items = [torch.zeros(3), torch.zeros(3), torch.zeros(4)]
    with pytest.raises(ValueError, match=r"^data: all items must be alike; .* item 2 is .*shape \(4,\)"):
        open_data(Listed(items), workers=workers)


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        ([], ValueError, "is empty"),
        (["a"], TypeError, "item 0 must be a tensor, an array, a Pillow image.* got str"),
        ([{"image": 1}], TypeError, "got dict with the keys 'image'"),
        ([()], TypeError, "got tuple"),
        ([torch.tensor(3.0)], ValueError, "has no values"),
    ],
)
def test_items_that_are_no_samples_are_named(items, error, text):
    with pytest.raises(error, match=text):
        open_data(Listed(items))


def test_streamed_binary_bytes_are_refused_not_darkened(monkeypatch):
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    items = [torch.tensor([0, 1], dtype=torch.uint8)] * 3
    with pytest.raises(ValueError, match="give binary data as bool or float"):
        open_data(Listed(items)).value_range()


def test_a_large_image_folder_is_streamed(tmp_path, monkeypatch):
    arrays = save_images(tmp_path / "a", 3, mode="L")
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = open_data(tmp_path)
    assert data.labels.tolist() == [0, 0, 0]
    assert torch.equal(everything(data), torch.from_numpy(arrays)[:, None] / 255)
    broken = tmp_path / "a" / "01.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"01\.png: .*damaged"):
        everything(open_data(tmp_path))


# DataLoaders


class Counting(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return (torch.full((2,), float(i)) for i in range(self.count))


def test_a_loader_shuffles_by_the_seed_of_the_pass():
    loader = DataLoader(TensorDataset(torch.arange(20.0)[:, None]), batch_size=6, shuffle=True)
    data = open_data(loader)
    assert (len(data), data.batch_count(1), data.shape) == (20, 4, (1,))
    first, again, other = (everything(data, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first.flatten().sort().values, torch.arange(20.0))
    rows = torch.cat([rows for _, rows in data.batches(1, order=None, device=CPU)])
    assert torch.equal(rows, torch.arange(20))
    assert torch.equal(data.take(torch.tensor([9, 2])), everything(data, seed=0)[[9, 2]])


def test_an_iterable_data_set_is_cut_into_batches():
    data = open_data(Counting(7))
    assert (len(data), data.batch_count(3)) == (7, 3)
    assert everything(data, batch_size=3)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_loader_cannot_be_split():
    data = open_data(DataLoader(TensorDataset(torch.zeros(20, 1)), batch_size=6))
    assert not data.can_split
    with pytest.raises(ValueError, match=r"a DataLoader cannot be split .*validation=None"):
        data.split(0.1, seed=0)


def test_a_source_that_cannot_start_anew_says_so():
    class Once(IterableDataset):
        def __init__(self) -> None:
            self.samples = (torch.rand(2) for _ in range(7))

        def __iter__(self):
            return self.samples

    data = open_data(Once())
    data.value_range()
    with pytest.raises(ValueError, match=r"gave samples once and none the next time; each iter\(\)"):
        data.take(torch.tensor([0]))


def test_loaders_without_samples_say_so():
    with pytest.raises(ValueError, match="gives no samples"):
        open_data(Counting(0))
    with pytest.raises(ValueError, match=r"expected batches of samples, shape \(B, ...\)"):
        open_data(DataLoader(TensorDataset(torch.zeros(4)), batch_size=2))
    with pytest.raises(TypeError, match="batch 0 must be a tensor"):
        open_data(DataLoader(Listed(["a", "b"]), batch_size=2, collate_fn=lambda items: {"x": items}))


# Damage of every kind


def whole_files(folder: Path) -> list[Path]:
    save_images(folder / "a", 1)
    save_images(folder / "b", 1, mode="L", suffix=".gif")
    save_images(folder / "c", 1, suffix=".ppm")
    np.save(folder / "a.npy", np.ones((5, 4)))
    np.savez_compressed(folder / "a.npz", x=np.ones((5, 4)), y=np.arange(5))
    write_idx(folder / "train-images-idx3-ubyte", pixels(5, 4, 3))
    write_idx(folder / "train-images-idx3-ubyte.gz", pixels(5, 4, 3))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_damaged_file_gives_data_or_an_error_that_names_it(tmp_path):
    """Bytes changed, cut off or left out at random."""
    draw = random.Random(0)
    refused = 0
    for path in whole_files(tmp_path):
        whole = path.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 3)):
                at = draw.randrange(len(content) + 1)
                content[at : at + draw.choice([0, 1, 1, len(whole)])] = draw.randbytes(draw.choice([0, 1]))
            path.write_bytes(content)
            try:
                open_data(path.parent if path.suffix in {".png", ".gif", ".ppm"} else path)
            except (TypeError, ValueError) as error:
                assert str(path) in str(error)  # noqa: PT017
                refused += 1
        path.write_bytes(whole)
    assert refused > 200
