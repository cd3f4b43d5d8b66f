"""Pictures of what a model learned.

>>> import fastvae
>>> from fastvae.data import open_data
>>> from fastvae.plots import write_pictures
>>> vae = fastvae.train("digits", latent_dim=2)  # doctest: +SKIP
>>> write_pictures(vae, open_data("digits"), "runs/digits")  # doctest: +SKIP
"""

from fastvae.plots.pictures import write_pictures

__all__ = ["write_pictures"]
