"""What surrounds the measuring: the order of the rows, going on after a stop, the table; and its inputs."""

import argparse
import json
from pathlib import Path

import bench
import pytest
import torch
from benchmark import setting
from benchmark.meters import Stopwatch, uncovered
from benchmark.rows import ROWS


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(
        rows=["diffusers", "ours"], order="abba", config="tiny", width=64, height=64, no_reference=True,
        scratch=tmp_path, json=tmp_path / "bench.json", minutes=1e9, host=Path("/host"), original=None,
    )  # fmt: skip


def run(ms, **more):
    return {"steps_ms": [ms] * 3, "load_s": 1.0, "process_s": 2.0, "rss_peak_gib": 1.0, **more}


def test_rows_run_forth_and_back(options):
    assert bench.plan(options) == [("diffusers", 1), ("ours", 1), ("ours", 2), ("diffusers", 2)]
    options.order, options.no_reference = "once", False
    assert [name for name, _ in bench.plan(options)] == ["reference", "diffusers", "ours"]


def test_a_stopped_bench_goes_on_and_tries_again_what_failed(options, monkeypatch, capsys):
    options.json.write_text(
        json.dumps({"runs": [{"row": "diffusers", "pass": 1, **run(10.0)}, {"row": "ours", "pass": 1, "failed": "x"}]})
    )
    started = []
    monkeypatch.setattr(bench, "parse_arguments", lambda: options)
    monkeypatch.setattr(bench, "run_row", lambda name, _: started.append(name) or run(5.0))
    bench.main()
    assert started == ["ours", "ours", "diffusers"]
    assert len(json.loads(options.json.read_text())["runs"]) == 4
    assert "| ours, exact bf16 | 5.0 | 2.000 |" in capsys.readouterr().out


def test_the_table_gives_ratios_errors_and_reasons():
    lines = bench.table(
        [
            {"row": "diffusers", "pass": 1, **run(30.0, relative_l2=[0.01])},
            {"row": "ours", "pass": 1, **run(20.0, relative_l2=[0.005], first_ms=50.0)},
            {"row": "ours-8g", "pass": 1, "skipped": "VRAM budgets need CUDA"},
        ]
    ).splitlines()
    assert "| ours, exact bf16 | 20.0 | 1.500 | 0.0 / 0.0 | 1.0 | 5.00e-03 | load 1.0 s, first 50 ms |" in lines
    assert lines[-1].endswith("| VRAM budgets need CUDA |")


def test_weights_and_inputs_are_the_same_in_every_process():
    config = setting.CONFIGS["tiny"]
    first, again = (dict(setting.random_weights(config, torch.device("cpu"), torch.float32)) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(torch.equal(weight, weight.to(torch.bfloat16).float()) for weight in first.values())
    given = setting.module_inputs(config, setting.new_film(config, 64, 64), 12)
    assert given["x"].shape == (1, 16, 9, 8, 8)
    assert [given[f"history_{rate}x"].shape[2] for rate in (1, 2, 4)] == [2, 2, 16]
    assert float(given["guidance"]) == 9984


def test_every_row_names_what_it_is():
    assert len({row.what for row in ROWS.values()}) == len(ROWS)
    assert {row.kind for row in ROWS.values()} == {"ours", "diffusers", "original"}


def test_the_clock_counts_every_call():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        watch.time(lambda: torch.zeros(1))
    assert len(watch.milliseconds()) == 3
    assert all(ms >= 0 for ms in watch.milliseconds())


def test_time_that_no_span_covers():
    assert uncovered([(10.0, 12.0), (0.0, 4.0), (1.0, 2.0), (3.0, 7.0)]) == 3
    assert uncovered([]) == 0
