"""The shell completes commands, options, settings and names."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def completed(line: str) -> set[str]:
    """Return the answer to a shell for a command line that ends in the word to complete."""
    with tempfile.NamedTemporaryFile() as answer:
        environment = {
            **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": answer.name, "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        program = "import sys; from videoattn.__main__ import main; sys.argv = ['videoattn']; main()"
        subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=120)
        return {word.strip() for word in Path(answer.name).read_text().split("\n") if word.strip()}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("videoattn pro", {"profile"}),
        pytest.param("videoattn train --c", {"--cfg"}, marks=SLOW),
        pytest.param("videoattn train --cfg Motion/joint_li", {"Motion/joint_lisa.yaml"}, marks=SLOW),
        ("videoattn train ATTENTION.TIME.NAME foc", {"focused_linear"}),
        pytest.param("videoattn train TRAIN.BATCH_SIZE 4 ATTENTION.TIME.VARI", {"ATTENTION.TIME.VARIANT"}, marks=SLOW),
        pytest.param("videoattn train TRAIN.PRECISION b", {"bf16"}, marks=SLOW),
        pytest.param("videoattn profile --model vjepa2_1_b", {"vjepa2_1_base"}, marks=SLOW),
        pytest.param("videoattn test --zoo motion_mvit_f", {"motion_mvit_fibonacci"}, marks=SLOW),
        pytest.param("videoattn train MODEL.MODEL_NAME mvit_v2_", {"mvit_v2_s", "mvit_v2_b", "mvit_v2_l"}, marks=SLOW),
    ],
)
def test_a_word_becomes_what_it_can(line: str, expected: set[str]) -> None:
    assert completed(line) == expected
