"""What is fastest on a CPU is measured once, and kept; a fixed value measures nothing."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from mingpt_lightning import device, inference, probe
from mingpt_lightning.device import NARROW, fast_dtype, set_threads
from mingpt_lightning.inference import PackedLinear, optimize_for_inference
from mingpt_lightning.probe import Rates, fastest, rates
from tests.common import MakeGPT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, of which the process knows nothing either."""
    monkeypatch.setattr(probe, "known", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path / "mingpt_lightning" / "probe.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has the probe find given figures; returns the questions that are then asked."""

    def find(**figures: Rates) -> list[str]:
        asked: list[str] = []

        def measure(question: str, work: float, calls: Mapping[str, Callable[[], object]]) -> Rates:
            asked.append(question.split()[0])
            return figures[asked[-1]]

        monkeypatch.setattr(probe, "measure", measure)
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)
        return asked

    return find


CALLS = {"slow": partial(time.sleep, 0.05), "fast": partial(time.sleep, 0.001)}


def test_it_measures_once_and_another_process_reads_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rates("naps", 100, lambda: CALLS)
    assert 100 / 0.05 >= found["slow"] > 0
    assert fastest(found) == "fast"
    assert json.loads(cache.read_text())[probe.machine()] == {"naps": found}
    monkeypatch.setattr(probe, "known", {})  # as in another process
    assert rates("naps", 100, dict) == found


def test_other_questions_and_machines_stay(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(json.dumps({"another CPU": {"naps": {"a": 1}}, probe.machine(): {"old": {"b": 2.0}}}))
    found = rates("naps", 1, lambda: CALLS)
    assert json.loads(cache.read_text()) == {
        "another CPU": {"naps": {"a": 1}},
        probe.machine(): {"old": {"b": 2.0}, "naps": found},
    }


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", "\0\xff", '{"%s": 3}', '{"%s": {"naps": {}}}', '{"%s": {"naps": {"a": "x"}}}']
)
def test_a_damaged_file_is_written_anew(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content.replace("%s", probe.machine()), encoding="latin-1")
    found = rates("naps", 1, lambda: CALLS)
    assert json.loads(cache.read_text())[probe.machine()]["naps"] == found


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest(rates("naps", 1, lambda: CALLS)) == "fast"


def test_of_two_processes_that_measure_the_first_one_is_believed(cache: Path) -> None:
    def calls() -> dict[str, Callable[[], object]]:
        cache.parent.mkdir()
        cache.write_text(json.dumps({probe.machine(): {"naps": {"slow": 3.0, "fast": 2.0}}}))
        return CALLS

    assert rates("naps", 1, calls) == {"slow": 3.0, "fast": 2.0}


def test_a_simpler_choice_needs_no_more_than_to_be_about_as_fast() -> None:
    assert fastest({"plain": 100, "packed": 105}) == "plain"
    assert fastest({"plain": 100, "packed": 115, "bfloat16": 120}) == "packed"
    assert fastest({"plain": 100, "packed": 90, "bfloat16": 300}) == "bfloat16"


@pytest.mark.parametrize(
    ("figures", "dtype"),
    [
        ({"float32": 219.0, "bfloat16": 149.0}, torch.float32),  # an Intel Xeon with avx512_bf16, without AMX
        ({"float32": 150.0, "bfloat16": 404.0}, torch.bfloat16),  # an AMD EPYC with avx512_bf16
    ],
)
def test_the_dtype_is_the_faster_one(
    measured: Callable[..., list[str]], figures: Rates, dtype: torch.dtype, make_gpt: MakeGPT
) -> None:
    asked = measured(dtypes=figures)
    assert fast_dtype(CPU, NARROW) == dtype
    assert fast_dtype(CPU, NARROW - 1) == fast_dtype(torch.device("mps"), NARROW) == torch.float32
    assert asked == ["dtypes"]


@pytest.mark.parametrize(
    ("figures", "threads"),
    [
        ({"64": 4.0, "32": 9.0, "16": 20.0, "8": 37.0, "4": 76.0, "2": 130.0, "1": 70.0}, 4),  # may use 2 of 64 cores
        ({"64": 1300.0, "32": 1500.0, "16": 1000.0, "8": 500.0, "4": 270.0, "2": 130.0, "1": 70.0}, 64),
    ],
)
def test_fewer_threads_are_for_cores_that_one_may_not_use(
    measured: Callable[..., list[str]], figures: Rates, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(threads=figures)
    monkeypatch.setattr(device, "THREADS", 64)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    set_threads(CPU, 768)
    assert (chosen[-1], asked) == (threads, ["threads"])
    set_threads(CUDA, 768)
    monkeypatch.setattr(device, "THREADS", 1)
    set_threads(CPU, 768)
    set_threads(CPU, 64)
    monkeypatch.setattr(device, "THREADS", 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    set_threads(CPU, 64)
    assert (chosen[-4:], asked) == ([64, 1, 1, 64], ["threads"])


def test_measuring_threads_leaves_their_number_and_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "THREADS", 3)
    state = torch.get_rng_state()
    figures = device.thread_rates(CPU, 128)
    assert [*figures] == ["3", "2", "1"]
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not inference.can_pack(torch.float32), reason="this torch packs no matrices")
@pytest.mark.parametrize("packed", [False, True])
def test_matrices_are_packed_where_that_is_faster(
    measured: Callable[..., list[str]], make_gpt: MakeGPT, packed: bool
) -> None:
    asked = measured(layouts={"float32": 100.0, "float32 packed": 150.0 if packed else 70.0})
    for dtype in ("auto", "float32"):
        gpt = optimize_for_inference(make_gpt(n_embd=NARROW), dtype)  # type: ignore[arg-type]
        assert isinstance(gpt.head, PackedLinear) == (packed or dtype == "float32")
    optimize_for_inference(make_gpt())  # narrow
    assert asked == ["layouts"]


@pytest.mark.skipif(not inference.can_pack(torch.float32), reason="this torch packs no matrices")
def test_measuring_layouts_leaves_the_random_numbers() -> None:
    state = torch.get_rng_state()
    assert {"float32", "float32 packed"} <= inference.layout_rates(CPU, NARROW).keys()
    assert torch.equal(torch.get_rng_state(), state)
