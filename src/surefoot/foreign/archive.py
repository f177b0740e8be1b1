"""Files of torch.save, opened without running anything: the pickle by `pickles`, the tensors from the bytes beside it."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import DataError, MissingDataError
from surefoot.foreign.pickles import Global, Inert, Machine

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "DoubleStorage": torch.float64,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
# What zipfile and torch raise for damaged bytes, depending on where the damage is.
_DAMAGED = (
    zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError, OSError, OverflowError, MemoryError,
    struct.error,
)  # fmt: skip
_COPIES = 8  # how often all numbers of a file may stand in its tensors: weights that are shared are copied
OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def load(path: Path) -> Any:  # noqa: ANN401
    """What torch.save wrote: containers and tensors as they are, every other object as an `Inert`.

    Raises:
        MissingDataError: no such file.
        DataError: another format, a program, or a pickle that would run something.
    """
    if not path.is_file():
        raise MissingDataError(f"There is no file {path}. Give a checkpoint that torch.save wrote.")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(_other_format(path))
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Allow it to be read.") from error
    except _DAMAGED as error:
        raise DataError(f"{path} is damaged ({error}). Copy it anew.") from error


def _other_format(path: Path) -> str:
    """Why a file that is no archive is not read."""
    with path.open("rb") as file:
        head = file.read(len(OLD_FORMAT))
    if head == OLD_FORMAT:
        return (
            "it is in the format that torch.save wrote before version 1.6, which is not read. Where you trust the file, load it by torch "
            "and save model.state_dict() anew."
        )
    if head[:1] == b"\x80":
        return (
            "it is a bare pickle, no file of torch.save. It is not opened, and nothing in it was run; get the weights from another source."
        )
    return (
        "it is no file of torch.save. Give a checkpoint (.pt); a folder or a .safetensors file needs no import: see --model in "
        "'surefoot fit'."
    )


def _read(archive: zipfile.ZipFile, size: int) -> Any:  # noqa: ANN401
    """What is in an archive of so many bytes."""
    names = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DataError("this archive is none of torch.save (no data.pkl). Give a checkpoint (.pt).")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names or any(name.startswith(f"{root}code/") for name in names):
        raise DataError(
            "it is a TorchScript archive, as OpenAI publishes: a program, not only weights. OpenAI's own models need no import: give "
            "--model ViT-B-32:openai (or another architecture) to the other commands. Others: save model.state_dict() where you trust it."
        )
    if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
        raise DataError("its parts are compressed, which torch.save never does. Get the file from where it was published.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise DataError("its numbers are stored in big-endian order, which is not read. Save it anew on another machine.")
    if sum(max(info.file_size, info.compress_size) for info in archive.infolist()) > size:
        raise DataError("its parts overlap, or are longer than the file. Get it from where it was published.")
    tensors = _Tensors(archive, root, size)
    return Machine(tensors.calls, tensors.storage).load(archive.read(pickles[0]))


class _Tensors:
    """What the pickle's calls and persistent ids about tensors become."""

    def __init__(self, archive: zipfile.ZipFile, root: str, size: int) -> None:
        self._archive, self._root, self._room = archive, root, _COPIES * size
        self._stored: dict[str, Tensor] = {}
        self.calls = {
            "torch._utils._rebuild_tensor_v2": lambda args: self._view(*args[:4]),
            "torch._utils._rebuild_tensor": lambda args: self._view(*args[:4]),
            "torch._utils._rebuild_parameter": lambda args: args[0],
            "torch._utils._rebuild_parameter_with_state": lambda args: args[0],
            "torch.nn.parameter.Parameter": lambda args: args[0],
        }

    def storage(self, given: Any) -> Any:  # noqa: ANN401
        """The numbers [N] of ("storage", type, key, device, N)."""
        if not (isinstance(given, tuple) and len(given) >= 5 and given[0] == "storage" and isinstance(given[1], Global)):
            raise DataError("its pickle refers to something that is no tensor's storage. It is not opened.")
        kind, key = given[1], given[2]
        if not isinstance(key, str):
            raise DataError("its pickle names a tensor's storage by something that is no text. It is not opened.")
        if kind.module not in ("torch", "torch.storage") or kind.name not in STORAGES:
            raise DataError(f"it holds numbers of the type {kind}; known are {', '.join(STORAGES)}. Save it anew in float32.")
        if key not in self._stored:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))
            self._stored[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return self._stored[key].view(STORAGES[kind.name])

    def _view(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:  # noqa: ANN401
        """A tensor of the numbers of a storage, [*size], a copy, since others may be made of the same numbers."""
        if not isinstance(storage, Tensor) or math.prod(size) > storage.numel():
            raise DataError(f"a tensor of the shape {tuple(size)} has fewer numbers in the file than it needs. Copy the file anew.")
        self._room -= math.prod(size) * storage.element_size()
        if self._room < 0:
            raise DataError(
                "its tensors share their numbers so often that they would fill far more memory than the file. It is not opened."
            )
        return torch.as_strided(storage, size, stride, offset).clone()


def is_module(value: object) -> bool:
    """Whether an object is what a torch module left."""
    return isinstance(value, Inert) and isinstance(value.state, dict) and {"_parameters", "_modules"} <= value.state.keys()
