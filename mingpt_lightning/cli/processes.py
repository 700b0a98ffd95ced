"""The processes of one training: who started them, which one this is, and the folder that they share.

Lightning starts them itself (`trainer.devices=2`), or torchrun, srun or mpirun have. Free of torch until it's needed.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from mingpt_lightning.cli.config import program
from mingpt_lightning.errors import UserError

PARENT = "MINGPT_LIGHTNING_PARENT"
"""Where a process that Lightning's launcher starts finds the id of the one that started it, of rank 0 on its node."""

RENDEZVOUS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning's launcher leaves in the environment."""

AGENT: list[str] = []
"""Address and port of the store of torchrun's agent, where the workers use another one."""

WAIT = timedelta(minutes=10)
"""How long processes wait for one that starts late, to agree on the run's folder."""


class Place(NamedTuple):
    """This process among those of a training. launcher: what started them. local_size: how many are on this node."""

    launcher: str
    rank: int
    local_rank: int
    size: int
    local_size: int


def number(name: str, default: int) -> int:
    """A number in the environment. Raises UserError for something else."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise UserError(f"{name}={value} is not a number", "environment", "Correct it, or unset it.")
    return int(value)


def placed() -> Place | None:
    """The place of this process among several that something else has started; None where it is alone, so far.

    Raises UserError where the environment is incomplete: two processes would each train by themselves in one folder.
    """
    get = os.environ.get
    if number("WORLD_SIZE", 1) > 1 and "LOCAL_RANK" in os.environ:
        size, local = number("WORLD_SIZE", 1), number("LOCAL_RANK", 0)
        local_size = number("LOCAL_WORLD_SIZE", size)
        rank = number("RANK", number("NODE_RANK", number("GROUP_RANK", 0)) * local_size + local)
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "Lightning" if PARENT in os.environ else None
        return Place(launcher or "the environment", rank, local, size, local_size)
    if number("WORLD_SIZE", 1) > 1 and {"RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        what = f"WORLD_SIZE={get('WORLD_SIZE')} is set and LOCAL_RANK isn't"
        raise UserError(what, "environment", "Start the processes by torchrun, which sets both, or unset WORLD_SIZE.")
    tasks = number("SLURM_NTASKS", 1)
    if tasks > 1 and get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        if not {"SLURM_STEP_ID", "SLURM_STEPID"} & os.environ.keys() and get("SLURM_PROCID", "0") == "0":
            what = f"this SLURM job has {tasks} tasks, and this process was not started by srun"
            raise UserError(what, "environment", f"Type: srun {program()} {' '.join(sys.argv[1:])}".rstrip())
        local_size = tasks // max(1, number("SLURM_NNODES", number("SLURM_JOB_NUM_NODES", 1)))
        return Place("srun", number("SLURM_PROCID", 0), number("SLURM_LOCALID", 0), tasks, local_size)
    for size_of, rank_of, local_of, local_size_of in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if (size := number(size_of, 1)) > 1 and tasks == 1:
            if find_spec("mpi4py") is None:
                what = f"mpirun has started {size} processes, which find each other through mpi4py"
                raise UserError(what, "environment", "Install mpi4py, or start them by torchrun.")
            rank = number(rank_of, 0)
            return Place("mpirun", rank, number(local_of, rank), size, number(local_size_of, size))
    return None


def is_first_process() -> bool:
    """Whether this is the process that writes files and messages: rank 0."""
    place = placed()
    return number("NODE_RANK", 0) == 0 if place is None else place.rank == 0


def check_sweep(arguments: list[str]) -> None:
    """Raise UserError for a sweep whose every process would launch all of its jobs."""
    place = placed()
    if {"-m", "--multirun"} & {*arguments} and place is not None:
        what = f"{place.launcher} has started {place.size} processes, each of which would run the whole sweep"
        raise UserError(what, "command line", "Start the sweep once, with trainer.devices=N for each of its jobs.")


def of_rank() -> list[str]:
    """The override that keeps Hydra from making a folder for a process that will share one."""
    place = placed()
    return ["hydra.run.dir=."] if place is not None and place.launcher != "Lightning" and place.rank > 0 else []


def share_folder(cfg: DictConfig) -> None:
    """Give every process the run folder of rank 0, however much later it was started.

    Restarted by torchrun, rank 0 finds the folder that it had before.
    """
    place, hydra = placed(), HydraConfig.get()
    if place is not None and place.launcher == "srun":  # or Lightning refuses --ntasks without --ntasks-per-node
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(place.local_size))
    if place is None or place.launcher == "Lightning" or hydra.mode == RunMode.MULTIRUN:  # they are told
        return
    folder = exchange(place, os.path.abspath(hydra.runtime.output_dir))
    if folder != os.path.abspath(hydra.runtime.output_dir):
        node = HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        with read_write(node):
            node.run.dir = node.runtime.output_dir = folder
        with read_write(cfg):
            cfg.run_dir = os.path.relpath(folder) if Path(folder).is_relative_to(Path.cwd()) else folder


def exchange(place: Place, mine: str) -> str:
    """What rank 0 says. Raises UserError where it can't be reached."""
    from torch.distributed import TCPStore

    key = "mingpt_lightning/run_folder"
    if place.launcher == "mpirun":
        from mpi4py import MPI  # type: ignore[import-not-found]

        return str(MPI.COMM_WORLD.bcast(mine))
    if place.launcher == "srun":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        address, port = SLURMEnvironment().main_address, SLURMEnvironment().main_port
    else:
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), number("MASTER_PORT", 12910)
    theirs = uses_agents_store()
    try:
        store = TCPStore(address, port, is_master=place.rank == 0 and not theirs, wait_for_workers=False, timeout=WAIT)
        if theirs:
            folder = store.compare_set(key, "", mine).decode() if place.rank == 0 else store.get(key).decode()
            if place.size == place.local_size:
                use_own_store(place, store)
            return folder
        if place.rank == 0:
            store.set(key, mine)
            store.wait([f"{key}/{rank}" for rank in range(1, place.size)])
            return mine
        folder = store.get(key).decode()
        store.set(f"{key}/{place.rank}", "known")
        return folder
    except RuntimeError as error:  # torch's DistStoreError and DistNetworkError
        what = f"process {place.rank} of {place.size} found no other at {address}:{port}"
        raise UserError(what, "environment", "Start all of them, and check MASTER_ADDR and MASTER_PORT.") from error


