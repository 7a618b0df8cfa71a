"""The front's half of inference: queues, and the worker processes that answer them. Lives in one asyncio loop.

Requests wait by model and version. Whenever a worker is free, what waits is its next batch; nothing waits for a timer.
A worker that dies or hangs is replaced, and what it had not answered goes to another one.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import math
import queue as queues
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from serve import continuations, wire
from serve.calls import Answer, Batch, Cache, Call, Served, key_of
from serve.errors import RequestError, late
from serve.manifest import Bundle, BundleError, Trust
from serve.memory import resident
from serve.processes import Worker, reap
from serve.runtime import cores
from serve.session import check_engine
from serve.stock import Stock
from serve.writing import GENERATOR, MOST, Part

__all__ = ["Answer", "Call", "Fleet"]

log = logging.getLogger("serve")

MOST_ATTEMPTS = 2  # workers that may die over one request, or over opening one bundle
REMEMBERED = 256  # requests over which workers died that are known again
WORTH_SHARING = 0.001  # seconds of work; less than this is not split among free workers, whose waking costs more
SWEEP = 0.05  # seconds between two looks at deadlines and hung workers
WORTH_WAITING = 0.8  # share of a call's time; an answer in its last moment is late when it reaches its reader
YOUNG = 5.0  # seconds; a worker that dies sooner makes the next one start later
LONGEST_PAUSE = 10.0  # seconds before a worker is started again, at most
START_LIMIT = 60.0  # seconds for a worker to start


class Fleet(Stock):
    """A store whose models compute in worker processes; see `Shelf` for its attributes.

    Attributes:
        observers: called once per finished call, after its owner, with the call and the answer.
        batches: called once per batch that a worker ran, with the model's name, the version and the rows.
    """

    models: dict[str, dict[str, Served]]

    def __init__(
        self,
        folder: str | Path,
        *,
        precision: str | None = None,
        workers: int | None = None,
        threads: int | None = None,
        max_batch: int = 1024,
        engine: str = "onnxruntime",
        queue: int = 2048,
        queue_bytes: int = 128 * 2**20,
        batch_seconds: float = 0.05,
        ahead: int = 1,
        texts: int = MOST,
        generator: str = GENERATOR,
        timeout: float = 30.0,
        hang: float = 20.0,
        load_limit: float = 300.0,
        memory: int | None = None,
        cache: int = 0,
        watch: float = 1.0,
        traffic: Any = None,
        trust: Trust = (),
    ) -> None:
        """Remember the settings; `start` starts the workers.

        Args:
            folder: the store.
            precision: stored form to serve; each bundle's own default if None.
            workers: processes that compute; one per core if None.
            threads: threads of the engine in each of them; the cores divided among the workers if None.
            max_batch: most rows of one request, and of one run.
            engine: what computes, as for `serve.runtime.Model`.
            queue: most calls that wait for one version; more are refused.
            queue_bytes: most bytes that wait for one version.
            batch_seconds: how long one batch may keep a worker, as far as can be foreseen.
            ahead: batches a worker is given before it has answered the first.
            texts: texts that a worker writes at a time, each a token a step.
            generator: "module:name" of what writes them.
            timeout: seconds that a call from another thread may take when it gives no deadline.
            hang: seconds after which a worker that has not answered a batch is killed.
            load_limit: seconds after which a worker that has not opened a bundle is killed.
            memory: bytes that models may take in all workers together; no limit, and all are loaded at once, if None.
            cache: bytes of answers to keep for requests that come again; 0 keeps none.
            watch: seconds between two looks at the folder; 0 never looks.
            traffic: decides between versions when a request names none; the latest answers if None.
            trust: public keys, of which one must have signed a bundle; see `serve.manifest.load_trust`.

        Raises:
            FileNotFoundError: no such folder.
            BundleError: the folder is itself a bundle.
            ValueError: no such engine, or a number that is not above 0.
        """
        super().__init__(folder, traffic=traffic, trust=trust)
        check_engine(engine)
        count = cores() if workers is None else workers
        for name, value in (
            ("workers", count),
            ("queue", queue),
            ("ahead", ahead),
            ("max_batch", max_batch),
            ("texts", texts),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.count = count
        self.threads = threads or max(1, cores() // count)
        self.max_batch = max_batch
        self.memory = memory
        self.observers: list[Callable[[Call, Answer], None]] = []
        self.batches: list[Callable[[str, str, int], None]] = []
        self._options: dict[str, Any] = dict(
            precision=precision,
            threads=self.threads,
            max_batch=max_batch,
            engine=engine,
            most_texts=texts,
            generator=generator,
        )
        self._queue_limit, self._bytes_limit = queue, queue_bytes
        self._texts = texts
        self._batch_seconds, self._ahead, self._timeout = batch_seconds, ahead, timeout
        self._hang, self._load_limit, self._watch_seconds = hang, load_limit, watch
        self._cache = Cache(cache) if cache else None
        self._workers: list[Worker] = []
        self._restarts = [0] * count
        self._early_deaths = [0] * count
        self._waiting: dict[int, Served] = {}  # by slot, in turn
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task] = set()
        self._scheduled = False
        self._alone: Worker | None = None  # has the only call there is, which is a short one
        self._looks = cores() > 1
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._deadly: OrderedDict[tuple, None] = OrderedDict()

    @property
    def ready(self) -> bool:
        """Whether a model can answer, workers do not die one after another, and the server is not stopping."""
        return super().ready and any(deaths < 2 for deaths in self._early_deaths)

    async def start(self) -> None:
        """Start the workers, and return when every version of the store is served or refused.

        Raises:
            OSError: workers do not start.
        """
        self.loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self.loop.create_future()
        for number in range(self.count):
            self._employ(number)
        scan = self._spawn(self._scan(settled=True))
        try:
            await asyncio.wait_for(asyncio.shield(self._started), START_LIMIT)
            await scan
        except TimeoutError:
            await self.stop(0)
            raise OSError(f"no worker process started within {START_LIMIT:g} seconds; see the log") from None
        except OSError:
            await self.stop(0)
            raise
        if self._watch_seconds:
            self._spawn(self._watch(self._watch_seconds))

    async def stop(self, drain: float = 0.0) -> None:
        """Let the calls under way finish for so many seconds, then end the workers."""
        self.draining = True
        end = time.monotonic() + drain
        while time.monotonic() < end and (self._waiting or self._busy()):
            await asyncio.sleep(0.005)
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        error = _stopping()
        for served in list(self._waiting.values()):
            for call in (*served.alone, *served.queue, *served.prompts):
                self._finish(call, Answer.of(error))
        self._waiting.clear()
        self.interrupt()
        for worker in self._workers:
            for batch in worker.batches:
                for call in batch.calls:
                    self._finish(call, Answer.of(error))
            worker.batches.clear()
            worker.close()
        if self._workers:
            await self.loop.run_in_executor(None, reap, [worker.process for worker in self._workers])
        await asyncio.sleep(0)

    def interrupt(self) -> bool:
        """End the texts that are being written or wait for it, because the server stops; whether there were any."""
        texts = [(worker, number) for worker in self._workers for number in worker.texts]
        waiting = [call for served in self._waiting.values() for call in served.prompts]
        for call in waiting:  # found to be finished when their turn comes
            self._finish(call, Answer.of(_stopping()))
        for worker, number in texts:
            self._leave(worker, number, Answer.of(_stopping()))
        return bool(texts or waiting)

    def _busy(self) -> bool:
        return any(worker.batches or worker.texts for worker in self._workers)

    # calls

    def submit(self, call: Call, shadow: str | None = None) -> None:
        """Queue a call; returns at once. Only for the loop's thread.

        Args:
            call: what to answer; its `done` is called later, never from here.
            shadow: another version that gets a copy once the call is answered, and what it says is compared.

        Raises:
            RequestError: 404, no such model or version; 503, it is refused, too many calls wait for it, or they would
                be answered after the deadline.
        """
        try:
            served = self.models[call.model][call.version]
        except KeyError:
            raise self._absent(call.model, call.version) from None
        call.started = served.used = now = time.monotonic()
        if self._stopped:
            raise _stopping()
        writes = served.writes(call.protocol)
        if writes:
            continuations.check(call.protocol, served.manifest)
        elif shadow is not None:  # of two continuations nothing is compared
            self._accompany(call, shadow)
        if self._deadly and key_of(served, call) in self._deadly:
            raise _crashed(call)
        if self._cache is not None and not writes:
            key = key_of(served, call)
            known = self._cache.get(key)
            if known is not None:
                self.loop.call_soon(self._finish, call, known)
                return
        if call.deadline <= now:
            raise late()
        queue = served.prompts if writes else served.queue
        wait = (served.span / self._texts if writes else served.pace) * len(queue) / self.count
        size = len(call.body)
        if (
            len(queue) >= self._queue_limit
            or served.queued + size > max(self._bytes_limit, size)
            or wait > WORTH_WAITING * (call.deadline - now)
        ):
            message = f"{served.waiting} requests wait for model {call.model!r} already; try again later"
            raise RequestError("overloaded", message, 503, {"Retry-After": str(max(1, math.ceil(wait)))})
        queue.append(call)
        served.queued += size
        self._awaken(served)

    def ask(
        self, name: str, version: str, body: bytes, header_length: int | None, deadline: float | None = None
    ) -> Answer:
        """Submit a v2 request from another thread and wait for the answer."""
        self._not_in_loop()
        answered: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        deadline = time.monotonic() + self._timeout if deadline is None else deadline
        call = Call(name, version, body, header_length, "v2", deadline, answered.set_result)

        def submit() -> None:
            try:
                self.submit(call)
            except RequestError as error:
                call.finished = True
                answered.set_result(Answer.of(error))

        try:
            self.loop.call_soon_threadsafe(submit)
        except RuntimeError:  # the loop is closed
            return Answer.of(_stopping())
        try:
            return answered.result(max(0.0, deadline - time.monotonic()) + 5)
        except TimeoutError:  # the loop is gone or blocked
            call.cancelled = True
            return Answer.of(late())

    def follow(self, name: str, version: str, kind: str, body: bytes, deadline: float | None = None) -> Iterator[Part]:
        """Submit a request for continued texts from another thread, and give its parts as they come.

        Raises:
            RequestError: nothing was said yet, and nothing will be; later that is the last part.
        """
        self._not_in_loop()
        heard: queues.SimpleQueue[bytes | Answer] = queues.SimpleQueue()
        deadline = time.monotonic() + self._timeout if deadline is None else deadline
        call = Call(name, version, body, None, kind, deadline, heard.put, said=heard.put)

        def submit() -> None:
            try:
                self.submit(call)
            except RequestError as error:
                call.finished = True
                heard.put(Answer.of(error))

        try:
            self.loop.call_soon_threadsafe(submit)
            while True:
                found = heard.get(timeout=max(0.0, deadline - time.monotonic()) + 5)
                if isinstance(found, bytes):
                    yield Part(found, call.tokens)
                    continue
                if found.status != 200 and not call.spoken:
                    raise found.refusal
                rest = found.body if found.status == 200 else continuations.failure(found.body, kind)
                yield Part(rest, found.tokens, found.rows or 1)
                return
        except RuntimeError:  # the loop is closed
            raise _stopping() from None
        except queues.Empty:  # the loop is gone or blocked
            raise late() from None
        finally:
            call.cancelled = True

    def _accompany(self, call: Call, version: str) -> None:
        """Have another version answer the same call afterwards, and compare."""
        tell = call.done

        def done(answer: Answer) -> None:
            tell(answer)
            served = self.models.get(call.model, {}).get(version)
            if served is None or answer.status != 200 or 2 * len(served.queue) > self._queue_limit:
                return  # copies are the first to be left out when there is too much to do

            def compare(other: Answer) -> None:
                if other.status == 200 and answer.values is not None and other.values is not None:
                    self.traffic.disagreed(
                        call.model,
                        call.version,
                        version,
                        answer.classes,
                        other.classes,
                        served.manifest.labels,
                        answer.values,
                        other.values,
                    )

            deadline = time.monotonic() + self._timeout
            copy = Call(
                call.model, version, call.body, call.header_length, call.protocol, deadline, compare, shadow=True
            )
            with contextlib.suppress(RequestError):
                self.submit(copy)

        call.done = done

    def _finish(self, call: Call, answer: Answer) -> None:
        if call.finished:
            return
        call.finished = True
        if not answer.version:
            answer.version = call.version
        answer.tokens = call.tokens
        if call.first:
            answer.first = call.first - call.started
        try:
            call.done(answer)
            for observer in self.observers:
                observer(call, answer)
        except Exception as error:  # one connection's trouble, or an observer's, must not stop the others' answers
            # the message may quote what the client sent, so only the type and the place are logged
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("telling of an answer failed with %s at\n%s", type(error).__name__, place)

    def _expired(self, call: Call, now: float) -> bool:
        """Whether nobody waits for a call any more; tells its owner."""
        if call.finished:
            return True
        if call.cancelled:
            self._finish(call, Answer.of(RequestError("cancelled", "the client went away", 499)))
            return True
        if call.deadline <= now:
            self._finish(call, Answer.of(late()))
            return True
        return False

    # batches

    def _awaken(self, served: Served) -> None:
        """Look for a worker once everything that is ready in this turn of the loop has been queued."""
        self._waiting.setdefault(served.slot, served)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._begin)
        self._watch_time()

    def _begin(self) -> None:
        """Give what waits to the workers; a single short call is looked after, since to be woken takes longer."""
        self._scheduled = False
        self._dispatch()
        if self._alone is not None:
            worker, self._alone = self._alone, None
            worker.glance()

    def _dispatch(self) -> None:
        """Give what waits to the workers that are free."""
        self._alone = None
        self._seat()
        free = [worker for worker in self._workers if len(worker.batches) < self._ahead and worker.state == "ready"]
        now = time.monotonic()
        while free and self._waiting:
            given = False
            for served in list(self._waiting.values()):
                if not (served.queue or served.alone):
                    continue
                hosts = [worker for worker in free if served.slot in worker.slots]
                if not hosts:
                    self._want(served)
                    continue
                worker = min(hosts, key=lambda each: len(each.batches))
                calls = served.take(self._share(served, len(hosts)), now, self._expired)
                del self._waiting[served.slot]
                if served.waiting:
                    self._waiting[served.slot] = served  # at the end of the line
                if not calls:
                    self._retire_if_idle(served)
                    continue
                given = True
                self._give(worker, served, calls, now)
                if len(worker.batches) >= self._ahead:
                    free.remove(worker)
                    if not free:
                        return
            if not given:
                return

    def _share(self, served: Served, hosts: int) -> int:
        """How many of a version's calls one of so many free workers is given."""
        count = -(-len(served.queue) // hosts)
        if served.cost:
            count = max(count, int(WORTH_SHARING / served.cost))
            count = min(count, max(1, int(self._batch_seconds / served.cost)))
        return min(count, self.max_batch) or 1

    def _give(self, worker: Worker, served: Served, calls: list[Call], now: float) -> None:
        batch = Batch(next(self._numbers), served, calls, now)
        worker.batches.append(batch)
        served.outstanding += 1
        requests = [(call.body, call.header_length, call.protocol) for call in calls]
        alone = len(calls) == 1 and not self._waiting and sum(len(each.batches) for each in self._workers) == 1
        worker.send(wire.run_frame(batch.number, served.slot, alone, requests))
        self._alone = worker if alone and self._looks and served.cost < wire.GLANCE else None

    # texts that are written token by token, beside the batches

    def _seat(self) -> None:
        """Give requests for texts to workers that have places for them.

        A request over which a worker died gets one for itself until its first token, so that it takes no others with it.
        """
        now = time.monotonic()
        for served in [each for each in self._waiting.values() if each.prompts]:
            while served.prompts:
                hosts = [each for each in self._workers if each.state == "ready" and served.slot in each.slots]
                if not hosts:
                    self._want(served)
                    break
                call = served.prompts[0]
                fits = self._texts if not call.attempts else 1
                room = [each for each in hosts if len(each.texts) < fits and not each.cautious]
                if not room and not (call.cancelled or call.deadline <= now):
                    break
                served.prompts.popleft()
                served.queued -= len(call.body)
                if not self._expired(call, now):
                    self._entrust(min(room, key=lambda each: len(each.texts)), served, call, now)
            if not served.waiting:
                del self._waiting[served.slot]
                self._retire_if_idle(served)

    def _entrust(self, worker: Worker, served: Served, call: Call, now: float) -> None:
        number = next(self._numbers)
        if not worker.texts:
            worker.heard = now
        worker.texts[number] = (served, call)
        served.outstanding += 1
        call.begun = now
        worker.send(wire.frame(wire.Begin(number, served.slot, call.header_length, call.protocol), [call.body]))

    def _said(self, worker: Worker, message: wire.Said, bodies: memoryview) -> None:
        """A step of a version's texts came from a worker."""
        now = worker.heard = time.monotonic()
        start = rows = 0
        for number, status, size, header_length, tokens, ended, headers in message.parts:
            body = bytes(bodies[start : start + size])
            start += size
            if number not in worker.texts:  # it was dropped meanwhile
                continue
            served, call = worker.texts[number]
            rows += 1
            call.tokens = tokens
            if tokens and not call.first:
                call.first = now
            if status != 200 or ended:
                if status == 200:
                    served.span += (0.1 if served.span else 1.0) * (now - call.begun - served.span)
                seconds = now - call.begun
                answer = Answer(status, body, header_length, headers or {}, rows=ended, seconds=seconds)
                self._leave(worker, number, answer, drop=False)
            elif body and not call.finished:
                call.spoken = True
                assert call.said is not None
                call.said(body)
        if rows:
            for tell in self.batches:
                tell(served.name, served.version, rows)

    def _leave(self, worker: Worker, number: int, answer: Answer, *, drop: bool = True) -> None:
        """A text is finished, one way or another; `drop` tells its worker."""
        served, call = worker.texts.pop(number)
        served.outstanding -= 1
        if drop:
            worker.send(wire.frame(wire.Drop(number)))
        self._finish(call, answer)
        self._retire_if_idle(served)

    def received(self, worker: Worker, message: Any, bodies: memoryview) -> None:
        """A frame came from a worker."""
        if isinstance(message, wire.Ran):
            self._answered(worker, message, bodies)
        elif isinstance(message, wire.Said):
            self._said(worker, message, bodies)
        elif isinstance(message, wire.Loaded):
            self._loaded(worker, message)
        else:
            worker.state = "ready"
            if not self._started.done():
                self._started.set_result(None)
        if self._waiting and not self._scheduled:
            self._dispatch()

    def _answered(self, worker: Worker, message: wire.Ran, bodies: memoryview) -> None:
        batch = worker.batches.popleft()
        assert batch.number == message.batch
        served = batch.served
        served.outstanding -= 1
        now = time.monotonic()
        count = len(batch.calls)
        served.cost += (0.1 if served.cost else 1.0) * (message.seconds / count - served.cost)
        served.pace += (0.1 if served.pace else 1.0) * ((now - batch.began) / count - served.pace)
        if worker.batches:
            worker.batches[0].began = now
        elif self._waiting and not self._scheduled:
            self._dispatch()  # the worker computes on while the answers are written
        start = 0
        seconds = message.seconds
        version = served.version
        for call, result in zip(batch.calls, message.results, strict=True):
            status, size, header_length, rows, classes, values, headers = result
            end = start + size
            body = bytes(bodies[start:end])
            start = end
            answer = Answer(status, body, header_length, headers or {}, version, rows, classes, values, seconds)
            if self._cache is not None and status == 200 and not served.retired:
                self._cache.put(key_of(served, call), answer)
            self._finish(call, answer)
        rows = sum(result[3] for result in message.results)
        for tell in self.batches:
            tell(served.name, version, rows)
        if message.drift is not None and self.drift is not None and not served.retired:
            self.drift.add(served.name, version, message.drift)
        self._retire_if_idle(served)

    def _watch_time(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Answer what is late, and kill what hangs."""
        now = time.monotonic()
        for served in list(self._waiting.values()):
            for queue in (served.queue, served.alone, served.prompts):
                lapsed = [call for call in queue if call.cancelled or call.deadline <= now]
                if lapsed:
                    kept = [call for call in queue if not (call.cancelled or call.deadline <= now)]
                    queue.clear()
                    queue.extend(kept)
                    served.queued -= sum(len(call.body) for call in lapsed)
                    for call in lapsed:  # their owners may submit others at once
                        self._expired(call, now)
            if not served.waiting:
                del self._waiting[served.slot]
                self._retire_if_idle(served)
        for worker in self._workers:
            for batch in worker.batches:
                for call in batch.calls:
                    if call.deadline <= now and not call.finished:
                        self._finish(call, Answer.of(late()))
            for number, (_, call) in list(worker.texts.items()):
                if self._expired(call, now):
                    self._leave(worker, number, Answer.of(late()))
            if worker.batches and now - worker.batches[0].began > self._hang:
                log.error("worker %d has not answered for %g seconds and is killed", worker.process.pid, self._hang)
                worker.kill()
            elif worker.texts and now - worker.heard > self._hang:
                log.error("worker %d has written nothing for %g seconds and is killed", worker.process.pid, self._hang)
                worker.kill()
            elif any(now - since > self._load_limit for _, since, _ in worker.loading.values()):
                log.error(
                    "worker %d opens a bundle since %g seconds and is killed", worker.process.pid, self._load_limit
                )
                worker.kill()
            elif worker.state == "starting" and now - worker.born > START_LIMIT:
                log.error("worker %d has not started within %g seconds and is killed", worker.process.pid, START_LIMIT)
                worker.kill()
        busy = self._waiting or any(
            worker.batches or worker.texts or worker.loading or worker.state == "starting" for worker in self._workers
        )
        self._timer = self.loop.call_later(SWEEP, self._sweep) if busy and not self._stopped else None
        if self._waiting and not self._scheduled:  # for the places of texts that nobody waits for
            self._dispatch()

    # workers

    def _employ(self, number: int) -> None:
        """Start a worker in a place, with the models that the one before it had."""
        worker = Worker(self, number)
        if number < len(self._workers):
            former = self._workers[number]
            self._workers[number] = worker
            for served in sorted(former.slots.values(), key=lambda each: -each.used):
                if (
                    served.deaths < MOST_ATTEMPTS
                    and not served.stale
                    and (served.waiting or not served.retired)
                    and self._fits(worker, served)
                ):
                    self._load(worker, served)
        else:
            self._workers.append(worker)
        self._watch_time()

    def lost(self, worker: Worker) -> None:
        """A worker's socket closed: it died, or was told to end."""
        worker.kill()
        worker.state = "dead"
        if self._stopped:
            return
        running, *unstarted = worker.batches or [None]
        self._spawn(self._replace(worker, idle=running is None and not worker.texts))
        for served, _, _ in itertools.islice(worker.loading.values(), 1):  # bundles are opened one after another
            served.deaths += 1
        for _, _, future in worker.loading.values():
            if not future.done():
                future.set_result("the worker process died while it opened the bundle")
        worker.loading.clear()
        worker.batches.clear()
        for batch in reversed(unstarted):  # these were not being computed, so the death is not theirs
            assert batch is not None
            batch.served.outstanding -= 1
            batch.served.queue.extendleft(reversed(batch.calls))
            batch.served.queued += sum(len(call.body) for call in batch.calls)
            self._awaken(batch.served)
        for served, call in worker.texts.values():
            served.outstanding -= 1
            if call.spoken and not call.finished:
                self._finish(call, Answer.of(_broken()))
            elif self._again(served, call):
                served.prompts.append(call)
        worker.texts.clear()
        if running is None:
            return
        served = running.served
        served.outstanding -= 1
        for call in running.calls:
            if self._again(served, call):
                served.alone.append(call)

    def _again(self, served: Served, call: Call) -> bool:
        """Whether a call over which a worker died goes to another one; else its owner is told, if it still waits."""
        call.attempts += 1
        if call.finished:
            return False
        if call.attempts >= MOST_ATTEMPTS:
            self._deadly[key_of(served, call)] = None
            if len(self._deadly) > REMEMBERED:
                self._deadly.popitem(last=False)
            self._finish(call, Answer.of(_crashed(call)))
            return False
        served.queued += len(call.body)
        self._awaken(served)
        return True

    async def _replace(self, worker: Worker, *, idle: bool) -> None:
        """Start another worker in the place of one that died; later if it died young, and not over a request."""
        place = worker.number
        code = await self.loop.run_in_executor(None, worker.process.wait)
        log.error("worker %d ended with code %d; another one is started", worker.process.pid, code)
        young = idle and time.monotonic() - worker.born < YOUNG
        self._early_deaths[place] = self._early_deaths[place] + 1 if young else 0
        if self._early_deaths[place] > 2 and not self._started.done():
            self._started.set_exception(OSError(f"worker processes end at once, with code {code}; see the log"))
        self._restarts[place] += 1
        while True:
            if self._early_deaths[place] > 1:
                await asyncio.sleep(min(0.05 * 2 ** self._early_deaths[place], LONGEST_PAUSE))
            try:
                self._employ(place)
                return
            except OSError as error:
                self._early_deaths[place] += 1
                log.error("a worker process cannot be started: %s", error)

    # models in workers

    def _want(self, served: Served) -> None:
        """A version has calls but no free worker: see that one of them opens it, if that helps."""
        live = self._live()
        if any(served.slot in worker.loading for worker in live):
            return
        hosts = [worker for worker in live if served.slot in worker.slots]
        others = [worker for worker in live if worker not in hosts and worker.state == "ready"]
        if hosts:  # all are busy; another one may help, if it has room
            others = [each for each in others if not served.stale and not each.batches and self._fits(each, served)]
        if others:
            worker = min(others, key=lambda each: (each.held(), len(each.batches)))
            self._spawn(self._reload(worker, served))

    async def _reload(self, worker: Worker, served: Served) -> None:
        """Open a version again that was served before; if nobody can, its calls are refused."""
        reason = await self._load(worker, served)
        if not reason or any(served.slot in each.slots for each in self._live()):
            return
        if worker.state == "dead" and served.deaths < MOST_ATTEMPTS:
            self._awaken(served)
            return
        if self.models.get(served.name, {}).get(served.version) is served:
            self._take(served.name, served.version)
        reason = self._refuse(served.name, served.version, BundleError(reason))
        message = f"model {served.name!r} version {served.version!r} is refused: {reason}"
        served.retired = True
        self._waiting.pop(served.slot, None)
        stranded = [*served.alone, *served.queue, *served.prompts]
        served.alone.clear()
        served.queue.clear()
        served.prompts.clear()
        served.queued = 0
        for call in stranded:
            if not (call.chosen and self._redirect(call)):
                self._finish(call, Answer.of(RequestError("refused", message, 503)))

    def _redirect(self, call: Call) -> bool:
        """Submit a call, whose client named no version, to the version that answers now; False if there is none."""
        started = call.started
        try:
            call.version, _ = self.resolve(call.model)
            self.submit(call)
        except RequestError:
            return False
        call.started = started
        return True

    def _live(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.state != "dead"]

    def _fits(self, worker: Worker, served: Served) -> bool:
        return self.memory is None or worker.held() + served.memory <= self.memory / self.count

    def _load(self, worker: Worker, served: Served) -> asyncio.Future[str]:
        """Tell a worker to open a version; gives "" once it has, or the reason why not."""
        if served.slot in worker.loading:
            return worker.loading[served.slot][2]
        self._make_room(worker, served, served.memory)
        future: asyncio.Future[str] = self.loop.create_future()
        worker.loading[served.slot] = (served, time.monotonic(), future)
        worker.send(
            wire.frame(
                wire.Load(served.slot, str(served.bundle.folder.absolute()), self._options, served.bundle.digest)
            )
        )
        self._watch_time()
        return future

    def _make_room(self, worker: Worker, served: Served, memory: int) -> None:
        """Unload what was used longest ago until so many bytes fit; a worker still answers the batches it has of it."""
        others = [each for each in worker.slots.values() if each is not served]
        for other in sorted(others, key=lambda each: (each.waiting + each.outstanding > 0, each.used)):
            if self.memory is None or worker.held() + memory <= self.memory / self.count:
                break
            del worker.slots[other.slot]
            worker.send(wire.frame(wire.Unload(other.slot)))

    def _loaded(self, worker: Worker, message: wire.Loaded) -> None:
        served, _, future = worker.loading.pop(message.slot)
        served.stale = bool(message.reason)
        if not message.reason:
            worker.slots[served.slot] = served
            served.engine, served.memory = message.engine, max(served.memory, message.memory)
            served.cost = served.cost or message.seconds
            served.deaths = 0
            self._make_room(worker, served, 0)  # it may have turned out larger than its files
            self._retire_if_idle(served)
        if not future.done():
            future.set_result(message.reason)

    def _retire(self, served: Served) -> None:
        """Unload a version that is served no longer, when its calls are answered."""
        served.retired = True
        if self._cache is not None:
            self._cache.forget(served.slot)
        self._retire_if_idle(served)

    def _retire_if_idle(self, served: Served) -> None:
        if not served.retired or served.waiting or served.outstanding:
            return
        for worker in self._workers:
            if worker.slots.pop(served.slot, None) and worker.state != "dead":
                worker.send(wire.frame(wire.Unload(served.slot)))

    # the store

    def load(self, name: str, version: str | None = None) -> None:
        """Load a version from disk, again if it is served already; every version of the model if none is given.

        Waits, so not for the loop's own thread.

        Raises:
            RequestError: 404, the store has no such folder; 422, it was refused, and what was served before still is.
        """
        self._wait(lambda: self._load_now(name, version))

    def unload(self, name: str, version: str | None = None) -> None:
        """Stop serving a version, or the whole model, until it is loaded again; its calls under way are answered.

        Raises:
            RequestError: 404, it is not served.
        """
        self._wait(lambda: self._unload_now(name, version))

    def rescan(self) -> None:
        """Look at the folder once: load what is new or changed, drop what is gone."""
        self._wait(lambda: self._scan(settled=True))

    def _make(self, bundle: Bundle) -> Served:
        served = Served(
            self, bundle, next(self._numbers), precision=self._options["precision"], max_batch=self.max_batch
        )
        if self.memory is not None and served.memory > self.memory / self.count:
            raise BundleError(
                f"its files of {served.memory} bytes are larger than the {self.memory // self.count} bytes of memory that "
                "each worker has for models; raise the limit"
            )
        return served

    async def _prove(self, served: Served, lazy: bool) -> str:
        """Have every worker open a version, unless it may be lazy and finds no room; returns the reason if none can."""
        if lazy and not all(self._fits(worker, served) for worker in self._workers):
            return ""
        reason = ""
        while served.deaths < MOST_ATTEMPTS:
            live = self._live()
            if not live:
                await asyncio.sleep(SWEEP)
                continue
            worker = min(live, key=lambda each: len(each.loading))
            reason = await self._load(worker, served)
            if not reason:
                break
            if worker.state != "dead":
                return reason
        if reason:
            return reason
        for worker in self._workers:
            if worker.state != "dead" and served.slot not in worker.slots and self._fits(worker, served):
                await self._load(worker, served)
        return ""

    # the rest

    def state(self) -> dict[str, Any]:
        """Figures for metrics and the page: queues, workers, memory, cache. From any thread."""
        workers = [
            {
                "pid": worker.process.pid,
                "state": worker.state,
                "restarts": self._restarts[worker.number],
                "outstanding": sum(len(batch.calls) for batch in list(worker.batches)),
                "models": sorted(f"{served.name}/{served.version}" for served in list(worker.slots.values()))
                if worker.state != "dead"
                else [],
                "bytes": worker.held() if worker.state != "dead" else 0,
                "resident": resident(worker.process.pid),
            }
            for worker in list(self._workers)
        ]
        queues = {
            name: {
                version: {
                    "waiting": served.waiting,
                    "writing": sum(
                        each is served for worker in list(self._workers) for each, _ in list(worker.texts.values())
                    ),
                    "bytes": served.queued,
                    "seconds": served.cost,
                    "workers": sum(served.slot in worker.slots for worker in self._live()),
                }
                for version, served in versions.items()
            }
            for name, versions in self.models.items()
        }
        cache = self._cache
        return {
            "workers": workers,
            "queues": queues,
            "memory": {"limit": self.memory, "models": sum(worker["bytes"] for worker in workers)},
            "cache": None
            if cache is None
            else {"bytes": cache.size, "limit": cache.limit, "hits": cache.hits, "misses": cache.misses},
        }

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _not_in_loop(self) -> None:
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self.loop:
                raise TypeError("this call waits for the loop it is made from; make it from another thread")

    def _wait(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something in the loop from another thread."""
        self._not_in_loop()

        async def run() -> None:
            if self._stopped:
                raise _stopping()
            await self._spawn(work())

        try:
            asyncio.run_coroutine_threadsafe(run(), self.loop).result()
        except (concurrent.futures.CancelledError, RuntimeError):  # the loop stopped meanwhile, or before
            raise _stopping() from None


def _stopping() -> RequestError:
    return RequestError("stopping", "the server is stopping; try again", 503, {"Retry-After": "1"})


def _broken() -> RequestError:
    message = "the worker process that wrote this text died, and what it would have written is lost; send it again"
    return RequestError("inference_crashed", message, 500)


def _crashed(call: Call) -> RequestError:
    message = (
        f"{MOST_ATTEMPTS} worker processes died over this request to model {call.model!r}, so it is not tried again; the "
        "server's log tells of them"
    )
    return RequestError("inference_crashed", message, 500)
