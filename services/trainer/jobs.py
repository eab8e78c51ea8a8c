"""Jobs, requests and adapters in a database: SQLite in a file, or whatever an async SQLAlchemy URL names. Knows no training."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Row, Select, String, Table, Text, delete, event, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.trainer.domain import Adapter, Job, JobState
from services.trainer.records import ADAPTER, DATASET, INPUTS, PROGRESS, SPEC

_META = MetaData()
# SQLite numbers rows by itself only in a column of exactly this type.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_JOBS = Table(
    "jobs",
    _META,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("work", String(64), nullable=False, index=True),
    Column("adapter_name", String(128), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("progress", Text, nullable=False),
    Column("dataset", Text),
    Column("error", Text, nullable=False),
    Column("adapter", String(128), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("start_us", BigInteger),
    Column("end_us", BigInteger),
)
_REQUESTS = Table("requests", _META, Column("request_id", String(128), primary_key=True), Column("job_id", String(64), nullable=False))
_ADAPTERS = Table(
    "adapters",
    _META,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("base", Text, nullable=False),
    Column("record", Text, nullable=False),
    Index("adapters_base", "base"),
)
_ALIVE = _JOBS.c.state.not_in((JobState.FAILED, JobState.CANCELLED))


class SqlJobStore:
    """The store; open it first."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)

    async def open(self) -> None:
        """Creates what is missing. Raises sqlalchemy.exc.SQLAlchemyError when the database cannot be reached."""
        async with self._engine.begin() as connection:
            await connection.run_sync(_META.create_all)

    async def close(self) -> None:
        """Ends all connections."""
        await self._engine.dispose()

    async def add(self, job: Job) -> None:
        """Stores a new job."""
        await self._write(insert(_JOBS).values(**_to_row(job)))

    async def update(self, job: Job) -> None:
        """Stores a job anew."""
        await self._write(update(_JOBS).where(_JOBS.c.id == job.id).values(**_to_row(job)))

    async def get(self, id_: str) -> Job | None:
        """The job, or None."""
        return await self._first(select(_JOBS).where(_JOBS.c.id == id_))

    async def remember_request(self, request_id: str, job_id: str) -> None:
        """From now on `by_request` gives that job."""
        await self._write(insert(_REQUESTS).values(request_id=request_id, job_id=job_id))

    async def by_request(self, request_id: str) -> Job | None:
        """The job that answered a request."""
        joined = _JOBS.join(_REQUESTS, _REQUESTS.c.job_id == _JOBS.c.id)
        return await self._first(select(_JOBS).select_from(joined).where(_REQUESTS.c.request_id == request_id))

    async def alive_with_work(self, work: str) -> Job | None:
        """The newest such job that neither failed nor was cancelled."""
        return await self._first(select(_JOBS).where(_JOBS.c.work == work, _ALIVE).order_by(_JOBS.c.number.desc()))

    async def alive_with_adapter(self, name: str) -> Job | None:
        """The newest such job that neither failed nor was cancelled."""
        return await self._first(select(_JOBS).where(_JOBS.c.adapter_name == name, _ALIVE).order_by(_JOBS.c.number.desc()))

    async def in_state(self, state: JobState) -> Sequence[Job]:
        """Oldest first."""
        return [_to_job(row) for row in await self._all(select(_JOBS).where(_JOBS.c.state == state).order_by(_JOBS.c.number))]

    async def page(self, state: JobState | None, before: int | None, size: int) -> Sequence[tuple[int, Job]]:
        """Newest first, each with its number; only numbers below `before`."""
        query = select(_JOBS).order_by(_JOBS.c.number.desc()).limit(size)
        if state is not None:
            query = query.where(_JOBS.c.state == state)
        if before is not None:
            query = query.where(_JOBS.c.number < before)
        return [(row.number, _to_job(row)) for row in await self._all(query)]

    async def put_adapter(self, adapter: Adapter) -> None:
        """Stores an adapter in place of an earlier one of its name."""
        record = ADAPTER.dump_json(adapter).decode()
        async with self._engine.begin() as connection:
            await connection.execute(delete(_ADAPTERS).where(_ADAPTERS.c.name == adapter.name))
            await connection.execute(insert(_ADAPTERS).values(name=adapter.name, base=adapter.base, record=record))

    async def get_adapter(self, name: str) -> Adapter | None:
        """The adapter, or None."""
        rows = await self._all(select(_ADAPTERS).where(_ADAPTERS.c.name == name))
        return ADAPTER.validate_json(rows[0].record) if rows else None

    async def adapters_page(self, base: str, before: int | None, size: int) -> Sequence[tuple[int, Adapter]]:
        """Newest first, each with its number; only numbers below `before`; an empty base means all."""
        query = select(_ADAPTERS).order_by(_ADAPTERS.c.number.desc()).limit(size)
        if base:
            query = query.where(_ADAPTERS.c.base == base)
        if before is not None:
            query = query.where(_ADAPTERS.c.number < before)
        return [(row.number, ADAPTER.validate_json(row.record)) for row in await self._all(query)]

    async def _write(self, statement: Any) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(statement)

    async def _all(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return rows

    async def _first(self, query: Select[Any]) -> Job | None:
        rows = await self._all(query.limit(1))
        return _to_job(rows[0]) if rows else None


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # Write-ahead logging: a reader never waits for a writer, and kill -9 loses no committed row.
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _to_us(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1e6)


def _to_time(us: int | None) -> datetime | None:
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC)


def _to_row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "work": job.work,
        "adapter_name": job.spec.adapter_name,
        "state": job.state,
        "spec": SPEC.dump_json(job.spec).decode(),
        "inputs": INPUTS.dump_json(job.inputs).decode(),
        "progress": PROGRESS.dump_json(job.progress).decode(),
        "dataset": None if job.dataset is None else DATASET.dump_json(job.dataset).decode(),
        "error": job.error,
        "adapter": job.adapter,
        "create_us": _to_us(job.create_time),
        "start_us": _to_us(job.start_time),
        "end_us": _to_us(job.end_time),
    }


def _to_job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        spec=SPEC.validate_json(row.spec),
        inputs=INPUTS.validate_json(row.inputs),
        work=row.work,
        create_time=datetime.fromtimestamp(row.create_us / 1e6, UTC),
        state=JobState(row.state),
        progress=PROGRESS.validate_json(row.progress),
        dataset=None if row.dataset is None else DATASET.validate_json(row.dataset),
        error=row.error,
        adapter=row.adapter,
        start_time=_to_time(row.start_us),
        end_time=_to_time(row.end_us),
    )
