"""What was measured to choose precision, threads and the layout of weights is in the first lines."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mingpt_lightning import device, probe
from mingpt_lightning.device import NARROW

Cli = Callable[..., tuple[int, str, str]]
WIDE = (f"model.n_embd={NARROW}", "model.n_layer=1", "trainer.max_steps=1", "trainer.limit_val_batches=0")
FIGURES = {
    "threads": {"2": 104.0, "1": 70.0},
    "dtypes": {"float32": 219.0, "bfloat16": 149.0},
    "layouts": {"float32": 100.0, "float32 packed": 150.0},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the probe find FIGURES on a CPU of two threads that knows bfloat16; the questions that are asked."""
    questions: list[str] = []

    def measure(question: str, work: float, calls: Mapping[str, Callable[[], object]]) -> probe.Rates:
        questions.append(question.split()[0])
        return FIGURES[questions[-1]]

    monkeypatch.setattr(probe, "known", {})
    monkeypatch.setattr(probe, "read", dict)
    monkeypatch.setattr(probe, "measure", measure)
    monkeypatch.setattr(device, "THREADS", 2)
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return questions


def line(name: str, err: str) -> str:
    """What the first lines say under a name."""
    return next((text.removeprefix(name).strip() for text in err.splitlines() if text.startswith(f"{name} ")), "")


def test_the_first_lines_say_what_was_measured_and_what_memory_bfloat16_would_save(cli: Cli, asked: list[str]) -> None:
    code, _, err = cli(*WIDE, "datamodule.batch_size=400", "run_dir=run")
    assert code == 0, err
    assert line("device", err) == "cpu, 32-true, 2 threads"
    saved = 2 * (13 * 400 * 6 * NARROW - 791_040) / 1e6
    expected = "GFLOP/s at width 256: 104 on 2 threads, 70 on 1 thread, 219 in float32, 149 in bfloat16, "
    assert line("probe", err) == f"{expected}trainer.precision=bf16-mixed would need about {saved:.1f} MB less memory"
    assert asked == ["threads", "dtypes"]
    _, _, err = cli("task=generate", "checkpoint=run", "prompt=1+1")
    assert line("probe", err) == "speed of float32 1, float32 packed 1.5: weights in float32 packed"


def test_a_fixed_value_measures_nothing(cli: Cli, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, _, err = cli(*WIDE, "trainer.precision=32-true", "run_dir=run")
    assert (code, asked, line("probe", err)) == (0, [], ""), err
    code, _, err = cli("task=generate", "checkpoint=run", "prompt=1+1", "dtype=float32")
    assert (code, asked, line("probe", err)) == (0, [], ""), err
    code, _, err = cli(*WIDE, "model.n_embd=64", "run_dir=narrow")
    assert (code, asked, line("probe", err)) == (0, [], ""), err


def test_a_resumed_run_says_that_another_precision_is_fast_here(
    cli: Cli, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*WIDE, "run_dir=run")[0] == 0
    monkeypatch.setattr(probe, "known", {})
    monkeypatch.setitem(FIGURES, "dtypes", {"float32": 150.0, "bfloat16": 404.0})
    code, _, err = cli("run_dir=run", "resume=auto")
    assert code == 0, err
    assert "precision: 32-true in the checkpoint, bf16-mixed now; the last bits may differ" in err
    assert Path("run/summary.json").exists()
