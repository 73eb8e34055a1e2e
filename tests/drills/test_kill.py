"""kill -9 at random moments, resumed each time, beside a run that nobody disturbed."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from drills.runs import ROOT, Drill, check_usable, kill_at_random

ZERO2 = {"deepspeed": ROOT / "deepspeed_configs/zero2.json"}


@pytest.mark.parametrize(
    ("ranks", "options", "kills"),
    [
        pytest.param(1, {}, 3, marks=pytest.mark.slow),
        pytest.param(2, ZERO2, 2, marks=pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")),
        pytest.param(1, {"dataloader_num_workers": 1}, 10, marks=pytest.mark.slow),
        pytest.param(
            2, ZERO2, 10, marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("c++"), reason="no C++")]
        ),
    ],
)
def test_a_killed_run_ends_like_one_that_nobody_disturbed(
    ranks: int, options: dict, kills: int, tiny: Path, data: Path, tmp_path: Path
) -> None:
    rng = random.Random(kills)
    options = {**options, "max_steps": 20 * kills}
    whole = Drill(tiny, data, tmp_path / "whole", options, ranks)
    whole.finish()
    killed = Drill(tiny, data, tmp_path / "killed", options, ranks)
    ids = set()
    for _ in range(kills):
        assert kill_at_random(killed, rng, longest=1.0)
        check_usable(killed.out)
        if (killed.out / "run.json").is_file():
            ids.add(killed.run_id())
    killed.finish()
    assert ids == {killed.run_id()}
    tolerance = 0 if ranks == 1 else 1e-6
    losses, expected = killed.losses(), whole.losses()
    assert losses.keys() == expected.keys() == set(range(3, 20 * kills + 1, 3))
    assert max(abs(losses[step] - expected[step]) for step in expected) <= tolerance
    adapter, reference = killed.adapter(), whole.adapter()
    assert all(torch.allclose(adapter[name], reference[name], rtol=0, atol=tolerance) for name in reference)
