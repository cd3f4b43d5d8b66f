"""A folder of images, subfolders being classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastvae.data.base import Data
from fastvae.data.datasets import open_dataset
from fastvae.data.pictures import inspect_picture, read_picture

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_paths(folder: Path) -> list[Path]:
    """List all image files in a folder and its subfolders, sorted; hidden ones are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        (path for path in found if not any(part.startswith((".", "__MACOSX")) for part in path.parts)),
        key=lambda path: path.as_posix(),
    )


def open_images(folder: Path, *, name: str = "data", workers: int = 0) -> Data:
    """Open all images of a folder, gray or in colour.

    Parameters
    ----------
    folder : Path
        Images of one size. If all of them lie in subfolders, the first level of these gives the classes.
    name : str
        How error texts call the data.
    workers : int
        Processes that decode images; 0 decodes in this one.

    Returns
    -------
    Data
        uint8 pixels scaled to [0, 1], shape ``(1, H, W)`` if all images are gray, else ``(3, H, W)``.

    Raises
    ------
    ImportError
        If Pillow is missing.
    ValueError
        If there are no images, their sizes differ, or one of them is damaged; the text names the files.
    """
    paths = image_paths(folder)
    if not paths:
        raise ValueError(f"{name}: no images in {folder}; looked for {', '.join(sorted(SUFFIXES))}")
    images = ImageFiles(folder, paths)
    return open_dataset(
        images, name=name, source=str(folder), labels=_classes(paths), pixels=True, workers=workers
    )


class ImageFiles(Dataset[Tensor]):
    """Image files of one size, decoded when asked for.

    Parameters
    ----------
    folder : Path
    paths : list of Path
        Relative to the folder.
    """

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self.folder = folder
        self.paths = paths
        self.gray = True
        first_of_size: dict[tuple[int, int], Path] = {}
        counts = Counter[tuple[int, int]]()
        for path in paths:
            size, gray = inspect_picture(folder / path)
            self.gray = self.gray and gray
            first_of_size.setdefault(size, path)
            counts[size] += 1
        if len(counts) > 1:
            examples = "; ".join(
                f"{count} of {width}x{height} such as {first_of_size[width, height]}"
                for (width, height), count in counts.most_common(3)
            )
            raise ValueError(
                f"{folder}: all images must have one size, found {len(counts)} sizes: {examples}; resize "
                "them first, for example with PIL.ImageOps.fit(image, (64, 64))"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_picture(self.folder / self.paths[index], gray=self.gray)


def _classes(paths: list[Path]) -> Tensor | None:
    """Give the class of each path: the number of its first folder in sorted order."""
    if any(len(path.parts) == 1 for path in paths):
        return None
    folders = sorted({path.parts[0] for path in paths})
    number = {folder: index for index, folder in enumerate(folders)}
    return torch.tensor([number[path.parts[0]] for path in paths], device="cpu")
