"""The command `embed`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from data_specs.names import SPLITS
from training.commands.options import add_detector, add_regions, add_shared, path
from training.data.released_rows import PRIMARY, ROW_TEXT_KINDS
from training.errors import ConfigError
from training.evaluation.benchmarks import is_benchmark

LOG = logging.getLogger("training")


def add_embed(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="embed images, texts or released rows, as files or as a search index",
        description="Computes features (float32 unit vectors) of one kind of input. --index writes a search index, "
        "part by part: the same command resumes after a kill, and adds what is new when the input has grown. --out "
        "FILE.parquet takes every kind of input. Otherwise --data, --images and --texts make a .safetensors file, "
        "and a benchmark with --to chinese-clip a folder.",
        examples=[
            "wenlan-train embed runs/1 --data store/datasets/weekly/latest.json --index weekly-index --onnx",
            "wenlan-train embed runs/1 --images photos/ --index photos-index",
            "wenlan-train embed runs/1 --images photos/ --texts poems.txt --index both-ways",
            "wenlan-train embed runs/1 --images a.jpg b.jpg --texts texts.txt --out features.safetensors",
            "wenlan-train embed runs/1 --data builds/1 --split val --out val.parquet",
            "wenlan-train embed runs/1 --data coco-cn:DIR --split test --to chinese-clip --out features",
        ],
    )
    embed.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    embed.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="manifests or tars, or a benchmark KIND:PATH: images and texts of one split, with --index of all splits",
    )
    embed.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="image files, with --index or .parquet also folders; may be combined with --texts, except for .parquet",
    )
    add_regions(embed)
    embed.add_argument(
        "--texts", type=path, metavar="FILE", help="UTF-8 file, one text per line; --index shows what follows a tab"
    )
    embed.add_argument(
        "--jsonl", type=path, metavar="FILE", help="rows in BriVL's released format; image paths relative to the file"
    )
    embed.add_argument(
        "--text-kind",
        default=PRIMARY,
        choices=ROW_TEXT_KINDS,
        metavar="KIND",
        help=f"text of a --jsonl row to embed (default {PRIMARY}, its first): {', '.join(ROW_TEXT_KINDS)}",
    )
    embed.add_argument(
        "--split",
        choices=(*SPLITS, "test"),
        help="split of --data (default: val, with --index all); test exists for benchmarks only",
    )
    embed.add_argument(
        "--to",
        default="",
        choices=["chinese-clip"],
        help="write features and answers of a benchmark for Chinese-CLIP's evaluation scripts; --out is the folder",
    )
    add_detector(
        embed,
        "; with --index and .parquet it also makes boxes for pictures without any: a detector's name, or a spec "
        "(.yaml) that names it",
    )
    embed.add_argument("--out", type=path, metavar="FILE", help="file or folder for the features")
    embed.add_argument("--index", type=path, metavar="DIR", help="folder of a search index, instead of --out")
    embed.add_argument("--onnx", action="store_true", help="--index: add the ONNX towers (needs wenlan[onnx])")
    embed.add_argument("--part-rows", type=int, metavar="N", help="--index: rows per part (default: 1,000 to 10,000)")
    embed.add_argument(
        "--workers", type=int, metavar="N", help="--index: embed on N Ray workers, on this machine or at --address"
    )
    embed.add_argument("--address", default="", metavar="A", help="cluster of --workers (default: RAY_ADDRESS)")
    embed.add_argument(
        "--region-cache",
        type=path,
        metavar="DIR",
        help="folder for the boxes that the detector makes, for example STORE/regions (default: in the cache)",
    )
    embed.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    embed.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16"],
        help="as run.precision of fit: fp32 (default), or bf16, faster on GPUs; a benchmark has the run's",
    )
    add_shared(embed)
    embed.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> dict[str, Any]:
    _check(arguments)
    if arguments.index is not None:
        return _into_index(arguments)
    of_benchmark = _is_benchmark(arguments)
    if arguments.jsonl or (arguments.out.suffix == ".parquet" and not of_benchmark):
        return _into_parquet(arguments)
    from training.data.index import split_of_dataset
    from training.use import embed

    checkpoint, out, device = arguments.checkpoint, arguments.out, arguments.device
    split = arguments.split or "val"
    if of_benchmark:
        written = embed.embed_benchmark(
            checkpoint,
            arguments.data,
            split,
            out,
            to=arguments.to,
            regions=arguments.regions,
            device=device,
        )
    elif arguments.data:
        written = embed.embed_data(
            checkpoint,
            arguments.data,
            split_of_dataset(split),
            out,
            detector=arguments.detector,
            device=device,
            precision=arguments.precision,
            cache=arguments.cache,
        )
    else:
        written = embed.embed_files(
            checkpoint,
            arguments.images or [],
            arguments.regions,
            arguments.texts,
            out,
            device=device,
            precision=arguments.precision,
        )
    each = written.get("features", {"features": written["rows"]})
    counts = ", ".join(f"{rows:,} {name.replace('_', ' ')}" for name, rows in each.items())
    LOG.info("%s of width %d in %s", counts, written["width"], out)
    return written


def _is_benchmark(arguments: argparse.Namespace) -> bool:
    return bool(arguments.data) and any(is_benchmark(name) for name in arguments.data)


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    given = [name for name in ("data", "images", "texts", "jsonl") if getattr(arguments, name)]
    if len(given) != 1 and given != ["images", "texts"]:
        raise ConfigError("embed", "give one of --data, --images (and --texts), --texts, --jsonl")
    of_benchmark = _is_benchmark(arguments)
    if arguments.regions and not (arguments.images or of_benchmark):
        raise ConfigError("--regions", "gives boxes of --images; give --images too")
    if of_benchmark and arguments.precision != "fp32":
        raise ConfigError("--precision", "a benchmark is embedded in the run's precision, as eval measures it")
    if arguments.to and not of_benchmark:
        raise ConfigError(
            "--to", f"{arguments.to} needs a benchmark, --data KIND:PATH; a dataset can be exported as one"
        )
    if (arguments.out is None) == (arguments.index is None):
        raise ConfigError("embed", "give --out FILE to write features to a file, or --index DIR to make a search index")
    _check_forms(arguments, of_benchmark)
    for name in ("onnx", "part_rows", "workers", "address"):
        if getattr(arguments, name) and arguments.index is None:
            raise ConfigError(f"--{name.replace('_', '-')}", "needs --index")
    if arguments.address and arguments.workers is None:
        raise ConfigError("--address", "needs --workers N")
    for name in ("part_rows", "workers"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", f"{number} is out of range; it must be at least 1")
    if arguments.index is None and arguments.out.suffix == ".parquet" and len(given) > 1:
        problem = "a Parquet file holds either pictures or texts; write two files, or use --index"
        raise ConfigError("embed", problem)
    if arguments.index is not None and of_benchmark:
        raise ConfigError("--index", "does not take a benchmark; --data must name manifests or tars")


def _check_forms(arguments: argparse.Namespace, of_benchmark: bool) -> None:
    """Raise ConfigError for an option that would be left unread with this input and this form of output."""
    if arguments.text_kind != PRIMARY and not arguments.jsonl:
        raise ConfigError("--text-kind", "needs --jsonl")
    if arguments.split and not arguments.data:
        raise ConfigError("--split", "needs --data")
    columns = arguments.index is None and arguments.out.suffix == ".parquet"
    made = bool(arguments.index or arguments.jsonl) or (columns and not of_benchmark)
    for name, read in (("detector", made or (arguments.data and not of_benchmark)), ("region_cache", made)):
        if getattr(arguments, name) and not read:
            raise ConfigError(
                f"--{name.replace('_', '-')}",
                "boxes are made only for --index, --jsonl, and --images with --out FILE.parquet; otherwise they come "
                "with the pictures, or are the grid",
            )


def _inputs(arguments: argparse.Namespace, *, distinct: bool) -> Any:
    from training.data.index import split_of_dataset
    from training.use.indexing import Inputs

    split = arguments.split or ("" if arguments.index is not None else "val")
    return Inputs(
        data=tuple(arguments.data or ()),
        splits=(split_of_dataset(split),) if split else SPLITS,
        images=tuple(arguments.images or ()),
        regions=str(arguments.regions or ""),
        jsonl=str(arguments.jsonl or ""),
        text_kind=arguments.text_kind,
        texts=str(arguments.texts or ""),
        cache=str(arguments.cache or ""),
        distinct=distinct,
    )


def _into_index(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.indexing import Run, embed_index

    run: Run | None = None
    if arguments.workers is not None:
        from training.run.ray_job import embed_on_ray

        run = embed_on_ray(arguments.workers, arguments.address)
    written = embed_index(
        arguments.checkpoint,
        _inputs(arguments, distinct=True),
        Path(arguments.index),
        detector=arguments.detector,
        device=arguments.device,
        precision=arguments.precision,
        rows=arguments.part_rows or 0,
        regions_cache=arguments.region_cache,
        onnx=arguments.onnx,
        run=run,
    )
    LOG.info(
        "%s rows of width %d in %s: %s embedded now, %s left out, %s removed",
        f"{written['rows']:,}",
        written["width"],
        arguments.index,
        *(f"{written[name]:,}" for name in ("embedded", "unreadable", "removed")),
    )
    return written


def _into_parquet(arguments: argparse.Namespace) -> dict[str, Any]:
    from training.use.indexing import embed_parquet

    written = embed_parquet(
        arguments.checkpoint,
        _inputs(arguments, distinct=False),
        arguments.out,
        detector=arguments.detector,
        device=arguments.device,
        precision=arguments.precision,
        regions_cache=arguments.region_cache,
    )
    LOG.info("%d features of width %d in %s", written["rows"], written["width"], arguments.out)
    return written
