"""Builds, releases and takedowns on S3, through real servers over HTTP: the same bytes as on a disk, no key
anywhere, and few listings.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

import wenlan
from data_specs.command.loopback import start_ray
from data_specs.release import open_manifest
from data_specs.shard import Manifest
from pipeline import cli, opening
from pipeline.files.folder import Folder, read_url
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.studio.facets import Filters
from pipeline.studio.server import Studio
from tests import s3_server
from tests.s3_server import Remote
from tests.stages import run_noted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.drill(10)
def test_a_large_file_goes_up_in_parts(bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    path.write_bytes(bytes(110 << 20))
    Folder(f"{bucket}/large").take(path, "large.tar")
    found = fsspec.filesystem("s3").info(f"{bucket}/large/large.tar")
    assert found["size"] == 110 << 20
    assert found["ETag"].strip('"').endswith("-3"), "S3 marks so what came in three parts"
    assert not path.exists()


SPEC = """
name: weekly
contact: owner@example.org
sources:
  - {kind: folder, name: album, source_kind: library, path: photos}
filters:
  - {name: text_length, min_chars: 2}
shards: {samples_per_shard: 9, dev_share: 0.2, val_share: 0.2}
"""

WORDS = ("红色的花", "海边的日落", "一只小猫在睡觉", "番茄炒蛋的做法", "北京故宫的角楼", "山上的雪和云", "老式蒸汽火车")


@dataclass
class Drive:
    """Weeks of a dataset by the commands, below a folder or its URL.

    said: all that they printed. answers: what must be said of a dataset wherever it lies, without its place.
    """

    root: str
    encode: Callable[[str, int, tuple[int, int]], bytes]
    said: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    @property
    def store(self) -> str:
        return f"{self.root}/store"

    @property
    def latest(self) -> str:
        return f"{self.store}/datasets/weekly/latest.json"

    def write(self, name: str, data: bytes) -> None:
        if "://" not in self.root:
            (Path(self.root) / name).parent.mkdir(parents=True, exist_ok=True)
        fs, path = fsspec.url_to_fs(f"{self.root}/{name}")
        fs.pipe_file(path, data)

    def show(self, week: str, pictures: int) -> None:
        """Put so many pictures with their texts into a folder of the week, and a spec beside it that names it."""
        self.write(f"{week}.yaml", SPEC.replace("path: photos", f"path: photos-{week}").encode())
        for number in range(pictures):
            self.write(f"photos-{week}/{number:03d}.jpg", self.encode("jpeg", number, (260, 220)))
            self.write(f"photos-{week}/{number:03d}.txt", f"{WORDS[number % len(WORDS)]}，第{number}幅".encode())

    def __call__(self, *words: str, code: int = 0) -> dict[str, Any]:
        """A command of wenlan-data in this process: the object that it prints."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            got = cli.main([*words, "--json"])
        self.said += [out.getvalue(), err.getvalue()]
        assert got == code, err.getvalue()[-4000:]
        return dict(json.loads(out.getvalue().splitlines()[-1]))

    def build(self, week: str) -> None:
        words = ("--out", f"{self.root}/{week}", "--store", self.store, "--snapshot", week)
        assert self("build", f"{self.root}/{week}.yaml", *words)["published"]

    def ask(self, *words: str) -> None:
        """Note what a command says of the releases."""
        said = self("release", *words, "--store", self.store)
        self.answers += [json.loads(json.dumps(said).replace(self.root, ""))]

    def look(self, place: str) -> None:
        """Open a build or a release in the studio: what it counts, lists and shows."""
        with contextlib.closing(Studio(place, STAGES)) as studio:
            studio.start()
            now = studio.opened
            now.preparation.wait()
            assert now.preparation.state == "ready", now.preparation.fault
            rows = now.catalog.rows(now.catalog.positions(Filters(), 0, 60))
            thumbs = [now.pictures.thumb(row, 160) for row in rows if row["kept"]]
            found = now.catalog.positions(Filters(words="日落"), 0, 60)
            assert thumbs
            assert found
            self.answers.append([studio.facets(Filters())["facets"], found, len(rows), thumbs])

    def newest(self) -> Manifest:
        return open_manifest(self.latest, read_url)[1]

    def steps(self, folder: Path, weeks: int) -> Iterator[str]:
        """Run one week or two; folder: for what goes to a disk in any case. Yields each step's name when it is done."""
        week = "2026-01-05"
        self.show("2026-01-05", 8)
        assert self("plan", f"{self.root}/2026-01-05.yaml", "--store", self.store)["sources"]
        yield "plan"
        self.build("2026-01-05")
        yield "week 1"
        assert self("status", f"{self.root}/2026-01-05")["published"]
        assert self("verify", f"{self.root}/2026-01-05")["ok"]
        yield "look"
        if weeks == 2:
            week = "2026-01-12"
            self.show(week, 10)
            self.build(week)
            yield "week 2"
            self("diff", f"{self.root}/2026-01-05", f"{self.root}/{week}")
            self("report", f"{self.root}/{week}", "--baseline", f"{self.root}/2026-01-05")
            self.ask("diff", "weekly")
            self.ask("diff", "weekly", "1", "2")
        a_key = wenlan.open(self.latest).samples(columns=["key", "image_url"]).sort_values("image_url").key.iloc[0]
        assert self("explain", f"{self.root}/2026-01-05", a_key)
        shown = self("release", "show", "weekly", "--store", self.store)
        self.answers += [
            {name: shown[name] for name in ("release", "samples", "shards", "content_digest", "detectors")}
        ]
        self.ask("show", "weekly", str(weeks), "--urls", "train")
        self.look(f"{self.root}/{week}")
        if weeks == 2:
            self("report", "--index", self.root)
            self("publish", f"{self.root}/{week}")
            self("export", self.latest, "--to", "csv", "--out", str(folder / "csv"))
            self.look(self.latest)
            self("try", f"{self.root}/{week}.yaml", "--on", f"{self.root}/{week}", "--out", str(folder / "trial"))
            draft = ("--contact", "owner@example.org", "--out", str(folder / "draft.yaml"))
            self("init", "--from", f"{self.root}/photos-2026-01-05", *draft)
        self("release", "copy", "weekly", "--store", self.store, "--out", f"{self.root}/copy")
        assert self("verify", f"{self.root}/copy")["ok"]
        yield "use"
        self("forget", "--store", self.store, "--item", a_key)
        yield "forget"
        self("release", "rollback", "weekly", "1", "--store", self.store)
        yield "rollback"
        self("gc", "--store", self.store, "--keep-releases", "2")
        if weeks == 2:
            self("regions", "stats", "--store", self.store)
            self("regions", "prune", "--store", self.store, "--before", "2020-01-01")
        assert self("verify", self.latest, "--store", self.store)["ok"]
        assert len(self("release", "list", "weekly", "--store", self.store)["datasets"]["weekly"]) == 2
        yield "gc"


