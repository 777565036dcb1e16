from __future__ import annotations

import logging
import math

from dinodomain.engine.log import MetricsFile, format_row, log_to, read_rows, scalars, truncate_rows


def write(path, rows):
    metrics = MetricsFile(path)
    for row in rows:
        metrics.write(row)
    metrics.sync()
    metrics.close()


def test_rows_come_back_with_every_bit_of_their_floats(tmp_path):
    rows = [{"step": step, "loss": math.pi / (step + 3)} for step in range(4)]
    write(tmp_path / "m", rows)
    assert read_rows(tmp_path / "m") == rows


def test_a_torn_last_row_is_dropped(tmp_path):
    write(tmp_path / "m", [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 2.0}])
    data = (tmp_path / "m").read_bytes()
    for cut in (1, 5, 12):
        (tmp_path / "m").write_bytes(data[:-cut])
        assert [row["step"] for row in read_rows(tmp_path / "m")] == [0]


def test_rows_at_or_beyond_the_resumed_step_go(tmp_path):
    write(tmp_path / "m", [{"step": step} for step in range(6)])
    with open(tmp_path / "m", "ab") as handle:
        handle.write(b'{"step": 6, "lo')
    kept = truncate_rows(tmp_path / "m", 4)
    assert [row["step"] for row in kept] == [0, 1, 2, 3]
    write(tmp_path / "m", [{"step": 4}])
    assert [row["step"] for row in read_rows(tmp_path / "m")] == [0, 1, 2, 3, 4]


def test_a_missing_metrics_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "none") == []


def test_nan_is_written_as_null_so_the_file_stays_json(tmp_path):
    write(tmp_path / "m", [{"step": 0, "loss": math.nan}])
    assert read_rows(tmp_path / "m") == [{"step": 0, "loss": None}]


def test_the_log_file_gets_package_messages_only_while_open(tmp_path):
    log = logging.getLogger("dinodomain.engine")
    with log_to(tmp_path / "log.txt"):
        log.info("inside")
    log.info("outside")
    assert "inside" in (tmp_path / "log.txt").read_text()
    assert "outside" not in (tmp_path / "log.txt").read_text()


def test_scalars_and_lines_take_numbers_only():
    row = {"step": 3, "loss": 1.5, "bucket": "uint8", "gone": None}
    assert scalars(row) == {"loss": 1.5}
    assert format_row(row, ["loss", "gone", "bucket"]) == "step 3: loss 1.5"
