"""Write a published data set from its local archive, or a folder of photos, as images with lists of paths and labels.

    python tools/prepare_data.py cifar10 cifar-10-python.tar.gz [--out data/cifar10]
    python tools/prepare_data.py cifar100 cifar-100-python.tar.gz
    python tools/prepare_data.py flowers102 FOLDER      # of 102flowers.tgz, imagelabels.mat and setid.mat; needs scipy
    python tools/prepare_data.py folder PHOTOS [--share 0.2] [--seed 0]

makes OUT/images, OUT/classes.txt, and lists of lines "path label" with paths in OUT: OUT/train.txt and OUT/test.txt (flowers102:
also OUT/val.txt; folder: OUT/train.txt, OUT/val.txt and OUT/split.json with paths in PHOTOS, where the images stay). Nothing is
downloaded. The archive is read whole and its images are counted before anything is written. Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a checkout that is not installed

from up.data.folders import classes_of, images_under  # noqa: E402
from up.data.roots import ImageRoot  # noqa: E402
from up.data.split import split_of  # noqa: E402
from up.errors import Ending, UserError  # noqa: E402
from up.files import make_folder, write_bytes, write_text  # noqa: E402
from up.text import count, did_you_mean, some_of  # noqa: E402

Sample = tuple[str, int]  # name in OUT, label
Counts = Mapping[str, int]  # images of each list

CIFAR: dict[str, tuple[str, str, Counts]] = {  # file and folder of the archive, images of each list
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", {"train": 50_000, "test": 10_000}),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", {"train": 50_000, "test": 10_000}),
}
FLOWERS = ("102flowers.tgz", "imagelabels.mat", "setid.mat")
FLOWERS_COUNTS: Counts = {"train": 1_020, "val": 1_020, "test": 6_149}
_SETS = {"train": "trnid", "val": "valid", "test": "tstid"}
_PICKLED = {  # all that the batches of CIFAR are made of
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
}


def main(words: Sequence[str] | None = None) -> int:
    """Prepare a data set; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*CIFAR, "flowers102", "folder"], help="data set")
    parser.add_argument("source", type=Path, help="its archive, or the folder with it; for folder: the folder of class folders")
    parser.add_argument("--out", type=Path, help="folder to write to (default: data/NAME)")
    parser.add_argument("--share", type=float, default=0.2, help="folder: share of each class for validation")
    parser.add_argument("--seed", type=int, default=0, help="folder: seed of the split")
    arguments = parser.parse_args(words)
    out = arguments.out or Path("data") / (arguments.source.name if arguments.name == "folder" else arguments.name)
    try:
        if arguments.name == "folder":
            written, reader = (
                folder(arguments.source, out, share=arguments.share, seed=arguments.seed),
                f"image_dir: {arguments.source}",
            )
        else:
            prepare: Callable[[Path, Path], Counts] = flowers102 if arguments.name == "flowers102" else _CIFAR[arguments.name]
            written, reader = prepare(arguments.source, out), ""
    except Ending as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{out}: {', '.join(f'{name}.txt {number:,}' for name, number in written.items())} images")
    print(f"meta_file: {out}/train.txt")
    print(f"image_reader: {{type: fs_pillow, kwargs: {{{reader}}}}}")
    print(f"class_names: {out}/classes.txt")
    return 0


# --- CIFAR ---


def cifar10(source: Path, out: Path, counts: Counts = CIFAR["cifar10"][2]) -> Counts:
    """Write CIFAR-10 (Krizhevsky 2009); ``counts`` are the images of each list, the same number of each class."""
    batches = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    return _cifar("cifar10", source, out, counts, batches, ("batches.meta", b"label_names", b"labels"))


def cifar100(source: Path, out: Path, counts: Counts = CIFAR["cifar100"][2]) -> Counts:
    """Write CIFAR-100 with its 100 fine labels."""
    return _cifar(
        "cifar100", source, out, counts, {"train": ["train"], "test": ["test"]}, ("meta", b"fine_label_names", b"fine_labels")
    )


_CIFAR = {"cifar10": cifar10, "cifar100": cifar100}


