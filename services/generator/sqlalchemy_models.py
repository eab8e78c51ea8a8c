"""Adapters that shall be served, aliases and their history in a database, by SQLAlchemy. Knows no engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import DateTime, String, UniqueConstraint, delete, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.common.errors import Aborted, Unavailable
from services.generator.domain import AliasChange, Placed


class _Table(DeclarativeBase):
    pass


class _Change(_Table):
    """One change of an alias. Two changes with the same number cannot both be kept: that is what makes setting an alias atomic."""

    __tablename__ = "alias_changes"
    __table_args__ = (UniqueConstraint("alias", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(String(200), index=True)
    number: Mapped[int]
    target: Mapped[str] = mapped_column(String(200))
    time: Mapped[datetime] = mapped_column(DateTime)
    """In UTC; SQLite keeps no zone."""


class _Adapter(_Table):
    __tablename__ = "adapters"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    uri: Mapped[str]
    base: Mapped[str] = mapped_column(String(200))
    weights_sha256: Mapped[str] = mapped_column(String(64))
    config_sha256: Mapped[str] = mapped_column(String(64))


class SqlAlchemyModels:
    """What is to be served, in a file of its own."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        """Opens the database, and makes it where there is none."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._engine = create_async_engine(f"sqlite+aiosqlite:///{self._data_dir / 'models.sqlite'}")
        async with self._engine.begin() as connection:
            await connection.run_sync(_Table.metadata.create_all)

    async def current(self) -> Mapping[str, AliasChange]:
        """Every alias as it now is."""
        async with self._session() as session:
            rows = await session.scalars(select(_Change).order_by(_Change.number))
            return {row.alias: _change(row) for row in rows}

    async def history(self, alias: str) -> tuple[AliasChange, ...]:
        """What an alias has stood for, newest first."""
        async with self._session() as session:
            rows = await session.scalars(select(_Change).where(_Change.alias == alias).order_by(_Change.number.desc()))
            return tuple(map(_change, rows))

    async def set(self, alias: str, target: str, expected: str | None) -> tuple[AliasChange, ...]:
        """Adds a change; the history, newest first. Raises Aborted ALIAS_CHANGED when the target now is not `expected` ("": none)."""
        async with self._session() as session:
            rows = list(await session.scalars(select(_Change).where(_Change.alias == alias).order_by(_Change.number.desc())))
            now = rows[0].target if rows else ""
            if expected is not None and expected != now:
                raise _changed(alias, now)
            number = rows[0].number + 1 if rows else 1
            added = _Change(alias=alias, number=number, target=target, time=datetime.now(UTC).replace(tzinfo=None))
            session.add(added)
            try:
                await session.commit()
            except IntegrityError as error:
                raise _changed(alias, "another one") from error
            await session.refresh(added)
            return tuple(_change(row) for row in (added, *rows))

    async def adapters(self) -> Sequence[Placed]:
        """All adapters that were loaded and not unloaded, in the order of loading."""
        async with self._session() as session:
            rows = await session.scalars(select(_Adapter).order_by(_Adapter.id))
            return [Placed(row.name, row.uri, row.base, row.weights_sha256, row.config_sha256) for row in rows]

    async def place(self, adapter: Placed) -> None:
        """Keeps an adapter; one of the same name is replaced."""
        async with self._session() as session:
            await session.execute(delete(_Adapter).where(_Adapter.name == adapter.name))
            session.add(_Adapter(**asdict(adapter)))
            await session.commit()

    async def displace(self, name: str) -> None:
        """Forgets an adapter."""
        async with self._session() as session:
            await session.execute(delete(_Adapter).where(_Adapter.name == name))
            await session.commit()

    async def close(self) -> None:
        """Closes the database."""
        if self._engine is not None:
            await self._engine.dispose()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncSession]:
        if self._engine is None:
            raise Unavailable("STORE_UNAVAILABLE", "the service is starting: try again soon", retry_after_s=1)
        try:
            async with async_sessionmaker(self._engine, expire_on_commit=False)() as session:
                yield session
        except OperationalError as error:  # locked, or the disk is full
            message = "what is to be served cannot be read or kept now: {why}"
            raise Unavailable("STORE_UNAVAILABLE", message, why=str(error.orig), retry_after_s=1) from error


def _changed(alias: str, now: str) -> Aborted:
    return Aborted("ALIAS_CHANGED", "alias {alias} stands for {now} by now: read it and decide again", alias=alias, now=now or "nothing")


def _change(row: _Change) -> AliasChange:
    return AliasChange(row.target, row.time.replace(tzinfo=UTC))
