"""What is said about a job that hangs, from what its ranks said last."""

import threading

import pytest

from moepp.train.hang import Beat, innermost, who_hangs


def beat(phase: str, step: int, idle: float = 30.0, where: str = "a.py:1 f", waits: bool = True) -> Beat:
    return Beat(3, phase, step, idle, where, waits)


WAITING = beat("forward/backward", 12, 29.0)


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        (
            [WAITING, beat("fetching samples", 12, 30.4, "data/loader.py:88 read"), WAITING],
            "rank 1 has not moved for 30 s: fetching samples, step 12, in data/loader.py:88 read; "
            "the others wait in forward/backward, step 12",
        ),
        (
            [beat("saving", 12), beat("fetching samples", 13), beat("saving", 12), beat("forward/backward", 13)],
            "ranks 0, 2 have not moved for 30 s: saving, step 12, in a.py:1 f; "
            "the others wait in fetching samples, step 13 or forward/backward, step 13",
        ),
        (
            [WAITING, None],
            "rank 1 does not answer (stopped, killed, or the machine is gone); "
            "the others wait in forward/backward, step 12",
        ),
        (
            [None, WAITING, None, beat("ended", 12)],
            "ranks 0, 2 do not answer (stopped, killed, or the machine is gone); "
            "the others wait in ended, step 12 or forward/backward, step 12",
        ),
        (
            [WAITING, beat("forward/backward", 12, where="b.py:2 g", waits=False)],
            "rank 1 has not moved for 30 s: forward/backward, step 12, in b.py:2 g; "
            "the others wait in forward/backward, step 12",
        ),
        (
            [WAITING, beat("forward/backward", 12, where="b.py:2 g"), WAITING],
            "no rank has moved for 29 s: all are at forward/backward, step 12: "
            "ranks 0, 2 in a.py:1 f, rank 1 in b.py:2 g",
        ),
    ],
)
def test_who_hangs(beats: list[Beat | None], said: str) -> None:
    assert who_hangs(dict(enumerate(beats))) == said


def test_a_beat_survives_the_store() -> None:
    assert Beat.from_json(WAITING.to_json().encode()) == WAITING


def test_the_line_that_a_thread_is_in_is_found() -> None:
    where, waits = innermost(threading.current_thread())
    assert where.startswith("train/hang.py:")
    assert not waits
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert "threading.py:" in innermost(thread)[0]
    finally:
        go.set()
        thread.join()
    assert innermost(thread) == ("", False)
