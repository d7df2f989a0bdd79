"""Child processes that do not import the caller's script."""

from __future__ import annotations

import threading
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_SCRIPT = ("init_main_from_name", "init_main_from_path")
_starting = threading.Lock()


class BareSpawnProcess(SpawnProcess):
    """A spawned process in which ``__main__`` is empty.

    A plain one first runs the caller's script again under another name. A script that starts its
    run at the top level, without ``if __name__ == "__main__":``, would start that run a second time
    there, which kills the child. Octavo sends what ``__main__`` defines by value (cloudpickle), so
    the child needs nothing of the script. loky does the same.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        # There is no setting for it: what a child is told to prepare is asked for by this one
        # function.
        with _starting:
            whole = spawn.get_preparation_data
            starter = threading.get_ident()

            def without_script(name: str) -> dict[str, Any]:
                told = whole(name)
                if threading.get_ident() == starter:
                    for entry in _SCRIPT:
                        told.pop(entry, None)
                return told

            spawn.get_preparation_data = without_script
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                spawn.get_preparation_data = whole


class BareSpawnContext(SpawnContext):
    """The ``spawn`` start method with :class:`BareSpawnProcess`."""

    Process = BareSpawnProcess
