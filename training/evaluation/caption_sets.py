"""Caption sets as training data: a KIND:PATH of `--data` is packed once into plain tars of the cache.

    CACHE/sets/KIND-DIGEST-train.tar      images with their captions, one a line
    CACHE/sets/KIND-DIGEST-dev.tar        one image in DEV_EVERY of the same split, held out to stop by

So training reads it as it reads any tar (training/data/plain_tars.py): by offset, shuffled, resumed at any position.
The dev images are taken out of the set's own train split by a hash of their bytes, and equal images stay together: what
is reported on the set's val or test split has then decided nothing. DIGEST is that of the captions and of the names and
sizes of the files, so the same set elsewhere has the same name, and a changed one is packed again.

Limits: the cache takes as much disk as the images. Boxes that a set brings (`rows:`) are not taken along: the regions
are the grid. Images of a set are not compared with those of its other splits.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from data_specs.search.pictures import media_type
from data_specs.shard import ContractError
from data_specs.storage.whole_files import exclusive
from training.data.index import default_cache, split_weight
from training.data.plain_tars import plain_tars_of
from training.errors import InputError
from training.evaluation.benchmarks import Benchmark, is_benchmark, open_benchmark
from training.outputs.atomic_files import atomic_file

LOG = logging.getLogger(__name__)

DEV_EVERY = 20
"""One in so many images of a train split is held out as dev."""

_VERSION = 1
"""Raised when a set is packed otherwise."""

_SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
"""Suffixes by which readers of tars know an image's format."""


def pack_caption_sets(data: Sequence[str], split: str, cache: Path | None) -> list[str]:
    """`--data` with the tar of a split in the place of every KIND:PATH; manifests and tars stay as they are.

    split: train, dev (of a set a part of its train split), val or test. For dev, plain tars are left out: they have no
    splits. Raises InputError, ConfigError (a split that the set has not) and ContractError.
    """
    names = []
    for argument in data:
        name, _ = split_weight(argument)
        if is_benchmark(name):
            tar = _packed_tar(name, split, (default_cache() if cache is None else cache) / "sets")
            names += [f"{tar}{argument.removeprefix(name)}"] if tar.exists() else []
        elif split != "dev" or plain_tars_of(name) is None:
            names.append(argument)
    return names


def _packed_tar(name: str, split: str, folder: Path) -> Path:
    """The tar of a split, made if it is not there; a set too small for a dev image gets no dev tar."""
    part = "train" if split == "dev" else split
    benchmark = open_benchmark(name, part)
    stem = f"{name.partition(':')[0]}-{_digest(name, benchmark)}"
    made = folder / f"{stem}-{part}.tar"
    with exclusive(folder / "lock"):  # every rank of a run asks for the same tars
        if not made.exists():
            LOG.info("%s: packing its %s split into %s", name, part, folder)
            _pack(name, benchmark, folder, stem, part)
    return folder / f"{stem}-{split}.tar"


def _digest(name: str, benchmark: Benchmark) -> str:
    """Digest of a set by its captions and its files' names and sizes, wherever it lies: 16 hex digits."""
    place = Path(name.partition(":")[2])
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for path in files:
        digest.update(f"{path.relative_to(place) if path != place else ''}\n{path.stat().st_size}\n".encode())
    for caption in benchmark.captions:
        digest.update(f"{caption.text}\n".encode())
    return digest.hexdigest()[:16]


def _pack(name: str, benchmark: Benchmark, folder: Path, stem: str, part: str) -> None:
    """Write the split's tar, and that of its dev images where it is the train split. Raises InputError if empty."""
    captions = defaultdict[str, list[str]](list)
    for caption in benchmark.captions:
        for image in caption.images:
            captions[image].append(" ".join(caption.text.split()))
    counts = dict.fromkeys(["train", "dev"] if part == "train" else [part], 0)
    tars = dict[str, tarfile.TarFile]()

    def without_an_empty_dev() -> None:
        if not counts["dev"]:
            (folder / f"{stem}-dev.tar").unlink(missing_ok=True)

    with ExitStack() as stack:
        for one in counts:
            # Left backwards: what becomes of dev is done before the train tar is there, by which both are known.
            if one == "dev":
                stack.callback(without_an_empty_dev)
            path = stack.enter_context(atomic_file(folder / f"{stem}-{one}.tar"))
            tars[one] = stack.enter_context(tarfile.open(path, "w"))
        for number, picture in enumerate(benchmark.pictures()):
            if picture.id not in captions:
                continue
            try:
                content = picture.read()
            except (ContractError, OSError) as e:  # as an evaluation leaves it out
                LOG.warning("image left out: %s: %s", picture.id, getattr(e, "strerror", None) or e)
                continue
            suffix = _SUFFIXES.get(media_type(content))
            if suffix is None:
                LOG.warning("image left out: %s: not a JPEG, PNG or WebP", picture.id)
                continue
            one = "dev" if part == "train" and _is_dev(content) else part
            counts[one] += 1
            text = "\n".join(captions[picture.id]).encode()
            for ending, data in ((suffix, content), ("txt", text)):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(data)
                tars[one].addfile(member, io.BytesIO(data))
        if not counts[part]:
            raise InputError(name, f"no images with captions in the {part} split")
    LOG.info("%s: %s", name, ", ".join(f"{count:,} {one}" for one, count in counts.items()))


def _is_dev(image: bytes) -> bool:
    return int(hashlib.sha256(image).hexdigest()[:8], 16) % DEV_EVERY == 0
