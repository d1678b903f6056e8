"""A run that is killed at random moments ends with the weights of one that was left alone, bit for bit.

Its videos lie in shards, and each time it goes on with another number of workers.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from videoattn.engine.checkpoint.files import list_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[2]
NUM_KILLS = 10
SETTINGS = """
_BASE_: {base}
TRAIN: {{BATCH_SIZE: 4, CHECKPOINT_STEPS: 1, EVAL_PERIOD: 2}}
TIMESFORMER: {{DEPTH: 2, EMBED_DIM: 24, NUM_HEADS: 2, DROP_PATH_RATE: 0.2}}
AUG: {{ENABLE: True, NUM_SAMPLE: 2}}
MIXUP: {{ENABLE: True}}
EMA: {{ENABLED: True, DECAY: 0.9}}
SOLVER: {{MAX_EPOCH: 2}}
DATA: {{PATH_TO_DATA_DIR: {data}, CLASS_NAMES: "", SHUFFLE_BLOCK: 8}}
DEVICE: cpu
"""


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    videos, data = tmp_path / "motion", tmp_path / "shards"
    run("datasets/make_motion.py", videos, "--num-train", 192, "--num-val", 8, "--num-frames", 16).wait(120)
    for split in ("train", "val"):
        listed = videos / f"{split}.csv"
        run("tools/prepare_data.py", "pack", "--list", listed, "--out", data, "--shard-size", "60KB").wait(60)
    assert len(list(data.glob("train-*.tar"))) > 8
    settings = tmp_path / "settings.yaml"
    settings.write_text(SETTINGS.format(base=ROOT / "configs/Motion/divided_fibonacci_time.yaml", data=data))
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def train(folder, num_workers=2):
        pairs = ["OUTPUT_DIR", folder, "DATA_LOADER.NUM_WORKERS", num_workers]
        return run("tools/train_net.py", "--cfg", settings, *pairs)

    assert train(whole).wait(300) == 0
    rng, kills, progress = random.Random(0), 0, set()
    for number in range(60):  # a run may end before it is killed
        process = train(killed, number % 3)
        checkpoint = newest(killed)
        while process.poll() is None and newest(killed) == checkpoint:
            time.sleep(0.01)  # until it has trained a step
        time.sleep(rng.uniform(0, 0.3))
        if kills == NUM_KILLS or process.poll() is not None:
            assert process.wait(300) == 0
            break
        process.kill()
        process.wait()
        kills += 1
        progress.add(newest(killed))
    assert kills == NUM_KILLS and len(progress) > NUM_KILLS // 2
    ends = [load_checkpoint(list_checkpoints(folder / "checkpoints")[-1].path) for folder in (whole, killed)]
    for key in ("model_state", "ema_state"):
        assert ends[0][key].keys() == ends[1][key].keys()
        assert all(torch.equal(tensor, ends[1][key][name]) for name, tensor in ends[0][key].items())
    assert not list((killed / "checkpoints").glob("*_step_*"))


def run(program, *arguments):
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest(folder):
    checkpoints = list_checkpoints(folder / "checkpoints")
    return (checkpoints[-1].epoch, checkpoints[-1].step) if checkpoints else None