def uses_agents_store() -> bool:
    """Whether torchrun's agent has a store that its workers use."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def use_own_store(place: Place, store: Any) -> None:
    """Have the workers of a node find each other through a store of rank 0, at a port that the agent's store says.

    In the agent's own, where torch looks by default, restarted workers find the addresses of those that died (torch
    2.13), and now and then wait for these in vain.
    """
    key = f"mingpt_lightning/port/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    if place.rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            store.set(key, str(free.getsockname()[1]))
    AGENT[:] = [os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.get(key).decode()}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def fit_launcher(settings: DictConfig) -> None:
    """Give a Trainer's settings the processes that were started: `devices` and `num_nodes`, where they are left open.

    Raises UserError where they contradict what was started.
    """
    place = placed()
    OmegaConf.set_struct(settings, False)
    started = {"devices": 1, "num_nodes": 1}
    if place is not None and place.launcher != "Lightning":
        started = {"devices": place.local_size, "num_nodes": max(1, place.size // place.local_size)}
    for name, number in started.items():
        given = settings.get(name)
        if given is None or (place is not None and given in ("auto", -1)):
            settings[name] = number
        elif place is not None and place.launcher != "Lightning":
            count = len(given) if not isinstance(given, str | int) else int(given) if f"{given}".isdigit() else given
            if count != number:
                unit = "on each node" if name == "devices" else "nodes"
                what = f"trainer.{name}={given}, and {place.launcher} has started {number} {unit}"
                raise UserError(what, f"trainer.{name}", "Leave it out: it follows from what was started.")


def accumulation(global_batch_size: int, batch_size: int, processes: int) -> int:
    """How many batches each process accumulates for an optimizer step of `global_batch_size` sequences in all.

    Raises UserError, with the nearest sizes that do, where they don't divide it.
    """
    together = batch_size * processes
    if global_batch_size % together == 0:
        return global_batch_size // together
    below, above = global_batch_size // together * together, -(-global_batch_size // together) * together
    what = f"{global_batch_size} sequences are not a multiple of batch_size={batch_size}"
    what += f" in each of {processes} processes" * (processes > 1)
    near = f"{below} or {above}" if below else f"{above}"
    fix = f"Use {near}"
    if fitting := [size for size in range(batch_size, 0, -1) if global_batch_size % (size * processes) == 0][:1]:
        fix += f", or datamodule.batch_size={fitting[0]}"
    raise UserError(what, "datamodule.global_batch_size", f"{fix}.")


@contextlib.contextmanager
def one_job() -> Iterator[None]:
    """Within this, Lightning's launcher may start the other processes of this one job, and leaves nothing behind.

    It rebuilds their command from sys.argv, which within a sweep is the whole sweep's; and what it puts into the
    environment would make the next training of this process wait for them.
    """
    if placed() is not None:
        yield
        return
    import torch

    import __main__

    argv, spec, first = sys.argv, __main__.__spec__, sys.argv[0]
    before = {name: os.environ[name] for name in RENDEZVOUS if name in os.environ}
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        hydra, node = HydraConfig.get(), HydraConfig.instance().cfg.hydra  # type: ignore[union-attr]
        if spec is not None and spec.name.partition(".")[0] in ("joblib", "submitit"):  # a launcher's worker
            first, __main__.__spec__ = str(Path(__file__).parent.parent / "__main__.py"), None
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        places = [item for item in hydra.overrides.hydra if item.lstrip("+").startswith("hydra.searchpath=")]
        options = ["--config-name", str(hydra.job.config_name), *(["--config-dir", folders[0]] if folders else [])]
        sys.argv = [first, *options, *hydra.overrides.task, *places, "hydra.mode=RUN"]
        with read_write(node):
            node.run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        ended_well = sys.exc_info()[0] is None  # otherwise others may be gone, and this would wait for them
        if ended_well and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        sys.argv, __main__.__spec__ = argv, spec
        for name in RENDEZVOUS:
            os.environ.pop(name, None)
        os.environ.update(before)


def say_once(text: str) -> bool:
    """Whether this process is to print an error: the first that has it, where torchrun's store can tell."""
    place: Any = None
    with contextlib.suppress(UserError):
        place = placed()
    if place is None or not (AGENT or uses_agents_store()):
        return True
    from torch.distributed import TCPStore

    with contextlib.suppress(Exception):  # the store is gone
        wait = timedelta(seconds=5)
        address, port = AGENT or (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        store = TCPStore(address, int(port), is_master=False, timeout=wait)
        key = f"mingpt_lightning/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{text}"
        return store.compare_set(key, "", str(place.rank)).decode() == str(place.rank)
    return True
