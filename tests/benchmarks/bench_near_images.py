"""Near images on real pictures: which copies are found, what is taken for a copy that is none, and what peers do.

One at a time: originals are the photos of a recipe site (../shared/corpus) and the stamps of the demo corpus. Each is
copied in seven ways (`copies.COPIES`; `MORE` are shown without a bar). Ours is what dedup runs: features by
`measure_image`, leaders by its join at the shipped radius and threshold. Originals come first, in order; a copy
is found if its first match is the leader of its own original. Merges among originals are listed; ONE_PICTURE names
those that were looked at.

All at once, as the web has them: a set (`near_sets`) of originals of one kind, their copies (`copies.AT_ONCE`: the
seven, with a text where chance puts it, and what reposts do besides) and the same pixels in a file of another format,
ranked by size as dedup ranks them. The framed copy is the largest and leads, so the others are two changes away from
what they are compared with. A copy is found if it gets the leader of its original. What was merged is drawn side by
side in a PNG in the temporary folder. The quick form has the sets that need no download. Likewise with
`dedup.image_turned`: originals, framed copies, and mirrored and turned ones (`copies.TURNED`).

Originals without structure (white on white), which filters drop, are left out of both.

Peers run in their own environment on the same files: imagededup's PHash within 10 bits (its default), PDQ within 31
bits of 256 (its authors' advice), data-juicer's image deduplicator (equal hashes). Their merges are all pairs within
their rule. A copy counts as found by them if it matches its original.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Figure, at_least, environment, peer, photos, program, quick, report, stamps, told

HASHES = {"imagededup": 10, "pdqhash": 31, "data_juicer": 0}
"""Bits within which each takes two pictures for one."""

ONE_PICTURE = (
    {"6007ee0f7e6fa835", "601d32e0820ee5f9"},  # one photo, published twice
    {"22dfdf0eac651710", "47188357a5c8930c"},  # two shots of one dish, a moment apart
    {"fireman240a"},  # one file in two folders
    {"apple_core", "apple_core_01"},
    {"l_outline", "I_outline"},  # a letter of the same form
    {"l_filled", "I_filled"},
    {"Elephants", "Elephants_3840x2160", "Elephants_5640x3172"},  # three sizes of one photograph
    # one photograph, tone-mapped in two ways
    {"truck-tone-mapped-using-gegl-mantuik", "apple-orchard-truck-tone-mapped-with-Exposur"},
)
"""Originals that show the same picture, by file name."""

BARS = {"crop_one_corner": 0.90, "text": 0.80}
"""Recall of a copy among all copies at once, where it is not 0.95."""

OVERALL, TURNED_OVERALL, PHOTOGRAPHIC = 0.93, 0.9, ("photos", "photographs")
"""Recall of all copies, and of mirrored and turned ones, in any set; sets with a bar for each copy."""

LONGEST = 1_000
"""Pixels of the longer side of an original; larger ones are made smaller first."""


def main() -> int:

    small = quick(__doc__)
    files = [file for file in [*photos(), *stamps()][:: 12 if small else 1] if _has_structure(file)]
    folder = Path(tempfile.mkdtemp(prefix="wenlan-near-"))
    try:
        with ProcessPoolExecutor(2) as pool:
            rows = list(pool.map(_measured, [(n, file, folder) for n, file in enumerate(files)], chunksize=8))
        names = [file.stem for file in files]
        recall, merges, wrong = ours(rows, names)
        figures = {"recall": at_least(recall.pop("all"), 0.97, "share")}
        figures |= {f"recall_{name}": at_least(recall[name], 0.90, "share") for name in _figured()}
        others = [pair for pair in merges if not any(set(pair) <= one for one in ONE_PICTURE)]
        figures["different_originals_merged"] = Figure(len(others), "pairs", 0, not others)
        told(f"ours: merged originals: {', '.join(' = '.join(pair) for pair in merges) or 'none'}")
        told(f"ours: {wrong} of {len(files) * len(recall):,} copies taken for another picture")
        told("ours, without a bar: " + ", ".join(f"{n} {v:.3f}" for n, v in recall.items() if n not in _figured()))
        for name, radius in HASHES.items():
            beside(name, radius, folder, names)
    finally:
        shutil.rmtree(folder)
    figures |= at_once(small)
    return report(figures)


def _has_structure(file: Path) -> bool:
    from pipeline.features._rows import measure_image

    return bool(measure_image(file.read_bytes(), 10**9)["phash"][0])


def _figured() -> list[str]:
    from tests.benchmarks.copies import COPIES

    return list(COPIES)


def _measured(task: tuple[int, Path, Path]) -> dict[str, dict[str, Any]]:
    """Rows of features of an original, under "", and of its copies; their files are left for the peers."""
    from PIL import Image

    from pipeline.features._rows import measure_image
    from pipeline.pictures.decode import decode
    from tests.benchmarks.copies import COPIES, MORE

    number, file, folder = task
    data = file.read_bytes()
    picture = decode(data, 10**9).pixels
    image = Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)  # the picture as shown: peers know nothing of alpha
    made = {name: copy(image, number) for name, copy in (COPIES | MORE).items()}
    (folder / f"{number}..png").write_bytes(out.getvalue())
    for name in COPIES:
        (folder / f"{number}.{name}.jpg").write_bytes(made[name])
    return {name: measure_image(content, 10**9) for name, content in {"": data, **made}.items()}


def _looks(rows: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """What rows of features are compared by."""
    import pyarrow as pa

    from pipeline.rows.records import FEATURE_SCHEMA
    from pipeline.store.takedowns import LOOKED_AT, looks_of

    schema = pa.schema([FEATURE_SCHEMA.field(name) for name in LOOKED_AT[1:]])
    return looks_of(pa.Table.from_pylist(rows, schema=schema))


def ours(rows: list[dict[str, Any]], names: list[str]) -> tuple[dict[str, float], list[tuple[str, str]], int]:
    """Recall by kind of copy and of the seven together, merges among originals, and copies given to another."""
    import numpy as np

    from tests.benchmarks.leading_images import Leaders

    leaders = Leaders()
    leading, leader_of = list[int](), list[int]()
    for row in range(len(rows)):
        phash, signature, details = _looks([rows[row][""]])
        found = int(leaders.first(phash, signature, details)[0])
        if found < 0:
            found = len(leading)
            leading.append(row)
            leaders.add(phash, signature, details)
        leader_of.append(found)
    merges = [(names[leading[leader]], names[row]) for row, leader in enumerate(leader_of) if leading[leader] != row]
    recall, wrong, every = dict[str, float](), 0, []
    for kind in rows[0]:
        if kind:
            first = leaders.first(*_looks([row[kind] for row in rows]))
            right = first == np.array(leader_of)
            wrong += int(((first >= 0) & ~right).sum())
            recall[kind] = float(right.mean())
            if kind in _figured():
                every.append(recall[kind])
    recall["all"] = sum(every) / len(every)
    return recall, merges, wrong


def at_once(small: bool) -> dict[str, Any]:
    """Figures of the sets in which all copies lie side by side."""
    from tests.benchmarks.copies import AT_ONCE, TURNED
    from tests.benchmarks.near_sets import SETS, originals

    figures: dict[str, Any] = {}
    for name in ("photos", "drawings") if small else SETS:
        files = originals(name)[:: 4 if small else 1]
        with ProcessPoolExecutor(2) as pool:
            made = list(pool.map(_all_copies, enumerate(files), chunksize=4))
        rows = [one for one in made if one is not None and one[""]["phash"][0]]
        names = [files[number].stem for number, one in enumerate(made) if one is not None and one[""]["phash"][0]]
        recall, merges = clusters([_only(one, "", "same_pixels", *AT_ONCE) for one in rows], names)
        overall = sum(recall[kind] for kind in AT_ONCE) / len(AT_ONCE)
        told(f"{name}: {len(rows)} originals, " + ", ".join(f"{kind} {value:.3f}" for kind, value in recall.items()))
        others = sorted(pair for pair in merges if not any({*pair} <= one for one in ONE_PICTURE))
        if others:
            told(f"{name}: merged: " + ", ".join(" = ".join(pair) for pair in others))
            told(f"{name}: side by side in {_side_by_side(name, others, {file.stem: file for file in files})}")
        figures[f"{name}_recall"] = at_least(overall, OVERALL, "share")
        figures[f"{name}_same_pixels"] = at_least(recall["same_pixels"], 1.0, "share")
        figures[f"{name}_different_merged"] = Figure(len(others), "pairs", 0, not others)
        if name in PHOTOGRAPHIC:
            bars = {kind: BARS.get(kind, 0.95) for kind in AT_ONCE}
            figures |= {f"{name}_{kind}": at_least(recall[kind], bar, "share") for kind, bar in bars.items()}
        recall, merges = clusters([_only(one, "", "border", *TURNED) for one in rows], names, turned=True)
        told(f"{name}, with image_turned: " + ", ".join(f"{kind} {value:.3f}" for kind, value in recall.items()))
        others = sorted(pair for pair in merges if not any({*pair} <= one for one in ONE_PICTURE))
        overall = sum(recall[kind] for kind in TURNED) / len(TURNED)
        figures[f"{name}_turned_recall"] = at_least(overall, TURNED_OVERALL, "share")
        figures[f"{name}_turned_different_merged"] = Figure(len(others), "pairs", 0, not others)
    return figures


def _only(rows: dict[str, dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {kind: rows[kind] for kind in kinds}


def _all_copies(task: tuple[int, Path]) -> dict[str, dict[str, Any]] | None:
    """Rows of features of an original, under "", and of its copies; None of a file that is no picture."""
    from PIL import Image

    from pipeline.features._rows import measure_image
    from pipeline.pictures.decode import PictureError, decode
    from tests.benchmarks.copies import AT_ONCE, TURNED

    number, file = task
    data = file.read_bytes()
    try:
        image = Image.fromarray(decode(data, 10**9).pixels)
    except PictureError:
        return None
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        data = _saved(image, "JPEG", quality=92) if file.suffix == ".jpg" else _saved(image, "PNG")
        image = Image.fromarray(decode(data, 10**9).pixels)
    made = {"": data, "same_pixels": _saved(image, "WEBP", lossless=True)}
    made |= {name: copy(image, number) for name, copy in (AT_ONCE | TURNED).items()}
    return {
        name: measure_image(content, 10**9) | {"id": hashlib.sha256(content).digest()} for name, content in made.items()
    }


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def clusters(
    rows: list[dict[str, Any]], names: list[str], turned: bool = False
) -> tuple[dict[str, float], set[tuple[str, str]]]:
    """Recall by kind of copy, and pairs of originals of which anything was merged, of all rows by rank."""
    from tests.benchmarks.leading_images import Leaders

    ranked = sorted(
        ((number, kind, row) for number, one in enumerate(rows) for kind, row in one.items()),
        key=lambda of: (-of[2]["width"] * of[2]["height"], of[2]["id"]),
    )
    leaders = Leaders(turned)
    original_of, leader_of = list[int](), dict[tuple[int, str], int]()
    for number, kind, row in ranked:
        phash, signature, details = _looks([row])
        first = int(leaders.first(phash, signature, details)[0])
        if first < 0:
            first = len(original_of)
            original_of.append(number)
            leaders.add(phash, signature, details)
        leader_of[number, kind] = first
    kinds = [kind for kind in rows[0] if kind]
    recall = {
        kind: sum(leader_of[number, kind] == leader_of[number, ""] for number in range(len(rows))) / len(rows)
        for kind in kinds
    }
    merged = {(original_of[leader], number) for (number, _), leader in leader_of.items()}
    return recall, {(names[min(pair)], names[max(pair)]) for pair in merged if pair[0] != pair[1]}


def _side_by_side(name: str, pairs: list[tuple[str, str]], files: dict[str, Path]) -> Path:
    """A PNG of what was merged, three pairs to a row."""
    from PIL import Image

    from pipeline.pictures.decode import decode

    side, path = 200, Path(tempfile.gettempdir()) / f"wenlan-near-{name}.png"
    sheet = Image.new("RGB", (6 * side + 40, side * -(-len(pairs) // 3)), "grey")
    for at, pair in enumerate(pairs):
        for which, stem in enumerate(pair):
            image = Image.fromarray(decode(files[stem].read_bytes(), 10**9).pixels)
            image.thumbnail((side - 4, side - 4))
            sheet.paste(image, (at % 3 * (2 * side + 20) + which * side, at // 3 * side))
    sheet.save(path)
    return path


def beside(name: str, radius: int, folder: Path, names: list[str]) -> None:
    """What a peer finds and merges, on stderr; that it cannot run is said, too."""
    if (python := peer("python")) is None:
        return
    command = program("bench_near_images", "--peer", name, folder, python=python)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment())
    if done.returncode:
        told(f"{name}: could not run: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no message'}")
        return
    hashes: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    refused = sum(value is None for value in hashes.values())

    def near(a: str, b: str) -> bool:
        one, other = hashes[a], hashes[b]
        return one is not None and other is not None and (int(one, 16) ^ int(other, 16)).bit_count() <= radius

    recall = {kind: sum(near(f"{n}.", f"{n}.{kind}") for n in range(len(names))) / len(names) for kind in _figured()}
    merged = [(a, b) for a, b in combinations(range(len(names)), 2) if near(f"{a}.", f"{b}.")]
    others = sum(not any({names[a], names[b]} <= one for one in ONE_PICTURE) for a, b in merged)
    listed = ", ".join(f"{kind} {value:.3f}" for kind, value in recall.items())
    overall = sum(recall.values()) / len(recall)
    told(
        f"{name}: recall {overall:.3f} ({listed}); merges {others} pairs of different originals"
        + (f"; no hash of {refused:,} files" if refused else "")
    )


def serve_peer(name: str, folder: Path) -> None:
    """In the peers' environment: each file's hash in hexadecimal, None where there is none, by name without suffix."""
    import numpy as np
    from PIL import Image

    if name == "imagededup":
        from imagededup.methods import PHash

        hasher = PHash(verbose=False)

        def hashed(file: Path) -> Any:
            return hasher.encode_image(image_file=str(file))
    elif name == "pdqhash":
        import pdqhash

        def hashed(file: Path) -> Any:
            bits, _ = pdqhash.compute(np.asarray(Image.open(file).convert("RGB")))
            return np.packbits(bits).tobytes().hex()
    else:
        from data_juicer.ops.deduplicator.image_deduplicator import HashKeys, ImageDeduplicator

        operator = ImageDeduplicator()

        def hashed(file: Path) -> Any:
            return operator.compute_hash({"images": [str(file)], "text": ""})[HashKeys.imagehash] or None

    found = {file.stem: hashed(file) for file in sorted(folder.iterdir())}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        serve_peer(sys.argv[2], Path(sys.argv[3]))
    else:
        raise SystemExit(main())