def _cifar(
    name: str, source: Path, out: Path, counts: Counts, batches: Mapping[str, Sequence[str]], keys: tuple[str, bytes, bytes]
) -> Counts:
    file, folder_name, _ = CIFAR[name]
    archive = _archive_in(source, file)
    meta, names_key, labels_key = keys
    wanted = [f"{folder_name}/{member}" for member in (meta, *(each for listed in batches.values() for each in listed))]
    found = {member.rpartition("/")[2]: _unpickled(archive, member, data) for member, data in _members(archive, wanted).items()}
    with _reading(archive):
        classes = [each.decode() for each in found[meta][names_key]]
        labels = {part: [int(label) for each in listed for label in found[each][labels_key]] for part, listed in batches.items()}
        pixels = {part: np.concatenate([found[each][b"data"] for each in listed]) for part, listed in batches.items()}
    for part, number in counts.items():
        if pixels[part].dtype != np.uint8 or pixels[part].shape != (len(labels[part]), 3072):
            raise UserError(f"{part}: pixels {pixels[part].dtype} {pixels[part].shape}", expected="uint8 (N, 3072)", file=archive)
        _expect_counts(archive, part, labels[part], number, len(classes))
    lists = {part: [(f"images/{part}/{at:05d}.png", label) for at, label in enumerate(labels[part])] for part in counts}

    def encode(part: str, at: int) -> bytes:
        png = io.BytesIO()
        Image.fromarray(pixels[part][at].reshape(3, 32, 32).transpose(1, 2, 0)).save(png, "PNG")
        return png.getvalue()

    for part, samples in lists.items():
        make_folder(out / "images" / part)
        for at, (image, _) in enumerate(samples):
            if not (out / image).exists():
                (out / image).write_bytes(encode(part, at))
    return _write_lists(out, lists, classes)


