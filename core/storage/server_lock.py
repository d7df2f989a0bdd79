"""One run on one study of a database server, as the lock file says for SQLite."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from octavo.core.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

ALIVE_SECONDS = 20.0
"""How often the lock's connection is used: routers and servers end those that idle for minutes."""

GHOST_TRIES = (
    30  # tenths of a second that a server may take to end a session that is lost to us
)


class ServerLock:
    """An advisory lock of PostgreSQL, held by a connection of its own outside of any transaction.

    An open transaction would hold VACUUM back for the whole run, and servers end those that idle.
    The connection is used every :data:`ALIVE_SECONDS`. One that was lost all the same is made again
    and the lock is taken again; where another run was faster, :meth:`check` says so.

    Args:
        engine: Of the database.
        name: The study's.

    Raises:
        StoreError: If another run holds the study.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._guard = threading.Lock()
        self._connection: Connection | None = None
        self._session: tuple[Any, ...] = (0, None)
        self._taken_over = False
        self._ended = threading.Event()
        if not self._acquire():
            raise StoreError(
                f"study {name!r} is in use by another run; wait for it, or give another name "
                "(study=) or store (storage=)"
            )
        self._thread = threading.Thread(
            target=self._stay_alive, name="octavo-lock", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is held, and take it again if its connection was lost.

        Raises:
            StoreError: If another run took the study meanwhile.
        """
        with self._guard:
            self._hold()
            taken_over = self._taken_over
        if taken_over:
            raise StoreError(
                f"study {self._name!r}: the connection that held its lock was lost, and another "
                "run took the study meanwhile. What was recorded before is kept; wait for that "
                "run, "
                "then resume this one"
            )

    def close(self) -> None:
        """Release the lock; a lost connection is no error here."""
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        self._ended.set()
        self._thread.join()
        with self._guard:
            if self._connection is not None:
                # Said and not left to the end of the session, which servers notice a little later.
                with contextlib.suppress(SQLAlchemyError):
                    self._connection.execute(text("SELECT pg_advisory_unlock_all()"))
            self._drop()

    def _stay_alive(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        while not self._ended.wait(ALIVE_SECONDS):
            # Where the server cannot be reached now, the next check of the run itself will tell.
            with self._guard, contextlib.suppress(SQLAlchemyError):
                self._hold()

    def _hold(self) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                return
            except DBAPIError:
                self._drop()
        self._taken_over = not (self._acquire() or self._acquire_from_own_ghost())

    def _acquire_from_own_ghost(self) -> bool:
        """Take the lock from the session that was lost, where the server still believes in it."""
        from sqlalchemy import text

        pid, started = self._session
        query = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid = :pid AND backend_start = :started"
        )
        with self._engine.connect() as connection:
            ended = connection.execute(query, {"pid": pid, "started": started}).scalar()
        for _ in range(GHOST_TRIES if ended else 0):
            time.sleep(0.1)
            if self._acquire():
                return True
        return False

    def _acquire(self) -> bool:
        from sqlalchemy import text

        connection = self._engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        )
        query = text("SELECT pg_try_advisory_lock(hashtext(:name))")
        if not connection.execute(query, {"name": f"octavo:{self._name}"}).scalar():
            connection.close()
            return False
        own = text(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        self._session = tuple(connection.execute(own).one())
        self._connection = connection
        return True

    def _drop(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        if self._connection is not None:
            # Not handed back to the pool, which would keep the session, and with it the lock, open.
            with contextlib.suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None
