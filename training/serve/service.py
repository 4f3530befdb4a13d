"""The path of an input through the server: admitted, decoded in a thread, gathered into a batch, computed, answered.

Nothing here blocks the event loop. A request that is not answered within its time, or whose client has left, is given
up: what of it still waits is not computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from training.data.transforms import UnreadableImage, decode, sides
from training.outputs.checkpoint import Checkpoint
from training.serve.batching import BatchingModel, Kind
from training.serve.inputs import too_many
from training.serve.metrics import Metrics
from training.serve.options import MOST_PICTURES, Options
from training.serve.refusals import bad_request, overloaded
from training.serve.towers import Features, InputReader, PreparedPicture, Tokens, Towers
from training.weights.load import Boxes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EmbeddedInputs:
    """Features [N, D] of a request's inputs, and how many tokens its texts had, marks included."""

    rows_ND: Features
    tokens: int

    @property
    def row_D(self) -> Features:
        """The feature [D] of the one input."""
        row_D: Features = self.rows_ND[0]
        return row_D


class _BoundedPool:
    """Threads for one kind of work, with a bound on what waits for them."""

    def __init__(self, kind: str, threads: int, most: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=f"wenlan-{kind}")
        self._kind, self._most, self._waiting = kind, most, 0

    @contextmanager
    def reserve(self) -> Iterator[ThreadPoolExecutor]:
        """Reserve a thread for one piece of work. Raises Refused where too much waits."""
        if self._waiting >= self._most:
            text = f"{self._waiting} {self._kind} requests are waiting already; try again later"
            raise overloaded("queue_full", text, 2)
        self._waiting += 1
        try:
            yield self.pool
        finally:
            self._waiting -= 1


