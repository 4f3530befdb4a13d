"""img2dataset's downloader: what it is loaded with. Downloads from real servers: stages/test_fetch.py."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from pipeline.web.downloader import download


def test_the_downloader_comes_without_what_its_package_imports():
    code = (
        "import sys; from pipeline.web.downloader import downloader_class; "
        "assert downloader_class().__name__ == 'Downloader'; "
        "print([n for n in ('torch', 'pandas', 'cv2', 'albumentations', 'wandb', 'img2dataset') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Opener(urllib.request.OpenerDirector):
    """What is asked for is its own address; a part of it fails. Counts what is on its way, and not yet accepted."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.open_now = self.most_open = self.waiting = self.most_waiting = 0

    def open(self, fullurl, data=None, timeout=None):
        with self._lock:
            self.open_now += 1
            self.waiting += 1
            self.most_open, self.most_waiting = max(self.most_open, self.open_now), max(self.most_waiting, self.waiting)
        try:
            time.sleep(0.002)  # so that all threads ask at the same time
            url = fullurl.full_url
            if url.endswith("7"):
                raise OSError(f"no {url}")
            return io.BytesIO(url.encode())
        finally:
            with self._lock:
                self.open_now -= 1

    def accepted(self) -> None:
        with self._lock:
            self.waiting -= 1


@pytest.fixture
def opener():
    before, own = vars(urllib.request)["_opener"], Opener()
    urllib.request.install_opener(own)
    yield own
    urllib.request.install_opener(before)


@pytest.mark.parametrize(("count", "threads"), [(0, 3), (1, 16), (300, 1), (300, 5)])
def test_every_url_arrives_once_and_few_wait_in_memory(opener, count, threads):
    urls, found = [f"http://a.cn/{n}" for n in range(count)], []

    def accept(url, data, error):
        opener.accepted()
        found.append((url, data, error))

    stats = download(urls, accept, threads=threads, retries=0, timeout_s=5)
    expected = [(u, None, f"no {u}") if u.endswith("7") else (u, u.encode(), "") for u in urls]
    assert sorted(found) == sorted(expected)
    assert opener.most_open <= threads
    assert opener.most_waiting <= 2 * threads
    failed = sum(u.endswith("7") for u in urls)
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (count, count - failed, failed)


def test_no_thread_is_left_behind(opener):
    before = set(threading.enumerate())
    download([f"http://a.cn/{n}" for n in range(50)], lambda *_: None, threads=4, retries=0, timeout_s=5)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