@pytest.fixture(scope="module")
def ray() -> Iterator[Path]:
    """A Ray in this process, whose workers ask what this process asks; the folder of its session.

    It must begin after the server.
    """
    import ray

    start_ray(ray, num_cpus=1, include_dashboard=False, logging_level="ERROR")
    yield Path(ray._private.worker._global_node.get_session_dir_path())
    ray.shutdown()


@pytest.mark.parametrize("weeks", [1, pytest.param(2, marks=pytest.mark.drill(60))])
def test_weeks_by_the_commands_are_those_of_a_disk(
    remote: Remote, request: pytest.FixtureRequest, synthetic: Any, tmp_path: Path, capfd: Any, weeks: int
) -> None:
    session = request.getfixturevalue("ray") if weeks == 2 else tmp_path  # one week has no pass that needs Ray
    there, here = Drive(f"{remote.url}/weeks", synthetic.encode), Drive(str(tmp_path / "weeks"), synthetic.encode)
    local = here.steps(tmp_path / "here", weeks)
    remote.proxy.requests.clear()  # of the test before
    counts, lists = {}, {}
    for step in there.steps(tmp_path / "there", weeks):
        assert next(local) == step
        if step not in ("plan", "look"):
            mine, theirs = there.newest(), here.newest()
            assert mine.release == theirs.release
            assert [s.tar for s in mine.shards] == [s.tar for s in theirs.shards], step
        counts[step] = Counter(request.operation for request in remote.proxy.requests)
        lists[step] = remote.proxy.lists(), remote.proxy.lists("LIST ALL")
        tars = Counter(r.path for r in remote.proxy.requests if r.operation == "GET" and r.path.endswith(".tar"))
        of_shards = {path: times for path, times in tars.items() if "/shards/" in path}
        if step in ("week 1", "week 2"):
            assert not of_shards, "a build is published without reading what it has packed"
        elif step == "look":
            assert set(of_shards.values()) == {1}, "to verify a dataset reads each file of it once"
            remote.proxy.fail("503", share=0.01)  # to the end
        remote.proxy.requests.clear()
    assert next(local, None) is None
    assert there.answers == here.answers
    assert len(there.answers) == (3 if weeks == 1 else 6)
    (tmp_path / "requests.json").write_text(json.dumps({step: [*map(list, counts[step].items())] for step in counts}))
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    _few_listings(lists)
    # `use` reads tables by ranges, through pyarrow and in the studio: their size is compared with the record's first.
    whole = [own["HEAD"] for step, own in counts.items() if step != "use"]
    assert max(whole) <= 100, "what is read whole is not asked for its size first"
    written = [*_objects(remote), *_files(tmp_path), *_files(session)]
    said = "".join([*there.said, *capfd.readouterr()]).encode()
    keys = {remote.server.secret.encode(), remote.server.key.encode()}
    for name, data in [*written, ("what was printed", said)]:
        assert not [key for key in keys if key in data], f"{name} holds a key"
    assert len(written) > 100
    fsspec.filesystem("s3").rm("data/weeks", recursive=True)