class Service:
    """A checkpoint that answers: its reader, its model thread, and the threads that decode."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        towers: Towers,
        options: Options,
        threads: int = 1,
        boxes_of: Callable[[bytes], Boxes] | None = None,
    ) -> None:
        self.name, self.checkpoint, self.options = name, checkpoint, options
        self.metrics = Metrics()
        self.reader = InputReader(checkpoint, options.pixels, boxes_of)
        self.model = BatchingModel(towers, options, self.metrics, threads)
        self._decoders = ThreadPoolExecutor(options.decoders, thread_name_prefix="wenlan-decode")
        self._searchers = _BoundedPool("search", options.searchers, options.waiting_searches)
        self._fetchers = _BoundedPool("picture", options.fetchers, options.waiting_searches)
        self.metrics.watch(
            {"image": lambda: self.model.depth("image"), "text": lambda: self.model.depth("text")},
            lambda: self.model.state().alive,
        )
        self.started = time.time()

    @property
    def width(self) -> int:
        return int(self.checkpoint.config.moco.feature_dim)

    def start(self) -> None:
        self.model.start()

    def close(self) -> None:
        """Stop after the current batch."""
        self.model.stop()
        for pool in (self._decoders, self._searchers.pool, self._fetchers.pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run_decoder(self, work: Callable[[], T]) -> T:
        """Run a blocking call in a decoding thread, within a request's time limit. Raises Refused."""
        return await self._with_timeout(asyncio.get_running_loop().run_in_executor(self._decoders, work))

    async def run_search(self, work: Callable[[], T]) -> T:
        """Run a blocking call in a thread that reads indexes. Raises Refused, also if too many wait."""
        with self._searchers.reserve() as pool:
            return await self._with_timeout(asyncio.get_running_loop().run_in_executor(pool, work))

    async def run_fetch(self, work: Callable[[], T]) -> T:
        """Run a blocking call in a thread for stored pictures, so that slow storage does not delay searches."""
        with self._fetchers.reserve() as pool:
            return await self._with_timeout(asyncio.get_running_loop().run_in_executor(pool, work))

    async def texts(self, texts: Sequence[str], param: str = "input") -> EmbeddedInputs:
        """Features of texts. Raises Refused."""
        if len(texts) > self.options.texts:
            raise too_many(len(texts), self.options.texts, "texts", param)
        for number, text in enumerate(texts):
            if not text.strip():
                raise bad_request("empty", "the text is empty", _param_name(param, number, len(texts)))
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise bad_request("unicode", "unpaired surrogate in a text", _param_name(param, number, len(texts)))
        with self.model.admit("text", len(texts)):
            tokens = await self.run_decoder(lambda: [self.reader.tokens(text) for text in texts])
            rows_ND = await self._compute("text", tokens)
        return EmbeddedInputs(rows_ND, sum(map(len, tokens)))

    async def pictures(self, contents: Sequence[bytes], param: str = "input") -> EmbeddedInputs:
        """Features of pictures from the bytes of their files. Raises Refused."""
        if len(contents) > MOST_PICTURES:
            raise too_many(len(contents), MOST_PICTURES, "pictures", param)
        with self.model.admit("image", len(contents)):
            opened = [
                self._decode(lambda c=content: self.reader.picture(c), _param_name(param, number, len(contents)))  # type: ignore[misc]
                for number, content in enumerate(contents)
            ]
            rows_ND = await self._compute("image", await asyncio.gather(*opened))
        return EmbeddedInputs(rows_ND, 0)

    async def region(self, content: bytes, box: Sequence[float]) -> Features:
        """Feature [D] of one box of a picture. Raises Refused."""
        width, height = await self.sides(content)
        x1, y1, x2, y2 = box
        if not (0 <= x1 < x2 <= width + 0.5 and 0 <= y1 < y2 <= height + 0.5):
            text = f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}] is not a box within the picture's {width} x {height} pixels"
            raise bad_request("region", text, "region")
        with self.model.admit("image", 2):
            opened = await self._decode(lambda: self.reader.region(content, box), "region")
            rows_ND = await self._compute("image", opened)
        mean_D = rows_ND.mean(axis=0)
        feature_D: Features = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
        return feature_D

    async def readable_sides(self, content: bytes) -> tuple[int, int]:
        """(width, height) of a picture, decoded to see that it can be. Raises Refused."""

        def decoded() -> tuple[int, int]:
            image = decode(content, self.options.pixels)
            return int(image.shape[2]), int(image.shape[1])

        return await self._decode(decoded, "files")

    async def regions(self, content: bytes) -> tuple[int, int, list[list[float]]]:
        """Width, height, and the regions that the tower uses. Raises Refused."""
        return await self._decode(lambda: self.reader.boxes(content), "image")

    async def sides(self, content: bytes) -> tuple[int, int]:
        """(width, height) of a picture. Raises Refused."""
        return await self._decode(lambda: sides(content, self.options.pixels), "image")

    async def probe(self, picture: PreparedPicture, tokens: Tokens) -> tuple[Features, Features]:
        """Both towers' rows [D] of these inputs, computed ahead of all waiting inputs."""
        [image] = self.model.submit("image", [picture], first=True)
        [text] = self.model.submit("text", [tokens], first=True)
        try:
            return await image, await text
        finally:
            image.cancel()
            text.cancel()

    async def _decode(self, work: Callable[[], T], param: str) -> T:
        try:
            return await self.run_decoder(work)
        except UnreadableImage as e:
            raise bad_request("unreadable_image", f"the picture cannot be read: {e}", param) from None

    async def _compute(self, kind: Kind, inputs: Sequence[PreparedPicture | Tokens]) -> Features:
        if not inputs:
            return np.zeros((0, self.width), np.float32)
        rows: list[Features] = await self._with_timeout(asyncio.gather(*self.model.submit(kind, inputs)))
        return np.stack(rows)

    async def _with_timeout(self, waiting: asyncio.Future[T]) -> T:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the result, and a request
        # whose client has left would go on.
        try:
            done, _ = await asyncio.wait([waiting], timeout=self.options.request_s)
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        if not done:
            waiting.cancel()
            text = f"no answer within {self.options.request_s:g} s; the server is overloaded"
            raise overloaded("timeout", text, 5)
        return waiting.result()


def _param_name(param: str, number: int, count: int) -> str:
    return param if count == 1 else f"{param}[{number}]"
