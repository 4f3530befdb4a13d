"""The whole road of the pipeline as its users run it: the command line, a real web server, real kills.

Builds that are killed, that fill a disk or that are compared by their workers are processes with a Ray of their own, as
a user has it (`build`). The others are commands in this process, on one Ray that is started once (`build_here`); what
only looks at a finished build reads the same one (`whole`).

One small web site and one table, with every fault that issue reports bring: 404, 500, silence, an empty body, a
truncated JPEG, a page in a wrong charset, a page that robots.txt keeps.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from data_specs.shard import read_manifest
from pipeline import cli, opening
from pipeline.publish.verify import verify
from pipeline.rows.records import sha256_hex
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from tests.drawn import encoded, rectangles
from tests.pipeline.conftest import Web
from tests.processes import descendants, is_running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORDS = [
    "故宫雪景",
    "黄山云海",
    "江南水乡古镇",
    "草原上的骏马",
    "红烧排骨成品图",
    "清晨的第一缕阳光",
    "城市夜景灯光秀",
    "小熊猫在吃竹子",
]


def picture(seed: int, side: int = 240, form: str = "JPEG") -> bytes:
    """A file of a picture unlike the others."""
    return encoded(rectangles(seed, side), form, quality=90)


def put(web: Web, path: str, body: bytes, kind: str = "image/jpeg", status: int = 200) -> str:
    """Put a file on a server; its URL."""
    web.pages[path] = (status, {"Content-Type": kind}, body)
    return web.url(path)


def hang_up(handler: Any) -> None:
    """No answer."""
    handler.close_connection = True


@pytest.fixture
def web(serve: Callable[..., Web]) -> Web:
    return serve()


def html(title: str, body: str, charset: str = "utf-8", encoding: str = "utf-8") -> bytes:
    page = f"<html><head><meta charset='{charset}'><title>{title}</title></head><body>{body}</body></html>"
    return page.encode(encoding)


def fill(web: Web, folder: Path, images: int = 24, form: str = "JPEG", side: int = 240) -> Path:
    """Fill the server, write the table and the spec; give the spec's path."""
    put(web, "/robots.txt", b"User-agent: *\nDisallow: /private/\n", "text/plain")
    figures = ""
    for i in range(3):
        put(web, f"/i/page{i}.jpg", picture(1000 + i))
        figures += f"<figure><img src='/i/page{i}.jpg' alt=''><figcaption>{WORDS[i]}的照片</figcaption></figure>"
    put(web, "/i/gb.jpg", picture(1003))
    links = "".join(f"<a href='{x}'>{x}</a>" for x in ("/gb.html", "/gone.html", "/bad.html", "/private/a.html"))
    put(web, "/index.html", html("首页", links + figures), "text/html")
    gb = html("粤菜", "<p><img src='/i/gb.jpg' alt='丼飯約調較鐘飯'></p>", "gb2312", "gb18030")
    put(web, "/gb.html", gb, "text/html")
    put(web, "/bad.html", b"<html><meta charset='utf-8'>" + bytes(range(128, 255)) * 40, "text/html; charset=utf-8")
    put(web, "/private/a.html", html("内部", "<img src='/i/secret.jpg' alt='内部资料请勿外传'>"), "text/html")
    rows = ["url,zh"]
    for i in range(images):
        rows.append(
            f"{put(web, f'/i/{i}.img', picture(i, side, form))},{WORDS[i % len(WORDS)]}之{'甲乙丙丁'[i // 8 % 4]}"
        )
    put(web, "/i/500.jpg", b"broken", status=500)
    web.pages["/i/silent.jpg"] = hang_up
    put(web, "/i/empty.jpg", b"")
    put(web, "/i/cut.jpg", picture(77)[:1500])
    put(web, "/i/page.jpg", html("页面", "不是图片"), "text/html")
    for name in ("404", "500", "silent", "empty", "cut", "page"):
        rows.append(f"http://{web.host}/i/{name}.jpg,这是一张坏掉的图片{name}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    spec = folder / "spec.yaml"
    spec.write_text(
        f"""
name: small
contact: http://{web.host}/about
sources:
  - {{kind: site, name: site, source_kind: news, start: ["http://{web.host}/index.html"]}}
  - {{kind: url_table, name: table, source_kind: image_search, path: table.csv,
      columns: {{image_url: url, texts: {{alt: zh}}}}}}
egress: {{allow: ["{web.host}"], delay_s: 0, timeout_s: 60}}
fetch: {{images_per_partition: 6, threads: 2, max_wait_s: 0}}
filters:
  - {{name: text_length, min_chars: 2}}
  - {{name: han_share}}
  - {{name: image_sides, min_side: 64}}
shards: {{samples_per_shard: 4, dev_share: 0.2, val_share: 0.2}}
""",
        encoding="utf-8",
    )
    return spec


def command(spec: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "build", str(spec), "--out", str(out), "--json", *more]


def build(spec: Path, out: Path, *more: str, code: int = 0) -> dict[str, object]:
    done = subprocess.run(command(spec, out, *more), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1])) if code == 0 else {"stderr": done.stderr}


