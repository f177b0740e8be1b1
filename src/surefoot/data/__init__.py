"""Images on disk: folders and manifests, their splits, reading, and the benchmark that comes with Surefoot."""

from surefoot.data.embedded import load
from surefoot.data.images import Budget, Images, read_image
from surefoot.data.layout import Dataset, Split, open_dataset
from surefoot.data.manifest import open_manifest

__all__ = ["Budget", "Dataset", "Images", "Split", "load", "open_dataset", "open_manifest", "read_image"]
