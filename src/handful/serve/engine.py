"""One backbone, many heads: images wait for each other in batches, and fail alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from handful.backbones import Backbone
from handful.data.images import decode_bytes
from handful.errors import DataError, HandfulError
from handful.estimator import FewShotClassifier
from handful.estimator.confidence import tell

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
        Classifiers in the making at a time; images of one, and bytes of its files.
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
    """More images wait than may."""


@dataclass(frozen=True)
class Told:
    """What a classifier says of an image: probabilities `[C]`; unknown is None if it can't tell."""

    probabilities: Tensor
    unknown: bool | None


@dataclass(frozen=True)
class Answer:
    """Raw features `[E]` of an image, and what each classifier says of it."""

    features: Tensor | None
    told: dict[str, Told]


@dataclass
class Waiting:
    """An image on its way: pixels `[3, H, W]`, and which models look at it; none of them: features alone."""

    pixels: Tensor
    models: Collection[str]
    answer: asyncio.Future[Answer] = field(repr=False)


def unknown_of(clf: FewShotClassifier) -> Literal["auto"] | None:
    """Say how a classifier tells unknown images: as calibrated, or not at all."""
    return "auto" if clf.calibration_ and clf.calibration_.can_tell_unknown else None


class Engine:
    """Runs the backbone for whoever asks, one batch at a time.

    A batch is whatever waits when the backbone is free: a lone image never waits for company.
    `batches` counts them, `waiting` the images that are somewhere in here.
    """

    def __init__(
        self, backbone: Backbone, models: Mapping[str, FewShotClassifier], limits: Limits | None = None
    ) -> None:
        self.backbone, self.models, self.limits = backbone, dict(models), limits or Limits()
        self.waiting = 0
        self.on_batch: Callable[[int], None] = lambda size: None
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._decoders = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "decode")
        self._tower = ThreadPoolExecutor(1, "backbone")
        """All that runs the backbone runs in this one thread: a tower that is tapped serves one caller."""

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
            for pool in (self._decoders, self._tower):
                pool.shutdown(wait=False, cancel_futures=True)

    async def tell(self, data: bytes, name: str, models: Collection[str] = ()) -> Answer:
        """Decode an image file, and let models tell it; with none, give its features.

        Raises
        ------
        Busy
            Too many wait already.
        DataError
            It is no image, or not one within the limits.
        """
        if self.waiting >= self.limits.waiting:
            raise Busy
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, self.read, data, name)
            item = Waiting(pixels, models, loop.create_future())
            self._queue.put_nowait(item)
            return await item.answer
        finally:
            self.waiting -= 1

    async def in_tower(self, function: Callable[[], T]) -> T:
        """Call what needs the backbone, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._tower, function)

    async def in_decoder(self, function: Callable[[], T]) -> T:
        """Call what only decodes or writes."""
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
        """Take what waits, compute, hand out; for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.limits.batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [item for item in batch if not item.answer.done()]  # whose client is still there
            if not batch:
                continue
            self.on_batch(len(batch))
            answers = await loop.run_in_executor(self._tower, self.compute, batch)
            for item, answer in zip(batch, answers, strict=True):
                if item.answer.done():
                    continue
                if isinstance(answer, Answer):
                    item.answer.set_result(answer)
                else:
                    item.answer.set_exception(answer)

    def compute(self, batch: Sequence[Waiting]) -> list[Answer | Exception]:
        """Answer a batch; if that fails, each image on its own, so that one harms no other."""
        try:
            return list(self._compute(batch))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self.compute([item])[0] for item in batch]

    @torch.no_grad()
    def _compute(self, batch: Sequence[Waiting]) -> list[Answer]:
        pixels = torch.stack([item.pixels for item in batch])
        heads = {name: clf.fitted_head().needs for name, clf in self.models.items()}
        plain = [not item.models or any(heads[name] == "features" for name in item.models) for item in batch]
        features = self.backbone.encode_image(pixels).cpu() if any(plain) else None
        told: list[dict[str, Told]] = [{} for _ in batch]
        for name, needs in heads.items():
            rows = [row for row, item in enumerate(batch) if name in item.models]
            if rows:
                read = pixels if needs == "pixels" else features
                assert read is not None
                clf = self.models[name]
                probabilities, unknown = tell(clf, read[rows], way := unknown_of(clf))
                if not torch.isfinite(probabilities).all():
                    raise HandfulError(f"{name} gave no finite probabilities.")
                for row, own, strange in zip(rows, probabilities, unknown.tolist(), strict=True):
                    told[row][name] = Told(own, strange if way else None)
        return [
            Answer(features[row] if features is not None and plain[row] else None, told[row])
            for row in range(len(batch))
        ]
