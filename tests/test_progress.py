"""Fetching a base is seen: by lines of the log where nobody watches a bar."""

import logging

from radvision_utils import progress


def test_the_bytes_of_a_download_are_logged_now_and_then_and_its_files_are_not(monkeypatch, caplog):
    moments = iter(range(100, 1000, 4))  # a bar that is shown anew every 4 seconds
    monkeypatch.setattr(progress, "_is_watched", lambda: False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    bars = progress.download_bar()
    with caplog.at_level(logging.INFO), bars(["a", "b"], desc="Fetching 2 files") as files:
        # As huggingface_hub 1.3 makes it, which is silent where progress bars are switched off.
        fetched = bars(total=0, unit="B", unit_scale=True, disable=True, name="huggingface_hub.snapshot_download")
        fetched.total += 4 << 30
        for _file in files:
            for _ in range(2):
                fetched.update(1 << 30)
                fetched.refresh()
    lines = [record.message for record in caplog.records]
    assert 2 <= len(lines) < 8
    assert all(line.endswith("of 4.0 GiB fetched") for line in lines)
