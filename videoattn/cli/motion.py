"""Render Motion: small encoded video clips whose class is a motion that no single frame shows.

Examples:
    videoattn motion datasets/motion
    videoattn motion datasets/motion_large --num-train 20000 --num-val 2000 --size 160x128 --seed 1
    videoattn motion datasets/motion_long --variant long --num-frames 96

The folder then holds videos/, train.csv, val.csv, test.csv (val again), class_names.txt, the same clips listed as
Something-Something-V2 lists its own (something-something-v2-{labels,train,validation,test}.json), and motion.json with
the settings. A clip depends on the seed, its split and its number alone. datasets/README.md says what the clips show.
"""

import os
from collections.abc import Sequence
from pathlib import Path

# Workers are processes already; numpy's linear algebra would start threads in each. It reads this when imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from videoattn.cli.programs import make_parser  # noqa: E402
from videoattn.data.motion.render import CLASSES, Settings, make_motion  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("motion", __doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the data set")
    parser.add_argument("--variant", choices=CLASSES, default="short", help="default: %(default)s")
    parser.add_argument("--num-train", metavar="N", type=int, default=6400, help="training clips; default: %(default)s")
    parser.add_argument("--num-val", metavar="N", type=int, default=800, help="validation clips; default: %(default)s")
    parser.add_argument("--size", metavar="WxH", default="64x64", help="WIDTHxHEIGHT in pixels; default: %(default)s")
    parser.add_argument("--num-frames", metavar="N", type=int, help="frames of a clip; default: 18, long: 96")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default: %(default)s")
    cores = os.cpu_count() or 1
    parser.add_argument("--num-workers", metavar="N", type=int, default=cores, help="processes; default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set made with other settings")
    args = parser.parse_args(argv)
    try:
        width, height = (int(side) for side in args.size.lower().split("x"))
    except ValueError:
        raise ValueError(f"--size expects WIDTHxHEIGHT such as 64x64, got {args.size!r}") from None
    num_frames = args.num_frames or (18 if args.variant == "short" else 96)
    settings = Settings(args.variant, args.num_train, args.num_val, width, height, num_frames, args.seed)
    make_motion(args.folder, settings, num_workers=args.num_workers, overwrite=args.overwrite)