def built_here(spec: Path, out: Path, *more: str, code: int = 0) -> dict[str, object]:
    """As `build`, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        returned = cli.main([*command(spec, out, *more)[3:]])
    assert returned == code, stderr.getvalue()[-4000:]
    return dict(json.loads(stdout.getvalue().splitlines()[-1])) if code == 0 else {"stderr": stderr.getvalue()}


@pytest.fixture
def build_here(ray: ModuleType) -> Callable[..., dict[str, object]]:
    """`built_here`, with a Ray: the command finds it running and leaves it so."""
    return built_here


@dataclass(frozen=True)
class Whole:
    """A finished build of the whole site, which tests only read, and the server of its site.

    said: what the command printed. asked: paths that it asked for.
    """

    web: Web
    spec: Path
    out: Path
    said: dict[str, object]
    asked: list[str]


@pytest.fixture(scope="module")
def whole(ray: ModuleType, serve_for_module: Callable[..., Web], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    web, folder = serve_for_module(), tmp_path_factory.mktemp("whole")
    spec, out = fill(web, folder), folder / "out"
    said = built_here(spec, out)
    return Whole(web, spec, out, said, list(web.asked))


def opened(out: Path) -> Build:
    return opening.reopen(str(out))


def decisions(out: Path) -> list[dict[str, object]]:
    return [row for table in Frames.of(opened(out)).tables("decisions") for row in table.to_pylist()]


def tars(out: Path) -> dict[str, str]:
    return {shard.tar.path: shard.tar.sha256 for shard in read_manifest(out / "shards").shards}


def kill_between(spec: Path, out: Path, folder: str, fewest: int, most: int) -> set[str]:
    """Start a build, and `kill -9` its driver when so many partitions of a stage are committed, which it returns.

    Ray's processes go with it. Begins anew where the build was further when the signal came, as on a busy machine.
    """
    for _ in range(5):
        with subprocess.Popen(
            command(spec, out, "--workers", "1"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            until = time.monotonic() + 300
            while len(committed(out, folder)) < fewest and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)
            titles = descendants(process.pid)
            workers = [pid for pid in titles if titles[pid].startswith(b"ray::") and b"Agent" not in titles[pid]]
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_until(lambda: not any(map(is_running, workers)), "the end of the workers")  # noqa: B023
        done = committed(out, folder)
        if fewest <= len(done) <= most:
            assert not (out / "shards" / "manifest.json").exists()
            return done
        shutil.rmtree(out)
    raise AssertionError("the build was never to be killed in time")


def committed(out: Path, folder: str) -> set[str]:
    return {path.stem for path in out.glob(f"{folder}/_records/*/*.json")}


def test_every_candidate_is_decided_once_and_each_fault_has_its_reason(whole, capsys):
    web, out = whole.web, whole.out
    assert whole.said["published"]
    rows = decisions(out)
    candidates = [row for row in rows if row["subject"] == "candidate"]
    assert len({row["id"] for row in candidates}) == len(candidates)
    by_url = {str(row["url"]).removeprefix(f"http://{web.host}"): row for row in rows}
    assert {path: by_url[path]["reason"] for path in by_url if "/i/" in path and not by_url[path]["kept"]} == {
        "/i/404.jpg": "http_status",
        "/i/500.jpg": "http_status",
        "/i/silent.jpg": "connection",
        "/i/empty.jpg": "empty_body",
        "/i/cut.jpg": "corrupt_image",
        "/i/page.jpg": "not_an_image",
    }
    assert by_url["/gone.html"]["reason"] == "http_status"
    assert by_url["/private/a.html"]["reason"] == "robots_disallowed"
    assert by_url["/bad.html"]["reason"] == "bad_charset"
    assert by_url["/i/gb.jpg"]["kept"]
    assert by_url["/i/gb.jpg"]["text"] == "丼飯約調較鐘飯"
    assert "/private/a.html" not in whole.asked
    assert "/i/secret.jpg" not in whole.asked
    # rules are asked for by each process, and once more for what hung up on a connection that had been used before
    again = {"/robots.txt", "/.well-known/tdmrep.json", "/i/silent.jpg"}
    taken = [path for path in whole.asked if path not in again]
    assert sorted(taken) == sorted(set(taken)), "nothing is fetched twice"
    manifest = read_manifest(out / "shards")
    assert sum(manifest.samples.values()) == sum(bool(row["kept"]) for row in candidates) == 28
    assert verify(out / "shards") == []
    for words, message in (
        (["status", str(out)], "published: yes"),
        (["verify", str(out)], "matches its manifest"),
        (["explain", str(out), f"http://{web.host}/i/cut.jpg"], "dropped at measure: corrupt_image"),
        (["report", str(out)], "report/index.html"),
    ):
        assert cli.main(words) == 0
        assert message in capsys.readouterr().err


def test_the_funnel_adds_up_from_stage_to_stage(whole):
    out = whole.out
    stages = {stage["name"]: stage["funnel"] for stage in whole.said["stages"]}
    for name, funnel in stages.items():
        if name not in ("detect", "report"):
            assert funnel["seen"] == funnel["kept"] + funnel["dropped"], name
    assert list(json.loads((out / "build.json").read_text(encoding="utf-8"))["stages"]) == [
        name for name in STAGES if name != "curate"
    ]
    order = ["extract", "admit", "fetch", "measure", "filter", "dedup", "shard"]
    for before, after in itertools.pairwise(order):
        assert stages[before]["kept"] == stages[after]["seen"], (before, after)


def test_what_pandas_reads_in_a_stages_folder_are_its_rows(whole):
    """Where archives lie beside the rows, a reader of folders names the tables: FOLDER/*.parquet."""
    out = whole.out
    done, read = opened(out), {}
    for stage in (own for own in done.stages.values() if own.name in done.passes):
        files = [path for path in (out / stage.folder).iterdir() if path.is_file() and path.name[0] not in "_."]
        tables = sorted(path for path in files if path.suffix == ".parquet")
        frames = [pd.read_parquet(path) for path in (tables if len(tables) < len(files) else [out / stage.folder])]
        if tables:
            assert len({tuple(pq.read_schema(path).names) for path in tables}) == 1, stage.name
            read[stage.name] = sum(len(frame) for frame in frames)
    named = {"fetch": "seen", "detect": "images"}
    assert read == {
        name: sum(record.counts[named.get(name, "kept")] for record in done.stage(name).records()) for name in read
    }
    assert list(read) == [name for name in done.stages if name not in ("curate", "report")]

    dropped = sum(not row["kept"] for row in decisions(out))
    folders = [out / done.stages[name].folder / "_decisions" for name in done.stages]
    union = pd.concat([pd.read_parquet(folder) for folder in folders if folder.exists()])
    assert (~union["kept"]).sum() == dropped > 0


def test_the_same_command_again_runs_nothing_and_changes_nothing(whole):
    web, out = whole.web, whole.out
    before, asked = (out / "shards" / "manifest.json").read_bytes(), len(web.asked)
    answer = build(whole.spec, out)  # a process of its own: nothing of the first is left but its files
    assert all(stage["skipped"] for stage in answer["stages"])
    assert (out / "shards" / "manifest.json").read_bytes() == before
    assert len(web.asked) == asked


def test_a_build_killed_in_fetch_goes_on_and_fetches_no_committed_partition_again(whole, tmp_path, build_here):
    web, spec, out = whole.web, whole.spec, tmp_path / "out"
    partitions = committed(whole.out, "images")
    web.holds = lambda path: path.startswith("/i/") and len(committed(out, "images")) >= 2
    try:
        done = kill_between(spec, out, "images", 2, len(partitions) - 1)
    finally:
        web.holds = lambda _: False
    assert committed(out, "admitted") == partitions
    tables = [path for partition in done for path in out.glob(f"images/{partition}-*.parquet")]
    fetched = {fetch_id for path in tables for fetch_id in pq.read_table(path)["fetch_id"].to_pylist()}
    web.asked.clear()
    build_here(spec, out)
    asked = {sha256_hex(f"http://{web.host}{path}") for path in web.asked if path.startswith("/i/")}
    assert len(asked) >= 6
    assert fetched
    assert not asked & fetched
    assert tars(out) == tars(whole.out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a disk that is full needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.drill(40)
def test_a_full_disk_is_one_line_and_with_room_the_build_goes_on(web, tmp_path, small_disk, build_here):
    spec, out = fill(web, tmp_path, form="BMP", side=500), small_disk / "out"
    failed = build(spec, out, code=1)["stderr"].splitlines()
    assert failed[-1].startswith(f"wenlan-data: {small_disk}/")
    assert "no space left on its disk (fetch/" in failed[-1]
    assert not any("Traceback" in line for line in failed)
    assert committed(out, "admitted")
    assert not (out / "shards").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    build_here(spec, out)
    build_here(spec, tmp_path / "whole")
    assert tars(out) == tars(tmp_path / "whole")


def fetching() -> int:
    """A worker of this process's Ray that is fetching: its process id, 0 if there is none."""
    return next((pid for pid, title in descendants(os.getpid()).items() if title == b"ray::wenlan:fetch"), 0)


@pytest.mark.drill(15)
@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_worker_is_replaced_and_one_that_dies_each_time_stops_the_build_in_one_line(
    web, tmp_path, build_here, kills
):
    spec, out = fill(web, tmp_path, images=4), tmp_path / "out"
    one = spec.read_text(encoding="utf-8").replace("images_per_partition: 6", "images_per_partition: 100")
    spec.write_text(one, encoding="utf-8")
    killed = set[int]()
    web.holds = lambda path: (
        path.startswith("/i/") and len(killed) < kills
    )  # so that no partition is done before its worker is found

    def kill() -> None:
        until = time.monotonic() + 300
        while len(killed) < kills and time.monotonic() < until:
            pid = fetching()
            if pid and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    said = build_here(spec, out, "--until", "fetch", code=0 if kills == 1 else 1)
    killer.join()
    assert len(killed) == kills
    if kills == 1:
        assert committed(out, "images") == committed(out, "admitted")
    else:
        [line] = [line for line in str(said["stderr"]).splitlines() if line.startswith("wenlan-data:")]
        assert "wenlan-data: fetch/00" in line
        assert "its worker died again and again" in line
