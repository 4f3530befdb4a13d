"""The command `embed`."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from data_specs.shard import SPLITS
from training.commands.options import add_detector, add_regions, add_shared, path
from training.data.released_rows import PRIMARY, ROW_TEXT_KINDS
from training.errors import ConfigError
from training.use.benchmarks import is_benchmark

LOG = logging.getLogger("training")


def add_embed(commands: Any) -> None:
    embed = commands.add_parser(
        "embed",
        help="features of images, texts, released rows or ready arrays",
        description="Features (float32 unit rows) of one kind of input. --data and files make a .safetensors file, "
        "--jsonl a Parquet file with id, image_features and text_features, --tensors an .npz file, a benchmark with "
        "--to chinese-clip a folder.",
        examples=[
            "wenlan-train embed runs/1 --images a.jpg b.jpg --texts texts.txt --out features.safetensors",
            "wenlan-train embed runs/1 --data builds/1 --split val --out val.safetensors",
            "wenlan-train embed runs/1 --data coco-cn:DIR --split test --to chinese-clip --out features",
        ],
    )
    embed.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="a checkpoint, or a run's folder")
    embed.add_argument(
        "--data",
        nargs="+",
        metavar="DATA",
        help="manifests or tars, or a benchmark KIND:PATH: both features of one split",
    )
    embed.add_argument("--images", nargs="+", metavar="FILE", help="image files; --texts may be given beside them")
    add_regions(embed)
    embed.add_argument("--texts", type=path, metavar="FILE", help="UTF-8 file, one text per line")
    embed.add_argument(
        "--jsonl", type=path, metavar="FILE", help="rows as BriVL released them; image paths relative to the file"
    )
    embed.add_argument(
        "--tensors",
        type=path,
        metavar="FILE",
        help=".npz with images, boxes and n_boxes, or input_ids and n_tokens, or all five",
    )
    embed.add_argument(
        "--text-kind",
        default=PRIMARY,
        choices=ROW_TEXT_KINDS,
        metavar="KIND",
        help=f"which text of a --jsonl row (default {PRIMARY}, its first): {', '.join(ROW_TEXT_KINDS)}",
    )
    embed.add_argument(
        "--split", default="val", choices=(*SPLITS, "test"), help="of --data; default val; test: benchmarks only"
    )
    embed.add_argument(
        "--to",
        default="",
        choices=["chinese-clip"],
        help="features and answers of a benchmark for Chinese-CLIP's evaluation scripts; --out is their folder",
    )
    add_detector(embed)
    embed.add_argument("--out", required=True, type=path, metavar="FILE", help="where the features go")
    embed.add_argument("--device", default="auto")
    add_shared(embed)
    embed.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> dict[str, Any]:
    given = [name for name in ("data", "images", "texts", "jsonl", "tensors") if getattr(arguments, name)]
    if len(given) != 1 and given != ["images", "texts"]:
        raise ConfigError("embed", "give one of --data, --images (and --texts), --texts, --jsonl, --tensors")
    of_benchmark = bool(arguments.data) and any(is_benchmark(name) for name in arguments.data)
    if arguments.regions and not (arguments.images or of_benchmark):
        raise ConfigError("--regions", "are boxes of --images; give both")
    if arguments.to and not of_benchmark:
        raise ConfigError(
            "--to", f"{arguments.to} wants a benchmark, --data KIND:PATH; a dataset can be exported to one"
        )
    from training.use import embed
    from training.use.evaluate import split_of_dataset

    checkpoint, out, device = arguments.checkpoint, arguments.out, arguments.device
    if of_benchmark:
        written = embed.embed_benchmark(
            checkpoint,
            arguments.data,
            arguments.split,
            out,
            to=arguments.to,
            regions=arguments.regions,
            device=device,
        )
    elif arguments.data:
        written = embed.embed_data(
            checkpoint,
            arguments.data,
            split_of_dataset(arguments.split),
            out,
            detector=arguments.detector,
            device=device,
            cache=arguments.cache,
        )
    elif arguments.jsonl:
        written = embed.embed_rows(checkpoint, arguments.jsonl, arguments.text_kind, out, device=device)
    elif arguments.tensors:
        written = embed.embed_arrays(checkpoint, arguments.tensors, out, device=device)
    else:
        written = embed.embed_files(
            checkpoint, arguments.images or [], arguments.regions, arguments.texts, out, device=device
        )
    LOG.info("%d features of width %d in %s", written["rows"], written["width"], out)
    return written
