"""Images on disk: the standard layout, reading, and the benchmark that comes with Surefoot."""

from surefoot.data.embedded import load
from surefoot.data.images import Budget, Images, read_image
from surefoot.data.layout import Dataset, Split, open_dataset

__all__ = ["Budget", "Dataset", "Images", "Split", "load", "open_dataset", "read_image"]
