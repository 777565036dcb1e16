"""How the cores of a process are shared between arithmetic and reading: how many reader processes a run has where nobody said.

Readers never change a result. On a CPU every reader takes time from arithmetic, so a run reads in threads of its own unless cores are left
over. Beside an accelerator the cores are idle but for the one that drives it, and reader processes do not compete with that one for the
interpreter: one per two cores, because each decodes with two threads by default; at most eight, which decode more than one device has been
seen to use; none on fewer than four cores, where starting and switching between processes costs more than they bring.
"""

from __future__ import annotations

from dinodomain.loader import LoaderPlan

_MOST, _FEWEST_CORES = 8, 4


def choose_workers(loader: LoaderPlan, *, device: str, cores: int, arithmetic: int) -> tuple[int, str]:
    """Number of reader processes, and the reason.

    Args:
        loader: ``workers`` and ``threads`` as composed.
        device: Kind of the device, for example ``cpu``.
        cores: That this process may use.
        arithmetic: Threads of ``engine.threads``.
    """
    if loader.workers is not None:
        return loader.workers, "asked for"
    if loader.threads == 0:
        return 0, "loader.threads=0 reads where it computes"
    spare = cores - arithmetic if device == "cpu" else cores
    has = f"{cores} core{'s' if cores > 1 else ''} for this process"
    has += f", {arithmetic} of them for arithmetic (engine.threads)" if device == "cpu" else f" beside {device}"
    own = f"{loader.threads} threads of its own read"
    if spare < _FEWEST_CORES:
        return 0, f"{has}: {own}"
    workers = max(1, min(_MOST, spare // max(2, loader.threads)))
    return workers, f"{has}: reader processes of {loader.threads} threads each, {_MOST} at most"
