"""One batch out of what several threads ask for at the same time.

A GPU needs many windows at once to be busy, and each track brings few. So the threads that listen
to tracks side by side hand in their windows, and one of them (the leader) computes for all that are
there. There is no thread beside the callers': whoever finds nobody computing leads. While one
computes, the next batch gathers by itself; only when nothing is being computed does a leader wait,
for a bounded time, and only for threads that said that they will come (`Batcher.expected`).

On a CPU there is nothing to win: a core that works on one window is busy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reclass_plex.device import run_in_halves
from reclass_plex.encoders import Encoder
from reclass_plex.encoders.windows import check_shape, check_windows
from reclass_plex.errors import ModelError

MOST_WINDOWS = 64  # of a batch: more made no encoder faster, and all of them wait for the last


class _Request:
    """One caller's rows, and what became of them."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.thread = threading.get_ident()
        self.since = time.monotonic()
        self.result: Tensor | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Say whether it was run."""
        return self.result is not None or self.error is not None


class Batcher:
    """A function over rows, (n, ...) -> (n, ...), called by many threads and run by one at a time.

    Rows of several callers join into one batch where they are of one shape and type, `most_rows` at
    most; a caller with more is run in pieces of that. What does not fit into the GPU's memory is
    run in halves, and later batches are no larger than what did fit.

    Results come on the CPU, and on a GPU each batcher computes in a stream of its own: else who
    copies a result, or whose function waits for one of its own, would wait for others' batches.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], *, most_rows: int, wait_seconds: float = 0.0
    ) -> None:
        if most_rows < 1 or not 0 <= wait_seconds < float("inf"):
            raise ValueError(f"batches of {most_rows} rows, gathered for {wait_seconds} s")
        self._function = function
        self._most_rows = most_rows
        self._wait_seconds = wait_seconds
        self._changed = threading.Condition()
        self._line: list[_Request] = []  # in the order of their coming
        self._leading = False
        self._expected: list[int] = []  # threads
        self._stream: torch.cuda.Stream | None = None

    @property
    def most_rows(self) -> int:
        """How many rows a batch has at most: less than at first once memory was short."""
        return self._most_rows

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Say that this thread will probably call soon: a leader waits for it, but not for long."""
        thread = threading.get_ident()
        with self._changed:
            self._expected.append(thread)
        try:
            yield
        finally:
            with self._changed:
                self._expected.remove(thread)
                self._changed.notify_all()

    def __call__(self, rows: Tensor) -> Tensor:
        """Return function(rows) on the CPU, computed together with what others ask for.

        Raises what the function raises for these rows: when a batch of several callers fails for
        its content (ValueError, ModelError), each is run alone. Any other error (a lost GPU) is
        raised in every caller of the batch.
        """
        request = _Request(rows)
        with self._changed:
            self._line.append(request)
            self._changed.notify_all()  # a leader that waits for company
        try:
            self._see_through(request)
            if request.error is not None:
                raise request.error
            assert request.result is not None  # noqa: S101 - done, and no error
            return request.result
        finally:
            # An error's traceback holds this frame: until the next sweep of Python's collector,
            # that circle would keep what is on the GPU.
            request.error = request.result = None

    def _see_through(self, request: _Request) -> None:
        """Wait until the request is done, leading wherever nobody else does."""
        try:
            while True:
                with self._changed:
                    while self._leading and not request.done:
                        self._changed.wait()
                    if request.done:
                        return
                    self._leading = True
                try:
                    self._lead()
                finally:
                    with self._changed:
                        self._leading = False
                        self._changed.notify_all()
        finally:  # a caller that is interrupted takes its rows along
            with self._changed:
                if request in self._line:
                    self._line.remove(request)

    def _lead(self) -> None:
        """Gather one batch and run it."""
        batch: list[_Request] = []
        try:
            with self._changed:
                self._wait_for_company()
                batch += self._next_batch()
            self._run(batch)
        finally:
            with self._changed:  # interrupted: the others' rows go back in line, before the rest
                self._line[:0] = [request for request in batch if not request.done]

    def _wait_for_company(self) -> None:
        until = self._line[0].since + self._wait_seconds
        while sum(len(request.rows) for request in self._line) < self._most_rows:
            coming = set(self._expected) - {request.thread for request in self._line}
            left = until - time.monotonic()
            if not coming or left <= 0:
                return
            self._changed.wait(left)

    def _next_batch(self) -> list[_Request]:
        """Take the oldest request out of the line, and those like it that fit beside it."""
        oldest = self._line[0]
        batch, room = [oldest], self._most_rows - len(oldest.rows)
        for request in self._line[1:]:
            if _alike(request.rows, oldest.rows) and len(request.rows) <= room:
                batch.append(request)
                room -= len(request.rows)
        self._line = [request for request in self._line if request not in batch]
        return batch

    def _run(self, batch: list[_Request]) -> None:
        try:
            results = self._compute([request.rows for request in batch])
        except Exception as error:
            if len(batch) == 1 or not isinstance(error, (ValueError, ModelError)):
                for request in batch:
                    request.error = error
                return
        else:
            start = 0
            for request in batch:
                request.result = results[start : start + len(request.rows)]
                start += len(request.rows)
            return
        for request in batch:
            self._run([request])

    def _compute(self, together: list[Tensor]) -> Tensor:
        with self._own_stream(together[0].device):
            rows = torch.cat(together)
            most = self._most_rows
            parts = [rows[start : start + most] for start in range(0, len(rows), most)]
            # The copy waits for this stream, so that nothing of it is still read when it returns.
            return torch.cat([run_in_halves(self._attempt, part) for part in parts]).cpu()

    @contextmanager
    def _own_stream(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.default_stream(device))  # where callers copy
        with torch.cuda.stream(self._stream):
            yield

    def _attempt(self, rows: Tensor) -> Tensor:
        try:
            return self._function(rows)
        except torch.cuda.OutOfMemoryError:
            self._most_rows = max(1, min(self._most_rows, len(rows) // 2))
            raise


class Batched:
    """An `Encoder` around an encoder: the windows of several threads become one batch.

    One thread computes at a time. Windows are checked before they join, and copied to the GPU by
    their own thread, through pinned memory, while another batch is being computed. In one respect
    it differs from other encoders: `encode` returns its states on the CPU.
    """

    def __init__(
        self, encoder: Encoder, *, most_windows: int = MOST_WINDOWS, wait_seconds: float = 0.0
    ) -> None:
        self._encoder = encoder
        self._encode = Batcher(encoder.encode, most_rows=most_windows, wait_seconds=wait_seconds)
        self.expected = self._encode.expected

    @property
    def encoder(self) -> Encoder:
        """The encoder itself: what it has beyond the protocol is for one thread at a time."""
        return self._encoder

    @property
    def name(self) -> str:
        """What the weights are called."""
        return self._encoder.name

    @property
    def licence(self) -> str:
        """The licence of the weights."""
        return self._encoder.licence

    @property
    def rate(self) -> int:
        """Hz, of the samples that `cut` and `encode` take."""
        return self._encoder.rate

    @property
    def window_seconds(self) -> float:
        """How long a window is."""
        return self._encoder.window_seconds

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return self._encoder.dims

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden layers that `encode` gives."""
        return self._encoder.layers

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._encoder.device

    @property
    def most_windows(self) -> int:
        """How many windows a batch has at most."""
        return self._encode.most_rows

    def cut(self, samples: Tensor) -> Tensor:
        """Return the windows of mono `samples`, as the encoder cuts them."""
        return self._encoder.cut(samples)

    def encode(self, windows: Tensor) -> Tensor:
        """Return what the encoder makes of `windows`, on the CPU; thread-safe.

        Raises as the encoder does.
        """
        if windows.is_cuda:  # their values: with the batch, as looking would wait for another one
            check_shape(windows, 1)
        else:
            check_windows(windows, 1)
        return self._encode(to_device(windows, self.device))


def to_device(tensor: Tensor, device: str) -> Tensor:
    """Return a copy on `device`, without waiting for the GPU; the tensor itself if it is there."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def share_encoder(
    encoder: Encoder, *, most_windows: int = MOST_WINDOWS, wait_seconds: float = 0.0
) -> Encoder:
    """Return what several threads best use of an encoder: on a CPU, itself."""
    if torch.device(encoder.device).type == "cpu":
        return encoder
    return Batched(encoder, most_windows=most_windows, wait_seconds=wait_seconds)


def _alike(rows: Tensor, others: Tensor) -> bool:
    same = rows.dtype == others.dtype and rows.device == others.device
    return same and rows.shape[1:] == others.shape[1:]
