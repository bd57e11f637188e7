"""One backbone, many heads: images go through the backbone in batches, and fail alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.data.images import decode_bytes
from handful.errors import DataError, HandfulError
from handful.estimator import FewShotClassifier
from handful.serve.classifiers import Prediction, predict

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds of what a client may ask for.

    Attributes
    ----------
    body_bytes
        Of a request.
    images
        In a request.
    pixels, side
        Of an image, as its header says: at most in all, and at least along a side.
    waiting
        Images that are decoded, wait or are computed at a time; more are sent away with 429.
    batch
        Images that go through the backbone together.
    seconds
        Until a request is given up.
    drafts, draft_images, draft_bytes
        Drafts at a time; images of one, and bytes of its files.
    """

    body_bytes: int = 32 * 2**20
    images: int = 64
    pixels: int = 40_000_000
    side: int = 4
    waiting: int = 256
    batch: int = 32
    seconds: float = 30.0
    drafts: int = 32
    draft_images: int = 2000
    draft_bytes: int = 512 * 2**20


class Busy(Exception):
    """As many images are on their way as the limits allow."""


@dataclass(frozen=True)
class Answer:
    """Raw features `[E]` of an image where they were computed, and the prediction of each model."""

    features: Tensor | None
    predicted: dict[str, Prediction]


@dataclass
class QueuedImage:
    """Pixels `[3, H, W]`, and the models that classify them; none of them: features alone."""

    pixels: Tensor
    models: Collection[str]
    answer: asyncio.Future[Answer] = field(repr=False)


class Engine:
    """Runs the backbone and the models for all requests, one batch at a time.

    A batch is whatever waits when the backbone is free: a lone image never waits for others.

    Attributes
    ----------
    waiting
        Images that are decoded, wait or are computed now.
    on_batch
        Called with the size of each batch.
    """

    def __init__(
        self, backbone: Backbone, models: Mapping[str, FewShotClassifier], limits: Limits | None = None
    ) -> None:
        self.backbone, self.models, self.limits = backbone, dict(models), limits or Limits()
        self.waiting = 0
        self.on_batch: Callable[[int], None] = lambda size: None
        self._queue: asyncio.Queue[QueuedImage] = asyncio.Queue()
        self._decoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "decode")
        # one thread for all that runs the backbone: a tower with hooks serves one caller at a time
        self._backbone_thread = ThreadPoolExecutor(1, "backbone")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while inside."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            while not self._queue.empty():
                self._queue.get_nowait().answer.cancel()
            for pool in (self._decoders, self._backbone_thread):
                pool.shutdown(wait=False, cancel_futures=True)

    async def classify(self, data: bytes | DataError, name: str, models: Collection[str] = ()) -> Answer:
        """Decode an image file, and classify it by these models; without any, give its features.

        Raises
        ------
        Busy
            Too many images are on their way already.
        DataError
            It is no image, or not one within the limits; or `data` itself, where a request brought none.
        """
        if isinstance(data, DataError):
            raise data
        if self.waiting >= self.limits.waiting:
            raise Busy
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, self.read, data, name)
            item = QueuedImage(pixels, models, loop.create_future())
            self._queue.put_nowait(item)
            return await item.answer
        finally:
            self.waiting -= 1

    async def in_backbone_thread(self, function: Callable[[], T]) -> T:
        """Call a function that needs the backbone, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._backbone_thread, function)

    async def in_decoder_thread(self, function: Callable[[], T]) -> T:
        """Call a function that only decodes or writes."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)

    def read(self, data: bytes, name: str) -> Tensor:
        """Turn an image file into pixels `[3, H, W]`."""
        image = decode_bytes(data, name, self.limits.pixels)
        if min(image.size) < self.limits.side:
            raise DataError(
                f"{name}: {image.width} x {image.height} pixels, expected at least {self.limits.side} a side"
            )
        return self.backbone.preprocess(image)

    async def _work(self) -> None:
        """Take what waits, compute it, hand out the answers; without end."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.limits.batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [item for item in batch if not item.answer.done()]  # whose client is still there
            if not batch:
                continue
            self.on_batch(len(batch))
            answers = await loop.run_in_executor(self._backbone_thread, self.compute, batch)
            for item, answer in zip(batch, answers, strict=True):
                if item.answer.done():
                    continue
                if isinstance(answer, Answer):
                    item.answer.set_result(answer)
                else:
                    item.answer.set_exception(answer)

    def compute(self, batch: Sequence[QueuedImage]) -> list[Answer | Exception]:
        """Answer a batch; if that fails, each image on its own, so that one harms no other."""
        try:
            return list(self._compute(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self.compute([item])[0] for item in batch]

    @torch.no_grad()
    def _compute(self, batch: Sequence[QueuedImage]) -> list[Answer]:
        pixels = torch.stack([item.pixels for item in batch])
        needs = {name: clf.head_.needs for name, clf in self.models.items()}
        on_features = [
            not item.models or any(needs[name] != "pixels" for name in item.models) for item in batch
        ]
        read = {"pixels": pixels}
        if any(on_features):
            features, hidden = self.backbone.encode_image_hidden(pixels)
            read |= {"features": features.cpu()} | ({} if hidden is None else {"hidden": hidden.cpu()})
        predicted: list[dict[str, Prediction]] = [{} for _ in batch]
        for name, clf in self.models.items():
            rows = [row for row, item in enumerate(batch) if name in item.models]
            if rows:
                inputs = read.get(needs[name])
                if inputs is None:
                    raise HandfulError(f"{name} reads hidden vectors, and this backbone gives none.")
                for row, prediction in zip(rows, predict(name, clf, inputs[rows]), strict=True):
                    predicted[row][name] = prediction
        return [
            Answer(read["features"][row] if on_features[row] else None, predicted[row])
            for row in range(len(batch))
        ]
