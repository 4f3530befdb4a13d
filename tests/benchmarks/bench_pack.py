"""Packing beside the two writers that people use: the standard library's tarfile, and webdataset.TarWriter.

Ours is the stage as it stands: images read out of fetch's tars and held against their sha256, tar, Parquet index,
regions, decisions, sha256 of every file, the record. The peers get the same members ready in memory and write a tar,
nothing else. Each side writes new files, as packing does: what its last round left it deletes first, on its own clock
(written over, a file is flushed to the disk at once by ext4, which is not what is compared). Interleaved, medians.
Also: how many shards a takedown of ten items rewrites out of a hundred.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from data_specs.storage.whole_files import sha256_of
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import shard
from pipeline.takedown.forget import Request, forget
from tests.benchmarks.builds import made, noise, packed, samples
from tests.benchmarks.harness import Figure, at_least, at_most, interleaved, quick, report, told


def main() -> int:
    small = quick(__doc__)
    count, rounds = (1_500, 3) if small else (5_000, 5)
    with tempfile.TemporaryDirectory(prefix="wenlan-pack-") as folder:
        figures = {**packing(Path(folder) / "a", count, rounds), **takedown(Path(folder) / "b")}
    return report(figures)


def packing(folder: Path, count: int, rounds: int) -> dict[str, Figure]:
    import webdataset

    build = made(folder, count, 1.0, 5_000, noise(20, 330, 92), shared=False)
    packed(build)
    members = list(samples(build))
    size = sum(len(part) for member in members for part in member[1:]) / len(members)
    told(f"{len(members):,} samples of {size / 1000:.0f} kB")
    stage = build.stage("shard")
    names = stage.partitions()

    def ours() -> None:
        for path in (Path(build.out) / "shards").glob("*.tar"):
            path.unlink()
        for name in names:
            shard.run_partition(build, name)

    def plain() -> None:
        (folder / "plain.tar").unlink(missing_ok=True)
        with tarfile.open(folder / "plain.tar", "w") as tar:
            for key, *parts in members:
                for suffix, data in zip(("jpg", "txt", "json"), parts, strict=True):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))

    def web() -> None:
        (folder / "web.tar").unlink(missing_ok=True)
        with webdataset.TarWriter(str(folder / "web.tar")) as tar:
            for key, image, text, record in members:
                tar.write({"__key__": key, "jpg": image, "txt": text, "json": record})

    mine, theirs = interleaved(ours, plain, rounds=rounds)
    again, other = interleaved(ours, web, rounds=rounds)
    rates = {"ours": mine, "tarfile": theirs, "ours again": again, "webdataset.TarWriter": other}
    told(", ".join(f"{k} {len(members) / v:,.0f} samples/s" for k, v in rates.items()))
    return {
        "pack_to_tarfile": at_least(theirs / mine, 1.0),
        "pack_to_webdataset_tarwriter": at_least(other / again, 1.3),
    }


def takedown(folder: Path) -> dict[str, Figure]:
    """Ten items out of a dataset of a hundred shards."""
    options = {"shards": {"samples_per_shard": 10, "dev_share": 0.0, "val_share": 0.0}}
    build = made(folder, 1_000, 1.0, 500, noise(4, 64, 60), shared=False, **options)
    packed(build)
    before = release.publish(build)
    place = Path(build.out) / "shards"
    digests = {path.name: sha256_of(path) for path in place.glob("*.tar")}
    gone = [f"https://img{i % 37}.host{i % 11}.example/{i}.jpg" for i in range(0, 1_000, 100)]
    forget(build.store, [build], Request(urls=gone, exact=True))
    rewritten = sum(sha256_of(path) != digests[path.name] for path in place.glob("*.tar"))
    faults = verify(place)
    told(f"{len(before.shards)} shards, {rewritten} rewritten, {len(faults)} faults")
    shutil.rmtree(folder)
    return {
        "forget_10_of_100_shards": at_most(rewritten, 10, "shards"),
        "faults_afterwards": at_most(len(faults), 0, "faults"),
    }


if __name__ == "__main__":
    sys.exit(main())