def _few_listings(lists: dict[str, tuple[list[str], list[str]]]) -> None:
    """No listing is of a whole bucket, of a build or of STORE; all below a folder is listed to read or to delete it."""
    for step, (one, everything) in lists.items():
        assert not [path for path in (*one, *everything) if path.rstrip("/") == "data"], step
        assert "data/weeks/" not in everything, step
        assert one.count("data/weeks/") <= (step == "use"), "`report --index` is asked to look there"
        wide = re.compile(r"data/weeks/(?:store|[\d-]+)/?")
        assert not [path for path in everything if wide.fullmatch(path)], step
        source = [path for path in everything if path.startswith("data/weeks/photos")]
        others = Counter(path for path in everything if path not in source)
        assert len(source) <= 20, f"{step}: the source's own folder"
        assert others.total() <= 150, (step, others)
        assert len(one) <= 900, (step, Counter(one).most_common(5))


def _objects(remote: Remote) -> Iterator[tuple[str, bytes]]:
    """Every object of the bucket; Parquet files as their rows."""
    client = remote.server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="data"):
        for entry in page.get("Contents", ()):
            data = client.get_object(Bucket="data", Key=entry["Key"])["Body"].read()
            yield entry["Key"], _plain(entry["Key"], data)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a socket of Ray, or what has gone since
            if path.is_file() and not path.is_socket():
                yield str(path), _plain(path.name, path.read_bytes())


def _plain(name: str, data: bytes) -> bytes:
    if name.endswith(".parquet"):
        return repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode() + data
    return data


def built(weeks: Any, root: str, week: str, pictures: list[int]) -> Build:
    """A week's build on S3, up to its report, not published."""
    build = opening.open_build(weeks.spec(pictures), f"{root}/{week}", f"{root}/store", week)
    run_noted(build, *build.stages)
    return build


@pytest.mark.drill(40)
def test_a_build_on_a_gateway_that_knows_no_conditions(
    tmp_path: Path, weeks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """nanio checks signatures, and ignores conditions: one line says that nothing is locked."""
    with s3_server.remote(tmp_path, s3_server.nanio) as gateway:
        build = built(weeks, f"{gateway.url}/builds", "2026-01-05", list(range(6)))
        mine = release.publish(build)
        assert verify(f"{build.out}/shards", store=build.store.url) == []
        local = weeks.build("2026-01-05", list(range(6)))
        assert [shard.tar for shard in release.publish(local).shards] == [shard.tar for shard in mine.shards]
    lines = [record.getMessage() for record in caplog.records if "conditional" in record.getMessage()]
    assert len(lines) == 1


@pytest.mark.parametrize("where", ["spec", "--out", "--store", "BUILD"])
def test_a_key_in_a_url_is_refused_and_repeated_nowhere(tmp_path: Path, where: str) -> None:
    keyed = "s3://AKIDEXAMPLE:wJalr/XUtnFEMI@bucket/x"
    spec = tmp_path / "weekly.yaml"
    spec.write_text(SPEC.replace("path: photos", f"path: {keyed if where == 'spec' else 'photos'}"))
    words = {
        "spec": ["plan", str(spec)],
        "--out": ["build", str(spec), "--out", keyed],
        "--store": ["build", str(spec), "--out", str(tmp_path / "1"), f"--store={keyed}"],
        "BUILD": ["verify", keyed],
    }[where]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert cli.main([*words, "--json"]) == 2
    [line] = err.getvalue().splitlines()
    assert "contains credentials; remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    for secret in ("AKIDEXAMPLE", "XUtnFEMI", "wJalr"):
        assert secret not in out.getvalue() + err.getvalue()
    assert sorted(tmp_path.iterdir()) == [spec]
