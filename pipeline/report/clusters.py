"""How evenly pictures spread over what there is to see: clusters of image features, and the share of the largest.

DanQing (arXiv 2601.10305) puts its images into 10,000 clusters, 10,000 images each, and reads the balance from their
sizes. Here k-means (faiss, on the sphere) runs over the features that stage `score` left in STORE, of at most MOST
images, the first of each shard in keyed-hash order, with EACH images a cluster on average.

Limits: needs faiss (extra `search`) and a spec with `pair_score`. Two machines may differ in a few images between
clusters.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from pipeline.report.section import Values
from pipeline.store.build import Build
from pipeline.store.frames import Frames

MOST, EACH, ROUNDS = 20_000, 50, 15
"""Images at most, images of a cluster on average, and rounds of k-means."""

FEWEST = 2 * EACH
"""Images below which nothing is said."""


def balance(build: Build) -> Values | None:
    """Clusters, images, the share of the largest hundredth of the clusters (one at least), and that of an even split.

    None for a build without features or with fewer than FEWEST images, or where faiss is not installed.
    """
    if build.spec.pair_score is None or "curate.score" not in build.fingerprints or find_spec("faiss") is None:
        return None
    vectors_ND = features(build)
    return spread(vectors_ND) if len(vectors_ND) >= FEWEST else None


def spread(vectors_ND: npt.NDArray[np.float32]) -> Values:
    """The figures of `balance`, of unit rows [N, D] with N at least EACH."""
    clusters = len(vectors_ND) // EACH
    sizes = np.sort(np.bincount(_assigned(vectors_ND, clusters), minlength=clusters))[::-1]
    largest = max(1, clusters // 100)
    return {
        "images": len(vectors_ND),
        "clusters": clusters,
        "largest": largest,
        "share": round(float(sizes[:largest].sum() / sizes.sum()), 4),
        "even": round(largest / clusters, 4),
    }


def features(build: Build) -> npt.NDArray[np.float32]:
    """[N, D] unit rows of the image features of samples, MOST of them at most."""
    records, frames = build.stage("curate.score").records(), Frames.of(build)
    if not records:
        return np.empty((0, 0), np.float32)
    cache = build.store.features(records[0].info["models"][0])
    each, parts = max(1, MOST // max(1, len(frames.shards))), list[npt.NDArray[np.float32]]()
    for part in frames.parts("samples"):
        names = next(iter(part.batches(["sha256"], rows=each)), None)
        rows = cache.get(names["sha256"].to_pylist()) if names is not None else None
        if rows is not None:
            ordered = rows.sort_by("sha256")["feature"].to_pylist()
            parts.append(np.stack([np.frombuffer(one, np.float16) for one in ordered]).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _assigned(vectors_ND: npt.NDArray[np.float32], clusters: int) -> npt.NDArray[np.int64]:
    """The cluster of each row."""
    import faiss

    points = np.ascontiguousarray(vectors_ND)
    kmeans = faiss.Kmeans(points.shape[1], clusters, niter=ROUNDS, spherical=True, seed=1, verbose=False)
    kmeans.cp.min_points_per_centroid = 1  # it warns on its own below 39
    kmeans.train(points)
    assigned: npt.NDArray[np.int64] = kmeans.index.search(points, 1)[1][:, 0]
    return assigned
