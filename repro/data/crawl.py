"""Fetching many small files from many strangers' servers: politely, in parallel, and never one twice.

What is kept, and where, is in `repro.data.crawl_store`. One thread decides what is asked for and writes the
journal; the others each carry out one request at a time. A fault of an address is an outcome, never an
error. Errors are what keeps the crawl from going on at all: no network, a full disk. They end it, and
everything is kept.
"""

import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from repro.data.ask import Answer, ask
from repro.data.crawl_queue import CrawlQueue, Manners, Task
from repro.data.crawl_store import Journal, Outcome, journal_of, picture, pictures_on_disk
from repro.data.download import Notify, Progress, explain_write_failure, one_at_a_time
from repro.data.public_web import BadAddressError, Line, RequestLimits, connect, host_of
from repro.errors import FetchError

TICK = 0.5
"""Seconds after which overdue requests are looked for."""
GOODBYE = 5.0
"""Seconds that the threads get to end when the crawl is interrupted."""


@dataclass(frozen=True)
class Crawled:
    """What there is after a crawl."""

    on_disk: frozenset[str]
    """The sha256 of each picture."""
    outcomes: Mapping[str, Outcome]
    """By address; one that was not needed, as its picture is there, may have none."""


def crawl(
    wanted: Mapping[str, frozenset[str]],
    folder: Path,
    *,
    manners: Manners | None = None,
    limits: RequestLimits | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Crawled:
    """Ask for each address in `wanted`, keep what has one of the sha256 wanted of it, and note the rest.

    An address that is settled is not asked for again, unless `retry_failed` and it brought nothing.
    `progress` counts addresses.

    Raises FetchError where there is no network or the folder cannot be written, SetupError where this
    machine is at its limits. What was fetched and noted stays, and the same call goes on from there.
    """
    with one_at_a_time(folder / ".crawl.lock", "downloading the same pictures", notify):
        partial = folder / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # a killed process's; its lock is ours now
            partial.mkdir(parents=True)
        except OSError as error:
            raise FetchError(explain_write_failure(partial, error)) from error
        journal = Journal(journal_of(folder))
        try:
            run = _Crawl(
                wanted, folder, journal, manners or Manners(), limits or RequestLimits(), retry_failed
            )
            run.progress = progress
            try:
                run.run(partial)
            except KeyboardInterrupt:
                if notify is not None:
                    so_far = f"{run.done:,} of {run.total:,} addresses are settled"
                    notify(f"stopped: {so_far}, and the same command goes on from there")
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            journal.close()
        return Crawled(frozenset(run.on_disk), journal.outcomes)


class _Crawl:
    """The state of one crawl; all of it belongs to the thread that made it."""

    def __init__(
        self,
        wanted: Mapping[str, frozenset[str]],
        folder: Path,
        journal: Journal,
        manners: Manners,
        limits: RequestLimits,
        retry_failed: bool,
    ) -> None:
        self.wanted = wanted
        self.folder = folder
        self.journal = journal
        self.manners = manners
        self.limits = limits
        self.progress: Progress | None = None
        self.on_disk = pictures_on_disk(folder, journal.outcomes, frozenset().union(*wanted.values()))
        self.queue = CrawlQueue(manners, self._plan(retry_failed))
        self.total = len(wanted)
        self.done = self.total - self.queue.waiting
        # Outcomes that say nothing until something else shows that there is a network.
        self.held: list[tuple[str, Outcome]] = []
        self.unreachable: dict[str, str] = {}

    def _plan(self, retry_failed: bool) -> list[Task]:
        tasks = []
        for address, pictures in self.wanted.items():
            outcome = self.journal.outcomes.get(address)
            if outcome and outcome.cause == "private-address" and self.limits.allow_private_addresses:
                outcome = None
            if pictures <= self.on_disk or (outcome and not outcome.found and not retry_failed):
                continue
            if outcome and outcome.found and outcome.sha256 in self.on_disk:
                continue  # one of several pictures that the lists expect there
            if (host := host_of(address)) is not None:
                tasks.append(Task(address, address, host))
            elif outcome is None:
                self.journal.add(address, Outcome("not-http", "not an address of http or https"))
        return tasks

    def run(self, partial: Path) -> None:
        """Settle every task."""
        todo: SimpleQueue[tuple[Task, Line] | None] = SimpleQueue()
        done: SimpleQueue[tuple[Task, Line, Answer | Exception]] = SimpleQueue()
        threads = [
            threading.Thread(target=self._work, args=(todo, done, partial / str(number)), daemon=True)
            for number in range(min(self.manners.connections, self.queue.waiting))
        ]
        lines: set[Line] = set()
        self._show()
        try:
            for thread in threads:
                thread.start()
            while self.queue.waiting or self.queue.active:
                if self._looks_cut_off() and not self.queue.active:
                    self._check_network()
                wait = None
                if not self._looks_cut_off():
                    self._begin(todo, lines)
                    wait = self.queue.wait(time.monotonic())
                self._cut_overdue(lines)
                pause = TICK if wait is None else min(TICK, wait + 0.001)
                if not self.queue.active:  # nothing can come
                    time.sleep(pause if self.queue.waiting else 0)
                    continue
                with suppress(Empty):
                    task, line, answer = done.get(timeout=pause)
                    lines.discard(line)
                    self._handle(task, answer)
            if self.held:
                self._check_network()
        finally:
            for line in lines:
                line.cut()
            for _ in threads:
                todo.put(None)
            until = time.monotonic() + GOODBYE
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, until - time.monotonic()))
            self._keep_last(done)

    def _work(
        self,
        todo: "SimpleQueue[tuple[Task, Line] | None]",
        done: "SimpleQueue[tuple[Task, Line, Answer | Exception]]",
        part: Path,
    ) -> None:
        """One thread: a request at a time, until there is None."""
        while (job := todo.get()) is not None:
            task, line = job
            answer: Answer | Exception
            try:
                answer = ask(task.url, self.wanted[task.address], part, self.limits, line)
                if answer.kind == "found":
                    self._place(part, answer.sha256)
            except Exception as error:  # noqa: BLE001 - the deciding thread raises it
                answer = error
            done.put((task, line, answer))

    def _place(self, part: Path, sha256: str) -> None:
        target = picture(self.folder, sha256)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        except OSError as error:
            raise FetchError(explain_write_failure(target, error)) from error

    def _begin(self, todo: "SimpleQueue[tuple[Task, Line] | None]", lines: set[Line]) -> None:
        while (task := self.queue.take(time.monotonic())) is not None:
            if self.wanted[task.address] <= self.on_disk:  # another address had it
                self.queue.settle(task, connected=True)
                self._count()
                continue
            line = Line(self.limits)
            lines.add(line)
            todo.put((task, line))

    def _cut_overdue(self, lines: set[Line]) -> None:
        now = time.monotonic()
        for line in lines:
            if now > line.deadline:
                line.cut()

    def _handle(self, task: Task, answer: Answer | Exception) -> None:
        """What follows from an answer: an outcome, another attempt, another address, a host given up."""
        if isinstance(answer, Exception):
            raise answer
        if answer.contact:
            self._settle_held()
        match answer.kind:
            case "found":
                self.queue.settle(task, connected=True)
                self.on_disk.add(answer.sha256)
                self._note(task, _outcome(answer, task), contact=True)
            case "elsewhere":
                self._redirect(task, answer)
            case "never":
                self.queue.settle(task, connected=answer.contact and answer.cause != "no-connection")
                self._note(task, _outcome(answer, task), answer.contact)
            case "again":
                if not self.queue.again(task, time.monotonic(), answer.pause, answer.contact):
                    self._note(task, _outcome(answer, task), answer.contact)
        if self.queue.is_silent(task.host):
            self._give_up(task.host, answer)
        if not answer.contact:
            self.unreachable[task.host] = answer.detail

    def _redirect(self, task: Task, answer: Answer) -> None:
        host = host_of(answer.location)
        if host is None or task.hops >= self.manners.redirects:
            self.queue.settle(task, connected=True)
            outcome = Outcome("redirect", f"redirected more than {self.manners.redirects} times")
            self._note(task, outcome, contact=True)
            return
        self.queue.move(task, answer.location, host)
        if self.queue.is_silent(host):
            self._give_up(host, answer)

    def _give_up(self, host: str, answer: Answer) -> None:
        cause = answer.cause if answer.kind != "elsewhere" else "no-connection"
        for task in self.queue.give_up(host):
            self._note(task, Outcome(cause, f"its host was given up: {answer.detail}"), answer.contact)

    def _note(self, task: Task, outcome: Outcome, contact: bool) -> None:
        if contact:
            self.journal.add(task.address, outcome)
        else:
            self.held.append((task.address, outcome))
        self._count()

    def _count(self) -> None:
        self.done += 1
        self._show()

    def _show(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, "files")

    def _settle_held(self) -> None:
        """There is a network: what could not be reached is gone."""
        for address, outcome in self.held:
            self.journal.add(address, outcome)
        self.held.clear()
        self.unreachable.clear()

    def _looks_cut_off(self) -> bool:
        """Whether so many hosts in a row could not be reached that it may be this machine's network."""
        return len(self.unreachable) >= max(1, min(self.manners.unreachable_hosts, self.queue.hosts))

    def _check_network(self) -> None:
        if not self._reaches_a_known_host():
            host, reason = next(reversed(self.unreachable.items()))
            raise FetchError(
                f"{len(self.unreachable):,} hosts in a row cannot be reached (the last: {host}: {reason}): "
                "is there a network? Nothing was noted as dead for it, and the same command goes on from here"
            )
        self._settle_held()

    def _reaches_a_known_host(self) -> bool:
        """Whether a connection to a host that answered before still comes about; three are tried."""
        tried: set[str] = set()
        for address, outcome in reversed(self.journal.outcomes.items()):
            host = host_of(address)
            if (
                outcome.cause in ("not-http", "no-such-host", "no-connection")
                or host is None
                or host in tried
            ):
                continue
            if len(tried) == 3:
                return False
            tried.add(host)
            name, port = urlsplit(f"//{host}").hostname or "", int(host.rpartition(":")[2])
            with suppress(OSError, BadAddressError, UnicodeError):
                connect((name, port), 5.0, self.limits.allow_private_addresses).close()
                return True
        return False

    def _keep_last(self, done: "SimpleQueue[tuple[Task, Line, Answer | Exception]]") -> None:
        """Note what came in while the crawl was being ended, so that it is not asked for again."""
        with suppress(Empty):
            while True:
                task, line, answer = done.get_nowait()
                if isinstance(answer, Exception) or line.was_cut or not answer.contact:
                    continue
                if answer.kind in ("found", "never"):
                    self.journal.add(task.address, _outcome(answer, task))


def _outcome(answer: Answer, task: Task) -> Outcome:
    detail = answer.detail
    if answer.kind == "again":
        detail += f" ({task.attempts} attempts)"
    if task.url != task.address:
        detail = f"{detail} at {task.url}".strip()
    return Outcome(answer.cause, detail, answer.sha256, answer.size)
