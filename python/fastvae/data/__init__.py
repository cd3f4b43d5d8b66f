"""Any source of samples behind one interface.

``open_data`` takes an array, a tensor, a torch ``Dataset`` or ``DataLoader``, a path, a data frame or the
name of a bundled data set, and gives a :class:`Data`: samples of one shape, as float32 batches on a device.
What fits in memory is kept there and gathered a batch at a time.

>>> import numpy as np
>>> from fastvae.data import open_data
>>> data = open_data(np.zeros((100, 5), dtype=np.float32))
>>> len(data), data.shape
(100, (5,))
"""

from fastvae.data.base import Data
from fastvae.data.opening import open_data

__all__ = ["Data", "open_data"]
