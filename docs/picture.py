"""Draw the README's picture: MNIST digits, their reconstructions, and new ones decoded from unit noise.

python docs/picture.py FOLDER      with MNIST's four IDX files; trains for a minute or two
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import fastvae
from fastvae.data import open_data

PICTURE = Path(__file__).with_name("digits.svg")
COLUMNS, ZOOM, GAP, LABEL = 16, 2, 8, 110


def strip(images: Tensor) -> str:
    """A row of images as the base64 of a PNG."""
    pixels = (images.squeeze(1).clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(list(pixels), dim=1).numpy()).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="FOLDER")
    arguments = parser.parse_args()
    vae = fastvae.train(arguments.data, latent_dim=32, epochs=20)
    test = open_data(arguments.data).test
    if test is None:
        parser.error(f"{arguments.data} has no test images")
    originals = test.take(torch.arange(COLUMNS))
    rows = {
        "data": [originals],
        "reconstructed": [vae.reconstruct(originals)],
        "from noise": list(vae.sample(3 * COLUMNS, seed=1).split(COLUMNS)),
    }
    size, y = 28 * ZOOM, 0
    parts = []
    for label, strips in rows.items():
        parts.append(f'<text x="0" y="{y + size / 2 + 5}">{label}</text>')
        for images in strips:
            parts.append(
                f'<image x="{LABEL}" y="{y}" width="{COLUMNS * size}" height="{size}" '
                f'href="data:image/png;base64,{strip(images)}"/>'
            )
            y += size
        y += GAP
    width, height = LABEL + COLUMNS * size, y - GAP
    PICTURE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14" fill="#777">\n'
        + "\n".join(parts)
        + "\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
