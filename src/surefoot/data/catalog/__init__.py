"""The catalogue: the data sets of the papers, each declared in a TOML file and opened as an ordinary `Dataset`.

    data = surefoot.data.load("imagenet", root="/data")            # surefoot fit imagenet --root /data

To add a set, write `src/surefoot/catalog/NAME.toml`; no code if one of the loaders fits:

    title = "PACS"
    paper = "Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017"
    source = "https://github.com/facebookresearch/DomainBed"
    loader = "domains"
    classes = 7
    labels = ["dog", "elephant"]                  # class folders in their order, or a set that has the same; left out: found, sorted
    home = ["PACS"]                               # a folder below the root that may hold it all
    id_context = "art_painting"
    metric = "accuracy"                           # what the papers report beside it: mean_per_class, macro_f1, worst_group
    val_share = 0.02                              # split off train; left out: the command's
    templates = "openai80"                        # or a list; left out: the prompts of [contexts]
    clip_templates = ["a photo of my {}."]        # CLIP's own, where they are others: for templates=clip
    names = ["tench"]                             # what the classes are called, where the data only number them
    marks = ["list.json"]                         # files that only this layout has, where there are others
    package = "wilds"                             # what must be installed to read it, and the extra that brings it
    extra = "wilds"
    [contexts]
    art_painting = "a art painting of {}."
    [class_names]
    dog = "pet dog"                               # where `_` read as a space is not enough
    [parts.art_painting]                          # "domains": first is train; "folders", "arrays": [parts.train], [parts."shifts/a"]
    place = "art_painting"                        # below the root, or a list of places
    holds = "<class>/*.jpg"                       # what is there, to be shown
    images = 2048
    optional = true                               # the rest can be used without it
    [layouts.torchvision]                         # another layout, tried after this one: its own keys, and parts of its own
    [layouts.torchvision.parts.train]

Every key is a field of `declaration.Declaration` or `declaration.Part`, where it is explained; a key that is none is an error.

A part that lies on disk in a way of its own gets a `reading`: a small function in its loader's table (`folders.READINGS`,
`arrays.READINGS`, `official.LISTS`), which a part names and gives its `options`. Data that are neither folders nor arrays get a loader: a
function (Declaration, root) -> `Found` in `loaders.LOADERS`. It raises nothing for what is missing on disk: it reports a `Finding`,
"error" where training cannot start, so that one check tells all of it. Counts are compared, and val split off, for all loaders alike.
Last, a maker of a tiny copy in the official layout goes into tests/fakes.py, and the table of `listing.markdown` into docs/datasets.md.
"""

from surefoot.data.catalog.declaration import Declaration, Part, declared, names
from surefoot.data.catalog.opening import check, open_declared

__all__ = ["Declaration", "Part", "check", "declared", "names", "open_declared"]
