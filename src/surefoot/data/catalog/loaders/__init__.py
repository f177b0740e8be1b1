"""The ways in which data sets lie on disk, one small function for each."""

from surefoot.data.catalog.loaders.arrays import load_arrays
from surefoot.data.catalog.loaders.coop import load_lists
from surefoot.data.catalog.loaders.folders import load_domains, load_folders
from surefoot.data.catalog.loaders.found import Classes, Found, Loader
from surefoot.data.catalog.loaders.wild import load_wilds

LOADERS: dict[str, Loader] = {
    "folders": load_folders, "domains": load_domains, "arrays": load_arrays, "lists": load_lists, "wilds": load_wilds,
}  # fmt: skip
"""By a declaration's `loader`."""

__all__ = ["LOADERS", "Classes", "Found", "Loader"]