class _Unpickler(pickle.Unpickler):
    """Loads arrays, lists and dictionaries, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a data set")
        return super().find_class(_PICKLED[module, name], name)


def _unpickled(archive: Path, member: str, data: bytes) -> dict[bytes, object]:
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # pickle raises many kinds of errors for damaged data
        raise UserError(f"{member} is damaged: {error}", file=archive, fix="Fetch the archive again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{member} is damaged: a {type(found).__name__}, expected a dictionary", file=archive)
    return found


# --- Flowers ---


def flowers102(source: Path, out: Path, counts: Counts = FLOWERS_COUNTS) -> Counts:
    """Write the Oxford 102 Flowers (Nilsback & Zisserman 2008) in the split of its authors: 10 images a class to train on."""
    folder_name = source if source.is_dir() else source.parent
    archive, labels_file, sets_file = (_archive_in(folder_name, file) for file in FLOWERS)
    all_labels = [int(label) for label in _matrix(labels_file, "labels")]
    numbers = {part: [int(number) for number in _matrix(sets_file, _SETS[part])] for part in counts}
    if sum(counts.values()) != len(all_labels):
        raise UserError(got=f"{count(len(all_labels), 'label')}", expected=f"{sum(counts.values()):,}", file=labels_file)
    for part, number in counts.items():
        within = [each for each in numbers[part] if 1 <= each <= len(all_labels)]
        if len(within) != number or len(numbers[part]) != number:
            raise UserError(f"{part}: {count(len(within), 'image')}", expected=f"{number:,}", file=sets_file)
    classes = _flower_names(max(all_labels))
    lists = {part: [(f"images/image_{each:05d}.jpg", all_labels[each - 1] - 1) for each in numbers[part]] for part in counts}
    wanted = [f"jpg/{Path(image).name}" for samples in lists.values() for image, _ in samples]
    _members(archive, wanted, lambda member, data: _expect_jpeg(archive, member, data))
    make_folder(out / "images")
    _members(archive, wanted, lambda member, data: _write_new(out / "images" / member.rpartition("/")[2], data))
    return _write_lists(out, lists, classes)


def _flower_names(number: int) -> list[str]:
    from torchvision.datasets import Flowers102

    names = list(getattr(Flowers102, "classes", ()))
    return names if len(names) == number else [f"flower {label + 1}" for label in range(number)]


def _matrix(path: Path, key: str) -> list[int]:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError:
        raise UserError(
            "scipy is not installed, and .mat files need it. Install the demo extra: pip install -e '.[demo]'"
        ) from None
    try:
        found = loadmat(str(path))
    except Exception as error:  # scipy raises many kinds of errors for other files
        what = f"no MATLAB file that can be read: {str(error).splitlines()[0]}"
        raise UserError(what, file=path, fix="Fetch it again.") from None
    if key not in found:
        others = [name for name in found if not name.startswith("_")]
        raise UserError(f"no variable {key!r}, only {some_of(others)}", file=path, fix=f"Expected one of {', '.join(FLOWERS)}.")
    return [int(value) for value in found[key].ravel()]


def _expect_jpeg(archive: Path, member: str, data: bytes) -> None:
    if not data.startswith(b"\xff\xd8\xff"):
        raise UserError(f"{member} is no JPEG image", file=archive, fix="Fetch the archive again.")


# --- a folder ---


def folder(source: Path, out: Path, *, share: float = 0.2, seed: int = 0) -> Counts:
    """Split a folder of class folders; the images stay where they are."""
    root = ImageRoot(str(source), meta_file=str(source))
    classes = classes_of([root])
    if len(classes) < 2:
        found = count(len(classes), "class folder")
        raise UserError(f"{found} with images", expected="2 or more: FOLDER/CLASS/IMAGE.jpg", file=source)
    samples = [(image, label) for label, name in enumerate(classes) for image in images_under(root, name)]
    split = split_of([image for image, _ in samples], [label for _, label in samples], share, seed, root=source)
    for warning in split.warnings(classes):
        print(f"warning: {warning}", file=sys.stderr)
    make_folder(out)
    split.write(out / "split.json", classes)
    sides = {"train": split.train, "val": split.validation}
    return _write_lists(out, {name: [samples[at] for at in side] for name, side in sides.items()}, classes)


# --- archives and lists ---


def _archive_in(source: Path, file: str) -> Path:
    path = source / file if source.is_dir() else source
    if not path.is_file():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise UserError("no such file", file=path, fix=f"{near.lstrip()} Name {file}, or the folder with it.".lstrip())
    return path


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Convert the errors of a damaged archive in the block."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, Ending):
            raise
        kind = "truncated" if isinstance(error, EOFError) or "end of" in str(error) else "damaged, or another archive"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{kind}: {reason}", file=archive, fix="Fetch it again.") from None


def _members(archive: Path, wanted: Sequence[str], use: Callable[[str, bytes], None] | None = None) -> dict[str, bytes]:
    """Return the files ``wanted`` of a tar archive, or call ``use`` with each. Raises ``UserError`` if one is missing."""
    found: dict[str, bytes] = {}
    keep = found.__setitem__ if use is None else use
    missing, others = {*wanted}, []
    with _reading(archive), tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.removeprefix("./")
            data = opened.extractfile(member) if name in missing else None
            if data is None:
                others.append(name)
            else:
                missing.discard(name)
                keep(name, data.read())
    if missing:
        what = f"the archive has no {some_of(sorted(missing), 1)}; it has {some_of(others, 3) or 'nothing'}"
        raise UserError(what, file=archive, fix="Name the archive as it is published, complete.")
    return found


def _expect_counts(archive: Path, part: str, labels: Sequence[int], number: int, classes: int) -> None:
    by_class = np.bincount(labels, minlength=classes)
    if len(labels) != number or len(by_class) != classes or {*by_class.tolist()} != {number // classes}:
        got = f"{count(len(labels), 'image')}, {by_class.min():,} to {by_class.max():,} of a class"
        raise UserError(f"{part}: {got}", expected=f"{number:,}, {number // classes:,} of each of {classes} classes", file=archive)


def _write_new(path: Path, data: bytes) -> None:
    if not path.exists():
        write_bytes(path, data)


def _write_lists(out: Path, lists: Mapping[str, Sequence[Sample]], classes: Sequence[str]) -> Counts:
    for name, samples in lists.items():
        write_text(out / f"{name}.txt", "".join(f"{image} {label}\n" for image, label in samples))
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return {name: len(samples) for name, samples in lists.items()}


if __name__ == "__main__":
    sys.exit(main())
