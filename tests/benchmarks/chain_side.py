"""What a user writes between the tools of the chain of bench_chain.py: run by the peers' Python, and timed with them.

list FOLDER OUT     the files of img2dataset as the JSON lines that data-juicer reads: {"text", "images"}
pack ROWS FOLDER    what data-juicer kept as webdataset tars of 10,000 samples: the bytes as fetched, and the text
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def listed(folder: Path, out: Path) -> None:
    with out.open("w", encoding="utf-8") as rows:
        for image in sorted(folder.glob("*/*.jpg")):
            text = image.with_suffix(".txt").read_text(encoding="utf-8")
            rows.write(json.dumps({"text": text, "images": [str(image)]}, ensure_ascii=False) + "\n")


def pack(rows: Path, folder: Path) -> None:
    import webdataset

    folder.mkdir()
    with rows.open(encoding="utf-8") as lines, webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=10_000) as tars:
        for number, line in enumerate(lines):
            row = json.loads(line)
            tars.write({"__key__": f"{number:09d}", "jpg": Path(row["images"][0]).read_bytes(), "txt": row["text"]})


if __name__ == "__main__":
    {"list": listed, "pack": pack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
